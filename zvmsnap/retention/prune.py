"""`zvmsnap prune`: removes all points without snapshots that the pruning hook has missed.

A point is kept while any of its snapshots exists, by guid. A point whose pool is not imported is
kept too: nothing is known of its snapshots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config
from zvmsnap.journal.waiting import all_entries
from zvmsnap.points import vault
from zvmsnap.points.liveness import Life, Liveness
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import DamagedPoint
from zvmsnap.retention import leftovers
from zvmsnap.retention.forget import LOCK, list_snapshots, remove
from zvmsnap.retention.leftovers import Leftovers
from zvmsnap.zfs import types, zfs


@dataclass(frozen=True)
class Findings:
    """What `zvmsnap prune` removes, and what it only reports.

    `unknown` are points of which nobody can say whether they have snapshots, `pointless` are
    snapshots that belong to no point.
    """

    leftovers: Leftovers
    orphans: list[RestorePoint] = field(default_factory=list)
    unknown: list[RestorePoint] = field(default_factory=list)
    damaged: list[DamagedPoint] = field(default_factory=list)
    pointless: list[types.Snapshot] = field(default_factory=list)


def find(settings: Config) -> Findings:
    """Compare vault, staging and journal with ZFS. All snapshots are listed once."""
    vault.check(settings)
    unneeded = leftovers.find(settings)
    points, damaged = [], []
    for entry in vault.entries(settings.vault_dir):
        if isinstance(entry, DamagedPoint):
            damaged.append(entry)
        else:
            points.append(entry)
    listing = zfs.all_snapshots()
    orphans, unknown = _without_snapshots(points, listing)
    pointless = _pointless(settings, points, listing)
    return Findings(unneeded, orphans, unknown, damaged, pointless)


def _without_snapshots(
    points: Sequence[RestorePoint], listing: types.SnapshotListing
) -> tuple[list[RestorePoint], list[RestorePoint]]:
    """Points without any snapshot, and points of whose snapshots too little is known."""
    listed = Liveness.by(listing)
    guids = {snapshot.guid for snapshot in listing.present.values()}
    # A pool that is exported during the listing would make orphans of all its points. So ask once
    # more for the snapshots of points that seem to have none.
    suspects = [point for point in points if listed.orphaned(point.manifest)]
    asked_again = Liveness.by(list_snapshots(suspects))
    orphans, unknown = [], []
    for point in points:
        refs = point.manifest.snapshots
        liveness = asked_again if listed.orphaned(point.manifest) else listed
        is_orphaned = liveness.orphaned(point.manifest)
        if is_orphaned and not any(ref.guid in guids for ref in refs):
            orphans.append(point)
        elif is_orphaned or any(liveness.of(ref) is Life.UNKNOWN for ref in refs):
            unknown.append(point)
    return orphans, unknown


def _pointless(
    settings: Config, points: Sequence[RestorePoint], listing: types.SnapshotListing
) -> list[types.Snapshot]:
    """The snapshots of guests' datasets that belong to no point."""
    of_points = {ref.guid for point in points for ref in point.manifest.snapshots}
    datasets = {disk.dataset for point in points for disk in point.manifest.disks}
    for entry in all_entries(settings.journal_dir):
        datasets.update(entry.datasets)
    return [
        snapshot
        for snapshot in sorted(listing.present.values())
        if snapshot.dataset in datasets and snapshot.guid not in of_points
    ]


def sweep(settings: Config) -> Findings:
    """Remove the orphans and leftovers that `find` reports; overlays are never removed."""
    with lock(settings.locks_dir, LOCK, "prune points", settings.limits.lock_timeout_s):
        findings = find(settings)
        for point in findings.orphans:
            remove(point)
        findings.leftovers.remove()
    return findings
