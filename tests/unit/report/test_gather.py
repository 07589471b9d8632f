from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.guest import UUID, FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.report_facts import console
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.common.errors import HypervisorUnreachable
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.points import vault, verify_result
from zvmsnap.points.manifest import Manifest, Memory, SnapshotRef, Timing
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.verify_result import VerifyResult
from zvmsnap.replication import remote_vault, send_status
from zvmsnap.replication.send_status import SendStatus
from zvmsnap.report.facts import PointFacts, Sent, Verified
from zvmsnap.report.gather import gather
from zvmsnap.virt import qemu_conf
from zvmsnap.virt.host import Host
from zvmsnap.watch import observe
from zvmsnap.watch.finding import Kind
from zvmsnap.zfs import mounts

NOW = datetime(2026, 11, 26, 9, 20, tzinfo=UTC)
NAS = "me@nas:pool/off"
Put = Callable[..., RestorePoint]


@pytest.fixture
def put(config: Config, manifest: Callable[..., Manifest], pools: FakeZfs) -> Put:
    """Publishes a point, of which ZFS has the snapshot."""

    def publish(run: str, *, guid: int, exists: bool = True, **changes: Any) -> RestorePoint:
        domain = changes.get("domain", "web")
        name = f"tank/{domain}@{run}"
        if exists:
            pools.present[name] = guid
        refs = (SnapshotRef(f"tank/{domain}", run, guid, guid),)
        built = manifest(
            **{"run": run, "snapshots": refs, "capture": f"{UUID}.{guid:08x}"} | changes
        )
        incoming = vault.incoming(config.vault_dir, built.domain, built.capture)
        return vault.publish(incoming, built)

    return publish


@pytest.fixture(autouse=True)
def _known_host(host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_conf, "why_unloadable", lambda: None)
    table = [mounts.Mount(1, 0, "/", str(tmp_path / "tank"), "tank/web", "zfs")]
    monkeypatch.setattr(mounts, "read_table", lambda: table)
    monkeypatch.setattr(observe, "_POOL_STATES", tmp_path / "kstat")


def test_an_empty_host(config: Config, pools: FakeZfs) -> None:
    facts = gather(config, NOW)
    assert ([each.points for each in facts.guests], facts.points_count, facts.memory_bytes) == (
        [()],
        0,
        0,
    )
    assert (facts.damaged, facts.problems) == ([], [])


def test_points_in_their_sequence(config: Config, put: Put) -> None:
    put("b", guid=2, created="2026-11-26T02:00:00+01:00", timing=Timing(pause_s=0.25))
    put("a", guid=1, created="2026-11-25T02:00:00+00:00", memory=None, absent_memory="ab",
        level=ConsistencyLevel.CRASH, reason="RAM removed by keep-memory")  # fmt: skip
    put("c", guid=3, domain="db", exists=False,
        memory=Memory("memory.img", "raw", "none", 9, 7, "00"))  # fmt: skip
    facts = gather(config, NOW)
    db, web = facts.guests
    assert [guest.name for guest in facts.guests] == ["db", "web"]
    assert web.points == (
        PointFacts(
            "a",
            datetime(2026, 11, 25, 2, tzinfo=UTC),
            ConsistencyLevel.CRASH,
            lost_memory=True,
            note="RAM removed by keep-memory",
        ),
        PointFacts(
            "b",
            datetime(2026, 11, 26, 1, tzinfo=UTC),
            ConsistencyLevel.MEMORY,
            pause_s=0.25,
            memory_bytes=4,
        ),
    )
    assert (db.memory_bytes, db.points[0].has_snapshots) == (7, False)
    assert "no snapshot left" in db.points[0].note
    assert facts.vault and 0 <= facts.vault.free_bytes <= facts.vault.size_bytes


def test_times_are_those_of_the_host(config: Config, put: Put) -> None:
    put("a", guid=1, created="2026-11-25T23:30:00+00:00")
    (point,) = gather(config, NOW.astimezone(ZONE)).guests[0].points
    assert point.created.isoformat() == "2026-11-26T00:30:00+01:00"


ZONE = datetime.fromisoformat("2026-11-26T00:00:00+01:00").tzinfo


def test_what_was_verified_and_its_screen(config: Config, put: Put) -> None:
    checked = "2026-11-26T03:00:00+00:00"
    results = {
        "a": VerifyResult(checked=checked),
        "b": VerifyResult(checked=checked, why="bad sum"),
        "c": VerifyResult(checked=checked, booted=True, alive="its CPU works", to_running_s=2),
        "d": VerifyResult(checked=checked, booted=True, why="does not live"),
    }
    for guid, (run, result) in enumerate(results.items(), 1):
        point = put(run, guid=guid)
        verify_result.keep(point, result)
        (point.directory / "verify.png").write_bytes(console(3))
    put("e", guid=9)
    (web,) = gather(config, NOW).guests
    assert [point.verified for point in web.points] == [
        Verified.READ, Verified.FAILED, Verified.STARTED, Verified.FAILED, Verified.NEVER
    ]  # fmt: skip
    assert [point.verified_why for point in web.points] == ["", "bad sum", "", "does not live", ""]
    assert web.points[0].verified_at == datetime(2026, 11, 26, 3, tzinfo=UTC)
    # Of the other ones nobody knows what they show.
    (screen,) = web.screens
    assert (screen.run, screen.png) == ("c", console(3))


def test_what_is_offsite(config: Config, put: Put) -> None:
    sent, missing = put("a", guid=1), put("b", guid=2)
    mirror = remote_vault.mirror_of(config, NAS)
    vault.publish(vault.incoming(mirror, "web", sent.manifest.capture), sent.manifest)
    status = SendStatus(
        destination=NAS,
        domain="called-so-before",
        uuid=UUID,
        last_attempt=NOW.isoformat(),
        error="no route",
        newest="a",
        newest_created="2026-11-01T00:00:00+00:00",
    )
    send_status.write(config.journal_dir, status)
    facts = gather(config, NOW)
    (web,) = facts.guests
    assert [point.destinations for point in web.points] == [(NAS,), ()]
    assert web.sent == (Sent(NAS, datetime(2026, 11, 1, tzinfo=UTC), "no route"),)
    assert facts.destinations == (NAS,)
    assert missing.manifest.capture


def test_what_is_wrong(
    config: Config,
    put: Put,
    entry: Callable[..., Entry],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What `monitor` finds, at the time of the report, and more."""
    (put("a", guid=1).directory / "manifest.json").write_text("{")
    put("b", guid=2, created=(NOW - timedelta(hours=30)).isoformat())
    Journal(config.journal_dir).write(entry(in_the_way="a job (backup) on vda"))
    monkeypatch.setattr(qemu_conf, "why_unloadable", lambda: "qemu.conf says sparse")
    facts = gather(config, NOW)
    assert len(facts.damaged) == 1 and "manifest.json" in facts.damaged[0]
    assert facts.problems == ["qemu.conf says sparse"]
    told = {(each.kind, each.guest): each for each in facts.found}
    assert told[Kind.AGE, "web"].text == "newest point web@b is 30h old (more than 26h)"
    assert (Kind.MERGE, "web") in told


def test_guests_without_points(config: Config, guest: FakeGuest, put: Put) -> None:
    """Those that ought to have some."""
    put("b", guid=2, domain="gone")
    known = gather(config, NOW).guests
    assert [(each.name, each.is_defined, len(each.points)) for each in known] == [
        ("gone", False, 1),
        (guest.name, True, 0),
    ]


def test_libvirt_does_not_answer(config: Config, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put("a", guid=1)

    def refuse(_uri: str) -> Host:
        raise HypervisorUnreachable("no libvirt")

    monkeypatch.setattr(Host, "connect", refuse)
    facts = gather(config, NOW)
    assert [each.is_defined for each in facts.guests] == [None]
    assert [each.text for each in facts.found if each.kind is Kind.LIBVIRT] == [
        "libvirt: no libvirt"
    ]


def test_only_of_the_newest_points_there_is_a_note(config: Config, put: Put) -> None:
    for guid in range(1, 15):
        created = (NOW - timedelta(hours=20 - guid)).isoformat()
        put(f"r{guid:02}", guid=guid, created=created, tpm_warning="no TPM state")
    (web,) = gather(config, NOW).guests
    assert [point.note for point in web.points] == [""] * 2 + ["no TPM state"] * 12


def test_a_vault_of_a_destination_is_only_read(config: Config, put: Put, tmp_path: Path) -> None:
    """A report changes nothing, not even the order of what is in the journal."""
    put("a", guid=1)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    gather(config, NOW)
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
