"""The pruning hook: a restore point is removed with the last of its snapshots, by guid.

sanoid calls it once for each snapshot that it has destroyed. So all snapshots are never listed
here: first those of the points are asked for by their names, and then, if a point seems to have
none left, the datasets that alone can have them:

| the dataset of a snapshot         | it, or an origin of it, has it | the snapshot             |
|-----------------------------------|--------------------------------|--------------------------|
| exists, under any name            | yes                            | exists: renamed or moved |
| exists, under any name            | no                             | is gone                  |
| was renamed or promoted meanwhile | no                             | is not known             |
| does not exist                    | any                            | is not known             |

A snapshot leaves its dataset with `zfs promote` alone, which makes the dataset a clone of the one
that has the snapshot after that. A point is removed if all of its snapshots are gone; `zvmsnap
prune` looks for those of which nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from zvmsnap.common import log, snapshot_name
from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config
from zvmsnap.journal.request import HookCall
from zvmsnap.points import vault
from zvmsnap.points.manifest import SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import DamagedPoint
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import Lineage

LOCK = "vault"


def forget(call: HookCall, settings: Config) -> bool:
    """sanoid has destroyed these snapshots: remove the points that have none left.

    Reads only the points of the runs that are named. True if nothing went wrong.
    """
    vault.check(settings)
    points, damaged = [], []
    for run in dict.fromkeys(map(snapshot_name.run_of, call.names)):
        for entry in vault.entries(settings.vault_dir, run):
            if isinstance(entry, DamagedPoint):
                damaged.append(entry)
            elif any(ref.name in call.names for ref in entry.manifest.snapshots):
                points.append(entry)
    for each in damaged:
        log.plain().warning("%s", each.why)
    if points := _concerned(call, points):
        with lock(settings.locks_dir, LOCK, "prune points", settings.limits.lock_timeout_s):
            for point in _without_snapshots(points):
                remove(point)
    return not damaged


def remove(point: RestorePoint) -> None:
    """Remove a point whose last snapshot is gone."""
    vault.remove(point)
    log.about(point.manifest.domain, ",".join(sorted(point.manifest.datasets))).info(
        "point %s is gone with its last snapshot", point.name
    )


def _concerned(call: HookCall, points: Sequence[RestorePoint]) -> list[RestorePoint]:
    """The points of these datasets: by the names that they had, else by their guids."""
    destroyed = {f"{dataset}@{name}" for dataset in call.datasets for name in call.names}
    named = [
        point
        for point in points
        if any(ref.full_name in destroyed for ref in point.manifest.snapshots)
    ]
    if named or not points:
        return named
    existing = zfs.lineages()
    guids = {existing[dataset].guid for dataset in call.datasets if dataset in existing}
    return [
        point
        for point in points
        if any(ref.dataset_guid in guids for ref in point.manifest.snapshots)
    ]


def _without_snapshots(points: Sequence[RestorePoint]) -> list[RestorePoint]:
    """Those of which every snapshot is known to be gone."""
    suspects = _not_found_by_name(points)
    if not suspects:
        return []
    refs = [ref for point in suspects for ref in point.manifest.snapshots]
    existing = zfs.lineages()
    holders = {ref: _holders(ref, existing) for ref in refs}
    names = {name for own in holders.values() for name in own}
    guids = {usage.snapshot.guid for usage in zfs.snapshot_usage(sorted(names))}
    # Whoever has renamed or promoted meanwhile has moved snapshots out of what was listed.
    existing = zfs.lineages()
    gone = {
        ref
        for ref, own in holders.items()
        if own and own == _holders(ref, existing) and ref.guid not in guids
    }
    return [point for point in suspects if gone.issuperset(point.manifest.snapshots)]


def _not_found_by_name(points: Sequence[RestorePoint]) -> list[RestorePoint]:
    listed = zfs.snapshots(ref.full_name for point in points for ref in point.manifest.snapshots)
    guids = {name: snapshot.guid for name, snapshot in listed.present.items()}
    return [
        point
        for point in points
        if not any(guids.get(ref.full_name) == ref.guid for ref in point.manifest.snapshots)
    ]


def _holders(ref: SnapshotRef, existing: Mapping[str, Lineage]) -> dict[str, Lineage]:
    """The datasets that alone can have the snapshot; none if its own does not exist."""
    return {name: existing[name] for name in _origins(_dataset_of(ref, existing), existing)}


def _dataset_of(ref: SnapshotRef, existing: Mapping[str, Lineage]) -> str:
    if not ref.dataset_guid:
        return ref.current_dataset or ref.dataset
    by_guid = (name for name, each in existing.items() if each.guid == ref.dataset_guid)
    return next(by_guid, "")


def _origins(dataset: str, existing: Mapping[str, Lineage]) -> Iterator[str]:
    while dataset in existing:
        yield dataset
        dataset = existing[dataset].origin
