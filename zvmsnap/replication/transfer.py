"""Which points are sent to a destination, and which are removed there. Pure.

| the point on this host         | the point at the destination    | what happens          |
|--------------------------------|---------------------------------|-----------------------|
| none of its snapshots arrived  | any                             | nothing               |
| one of its snapshots arrived   | is missing                      | it is sent            |
| its RAM is wanted              | has no RAM                      | its RAM is sent       |
| its RAM is wanted              | had RAM: keep-memory removed it | nothing               |
| any                            | its snapshots are elsewhere now | its manifest is sent  |
| any                            | has what is wanted              | nothing               |
| any                            | all its snapshots are gone      | it is removed there   |

`--memory` says whose RAM is wanted at the destination: that of all points, of none, or of the
latest point of each guest of which all disks have arrived. How long RAM is kept there, the
destination's `keep_memory` says:

| `memory` | `keep_memory` | RAM that is sent                 | RAM that is removed there       |
|----------|---------------|----------------------------------|---------------------------------|
| `none`   | `all`         | none                             | none                            |
| `latest` | `all`         | of the latest point              | none                            |
| `all`    | `all`         | of all points                    | none                            |
| `none`   | 24, 36h       | none                             | what retention/keep_memory says |
| `latest` | 24, 36h       | of the latest point              | the same                        |
| `all`    | 24, 36h       | of those that would keep it      | the same                        |

What keep-memory has removed on this host before it was sent is not sent: the point is, without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from zvmsnap.config.destination import Destination, MemoryWanted
from zvmsnap.config.keep import Keep
from zvmsnap.points import locate
from zvmsnap.points.liveness import Liveness, complete_names
from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint, in_order
from zvmsnap.points.vault import DamagedPoint, folder_of
from zvmsnap.retention import keep_memory
from zvmsnap.retention.keep_memory import REMOVED, Rule
from zvmsnap.zfs.types import Snapshot, Subtree


@dataclass(frozen=True)
class PointTransfer:
    """A point to send: `name` and `manifest` are those that it has at the destination."""

    point: RestorePoint
    name: str
    manifest: Manifest
    with_memory: bool

    def without_memory(self, why: str) -> PointTransfer:
        """The same, of the disks alone."""
        manifest = self.manifest.without_memory(why)
        return dataclasses.replace(self, manifest=manifest, with_memory=False)

    @property
    def size_bytes(self) -> int:
        """The size of its RAM, if that is sent; the rest is small. Of pages less may go over."""
        memory = self.manifest.memory
        return memory.stored_bytes if memory and self.with_memory else 0

    @property
    def arrived(self) -> RestorePoint:
        """The point as it is at the destination; only the end of its directory counts there."""
        return RestorePoint(Path(folder_of(self.manifest.domain), self.name), self.manifest)


def plan(
    local: Sequence[RestorePoint],
    remote: Sequence[RestorePoint],
    destination: Destination,
    subtree: Subtree,
    wanted: MemoryWanted,
    damaged: Iterable[DamagedPoint] = (),
) -> list[PointTransfer]:
    """The points to send, oldest first. `subtree` is what has arrived at the destination.

    `damaged` are points at the destination that cannot be read, or are of another version: they
    are not overwritten.
    """
    arrived = subtree.by_guid
    known = {_key(point): point for point in remote}
    directories = [point.directory for point in remote] + [each.directory for each in damaged]
    taken_names = {(directory.parent.name, directory.name) for directory in directories}
    latest = _latest(local, arrived)
    transfers = []
    for point in in_order(local):
        if not any(ref.guid in arrived for ref in point.manifest.snapshots):
            continue
        manifest = _manifest_at(destination, point.manifest, arrived)
        if not _wants_memory(point, wanted, latest) and manifest.memory:
            why = manifest.reason or f"its RAM was not sent (memory = {wanted})"
            manifest = manifest.without_memory(why)
        at_destination = known.get(_key(point))
        if at_destination is None:
            name = _free_name(point, taken_names)
            taken_names.add((point.directory.parent.name, name))
            transfers.append(PointTransfer(point, name, manifest, manifest.memory is not None))
        elif transfer := _update(point, at_destination, manifest, arrived):
            transfers.append(transfer)
    return transfers


def _wants_memory(
    point: RestorePoint, wanted: MemoryWanted, latest: Mapping[str, tuple[str, str]]
) -> bool:
    if wanted is MemoryWanted.LATEST:
        return latest.get(point.manifest.uuid) == _key(point)
    return wanted is MemoryWanted.ALL


def _update(
    point: RestorePoint,
    at_destination: RestorePoint,
    manifest: Manifest,
    arrived: Mapping[int, Snapshot],
) -> PointTransfer | None:
    """What the point at the destination lacks."""
    name = at_destination.directory.name
    there = at_destination.manifest
    # Whoever has removed it there, maybe that host itself, would do so again.
    if manifest.memory and not there.memory and there.reason != REMOVED:
        return PointTransfer(point, name, manifest, with_memory=True)
    if moved := locate.relocated(there, arrived, {}, {}):
        return PointTransfer(point, name, moved, with_memory=False)
    return None


@dataclass(frozen=True)
class KeptThere:
    """How long RAM is kept at a destination, as of now."""

    keep: Keep
    now: datetime

    def going(
        self, uuid: str, remote: Iterable[RestorePoint], transfers: Iterable[PointTransfer] = ()
    ) -> list[RestorePoint]:
        """The points of a guest whose RAM goes there, once these transfers have arrived.

        Those that have not arrived yet are in their directory here.
        """
        if not self.keep.has_end:
            return []
        own = [point for point in remote if point.manifest.uuid == uuid]
        coming = [RestorePoint(t.point.directory, t.manifest) for t in transfers if t.with_memory]
        return keep_memory.going([*own, *coming], lambda _: (Rule(self.keep),), self.now)

    def only_kept(
        self, uuid: str, remote: Sequence[RestorePoint], transfers: Sequence[PointTransfer]
    ) -> list[PointTransfer]:
        """The transfers of a guest, without RAM that would go there at once."""
        old = {_key(point) for point in self.going(uuid, remote, transfers)}
        known = {_key(point) for point in remote}
        kept = []
        for each in transfers:
            if not each.with_memory or _key(each.point) not in old:
                kept.append(each)
            elif _key(each.point) not in known:
                why = f"its RAM was not sent (keep_memory = {self.keep})"
                kept.append(each.without_memory(why))
        return kept


def was_removed(transfer: PointTransfer, now: RestorePoint | DamagedPoint | None) -> bool:
    """Is the point gone here, or its RAM that was to be sent? `now` is what there is of it."""
    if isinstance(now, RestorePoint):
        return transfer.with_memory and now.manifest.memory is None
    return now is None


def pruned(
    remote: Iterable[RestorePoint], destination: Destination, subtree: Subtree
) -> list[RestorePoint]:
    """Points at the destination whose snapshots were all below its root, and are all destroyed."""
    liveness = Liveness.below(destination.root, subtree)
    return [
        point
        for point in remote
        if liveness.orphaned(point.manifest)
        and all(
            ref.guid not in subtree.by_guid
            and destination.holds(ref.current_dataset or ref.dataset)
            for ref in point.manifest.snapshots
        )
    ]


def newest_pages(points: Iterable[RestorePoint], uuid: str) -> RestorePoint | None:
    """The last point of a guest that has a page image, which is not encrypted."""
    own = [p for p in points if p.manifest.uuid == uuid and not p.manifest.encrypted]
    paged = [each for each in own if each.manifest.memory and each.manifest.memory.is_paged]
    return in_order(paged)[-1] if paged else None


def newest_complete(
    points: Iterable[RestorePoint], uuid: str, guids: Container[int]
) -> tuple[RestorePoint, str] | None:
    """The last point of a guest of which a snapshot of each disk's dataset is among `guids`.

    With the name of that snapshot.
    """
    own = in_order(point for point in points if point.manifest.uuid == uuid)
    for point in reversed(own):
        name = complete_name(point.manifest, guids)
        if name:
            return point, name
    return None


def complete_name(manifest: Manifest, guids: Container[int]) -> str:
    """A snapshot name of a point that all its datasets have, by guid; "" if there is none."""
    refs = [ref for ref in manifest.snapshots if ref.guid in guids]
    return next(iter(complete_names(refs, manifest.datasets)), "")


def _latest(
    local: Sequence[RestorePoint], arrived: Mapping[int, Snapshot]
) -> dict[str, tuple[str, str]]:
    """The key of the latest complete point with RAM, by the guest's uuid."""
    with_memory = [point for point in local if point.manifest.memory]
    latest = {}
    for uuid in {point.manifest.uuid for point in with_memory}:
        if newest := newest_complete(with_memory, uuid, arrived):
            latest[uuid] = _key(newest[0])
    return latest


def _manifest_at(
    destination: Destination, manifest: Manifest, arrived: Mapping[int, Snapshot]
) -> Manifest:
    """The manifest, with the datasets and transaction groups that its snapshots have there."""
    refs = []
    for ref in manifest.snapshots:
        snapshot = arrived.get(ref.guid)
        dataset = (
            snapshot.dataset if snapshot else destination.of(ref.current_dataset or ref.dataset)
        )
        # Of another pool it would say nothing of the order there.
        createtxg = snapshot.createtxg if snapshot else 0
        refs.append(SnapshotRef(ref.dataset, ref.name, ref.guid, createtxg, dataset))
    return manifest.with_snapshots(tuple(refs))


def _free_name(point: RestorePoint, taken_names: set[tuple[str, str]]) -> str:
    """Its own name, with a number behind it if another capture has that at the destination."""
    folder, name = point.directory.parent.name, point.directory.name
    number = 1
    while (folder, name) in taken_names:
        number += 1
        name = f"{point.directory.name}.{number}"
    return name


def _key(point: RestorePoint) -> tuple[str, str]:
    return point.manifest.uuid, point.manifest.capture
