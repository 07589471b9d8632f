"""Which points go to a destination, and which are taken away there. Pure.

| the point here                         | there                    | what happens                |
|----------------------------------------|--------------------------|-----------------------------|
| none of its snapshots is there         | any                      | nothing                     |
| one is there                           | not                      | it goes there               |
| its RAM is wanted there                | without RAM              | its RAM goes there          |
| any                                    | its snapshots have moved | its manifest goes there     |
| any                                    | has what is wanted       | nothing                     |
|                                        | all its snapshots are gone | it is removed there       |

A point's RAM is wanted there by `--memory`: of all points, of none, or of the latest one of each
guest of which all disks have arrived. What is there is never taken away for the sake of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from zvmsnap.config.destination import Destination, MemoryWanted
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.points import locate
from zvmsnap.points.liveness import Liveness
from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs.types import Snapshot, Subtree


@dataclass(frozen=True)
class PointTransfer:
    """A point that goes to `name` in the vault there, with that manifest."""

    point: RestorePoint
    name: str
    manifest: Manifest
    with_memory: bool

    @property
    def size_bytes(self) -> int:
        """Of its RAM image, if that goes too; the rest is small."""
        memory = self.manifest.memory
        return memory.stored_bytes if memory and self.with_memory else 0


def parcels(
    here: Sequence[RestorePoint],
    there: Sequence[RestorePoint],
    destination: Destination,
    branch: Subtree,
    wanted: MemoryWanted,
) -> list[PointTransfer]:
    """The points that go, oldest first. `branch` is what has arrived below the root there."""
    arrived = {snapshot.guid: snapshot for snapshot in branch.snapshots.values()}
    known = {_key(point): point for point in there}
    taken = {(point.directory.parent.name, point.directory.name) for point in there}
    latest = _latest(here, arrived)
    found = []
    for point in sorted(here, key=lambda each: each.created):
        manifest = _as_there(point.manifest, destination, arrived)
        if not any(tie.guid in arrived for tie in manifest.snapshots):
            continue
        with_memory = wanted is MemoryWanted.ALL or (
            wanted is MemoryWanted.LATEST and latest.get(point.manifest.uuid) == _key(point)
        )
        if not with_memory and manifest.memory:
            manifest = without_memory(manifest, f"its RAM was not sent (memory = {wanted})")
        former = known.get(_key(point))
        if former is None:
            name = _free(point, taken)
            taken.add((point.directory.parent.name, name))
            found.append(PointTransfer(point, name, manifest, manifest.memory is not None))
        elif manifest.memory and not former.manifest.memory:
            found.append(PointTransfer(point, former.directory.name, manifest, with_memory=True))
        elif moved := locate.moved(former.manifest, arrived.values()):
            found.append(PointTransfer(point, former.directory.name, moved, with_memory=False))
    return found


def gone(
    there: Iterable[RestorePoint], destination: Destination, branch: Subtree
) -> list[RestorePoint]:
    """Points there whose snapshots all lay below the root, and were all destroyed."""
    pools = frozenset({destination.root.partition("/")[0]})
    liveness = Liveness(branch.snapshots, pools)
    guids = {snapshot.guid for snapshot in branch.snapshots.values()}
    return [
        point
        for point in there
        if liveness.orphaned(point.manifest)
        and all(
            tie.guid not in guids and destination.holds(tie.current_dataset or tie.dataset)
            for tie in point.manifest.snapshots
        )
    ]


def newest_complete(
    points: Iterable[RestorePoint], uuid: str, guids: Iterable[int]
) -> tuple[RestorePoint, str] | None:
    """The last point of a guest of which a snapshot of each disk's dataset is among `guids`.

    With the snapshot name.
    """
    there = frozenset(guids)
    own = sorted(
        (point for point in points if point.manifest.uuid == uuid), key=lambda each: each.created
    )
    for point in reversed(own):
        name = complete_name(point.manifest, there)
        if name:
            return point, name
    return None


def complete_name(manifest: Manifest, guids: frozenset[int]) -> str:
    """A snapshot name of a point that all its datasets have, by guid; "" if there is none."""
    by_name: dict[str, set[str]] = {}
    for tie in manifest.snapshots:
        if tie.guid in guids:
            by_name.setdefault(tie.name, set()).add(tie.dataset)
    return next((n for n, datasets in by_name.items() if datasets >= manifest.datasets), "")


def without_memory(manifest: Manifest, why: str) -> Manifest:
    """The same of its disks alone."""
    level = ConsistencyLevel.CRASH if manifest.level.has_memory else manifest.level
    return msgspec.structs.replace(
        manifest, memory=None, level=level, reason=manifest.reason or why
    )


def _latest(
    here: Sequence[RestorePoint], arrived: dict[int, Snapshot]
) -> dict[str, tuple[str, str]]:
    with_memory = [point for point in here if point.manifest.memory]
    uuids = {point.manifest.uuid for point in with_memory}
    found = {}
    for uuid in uuids:
        if newest := newest_complete(with_memory, uuid, arrived):
            found[uuid] = _key(newest[0])
    return found


def _as_there(
    manifest: Manifest, destination: Destination, arrived: dict[int, Snapshot]
) -> Manifest:
    ties = []
    for tie in manifest.snapshots:
        now = arrived.get(tie.guid)
        home = now.dataset if now else destination.of(tie.current_dataset or tie.dataset)
        txg = now.createtxg if now else tie.createtxg
        ties.append(SnapshotRef(tie.dataset, tie.name, tie.guid, txg, home))
    return manifest.with_snapshots(tuple(ties))


def _free(point: RestorePoint, taken: set[tuple[str, str]]) -> str:
    """Its own name, or with a number behind it if another capture has that there."""
    folder, name = point.directory.parent.name, point.directory.name
    number = 1
    while (folder, name) in taken:
        number += 1
        name = f"{point.directory.name}.{number}"
    return name


def _key(point: RestorePoint) -> tuple[str, str]:
    return point.manifest.uuid, point.manifest.capture
