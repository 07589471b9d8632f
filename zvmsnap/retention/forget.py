"""The pruning hook: a restore point goes with the last of its snapshots."""

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


def forget(call: HookCall, config: Config) -> bool:
    """sanoid has destroyed these snapshots: remove the points that have none left.

    Reads only the points of that moment. True if nothing went wrong.
    """
    vault.check(config)
    destroyed = {f"{dataset}@{name}" for dataset in call.datasets for name in call.names}
    points, damaged = [], []
    for name in call.names:
        for found in vault.entries(config.vault_dir, snapshot_name.run_of(name)):
            if isinstance(found, DamagedPoint):
                damaged.append(found)
            elif destroyed & {tie.full_name for tie in found.manifest.snapshots}:
                points.append(found)
    for entry in damaged:
        log.plain().warning("%s", entry.why)
    if points:
        with lock(config.locks_dir, LOCK, "prune points", config.limits.lock_timeout_s):
            answer = asked_by_name(points)
            liveness = Liveness(answer.present, answer.pools, answer.homeless)
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


def asked_by_name(points: Iterable[RestorePoint]) -> types.SnapshotListing:
    """Ask ZFS for the snapshots of these points alone."""
    return zfs.snapshots(tie.full_name for point in points for tie in point.manifest.snapshots)
