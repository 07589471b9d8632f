"""Where the snapshots of a point are now. Pure.

By guid, as datasets are renamed: a name alone may be another snapshot's by now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zvmsnap.common.errors import SnapshotMissing
from zvmsnap.points.liveness import complete_names
from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs.types import Snapshot


def snapshots_of(point: RestorePoint, present: Mapping[str, Snapshot]) -> dict[str, Snapshot]:
    """The snapshots to restore the point's disks from, by the dataset of the disks.

    If all datasets have several names of the run, the youngest: so none of the other snapshots is
    newer than what is restored. Raises SnapshotMissing with what is missing.
    """
    datasets = point.manifest.datasets
    current = _current(point.manifest, present)
    complete = [
        {ref.dataset: current[ref] for ref in current if ref.name == name}
        for name in complete_names(current, datasets)
    ]
    if not complete:
        raise SnapshotMissing(_missing(point, current))
    youngest = max(complete, key=lambda by_dataset: max(s.createtxg for s in by_dataset.values()))
    return {dataset: youngest[dataset] for dataset in sorted(datasets)}


def _current(manifest: Manifest, present: Mapping[str, Snapshot]) -> dict[SnapshotRef, Snapshot]:
    """The snapshots that still exist, as they are now."""
    by_guid: dict[int, list[Snapshot]] = {}
    for snapshot in present.values():
        by_guid.setdefault(snapshot.guid, []).append(snapshot)
    current = {}
    for ref in manifest.snapshots:
        if now := _now(ref, present, by_guid):
            current[ref] = now
    return current


def _now(
    ref: SnapshotRef, present: Mapping[str, Snapshot], by_guid: Mapping[int, list[Snapshot]]
) -> Snapshot | None:
    by_name = present.get(ref.full_name)
    if by_name and by_name.guid == ref.guid:
        return by_name
    # A replica in another pool has the same guid, and is not what the guest runs on.
    same_pool = [
        snapshot
        for snapshot in by_guid.get(ref.guid, [])
        if snapshot.dataset.partition("/")[0] == ref.pool
    ]
    return same_pool[0] if len(same_pool) == 1 else None


def _missing(point: RestorePoint, current: Iterable[SnapshotRef]) -> str:
    by_name: dict[str, set[str]] = {}
    for ref in current:
        by_name.setdefault(ref.name, set()).add(ref.dataset)
    best = max(by_name.values(), key=len, default=set())
    lost = ", ".join(sorted(point.manifest.datasets - best))
    return (
        f"{point.name}: no snapshot of it is left for {lost}: destroyed, or made anew under the "
        "same name; `zvmsnap show` lists them"
    )


def relocated(manifest: Manifest, present: Iterable[Snapshot]) -> Manifest | None:
    """The manifest with the current datasets of its snapshots; None if none has moved."""
    by_guid = {snapshot.guid: snapshot for snapshot in present}
    refs = tuple(
        SnapshotRef.of(by_guid[ref.guid], ref.dataset) if ref.guid in by_guid else ref
        for ref in manifest.snapshots
    )
    return None if refs == manifest.snapshots else manifest.with_snapshots(refs)
