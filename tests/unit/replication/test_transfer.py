from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from zvmsnap.config.destination import Destination, MemoryWanted
from zvmsnap.config.keep import Keep, parse_keep
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.points.manifest import Disk, Manifest, Memory, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import DamagedPoint
from zvmsnap.replication import transfer
from zvmsnap.retention import keep_memory
from zvmsnap.zfs.types import Snapshot, Subtree

Build = Callable[..., Manifest]
NAS = Destination("nas", "backup/off")
RAM = Memory("memory.img", "raw", "none", 100, 100, "0" * 64)
OTHER = "c0ffee00-0000-4000-8000-00000000000f"


def subtree(*names: str) -> Subtree:
    """Snapshots below the root, written `dataset@name=guid`."""
    snapshots = {}
    for each in names:
        full_name, _, guid = each.partition("=")
        dataset, _, name = full_name.partition("@")
        snapshots[f"backup/off/{full_name}"] = Snapshot(
            f"backup/off/{dataset}", name, int(guid), int(guid)
        )
    return Subtree(frozenset({s.dataset for s in snapshots.values()}), snapshots)


@pytest.fixture
def point(manifest: Build) -> Callable[..., RestorePoint]:
    """A point taken at that hour, of a dataset a, and b if it is to have one more."""

    def build(
        hour: int,
        *,
        memory: bool = True,
        datasets: str = "a",
        folder: str = "",
        current_datasets: Mapping[str, str] | None = None,
    ) -> RestorePoint:
        own = manifest(
            created=f"2026-11-20T{hour:02}:00:00+00:00",
            run=f"h{hour}",
            capture=f"capture-{hour}",
            level=ConsistencyLevel.MEMORY,
            memory=RAM if memory else None,
            disks=tuple(Disk("vda", "file", "raw", "/x", f"p/{d}", "x") for d in datasets),
            snapshots=tuple(
                SnapshotRef(
                    f"p/{d}", f"h{hour}", hour * 10 + n, 1, (current_datasets or {}).get(d, "")
                )
                for n, d in enumerate(datasets)
            ),
        )
        return RestorePoint(Path("/vault/web") / (folder or f"h{hour}"), own)

    return build


def summary(transfers: list[transfer.PointTransfer]) -> list[tuple[str, bool]]:
    return [(each.name, each.manifest.memory is not None) for each in transfers]


WANTED = [
    pytest.param(MemoryWanted.LATEST, [("h1", False), ("h2", True)], id="the latest RAM"),
    pytest.param(MemoryWanted.ALL, [("h1", True), ("h2", True)], id="all RAM"),
    pytest.param(MemoryWanted.NONE, [("h1", False), ("h2", False)], id="no RAM"),
]


@pytest.mark.parametrize(("wanted", "expected"), WANTED)
def test_memory(
    point: Callable[..., RestorePoint], wanted: MemoryWanted, expected: list[tuple[str, bool]]
) -> None:
    local = [point(2), point(1), point(3)]
    transfers = transfer.plan(local, [], NAS, subtree("p/a@h1=10", "p/a@h2=20"), wanted)
    assert summary(transfers) == expected
    for each in transfers:
        (ref,) = each.manifest.snapshots
        assert ref.full_name == f"backup/off/p/a@{each.name}"
        has_ram = each.manifest.memory is not None
        level = ConsistencyLevel.MEMORY if has_ram else ConsistencyLevel.CRASH
        assert each.manifest.level == level
        assert has_ram or "was not sent" in str(each.manifest.reason)


def test_latest_is_the_last_of_which_all_disks_have_arrived(
    point: Callable[..., RestorePoint],
) -> None:
    local = [point(1, datasets="ab"), point(2, datasets="ab")]
    arrived = subtree("p/a@h1=10", "p/b@h1=11", "p/a@h2=20")
    transfers = transfer.plan(local, [], NAS, arrived, MemoryWanted.LATEST)
    assert summary(transfers) == [("h1", True), ("h2", False)]


def test_another_snapshot_of_the_same_name(point: Callable[..., RestorePoint]) -> None:
    assert transfer.plan([point(1)], [], NAS, subtree("p/a@h1=99"), MemoryWanted.ALL) == []


def at_destination(
    point: RestorePoint, *, memory: bool = True, capture: str = "", uuid: str = ""
) -> RestorePoint:
    """The point at the destination."""
    own = point.manifest
    refs = tuple(
        msgspec.structs.replace(
            ref, current_dataset=f"backup/off/{ref.dataset}", createtxg=ref.guid
        )
        for ref in own.snapshots
    )
    return RestorePoint(
        Path("/mirror/web") / point.directory.name,
        msgspec.structs.replace(
            own,
            snapshots=refs,
            memory=own.memory if memory else None,
            capture=capture or own.capture,
            uuid=uuid or own.uuid,
        ),
    )


def test_points_that_have_arrived_are_not_sent_again(point: Callable[..., RestorePoint]) -> None:
    one, two, now = point(1), point(2, memory=False), subtree("p/a@h1=10", "p/a@h2=20")
    assert (
        transfer.plan(
            [one, two], [at_destination(one), at_destination(two)], NAS, now, MemoryWanted.ALL
        )
        == []
    )


def test_ram_is_sent_when_it_is_wanted_later(point: Callable[..., RestorePoint]) -> None:
    one = point(1)
    known = [at_destination(one, memory=False)]
    now = subtree("p/a@h1=10")
    assert transfer.plan([one], known, NAS, now, MemoryWanted.NONE) == []
    assert summary(transfer.plan([one], known, NAS, now, MemoryWanted.ALL)) == [("h1", True)]


def test_ram_that_keep_memory_has_removed_there_is_not_sent_again(
    point: Callable[..., RestorePoint],
) -> None:
    """Whoever has removed it, maybe that host by its own rules, would do so again."""
    one, now = point(1), subtree("p/a@h1=10")
    there = at_destination(one)
    without = there.manifest.without_memory(keep_memory.REMOVED)
    known = [RestorePoint(there.directory, without)]
    assert transfer.plan([one], known, NAS, now, MemoryWanted.ALL) == []


def test_what_has_no_ram_here_any_more_is_sent_without(point: Callable[..., RestorePoint]) -> None:
    one = point(1)
    removed = RestorePoint(one.directory, one.manifest.without_memory(keep_memory.REMOVED))
    (only,) = transfer.plan([removed], [], NAS, subtree("p/a@h1=10"), MemoryWanted.ALL)
    assert (only.with_memory, only.manifest.reason) == (False, "RAM removed by keep-memory")
    assert only.manifest.absent_memory == RAM.sha256


NOW = datetime(2026, 11, 20, 5, tzinfo=UTC)
# By `memory` and `keep_memory`: of which of the points 3 and 4 the RAM is sent, where 1 and 2 with
# RAM are, and 4 is the latest; and of which it goes there.
KEPT_THERE = [
    ("none", "all", "", ""),
    ("latest", "all", "4", ""),
    ("all", "all", "34", ""),
    ("none", "1", "", "1"),
    ("latest", "1", "4", "12"),
    ("latest", "2", "4", "1"),
    ("all", "1", "4", "12"),
    ("all", "3", "34", "1"),
    ("none", "2h", "", "1"),
    ("all", "1h", "4", "12"),
    ("all", "2h", "34", "12"),
    ("all", "9d", "34", ""),
]


@pytest.mark.parametrize(("wanted", "keep", "sent", "going"), KEPT_THERE)
def test_how_long_ram_is_kept_there(
    point: Callable[..., RestorePoint], wanted: str, keep: str, sent: str, going: str
) -> None:
    local = [point(hour) for hour in (1, 2, 3, 4)]
    known = [at_destination(each) for each in local[:2]]
    other = at_destination(point(5), uuid=OTHER)  # another guest, which nobody sends from here
    now = subtree("p/a@h1=10", "p/a@h2=20", "p/a@h3=30", "p/a@h4=40")
    uuid = local[0].manifest.uuid
    planned = transfer.plan(local, [*known, other], NAS, now, MemoryWanted(wanted))
    kept = transfer.KeptThere(parse_keep(keep), NOW)
    transfers = kept.only_kept(uuid, [*known, other], planned)
    assert summary(transfers) == [("h3", "3" in sent), ("h4", "4" in sent)]
    for each in transfers:
        assert each.with_memory is (each.manifest.memory is not None)
        assert each.with_memory or "was not sent" in str(each.manifest.reason)
    gone = kept.going(uuid, [*known, other], transfers)
    assert "".join(each.directory.name[1:] for each in gone) == going
    # The next send, when these have arrived, says the same of what is left.
    arrived = [RestorePoint(Path(f"/mirror/web/{each.name}"), each.manifest) for each in transfers]
    left = [each for each in known if each not in gone]
    assert kept.going(uuid, [*left, *arrived, other]) == []


def test_ram_that_is_not_kept_there_is_not_sent_to_a_point_that_is_there(
    point: Callable[..., RestorePoint],
) -> None:
    one, two = point(1), point(2)
    known = [at_destination(one, memory=False), at_destination(two)]
    now = subtree("p/a@h1=10", "p/a@h2=20")
    planned = transfer.plan([one, two], known, NAS, now, MemoryWanted.ALL)
    assert summary(planned) == [("h1", True)]
    uuid = one.manifest.uuid
    assert transfer.KeptThere(Keep(1), NOW).only_kept(uuid, known, planned) == []
    assert transfer.KeptThere(Keep(2), NOW).only_kept(uuid, known, planned) == planned


@pytest.mark.parametrize(("capture", "uuid"), [("another", ""), ("", OTHER)])
def test_a_name_that_another_point_has(
    point: Callable[..., RestorePoint], capture: str, uuid: str
) -> None:
    one = point(1)
    known = [at_destination(one, capture=capture, uuid=uuid)]
    transfers = transfer.plan([one], known, NAS, subtree("p/a@h1=10"), MemoryWanted.ALL)
    assert summary(transfers) == [("h1.2", True)]


def test_a_name_that_an_unreadable_point_has(point: Callable[..., RestorePoint]) -> None:
    """It may be of another version: it is not overwritten."""
    damaged = [DamagedPoint(Path("/mirror/web/h1"), "schema 3")]
    transfers = transfer.plan([point(1)], [], NAS, subtree("p/a@h1=10"), MemoryWanted.ALL, damaged)
    assert summary(transfers) == [("h1.2", True)]


def test_a_snapshot_that_a_restore_has_moved(point: Callable[..., RestorePoint]) -> None:
    one = point(1, current_datasets={"a": "p/a.before-x"})
    (at_old,) = transfer.plan([one], [], NAS, subtree("p/a@h1=10"), MemoryWanted.ALL)
    assert at_old.manifest.snapshots[0].full_name == "backup/off/p/a@h1"


def test_the_manifest_is_sent_when_snapshots_have_moved_at_the_destination(
    point: Callable[..., RestorePoint],
) -> None:
    one = point(1)
    now = subtree("p/a.before-x@h1=10")
    (sent,) = transfer.plan([one], [at_destination(one)], NAS, now, MemoryWanted.ALL)
    assert not sent.with_memory and sent.manifest.memory and sent.size_bytes == 0
    assert sent.manifest.snapshots[0].full_name == "backup/off/p/a.before-x@h1"


PRUNED = [
    pytest.param([], ["h1", "h2"], id="all"),
    pytest.param(["p/a@h1=10"], ["h2"], id="of one"),
    pytest.param(["p/a@h1=10", "p/a@h2=99"], ["h2"], id="made anew under the same name"),
    pytest.param(["p/a@h1=10", "p/z@h2=20"], [], id="moved at the destination"),
    pytest.param(["p/a@h1=10", "p/a@h2=20"], [], id="none"),
]


@pytest.mark.parametrize(("left", "expected"), PRUNED)
def test_pruned(point: Callable[..., RestorePoint], left: list[str], expected: list[str]) -> None:
    known = [at_destination(point(1)), at_destination(point(2))]
    points = transfer.pruned(known, NAS, subtree(*left))
    assert [each.directory.name for each in points] == expected


def test_points_of_another_root_are_kept(point: Callable[..., RestorePoint]) -> None:
    """One vault may serve several roots."""
    assert (
        transfer.pruned([point(1, current_datasets={"a": "backup/other/p/a"})], NAS, subtree())
        == []
    )
    assert transfer.pruned([point(1)], NAS, subtree()) == []


def test_newest_complete(point: Callable[..., RestorePoint]) -> None:
    known = [at_destination(point(1, datasets="ab")), at_destination(point(2, datasets="ab"))]
    uuid = known[0].manifest.uuid
    newest = transfer.newest_complete(known, uuid, [10, 11, 20])
    assert newest and newest[1] == "h1"
    newest = transfer.newest_complete(known, uuid, [10, 11, 20, 21])
    assert newest and newest[1] == "h2"
    assert transfer.newest_complete(known, uuid, [10, 21]) is None
    assert transfer.newest_complete(known, OTHER, [10, 11]) is None
