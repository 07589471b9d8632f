from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from zvmsnap.config.destination import Destination, MemoryWanted
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.points.manifest import Disk, Manifest, Memory, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.replication import transfer
from zvmsnap.zfs.types import Snapshot, Subtree

Build = Callable[..., Manifest]
NAS = Destination("nas", "far/off")
RAM = Memory("memory.img", "raw", "none", 100, 100, "0" * 64)
OTHER = "c0ffee00-0000-4000-8000-00000000000f"


def branch(*names: str) -> Subtree:
    """Snapshots below the root, written `dataset@name=guid`."""
    found = {}
    for each in names:
        full_name, _, guid = each.partition("=")
        dataset, _, name = full_name.partition("@")
        found[f"far/off/{full_name}"] = Snapshot(f"far/off/{dataset}", name, int(guid), int(guid))
    return Subtree(frozenset({s.dataset for s in found.values()}), found)


@pytest.fixture
def point(manifest: Build) -> Callable[..., RestorePoint]:
    """A point taken at that hour, of a dataset a, and b if it is to have one more."""

    def build(
        hour: int,
        *,
        memory: bool = True,
        datasets: str = "a",
        folder: str = "",
        homes: Mapping[str, str] | None = None,
    ) -> RestorePoint:
        made = manifest(
            created=f"2026-11-20T{hour:02}:00:00+00:00",
            run=f"h{hour}",
            capture=f"capture-{hour}",
            level=ConsistencyLevel.MEMORY,
            memory=RAM if memory else None,
            disks=tuple(Disk("vda", "file", "raw", "/x", f"p/{d}", "x") for d in datasets),
            snapshots=tuple(
                SnapshotRef(f"p/{d}", f"h{hour}", hour * 10 + n, 1, (homes or {}).get(d, ""))
                for n, d in enumerate(datasets)
            ),
        )
        return RestorePoint(Path("/vault/web") / (folder or f"h{hour}"), made)

    return build


def summed(found: list[transfer.PointTransfer]) -> list[tuple[str, bool]]:
    return [(each.name, each.manifest.memory is not None) for each in found]


WANTED = [
    pytest.param(MemoryWanted.LATEST, [("h1", False), ("h2", True)], id="the latest RAM"),
    pytest.param(MemoryWanted.ALL, [("h1", True), ("h2", True)], id="all RAM"),
    pytest.param(MemoryWanted.NONE, [("h1", False), ("h2", False)], id="no RAM"),
]


@pytest.mark.parametrize(("wanted", "expected"), WANTED)
def test_memory(
    point: Callable[..., RestorePoint], wanted: MemoryWanted, expected: list[tuple[str, bool]]
) -> None:
    here = [point(2), point(1), point(3)]
    found = transfer.parcels(here, [], NAS, branch("p/a@h1=10", "p/a@h2=20"), wanted)
    assert summed(found) == expected
    for each in found:
        (tie,) = each.manifest.snapshots
        assert tie.full_name == f"far/off/p/a@{each.name}"
        kept = each.manifest.memory is not None
        assert each.manifest.level == (ConsistencyLevel.MEMORY if kept else ConsistencyLevel.CRASH)
        assert kept or "was not sent" in str(each.manifest.reason)


def test_latest_is_the_last_of_which_all_disks_have_arrived(
    point: Callable[..., RestorePoint],
) -> None:
    here = [point(1, datasets="ab"), point(2, datasets="ab")]
    there = branch("p/a@h1=10", "p/b@h1=11", "p/a@h2=20")
    found = transfer.parcels(here, [], NAS, there, MemoryWanted.LATEST)
    assert summed(found) == [("h1", True), ("h2", False)]


def test_another_snapshot_of_the_same_name(point: Callable[..., RestorePoint]) -> None:
    assert transfer.parcels([point(1)], [], NAS, branch("p/a@h1=99"), MemoryWanted.ALL) == []


def there(
    point: RestorePoint, *, memory: bool = True, capture: str = "", uuid: str = ""
) -> RestorePoint:
    """As it stands at the destination."""
    own = point.manifest
    ties = tuple(
        msgspec.structs.replace(tie, current_dataset=f"far/off/{tie.dataset}", createtxg=tie.guid)
        for tie in own.snapshots
    )
    return RestorePoint(
        Path("/mirror/web") / point.directory.name,
        msgspec.structs.replace(
            own,
            snapshots=ties,
            memory=own.memory if memory else None,
            capture=capture or own.capture,
            uuid=uuid or own.uuid,
        ),
    )


def test_what_is_there_is_not_sent_again(point: Callable[..., RestorePoint]) -> None:
    one, two, now = point(1), point(2, memory=False), branch("p/a@h1=10", "p/a@h2=20")
    assert transfer.parcels([one, two], [there(one), there(two)], NAS, now, MemoryWanted.ALL) == []


def test_ram_follows_when_it_is_wanted_later(point: Callable[..., RestorePoint]) -> None:
    one = point(1)
    known = [there(one, memory=False)]
    now = branch("p/a@h1=10")
    assert transfer.parcels([one], known, NAS, now, MemoryWanted.NONE) == []
    assert summed(transfer.parcels([one], known, NAS, now, MemoryWanted.ALL)) == [("h1", True)]


@pytest.mark.parametrize(("capture", "uuid"), [("another", ""), ("", OTHER)])
def test_a_name_that_is_taken_there(
    point: Callable[..., RestorePoint], capture: str, uuid: str
) -> None:
    one = point(1)
    known = [there(one, capture=capture, uuid=uuid)]
    found = transfer.parcels([one], known, NAS, branch("p/a@h1=10"), MemoryWanted.ALL)
    assert summed(found) == [("h1.2", True)]


def test_a_snapshot_that_a_restore_has_moved(point: Callable[..., RestorePoint]) -> None:
    one = point(1, homes={"a": "p/a.before-x"})
    (at_old,) = transfer.parcels([one], [], NAS, branch("p/a@h1=10"), MemoryWanted.ALL)
    assert at_old.manifest.snapshots[0].full_name == "far/off/p/a@h1"


def test_the_manifest_follows_when_snapshots_have_moved_there(
    point: Callable[..., RestorePoint],
) -> None:
    one = point(1)
    now = branch("p/a.before-x@h1=10")
    (found,) = transfer.parcels([one], [there(one)], NAS, now, MemoryWanted.ALL)
    assert not found.with_memory and found.manifest.memory and found.size_bytes == 0
    assert found.manifest.snapshots[0].full_name == "far/off/p/a.before-x@h1"


GONE = [
    pytest.param([], ["h1", "h2"], id="all"),
    pytest.param(["p/a@h1=10"], ["h2"], id="of one"),
    pytest.param(["p/a@h1=10", "p/a@h2=99"], ["h2"], id="made anew under the same name"),
    pytest.param(["p/a@h1=10", "p/z@h2=20"], [], id="moved there"),
    pytest.param(["p/a@h1=10", "p/a@h2=20"], [], id="none"),
]


@pytest.mark.parametrize(("left", "expected"), GONE)
def test_gone(point: Callable[..., RestorePoint], left: list[str], expected: list[str]) -> None:
    known = [there(point(1)), there(point(2))]
    found = transfer.gone(known, NAS, branch(*left))
    assert [each.directory.name for each in found] == expected


def test_points_of_elsewhere_stay(point: Callable[..., RestorePoint]) -> None:
    """One vault may serve several roots."""
    assert transfer.gone([point(1, homes={"a": "far/other/p/a"})], NAS, branch()) == []
    assert transfer.gone([point(1)], NAS, branch()) == []


def test_newest_complete(point: Callable[..., RestorePoint]) -> None:
    known = [there(point(1, datasets="ab")), there(point(2, datasets="ab"))]
    uuid = known[0].manifest.uuid
    found = transfer.newest_complete(known, uuid, [10, 11, 20])
    assert found and found[1] == "h1"
    found = transfer.newest_complete(known, uuid, [10, 11, 20, 21])
    assert found and found[1] == "h2"
    assert transfer.newest_complete(known, uuid, [10, 21]) is None
    assert transfer.newest_complete(known, OTHER, [10, 11]) is None
