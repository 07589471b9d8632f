"""Where the snapshots of a point are now. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zvmsnap.common.errors import PoolMissing, SnapshotMissing
from zvmsnap.points.liveness import Life, Liveness, complete_names
from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs.types import Lineage, Snapshot


def snapshots_of(point: RestorePoint, liveness: Liveness) -> dict[str, Snapshot]:
    """The snapshots to restore the point's disks from, by the dataset of the disks.

    If all datasets have several names of the run, the youngest: so none of the other snapshots is
    newer than what is restored. Raises SnapshotMissing with what is missing, and why;
    PoolMissing if a pool is not imported.
    """
    datasets = point.manifest.datasets
    now = ((ref, liveness.now(ref)) for ref in point.manifest.snapshots)
    current = {ref: snapshot for ref, snapshot in now if snapshot}
    complete = [
        {ref.dataset: current[ref] for ref in current if ref.name == name}
        for name in complete_names(current, datasets)
    ]
    if not complete:
        is_away = any(liveness.of(ref) is Life.UNKNOWN for ref in point.manifest.snapshots)
        missing = PoolMissing if is_away else SnapshotMissing
        raise missing(_missing(point, current, liveness))
    youngest = max(complete, key=lambda by_dataset: max(s.createtxg for s in by_dataset.values()))
    return {dataset: youngest[dataset] for dataset in sorted(datasets)}


def _missing(point: RestorePoint, current: Iterable[SnapshotRef], liveness: Liveness) -> str:
    by_name: dict[str, set[str]] = {}
    for ref in current:
        by_name.setdefault(ref.name, set()).add(ref.dataset)
    best = max(by_name.values(), key=len, default=set())
    lost = point.manifest.datasets - best
    reasons = dict.fromkeys(
        _why_missing(ref, liveness) for ref in point.manifest.snapshots if ref.dataset in lost
    )
    return (
        f"{point.name}: has no snapshot of {', '.join(sorted(lost))} any more that fits: "
        f"{'; '.join(reasons) or 'none was taken'}; `zvmsnap show` lists all"
    )


def _why_missing(ref: SnapshotRef, liveness: Liveness) -> str:
    replicas = [each.full_name for each in liveness.replicas(ref)]
    life = liveness.of(ref)
    if life is Life.ALIVE:
        if liveness.now(ref):
            return f"{ref.name} is left, but not on all of its disks"
        return f"{ref.full_name} exists under several names: {', '.join(sorted(replicas))}"
    elsewhere = f" (a replica of it is {replicas[0]})" if replicas else ""
    if life is Life.UNKNOWN:
        return f"pool {ref.pool} is not imported, nothing is known of {ref.full_name}{elsewhere}"
    return f"{ref.full_name} was destroyed{elsewhere}"


def relocated(
    manifest: Manifest,
    existing: Mapping[int, Snapshot],
    datasets: Mapping[str, Lineage],
    pools: Mapping[str, int],
) -> Manifest | None:
    """The manifest with what has its snapshots now; None if none has moved.

    `existing` are snapshots by guid; the rest is as for SnapshotRef.identified.
    """
    refs = tuple(
        ref.moved_to(existing[ref.guid]).identified(datasets, pools)
        if ref.guid in existing
        else ref
        for ref in manifest.snapshots
    )
    return None if refs == manifest.snapshots else manifest.with_snapshots(refs)
