"""Points go with their last snapshot: in sanoid's pruning hook, and by hand for all that it missed.

A point stays while any of its snapshots exists, by guid. One whose pool is not imported is never
judged: nothing is known of its snapshots.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config
from zvmsnap.journal.journal import Journal
from zvmsnap.points import vault
from zvmsnap.points.liveness import Life, Liveness
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import DamagedPoint
from zvmsnap.retention import leftovers
from zvmsnap.retention.forget import LOCK, asked_by_name, remove
from zvmsnap.retention.leftovers import Leftovers
from zvmsnap.zfs import types, zfs


@dataclass(frozen=True)
class Findings:
    """What `zvmsnap prune` removes, and what it only reports."""

    leftovers: Leftovers
    orphans: list[RestorePoint] = field(default_factory=list)
    unknown: list[RestorePoint] = field(default_factory=list)
    damaged: list[DamagedPoint] = field(default_factory=list)
    pointless: list[types.Snapshot] = field(default_factory=list)


def find(config: Config) -> Findings:
    """Compare the vault, staging and the journal with ZFS, which is listed once for everything."""
    vault.check(config)
    found = Findings(leftovers=leftovers.find(config))
    points = []
    for entry in vault.entries(config.vault_dir):
        if isinstance(entry, DamagedPoint):
            found.damaged.append(entry)
        else:
            points.append(entry)
    answer = zfs.all_snapshots()
    listed = _liveness(answer)
    guids = {snapshot.guid for snapshot in answer.present.values()}
    # A pool that is exported during the listing would make orphans of all its points, so what
    # seems lost is asked for once more.
    asked = _liveness(asked_by_name([point for point in points if listed.orphaned(point.manifest)]))
    for point in points:
        ties = point.manifest.snapshots
        liveness = asked if listed.orphaned(point.manifest) else listed
        orphaned = liveness.orphaned(point.manifest)
        if orphaned and not any(tie.guid in guids for tie in ties):
            found.orphans.append(point)
        elif orphaned or any(liveness.of(tie) is Life.UNKNOWN for tie in ties):
            found.unknown.append(point)
    tied = {tie.guid for point in points for tie in point.manifest.snapshots}
    managed = {disk.dataset for point in points for disk in point.manifest.disks}
    open_entries = Journal(config.journal_dir).entries()
    managed.update(dataset for entry in open_entries for dataset in entry.datasets)
    found.pointless.extend(
        snapshot
        for snapshot in sorted(answer.present.values())
        if snapshot.dataset in managed and snapshot.guid not in tied
    )
    return found


def sweep(config: Config) -> Findings:
    """Remove what `find` found to be orphaned or abandoned; overlays are never removed."""
    with lock(config.locks_dir, LOCK, "prune points", config.limits.lock_timeout_s):
        found = find(config)
        for point in found.orphans:
            remove(point)
        found.leftovers.remove()
    return found


def _liveness(answer: types.SnapshotListing) -> Liveness:
    return Liveness(answer.present, answer.pools)
