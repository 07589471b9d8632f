import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.guest import UUID
from zvmsnap.common.errors import VaultDamaged, VaultMissing
from zvmsnap.config.settings import Config
from zvmsnap.points import vault
from zvmsnap.points.manifest import MANIFEST, MEMORY, Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint, read_listed
from zvmsnap.points.vault import DamagedPoint, UnfinishedPoint

Build = Callable[..., Manifest]

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        pytest.param("web", "web", id="plain"),
        pytest.param("autosnap_2026-11-20_03:00:00", "autosnap_2026-11-20_03:00:00", id="run"),
        pytest.param("My VM é", "My VM é", id="blanks and letters"),
        pytest.param("../../etc", "%2E.%2F..%2Fetc", id="path"),
        pytest.param(".", "%2E", id="dot"),
        pytest.param("..", "%2E.", id="dots"),
        pytest.param("%2E", "%252E", id="looks quoted"),
        pytest.param("a\nb\0", "a%0Ab%00", id="control characters"),
        pytest.param(".incoming-x", "%2Eincoming-x", id="one of our own"),
    ],
)
def test_folder_of(name: str, folder: str) -> None:
    assert vault.folder_of(name) == folder


@given(NAMES)
def test_folder_is_one_visible_component(name: str) -> None:
    folder = vault.folder_of(name)
    assert "/" not in folder
    assert "\0" not in folder
    assert folder not in ("", ".", "..")
    assert not folder.startswith(".")
    inside = os.path.normpath(os.path.join("/vault", folder))
    assert inside == f"/vault/{folder}"


QUOTABLE = st.text("./%2EFab\n", min_size=1)


@given(QUOTABLE, QUOTABLE)
def test_folders_of_two_names_are_two(one: str, other: str) -> None:
    assert (vault.folder_of(one) == vault.folder_of(other)) == (one == other)


@given(NAMES)
def test_folder_tells_its_name(name: str) -> None:
    encoded = vault.folder_of(name).encode()
    head, *rest = encoded.split(b"%")
    decoded = head + b"".join(bytes([int(part[:2], 16)]) + part[2:] for part in rest)
    assert decoded.decode() == name


def put(root: Path, manifest: Manifest) -> RestorePoint:
    return vault.publish(vault.incoming(root, manifest.domain, manifest.capture), manifest)


def points(root: Path, run: str | None = None) -> dict[str, Manifest]:
    manifests = {}
    for entry in vault.entries(root, run):
        assert isinstance(entry, RestorePoint), entry
        manifests[str(entry.directory.relative_to(root))] = entry.manifest
    return manifests


def damage(root: Path) -> dict[str, str]:
    return {
        str(entry.directory.relative_to(root)): entry.why
        for entry in vault.entries(root)
        if isinstance(entry, DamagedPoint)
    }


def test_published_and_found_again(tmp_path: Path, manifest: Build) -> None:
    known = manifest(domain="a/b", run=".hidden")
    placed = put(tmp_path, known)
    assert placed == RestorePoint(tmp_path / "a%2Fb" / "%2Ehidden", known)
    assert points(tmp_path) == {"a%2Fb/%2Ehidden": known}
    for run in (known.run, None):
        assert vault.published(tmp_path, "a/b", run, known.capture) == placed
        assert vault.published(tmp_path, "a/b", run, "c2") is None
        assert vault.published(tmp_path, "other", run, known.capture) is None
    assert vault.unfinished(tmp_path) == []


def test_whether_it_was_published_is_read_of_its_run_alone(
    tmp_path: Path, manifest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest may have hundreds of points, and each hook asks."""
    captures = [(run, f"{UUID}.{n:08}") for n, run in enumerate(("m", "m", "mm", "n"))]
    for run, capture in captures:
        put(tmp_path, manifest(run=run, capture=capture))
    read: list[str] = []

    def noted(directory: Path, *given: Any) -> object:
        read.append(directory.name)
        return read_listed(directory, *given)

    monkeypatch.setattr(vault, "read_listed", noted)
    assert vault.published(tmp_path, "web", "m", captures[3][1]) is None
    assert read == ["m", "m.2"]


def test_not_seen_before_it_is_whole(tmp_path: Path, manifest: Build) -> None:
    incoming = vault.incoming(tmp_path, "web", "c1")
    (incoming / MEMORY).write_bytes(b"half")
    assert points(tmp_path) == {}
    assert vault.published(tmp_path, "web", None, "c1") is None
    assert vault.unfinished(tmp_path) == [UnfinishedPoint(incoming)]


def test_private(tmp_path: Path, manifest: Build) -> None:
    placed = put(tmp_path / "vault", manifest())
    for path in (tmp_path / "vault", placed.directory, placed.directory / MANIFEST):
        assert path.stat().st_mode & 0o077 == 0, path


def test_one_moment_published_more_than_once(tmp_path: Path, manifest: Build) -> None:
    several = [manifest(run="m", capture=f"{UUID}.0000000{number}") for number in range(3)]
    several.append(manifest(run="m.2", capture=f"{UUID}.0000000a"))
    for each in several:
        put(tmp_path, each)
    expected = {
        "web/m": several[0],
        "web/m.2": several[1],
        "web/m.3": several[2],
        "web/m.2.2": several[3],
    }
    assert points(tmp_path) == expected
    assert points(tmp_path, "m") == {
        name: expected[name] for name in ("web/m", "web/m.2", "web/m.3")
    }
    assert points(tmp_path, "m.2") == {name: expected[name] for name in ("web/m.2", "web/m.2.2")}


def test_points_of_one_moment_of_any_guest(tmp_path: Path, manifest: Build) -> None:
    for domain in ("web", "db"):
        for run in ("m", "mm", "m.x", "n"):
            put(tmp_path, manifest(domain=domain, run=run))
    assert sorted(points(tmp_path, "m")) == ["db/m", "web/m"]


@pytest.mark.parametrize("exists", [False, True], ids=["missing", "empty"])
def test_no_vault_yet(tmp_path: Path, exists: bool) -> None:
    root = tmp_path / "vault"
    if exists:
        root.mkdir()
    assert list(vault.entries(root)) == []
    assert vault.unfinished(root) == []
    assert vault.published(root, "web", "m", "c1") is None


def foreign_file(root: Path, at: Path, elsewhere: Path) -> str:
    (root / "README").write_text("foreign")
    return "README"


def foreign_directory(root: Path, at: Path, elsewhere: Path) -> str:
    (root / "web" / "notes").mkdir()
    return "web/notes"


def file_beside_points(root: Path, at: Path, elsewhere: Path) -> str:
    (root / "web" / "notes.txt").write_text("foreign")
    return "web/notes.txt"


def guest_is_a_symlink(root: Path, at: Path, elsewhere: Path) -> str:
    shutil.copytree(root / "web", elsewhere)
    (root / "linked").symlink_to(elsewhere)
    return "linked"


def moment_is_a_symlink(root: Path, at: Path, elsewhere: Path) -> str:
    shutil.copytree(at, elsewhere)
    (root / "web" / "linked").symlink_to(elsewhere)
    return "web/linked"


def manifest_is_a_symlink(root: Path, at: Path, elsewhere: Path) -> str:
    shutil.copytree(at, root / "web" / "linked")
    (root / "web" / "linked" / MANIFEST).rename(elsewhere)
    (root / "web" / "linked" / MANIFEST).symlink_to(elsewhere)
    return "web/linked"


def manifest_is_broken(root: Path, at: Path, elsewhere: Path) -> str:
    shutil.copytree(at, root / "web" / "broken")
    (root / "web" / "broken" / MANIFEST).write_bytes(b"{")
    return "web/broken"


@pytest.mark.parametrize(
    "deface",
    [
        foreign_file,
        foreign_directory,
        file_beside_points,
        guest_is_a_symlink,
        moment_is_a_symlink,
        manifest_is_a_symlink,
        manifest_is_broken,
    ],
)
def test_damage_is_named_and_hides_nothing_else(
    tmp_path: Path, manifest: Build, deface: Callable[[Path, Path, Path], str]
) -> None:
    root = tmp_path / "vault"
    good = put(root, manifest())
    damaged = deface(root, good.directory, tmp_path / "elsewhere")
    messages = damage(root)
    assert list(messages) == [damaged]
    assert str(root / damaged) in messages[damaged]
    assert [entry for entry in vault.entries(root) if isinstance(entry, RestorePoint)] == [good]
    assert vault.published(root, "web", None, good.manifest.capture) == good


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(
            (".incoming-a", ".removing-b"), {".incoming-a": "a", ".removing-b": None}, id="ours"
        ),
        pytest.param((".zfs", ".trash", "incoming-x"), {}, id="not ours"),
    ],
)
def test_unfinished(
    tmp_path: Path, names: tuple[str, ...], expected: Mapping[str, str | None]
) -> None:
    for name in names:
        (tmp_path / "web" / name).mkdir(parents=True)
    (tmp_path / "web" / ".incoming-file").write_text("no directory")
    (tmp_path / "web" / ".removing-link").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "web")
    (tmp_path / "file").write_text("foreign")
    unfinished = vault.unfinished(tmp_path)
    assert [each.directory for each in unfinished] == [tmp_path / "web" / name for name in expected]
    assert [each.capture for each in unfinished] == list(expected.values())


def test_removed_with_its_guests_last_point(tmp_path: Path, manifest: Build) -> None:
    one, other = put(tmp_path, manifest(run="a")), put(tmp_path, manifest(run="b"))
    vault.remove(one)
    assert points(tmp_path) == {"web/b": other.manifest}
    vault.remove(other)
    assert list(tmp_path.iterdir()) == []


def test_removed_by_two_at_once(tmp_path: Path, manifest: Build) -> None:
    put(tmp_path, manifest(run="b"))
    point = put(tmp_path, manifest(run="a"))
    vault.remove(point)
    vault.remove(point)
    assert list(points(tmp_path)) == ["web/b"]


def test_removed_by_another_while_its_files_are_deleted(
    tmp_path: Path, manifest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    rmtree = shutil.rmtree

    def overtaken(path: Path) -> None:
        rmtree(path)
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(shutil, "rmtree", overtaken)
    vault.remove(put(tmp_path, manifest(run="m")))
    assert list(tmp_path.iterdir()) == []


def test_removed_while_the_vault_is_read(
    tmp_path: Path, manifest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = put(tmp_path, manifest(run="a")), put(tmp_path, manifest(run="b"))

    def overtaken(directory: Path, *given: Any) -> RestorePoint:
        if directory == one.directory:
            vault.remove(one)
        return read_listed(directory, *given)

    monkeypatch.setattr(vault, "read_listed", overtaken)
    assert vault.all_in(tmp_path) == ([other], [])
    assert vault.published(tmp_path, "web", None, "another") is None


def test_removal_interrupted(
    tmp_path: Path, manifest: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = put(tmp_path, manifest(run="m"))

    def power_cut(path: Path) -> None:
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", power_cut)
        with pytest.raises(OSError, match="power cut"):
            vault.remove(point)
    assert points(tmp_path) == {}
    assert vault.unfinished(tmp_path) == [UnfinishedPoint(tmp_path / "web" / ".removing-m")]

    again = put(tmp_path, manifest(run="m"))
    vault.remove(again)
    assert list(tmp_path.iterdir()) == []


def test_a_points_ties_survive_the_vault(tmp_path: Path, manifest: Build) -> None:
    refs = (
        SnapshotRef("tank/web", "a_hourly", 2**64 - 1, 7),
        SnapshotRef("tank/web", "a_daily", 1, 7),
    )
    placed = put(tmp_path, manifest(snapshots=refs))
    assert points(tmp_path)[f"web/{placed.directory.name}"].snapshots == refs


def test_the_first_vault_is_taken_for_the_one(config: Config) -> None:
    vault.check(config)
    assert not config.journal_dir.exists() and not config.vault_dir.exists()
    vault.claim(config)
    marks = [config.vault_dir / ".zvmsnap-vault", config.journal_dir / "vault.id"]
    known = {path.read_bytes() for path in marks}
    assert len(known) == 1 and len(known.pop()) == 32
    vault.claim(config)
    vault.check(config)
    assert list(vault.entries(config.vault_dir)) == []
    assert vault.unfinished(config.vault_dir) == []


def unmounted(config: Config) -> None:
    config.vault_dir.rename(config.vault_dir.with_name("disk"))
    config.vault_dir.mkdir()


def mountpoint_gone(config: Config) -> None:
    config.vault_dir.rename(config.vault_dir.with_name("disk"))


def another_vault(config: Config) -> None:
    (config.vault_dir / ".zvmsnap-vault").write_bytes(b"0" * 32)


def mark_cut_short(config: Config) -> None:
    (config.vault_dir / ".zvmsnap-vault").write_bytes(b"")


def mark_removed(config: Config) -> None:
    (config.vault_dir / ".zvmsnap-vault").unlink()


@pytest.mark.parametrize(
    "change", [unmounted, mountpoint_gone, another_vault, mark_cut_short, mark_removed]
)
def test_another_vault_is_refused_and_nothing_written(
    config: Config, change: Callable[[Config], None]
) -> None:
    vault.claim(config)
    change(config)
    root = config.vault_dir.parent
    before = sorted(root.rglob("*"))
    for ask in (vault.check, vault.claim):
        with pytest.raises(VaultMissing, match=r"mounted\? .* remove .*/vault.id$"):
            ask(config)
    assert sorted(root.rglob("*")) == before


def test_vault_that_was_moved_on_purpose(config: Config) -> None:
    vault.claim(config)
    unmounted(config)
    (config.journal_dir / "vault.id").unlink()
    vault.claim(config)
    vault.check(config)


def test_lost_journal_adopts_the_vault(config: Config) -> None:
    vault.claim(config)
    (config.journal_dir / "vault.id").unlink()
    mark = (config.vault_dir / ".zvmsnap-vault").read_bytes()
    vault.claim(config)
    assert (config.vault_dir / ".zvmsnap-vault").read_bytes() == mark
    vault.check(config)


def test_mounted_again_it_is_the_one(config: Config) -> None:
    vault.claim(config)
    unmounted(config)
    config.vault_dir.rmdir()
    config.vault_dir.with_name("disk").rename(config.vault_dir)
    vault.check(config)


@pytest.mark.parametrize("linked", ["web", "web/.incoming-c1"])
def test_incoming_is_never_led_out_of_the_vault(tmp_path: Path, linked: str) -> None:
    root, elsewhere = tmp_path / "vault", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / linked).parent.mkdir(parents=True)
    (root / linked).symlink_to(elsewhere)
    with pytest.raises(VaultDamaged, match="is a symlink; not followed"):
        vault.incoming(root, "web", "c1")
    assert list(elsewhere.iterdir()) == []
