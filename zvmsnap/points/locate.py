"""Where the snapshots of a point are now. Pure.

By guid, as datasets are renamed: a name alone may be another snapshot's by now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zvmsnap.common.errors import SnapshotMissing
from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs.types import Snapshot


def of(point: RestorePoint, present: Mapping[str, Snapshot]) -> dict[str, Snapshot]:
    """The snapshots to bring the point's disks back from, by the dataset of the disks.

    Of several names of the moment the youngest that all datasets have, so that none of the others
    is newer than what is brought back. Raises SnapshotMissing with what is missing.
    """
    manifest = point.manifest
    by_guid: dict[int, list[Snapshot]] = {}
    for snapshot in present.values():
        by_guid.setdefault(snapshot.guid, []).append(snapshot)
    found: dict[str, dict[str, Snapshot]] = {}
    for tie in manifest.snapshots:
        now = _now(tie, present, by_guid)
        if now:
            found.setdefault(tie.name, {})[tie.dataset] = now
    complete = [each for each in found.values() if each.keys() >= manifest.datasets]
    if not complete:
        raise SnapshotMissing(_missing(point, found))
    youngest = max(complete, key=lambda each: max(one.createtxg for one in each.values()))
    return {dataset: youngest[dataset] for dataset in sorted(manifest.datasets)}


def _now(
    tie: SnapshotRef, present: Mapping[str, Snapshot], by_guid: Mapping[int, list[Snapshot]]
) -> Snapshot | None:
    by_name = present.get(tie.full_name)
    if by_name and by_name.guid == tie.guid:
        return by_name
    # A replica in another pool has the same guid, and is not what the guest runs on there.
    pool = (tie.current_dataset or tie.dataset).partition("/")[0]
    others = [one for one in by_guid.get(tie.guid, []) if one.dataset.partition("/")[0] == pool]
    return others[0] if len(others) == 1 else None


def _missing(point: RestorePoint, found: Mapping[str, Mapping[str, Snapshot]]) -> str:
    best = max(found.values(), key=len, default={})
    lost = ", ".join(sorted(point.manifest.datasets - best.keys()))
    return (
        f"{point.name}: no snapshot of it is left for {lost}: destroyed, or made anew under the "
        "same name; `zvmsnap show` lists them"
    )


def moved(manifest: Manifest, present: Iterable[Snapshot]) -> Manifest | None:
    """The manifest with the present homes of its snapshots; None if nothing has moved."""
    by_guid = {snapshot.guid: snapshot for snapshot in present}
    ties = tuple(
        SnapshotRef.of(by_guid[tie.guid], tie.dataset) if tie.guid in by_guid else tie
        for tie in manifest.snapshots
    )
    return None if ties == manifest.snapshots else manifest.with_snapshots(ties)
