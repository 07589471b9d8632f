import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from tests.fakes.guest import FakeGuest
from tests.fakes.zfs_pool import named
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.points.liveness import Liveness
from zvmsnap.points.manifest import (
    Disk,
    Manifest,
    Memory,
    OtherState,
    PauseParts,
    SnapshotRef,
    Timing,
)
from zvmsnap.points.memory_image import RamUsage
from zvmsnap.points.next_start import NextStart
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import DamagedPoint
from zvmsnap.points.verify_result import VerifyResult
from zvmsnap.recovery.report import Outcome, Report, Result
from zvmsnap.replication.send_report import PointReport, SendReport, UnitReport
from zvmsnap.retention.leftovers import Leftovers
from zvmsnap.retention.prune import Findings
from zvmsnap.terminal import render, render_sends
from zvmsnap.virt import domain_xml
from zvmsnap.zfs.types import Partition, Snapshot

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
TWO_DISKS = (
    Disk("vda", "file", "raw", "/tank/a/x", "tank/a", "x"),
    Disk("vdb", "block", "raw", "/dev/zvol/tank/b", "tank/b", ""),
)
SNAPSHOTS = (SnapshotRef("tank/a", "m_daily", 1, 1), SnapshotRef("tank/b", "m_daily", 2, 2))


def live(snapshots: Mapping[str, int], *pools: str) -> Liveness:
    return Liveness(named(snapshots), dict.fromkeys(pools, 0))


@pytest.mark.parametrize(
    ("count_bytes", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.0K"),
        (1536, "1.5K"),
        (10 << 20, "10M"),
        (3 << 30, "3.0G"),
        (5 << 50, "5120T"),
    ],
)
def test_size(count_bytes: int, text: str) -> None:
    assert render.size(count_bytes) == text


@pytest.mark.parametrize(
    ("time", "text"),
    [
        ("2026-11-21T11:59:30+00:00", "30s"),
        ("2026-11-21T11:55:00+00:00", "5m"),
        ("2026-11-21T14:00:00+05:00", "3h"),
        ("2026-11-09T12:00:00+00:00", "12d"),
        ("2026-11-21T12:00:09+00:00", "0s"),
    ],
)
def test_age(time: str, text: str) -> None:
    assert render.age(time, NOW) == text


@pytest.mark.parametrize(
    ("present", "pools", "level", "reason", "text"),
    [
        pytest.param(
            {"tank/a@m_daily": 1, "tank/b@m_daily": 2},
            ("tank",),
            ConsistencyLevel.MEMORY,
            None,
            "",
            id="fine",
        ),
        pytest.param(
            {"tank/a@m_daily": 1, "tank/b@m_daily": 2},
            ("tank",),
            ConsistencyLevel.CRASH,
            "the guest is paused",
            "the guest is paused",
            id="the reason for its level",
        ),
        pytest.param(
            {"tank/a@m_daily": 1},
            ("tank",),
            ConsistencyLevel.MEMORY,
            None,
            "no snapshot name is left on all its disks: its RAM fits none of them",
            id="one disk of two",
        ),
        pytest.param(
            {"tank/a@m_daily": 1, "tank/b@m_daily": 9},
            ("tank",),
            ConsistencyLevel.MEMORY,
            None,
            "no snapshot name is left on all its disks: its RAM fits none of them",
            id="a disk's name taken again",
        ),
        pytest.param(
            {},
            ("tank",),
            ConsistencyLevel.MEMORY,
            None,
            "no snapshot left: zvmsnap prune removes it",
            id="gone",
        ),
        pytest.param({}, (), ConsistencyLevel.MEMORY, None, "pool not imported", id="unknown"),
    ],
)
def test_note(
    manifest: Callable[..., Manifest],
    present: Mapping[str, int],
    pools: tuple[str, ...],
    level: ConsistencyLevel,
    reason: str | None,
    text: str,
) -> None:
    point = manifest(disks=TWO_DISKS, snapshots=SNAPSHOTS, level=level, reason=reason)
    assert render.note(point, live(present, *pools)) == text


def test_note_of_a_tpm(manifest: Callable[..., Manifest]) -> None:
    fine = live({"tank/a@m_daily": 1, "tank/b@m_daily": 2}, "tank")
    point = manifest(disks=TWO_DISKS, snapshots=SNAPSHOTS, tpm_warning="TPM passed through")
    assert render.note(point, fine) == "TPM passed through"
    encrypted = msgspec.structs.replace(point, encrypted=True)
    assert render.note(encrypted, fine) == "encrypted; TPM passed through"
    point = manifest(
        disks=TWO_DISKS,
        snapshots=SNAPSHOTS,
        level=ConsistencyLevel.CRASH,
        reason="r",
        tpm_warning="t",
    )
    assert render.note(point, fine) == "r; t"
    lines = render.point_details(RestorePoint(Path("/v/web/m"), point), fine, None, None)
    assert [line for line in lines if line.startswith(("  note ", "  firmware "))] == [
        "  note       r",
        "  firmware   t",
    ]


def test_other_state(manifest: Callable[..., Manifest]) -> None:
    state = (
        OtherState("data file of disk vda", "/tank/b/a.raw", "tank/b", "a.raw"),
        OtherState("firmware", "/both.fd", why="is not on a dataset of this snapshot"),
    )
    point = manifest(disks=TWO_DISKS, snapshots=SNAPSHOTS, other_state=state)
    fine = live({"tank/a@m_daily": 1, "tank/b@m_daily": 2}, "tank")
    lines = render.point_details(RestorePoint(Path("/v/web/m"), point), fine, None, None)
    assert [line for line in lines if line.startswith(("  also ", "  not in it "))] == [
        "  also       data file of disk vda (/tank/b/a.raw)",
        "  not in it  firmware (/both.fd) is not on a dataset of this snapshot",
    ]


def test_point_table(
    manifest: Callable[..., Manifest],
) -> None:
    points = [
        RestorePoint(Path("/v/web/m"), manifest(disks=TWO_DISKS, snapshots=SNAPSHOTS)),
        RestorePoint(Path("/v/a-long-name/m.2"), manifest(domain="a-long-name", memory=None)),
    ]
    results = {"web@m": VerifyResult(checked=datetime.now(UTC).isoformat(), why="no RAM")}
    liveness = live({"tank/a@m_daily": 1, "tank/b@m_daily": 2}, "tank")

    def result(point: RestorePoint) -> VerifyResult | None:
        return results.get(point.name)

    lines = list(render.point_table(points, liveness, result, lambda _: RamUsage(9, 2, 7)))
    taken = render.local_time(points[0].manifest.created)
    assert [line.split()[:7] for line in lines] == [
        ["GUEST", "RUN", "TAKEN", "LEVEL", "SNAPSHOTS", "RAM", "ALONE"],
        ["web", "m", taken, "memory", "daily", "4B", "2B"],
        ["a-long-name", "m.2", taken, "memory", "-", "-", "-"],
    ]

    def alone(usage: RamUsage | None) -> list[str]:
        table = render.point_table(points, liveness, result, lambda _: usage)
        return [line.split()[6] for line in table]

    assert alone(None) == alone(RamUsage(9, None, None)) == ["ALONE", "?", "-"]
    assert (
        len({line.index(word) for line, word in zip(lines, ["RUN", "m ", "m.2"], strict=True)}) == 1
    )
    column = lines[0].index("VERIFIED")
    assert [line[column:].split()[0] for line in lines] == ["VERIFIED", "FAILED", "-"]


def test_times_are_those_of_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the names of snapshots are of UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-05:30")
        time.tzset()
        assert render.local_time("2026-11-20T20:00:00.000+00:00") == "2026-11-21T01:30"
    time.tzset()


CHECKED = "2026-11-21T11:00:00+00:00"


@pytest.mark.parametrize(
    ("result", "cell", "line"),
    [
        pytest.param(
            VerifyResult(checked=CHECKED),
            "read 1h ago",
            "good: its files have their checksums, and its snapshots exist",
            id="read",
        ),
        pytest.param(
            VerifyResult(checked=CHECKED, why="no RAM; no XML"),
            "FAILED 1h ago",
            "FAILED: no RAM; no XML",
            id="damaged",
        ),
        pytest.param(
            VerifyResult(checked=CHECKED, booted=True, alive="its CPU works", to_running_s=1.26),
            "booted 1h ago",
            "lives: its CPU works; it ran 1.3 s after the start",
            id="started",
        ),
        pytest.param(
            VerifyResult(
                checked=CHECKED, booted=True, alive="a", to_running_s=1, output="active\n"
            ),
            "booted 1h ago",
            "lives: a; it ran 1.0 s after the start; the command printed 'active'",
            id="asked",
        ),
        pytest.param(
            VerifyResult(checked=CHECKED, booted=True, alive="a", why="died"),
            "FAILED 1h ago",
            "FAILED: died",
            id="started, but died",
        ),
    ],
)
def test_verify_result(result: VerifyResult, cell: str, line: str) -> None:
    assert render._verified(result, NOW) == cell
    assert render.verify_result(result) == line


def test_details_say_which_snapshots_are_gone(manifest: Callable[..., Manifest]) -> None:
    point = RestorePoint(Path("/v/web/m"), manifest(disks=TWO_DISKS, snapshots=SNAPSHOTS))
    text = "\n".join(render.point_details(point, live({"tank/a@m_daily": 1}, "tank"), None, None))
    assert "tank/a@m_daily  guid 1\n" in text
    assert "tank/b@m_daily  guid 2  (gone)" in text


@pytest.mark.parametrize(
    ("level", "timing", "line"),
    [
        pytest.param(
            ConsistencyLevel.MEMORY,
            Timing(1.8, 4.2, 6.1, 2.2, 0.05, PauseParts(0, 0.07, 0.02, 1.6, 0, 0.1)),
            "paused 1.80 s (last of RAM 0.07 s, flush of the RAM image 0.02 s, labelling and "
            "overlays 1.60 s, going on 0.10 s, not told apart 0.01 s), dump 4.2 s, on overlay "
            "6.1 s, commit 2.2 s",
            id="memory",
        ),
        pytest.param(
            ConsistencyLevel.PAUSED,
            Timing(0.9, 4.2, 0, 0, 0.05, PauseParts(0, 0.07, 0, 0, 0.83, 0)),
            "paused 0.90 s (last of RAM 0.07 s, until its snapshot was taken 0.83 "
            "s), dump 4.2 s, on overlay 0.0 s, commit 0.0 s",
            id="paused",
        ),
        pytest.param(
            ConsistencyLevel.MEMORY,
            Timing(1.8, 4.2, 6.1, 2.2, 0.05),
            "paused 1.80 s (last of RAM 0.05 s, not told apart 1.75 s), dump 4.2 s, on overlay "
            "6.1 s, commit 2.2 s",
            id="of an older version",
        ),
        pytest.param(
            ConsistencyLevel.QUIESCED,
            Timing(2.5, pause_parts=PauseParts(freeze_s=0.5, snapshot_s=2)),
            "file systems frozen for 2.50 s (freezing 0.50 s, until its snapshot was taken 2.00 s)",
            id="quiesced",
        ),
        pytest.param(
            ConsistencyLevel.QUIESCED,
            Timing(2.5),
            "file systems frozen for 2.50 s",
            id="quiesced, of an older version",
        ),
    ],
)
def test_details_say_what_the_guest_was_held_for(
    manifest: Callable[..., Manifest], level: ConsistencyLevel, timing: Timing, line: str
) -> None:
    memory = {} if level.has_memory else {"memory": None}
    point = RestorePoint(Path("/v/web/m"), manifest(level=level, timing=timing, **memory))
    assert f"  times      {line}" in render.point_details(point, live({}, "tank"), None, None)


def test_details_say_which_disks_the_next_start_has(manifest: Callable[..., Manifest]) -> None:
    own = Disk("vda", "file", "raw", "/t/a.raw", "tank/a", "a.raw")
    point = RestorePoint(Path("/v/web/m"), manifest(disks=(own,), snapshots=SNAPSHOTS))

    def lines(*disks: Disk, outside: tuple[domain_xml.Disk, ...] = ()) -> list[str]:
        details = render.point_details(point, live({}, "tank"), NextStart(disks, outside), None)
        begin = "  disks of its next start, which are others"
        return details[details.index(begin) + 1 :][:2] if begin in details else []

    assert lines(own) == []
    extra = Disk("vdb", "file", "raw", "/t/b.raw", "tank/a", "b.raw")
    assert lines(own, extra) == [
        "    vda  raw  tank/a a.raw  (/t/a.raw)",
        "    vdb  raw  tank/a b.raw  (/t/b.raw)",
    ]
    (other,) = domain_xml.parse(FakeGuest().xml_of({"vdc": "/x/c.raw"})).disks
    assert lines(own, outside=(other,))[1] == "    vdc  not part of the point  (/x/c.raw)"


def test_details_say_which_partition_a_disk_was() -> None:
    part = Partition(2, 1 << 20, 4 << 20)
    disks = (
        Disk("vda", "block", "raw", "/dev/disk/by-uuid/1", "tank/v", "", part, 7),
        Disk("vdb", "block", "raw", "/dev/zvol/tank/v", "tank/v", ""),
        Disk("vdc", "file", "qcow2", "/tank/a/c", "tank/a", "c"),
    )
    assert list(render._disk_lines(disks)) == [
        "    vda  raw  tank/v partition 2 (4194304 bytes from 1048576)  (/dev/disk/by-uuid/1)",
        "    vdb  raw  tank/v  (/dev/zvol/tank/v)",
        "    vdc  qcow2  tank/a c  (/tank/a/c)",
    ]


def test_pruning(manifest: Callable[..., Manifest]) -> None:
    findings = Findings(
        orphans=[RestorePoint(Path("/v/web/m"), manifest())],
        old_memory=[RestorePoint(Path("/v/web/n"), manifest())],
        stray_memory=[Path("/v/web/o/memory.img")],
        leftovers=Leftovers([Path("/s/x/point")], [Path("/s/x/vda.zvmsnap.qcow2")]),
        damaged=[DamagedPoint(Path("/v/web/d"), "/v/web/d: has no manifest.json")],
        pointless=[Snapshot("tank/a", "by_hand", 3, 3)],
    )
    assert [line.split(":")[0] for line in render.pruning(findings, dry_run=True)] == [
        "would remove point web@m",
        "would remove RAM of point web@n",
        "would remove /s/x/point",
        "would remove /v/web/o/memory.img",
        "kept /s/x/vda.zvmsnap.qcow2",
        "damaged",
        "no point for snapshot tank/a@by_hand",
    ]
    assert next(render.pruning(findings, dry_run=False)).startswith("removed point web@m")
    assert list(render.pruning(Findings(Leftovers()), dry_run=True)) == ["nothing to remove"]


@pytest.mark.parametrize(
    ("encrypted", "memory_bytes", "lines"), [(True, 9, 1), (True, 0, 0), (False, 9, 0)]
)
def test_sent_says_that_encrypted_ram_is_sent_whole(
    encrypted: bool, memory_bytes: int, lines: int
) -> None:
    unit = UnitReport(
        domain="web",
        datasets=(),
        points=(PointReport(name="web@m", memory_bytes=memory_bytes),),
        points_bytes=9,
        error="",
    )
    report = SendReport(destination="nas:b", units=(unit,), encrypted=encrypted)
    said = [
        line for line in render_sends.sent(report, dry_run=True) if "all of it, as it is" in line
    ]
    assert len(said) == lines


def test_recovery() -> None:
    report = Report(
        outcomes=[
            Outcome("web", "u1", ("vda is on /o",), Result.FAILED, "no answer"),
            Outcome("db", "u2", ("run m is open at step dump",), Result.RECOVERED),
        ],
        removed=["/s/x"],
        problems=["/o: kept; see to it"],
        foreign=["db: libvirt's snapshot s was made by somebody else; not touched"],
    )
    lines = [
        "web: failed: no answer",
        "  vda is on /o",
        "db: recovered",
        "  run m is open at step dump",
        "removed /s/x: left by an interrupted run",
        "/o: kept; see to it",
        "db: libvirt's snapshot s was made by somebody else; not touched",
    ]
    assert render.recovery(report, dry_run=False) == lines
    assert render.recovery(report, dry_run=True)[4].startswith("would remove /s/x")
    assert not report.complete
    assert render.recovery(Report(), dry_run=False) == [
        "nothing to recover: every guest is on its own disks"
    ]


def test_snapshot_and_pool_with_other_names(manifest: Callable[..., Manifest]) -> None:
    """Nothing is wrong with the point, and where its snapshots are now is shown."""
    refs = tuple(msgspec.structs.replace(ref, pool_guid=70) for ref in SNAPSHOTS)
    known = manifest(snapshots=refs, disks=TWO_DISKS)
    liveness = Liveness(named({"pond/a@keep": 1, "pond/vm/b@m_daily": 2}), {"pond": 70})
    assert render.note(known, liveness) == ""
    point = RestorePoint(Path("/v/web/m"), known)
    lines = render.point_details(point, liveness, None, None)
    assert "    pond/a@keep  guid 1  (was tank/a@m_daily)" in lines
    assert "    pond/vm/b@m_daily  guid 2  (was tank/b@m_daily)" in lines
    (_, row) = render.point_table([point], liveness, lambda _: None, lambda _: None)
    assert "keep,daily" in row


PAGED = Memory("memory.pages", "raw", "none", 9 << 20, 3 << 20, "aa", "memory.rest", "bb")


@pytest.mark.parametrize(
    ("memory", "usage", "lines"),
    [
        pytest.param(
            PAGED,
            RamUsage(3 << 20, 1 << 20, 2 << 20),
            [
                "  RAM image  memory.pages, memory.rest: 3.0M stored of 9.0M, format raw, "
                "compression none",
                "    on disk  1.0M alone, 2.0M shared with others",
                "    digest   aa",
                "    rest     sha256 bb",
            ],
            id="pages",
        ),
        pytest.param(
            Memory("memory.img", "raw", "none", 4, 4, "aa", why_plain="no room"),
            RamUsage(512, None, None),
            [
                "  RAM image  memory.img: 4B stored of 4B, format raw, compression none",
                "    no pages no room",
                "    on disk  512B; how much of it is shared is unknown",
                "    sha256   aa",
            ],
            id="plain, on ZFS",
        ),
        pytest.param(
            Memory("memory.img.zst", "raw", "zstd", 4, 3, "aa"),
            None,
            [
                "  RAM image  memory.img.zst: 3B stored of 4B, format raw, compression zstd",
                "    on disk  unknown: its files cannot be opened",
                "    sha256   aa",
            ],
            id="gone",
        ),
    ],
)
def test_details_of_its_ram(
    manifest: Callable[..., Manifest], memory: Memory, usage: RamUsage | None, lines: list[str]
) -> None:
    point = RestorePoint(Path("/v/web/m"), manifest(memory=memory))
    details = render.point_details(point, live({}, "tank"), None, usage)
    begin = next(at for at, line in enumerate(details) if line.startswith("  RAM image"))
    assert details[begin : begin + len(lines)] == lines
    assert details[begin + len(lines)].startswith("  times ")


def test_points_of_a_pool_that_is_away(manifest: Callable[..., Manifest]) -> None:
    point = RestorePoint(Path("/v/web/m"), manifest())
    (line,) = render.pruning(Findings(Leftovers(), unknown=[point]), dry_run=False)
    assert line == "kept point web@m: a pool of it is not imported: tank"
