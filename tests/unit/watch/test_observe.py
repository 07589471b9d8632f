import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.guest import FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.images import make_base
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.common.errors import ZfsFailed
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.waiting import WaitingEntries
from zvmsnap.points import vault
from zvmsnap.points.manifest import Manifest
from zvmsnap.replication import send_status
from zvmsnap.replication.send_status import SendStatus
from zvmsnap.watch import observe
from zvmsnap.watch.facts import Facts
from zvmsnap.watch.finding import Severity
from zvmsnap.zfs import mounts, zfs
from zvmsnap.zfs.mounts import Mount

LIMIT_S = 30.0
SOON_S = 0.3


@pytest.fixture(autouse=True)
def _of_one_pool(
    tmp_path: Path, pools: FakeZfs, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = [Mount(1, 0, "/", str(tmp_path / "tank"), "tank/web", "zfs")]
    monkeypatch.setattr(mounts, "read_table", lambda: table)
    monkeypatch.setattr(observe, "_POOL_STATES", tmp_path / "kstat")
    monkeypatch.setattr(observe, "_GUEST_LESS_S", SOON_S / 3)


@pytest.fixture
def hang() -> Iterator[Callable[..., None]]:
    """What never answers until the test is over."""
    over = threading.Event()

    def wait(*_arguments: object) -> None:
        over.wait(60)

    yield wait
    over.set()


def said(facts: Facts) -> list[str]:
    return [f"{each.severity.name} {each.kind} {each}" for each in facts.unknown]


def test_what_there_is(
    config: Config,
    guest: FakeGuest,
    pools: FakeZfs,
    entry: Callable[..., Entry],
    manifest: Callable[..., Manifest],
) -> None:
    pools.properties = [("tank", "zvmsnap:warn-age", "90m"), ("tank", "zvmsnap:keep-memory", "1")]
    own = manifest()
    vault.publish(vault.incoming(config.vault_dir, "web", own.capture), own)
    Journal(config.journal_dir).write(entry())
    WaitingEntries(config.journal_dir).write(entry())
    sent = SendStatus(destination="d", domain="web", uuid=guest.uuid, last_attempt=own.created)
    send_status.write(config.journal_dir, sent)
    facts = observe.observe(config, LIMIT_S)
    assert said(facts) == []
    assert facts.guests and facts.points and facts.properties and facts.work
    (seen,) = facts.guests
    assert (seen.name, seen.datasets, seen.overlays) == ("web", frozenset({"tank/web"}), ())
    assert facts.properties["tank/web"]["zvmsnap:warn-age"] == "90m"
    assert "zvmsnap:keep-memory" not in facts.properties["tank/web"]
    assert facts.points[guest.uuid].newest == own
    assert facts.work.entries == (entry(),)
    assert (facts.work.waiting, facts.sent) == ({"web": 1}, (sent,))
    assert facts.rooms.keys() == {"vault", "staging"}
    assert 0 < facts.rooms["vault"].free_bytes < facts.rooms["vault"].size_bytes


def test_a_guest_on_its_overlay_has_the_disk_below_it(
    config: Config, guest: FakeGuest, staged: Callable[..., Entry]
) -> None:
    own = staged()
    facts = observe.observe(config, LIMIT_S)
    assert facts.guests
    (seen,) = facts.guests
    assert seen.datasets == frozenset({"tank/web"})
    assert seen.overlays == (own.disks[0].overlay,)


def test_no_libvirt_and_no_zfs(
    config: Config, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.reachable = False

    def fails(*_arguments: object) -> None:
        raise ZfsFailed("zfs cannot be run")

    monkeypatch.setattr(zfs, "properties_of", fails)
    facts = observe.observe(config, LIMIT_S)
    assert (facts.guests, facts.properties) == (None, None)
    assert said(facts) == [
        "UNKNOWN libvirt libvirt: qemu:///system: no",
        "UNKNOWN zfs zfs: zfs cannot be run",
    ]


def test_who_does_not_answer_is_not_waited_for(
    config: Config,
    host: FakeHost,
    hang: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "guests", hang)
    monkeypatch.setattr(zfs, "properties_of", hang)
    monkeypatch.setattr(vault, "check", hang)
    begun_s = time.monotonic()
    facts = observe.observe(config, SOON_S)
    assert time.monotonic() - begun_s < 20
    assert (facts.guests, facts.points, facts.properties) == (None, None, None)
    assert facts.work is not None
    assert {each.severity for each in facts.unknown} == {Severity.UNKNOWN}
    assert [each.text for each in facts.unknown if each.kind != "room"] == [
        f"{who}: no answer within 0.3 s" for who in ("libvirt", "vault", "zfs")
    ]


def test_a_guest_that_hangs_keeps_no_other_from_being_seen(
    config: Config, host: FakeHost, guest: FakeGuest, tmp_path: Path, hang: Callable[..., None]
) -> None:
    other = FakeGuest("db", "c0ffee00-0000-4000-8000-00000000000f")
    other.live = {"vda": str(make_base(tmp_path / "tank" / "db.raw"))}
    host.known.insert(0, other)
    guest.at["xml"] = hang
    facts = observe.observe(config, 1.0)
    assert facts.guests is not None
    assert {each.name: each.datasets for each in facts.guests} == {
        "db": {"tank/web"},
        "web": None,
    }
    assert said(facts) == [
        "UNKNOWN libvirt web: its definition, or what it names, was not seen within 1 s"
    ]


def test_a_guest_that_is_gone_meanwhile_is_none(config: Config, guest: FakeGuest) -> None:
    def goes() -> None:
        guest.exists = False

    guest.at["xml"] = goes
    facts = observe.observe(config, LIMIT_S)
    assert (facts.guests, said(facts)) == ((), [])


def test_a_vault_that_is_away(config: Config) -> None:
    config.journal_dir.mkdir()
    (config.journal_dir / "vault.id").write_bytes(b"of another")
    facts = observe.observe(config, LIMIT_S)
    assert facts.points is None
    assert "is not the vault that was used so far" in said(facts)[0]


def test_a_suspended_pool(config: Config, tmp_path: Path) -> None:
    for pool, state in (("tank", "SUSPENDED\n"), ("cheap", "ONLINE\n")):
        (tmp_path / "kstat" / pool).mkdir(parents=True)
        (tmp_path / "kstat" / pool / "state").write_text(state)
    assert said(observe.observe(config, LIMIT_S)) == [
        "CRITICAL zfs pool tank is suspended: zpool status -x, zpool clear"
    ]
