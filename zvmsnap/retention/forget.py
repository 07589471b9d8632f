"""The pruning hook: a restore point is removed with the last of its snapshots."""

from __future__ import annotations

from collections.abc import Iterable

from zvmsnap.common import log, snapshot_name
from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config
from zvmsnap.journal.request import HookCall
from zvmsnap.points import vault
from zvmsnap.points.liveness import Liveness
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import DamagedPoint
from zvmsnap.zfs import types, zfs

LOCK = "vault"


def forget(call: HookCall, settings: Config) -> bool:
    """sanoid has destroyed these snapshots: remove the points that have none left.

    Reads only the points of the runs that are named. True if nothing went wrong.
    """
    vault.check(settings)
    destroyed = {f"{dataset}@{name}" for dataset in call.datasets for name in call.names}
    points, damaged = [], []
    for name in call.names:
        for entry in vault.entries(settings.vault_dir, snapshot_name.run_of(name)):
            if isinstance(entry, DamagedPoint):
                damaged.append(entry)
            elif destroyed & {ref.full_name for ref in entry.manifest.snapshots}:
                points.append(entry)
    for each in damaged:
        log.plain().warning("%s", each.why)
    if points:
        with lock(settings.locks_dir, LOCK, "prune points", settings.limits.lock_timeout_s):
            liveness = Liveness.by(list_snapshots(points), only_names=True)
            for point in points:
                if liveness.orphaned(point.manifest):
                    remove(point)
    return not damaged


def remove(point: RestorePoint) -> None:
    """Remove a point whose last snapshot is gone."""
    vault.remove(point)
    log.about(point.manifest.domain, ",".join(sorted(point.manifest.datasets))).info(
        "point %s is gone with its last snapshot", point.name
    )


def list_snapshots(points: Iterable[RestorePoint]) -> types.SnapshotListing:
    """Ask ZFS for the snapshots of these points alone, by name."""
    return zfs.snapshots(ref.full_name for point in points for ref in point.manifest.snapshots)
