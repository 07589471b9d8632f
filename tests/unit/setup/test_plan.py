from pathlib import Path

import pytest

from tests.fakes.check_scene import WEB, CheckedHost
from zvmsnap.check.facts import gather
from zvmsnap.common.errors import GuestNotFound, SetupRefused
from zvmsnap.config import settings
from zvmsnap.setup.plan import Change, plan
from zvmsnap.zfs import zfs


@pytest.fixture
def created(bare: CheckedHost, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What zfs was told."""
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(zfs, "command", lambda *words: calls.append(words))
    # The default place of the vault, which this machine may have.
    monkeypatch.setattr(settings.Config, "vault_dir", bare.root / "var/lib/zvmsnap/vault")
    return calls


def test_a_bare_host(bare: CheckedHost, created: list[tuple[str, ...]]) -> None:
    bare.units("UnitFileState=enabled\nExecStart", "UnitFileState=disabled\nExecStart")
    facts = gather(bare.root)
    made = plan(facts)
    assert made.guests == ["web"]
    assert [change.path for change in made.changes] == [bare.sanoid_conf, bare.config_file]
    shown = "\n".join(made.lines())
    assert f"+[{WEB}]" in shown and "+keep_memory = 24" in shown
    assert "zfs create -o compression=zstd -o recordsize=16K -o mountpoint=" in shown
    done = list(made.execute(facts))
    assert created == [("create", *made.vault)]
    assert made.vault[-1] == "cheap/zvmsnap-vault"
    assert len(done) == 4
    assert "enable zvmsnap-recover.service" in (bare.root / "systemctl.log").read_text()
    assert f"[{WEB}]" in bare.sanoid_conf.read_text()
    assert settings.load_settings(None, {}).keep_memory == 24
    # sanoid may run as another user, and others read it.
    assert bare.sanoid_conf.stat().st_mode & 0o777 == 0o644


def test_a_second_time_nothing_is_missing(
    bare: CheckedHost, created: list[tuple[str, ...]]
) -> None:
    facts = gather(bare.root)
    list(plan(facts).execute(facts))
    (bare.root / "var/lib/zvmsnap/vault").mkdir(parents=True)
    (bare.root / "var/lib/zvmsnap/vault/web").mkdir()
    assert plan(gather(bare.root)).is_empty


def test_the_pool_of_a_vault_is_not_one_that_is_snapshotted(
    bare: CheckedHost, created: list[tuple[str, ...]]
) -> None:
    bare.sanoid_conf.write_text("[cheap]\nrecursive = yes\n")
    assert plan(gather(bare.root)).vault[-1] == "tank/zvmsnap-vault"
    bare.sanoid_conf.write_text("[cheap]\nrecursive = yes\n[tank]\nrecursive = zfs\n")
    assert plan(gather(bare.root)).vault == []


def test_a_vault_that_is_configured_stays(
    bare: CheckedHost, created: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare.config_file.write_text('vault = "/somewhere"\nkeep_memory = "7d"\n')
    made = plan(gather(bare.root))
    assert (made.vault, [change.path for change in made.changes]) == ([], [bare.sanoid_conf])


def test_a_file_is_copied_before_it_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "sanoid.conf"
    path.write_text("old\n")
    path.chmod(0o640)
    said = Change(path, "old\n", "old\nnew\n").write()
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("old\nnew\n", 0o640)
    (copy,) = tmp_path.glob("sanoid.conf.before-zvmsnap-*")
    assert copy.read_text() == "old\n"
    assert said == f"wrote {path}; the old one is {copy}"
    Change(path, "old\nnew\n", "newest\n").write()
    assert len(list(tmp_path.glob("sanoid.conf.before-zvmsnap-*"))) == 2


def test_a_file_that_changed_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "sanoid.conf"
    path.write_text("mine\n")
    with pytest.raises(SetupRefused, match="changed meanwhile"):
        Change(path, "old\n", "new\n").write()
    assert [each.name for each in tmp_path.iterdir()] == ["sanoid.conf"]


def test_a_link_leads_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    real = tmp_path / "repository/sanoid.conf"
    real.write_text("old\n")
    link = tmp_path / "sanoid.conf"
    link.symlink_to(real)
    Change(link, "old\n", "new\n").write()
    assert link.is_symlink() and real.read_text() == "new\n"


def test_guests_by_name(bare: CheckedHost, created: list[tuple[str, ...]]) -> None:
    assert plan(gather(bare.root), ["web", bare.web.uuid]).guests == ["web"]
    with pytest.raises(GuestNotFound, match="wbe: is no guest with a disk on ZFS; these are: web"):
        plan(gather(bare.root), ["wbe"])


def test_a_sanoid_conf_that_sanoid_cannot_read(bare: CheckedHost) -> None:
    bare.sanoid_conf.write_text("hello\n")
    with pytest.raises(SetupRefused, match="correct it first"):
        plan(gather(bare.root))


def test_without_libvirt(bare: CheckedHost) -> None:
    bare.host.reachable = False
    with pytest.raises(SetupRefused, match="must answer first: qemu:///system: no"):
        plan(gather(bare.root))


def test_without_a_guest(bare: CheckedHost) -> None:
    bare.host.known.clear()
    made = plan(gather(bare.root))
    assert made.is_empty and "no guest has a disk on ZFS" in made.notes[0]
