"""`zvmsnap prune`: removes all points without snapshots that the pruning hook has missed.

A point is kept while any of its snapshots exists, by guid, under any name. A point whose pool is
not imported is kept too: nothing is known of its snapshots. Of the points that stay, RAM goes as
retention/keep_memory says, and files of RAM that no manifest names.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config
from zvmsnap.journal.waiting import all_entries
from zvmsnap.points import vault
from zvmsnap.points.liveness import Life, Liveness, guids_of
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import DamagedPoint
from zvmsnap.retention import leftovers, old_memory
from zvmsnap.retention.forget import LOCK, remove
from zvmsnap.retention.leftovers import Leftovers
from zvmsnap.retention.old_memory import Asked
from zvmsnap.zfs import types, zfs


@dataclass(frozen=True)
class Findings:
    """What `zvmsnap prune` removes, and what it only reports.

    `old_memory` are points that lose their RAM, `stray_memory` files of RAM that no manifest names.
    `unknown` are points of which nobody can say whether they have snapshots, `pointless` are
    snapshots that belong to no point.
    """

    leftovers: Leftovers
    orphans: list[RestorePoint] = field(default_factory=list)
    old_memory: list[RestorePoint] = field(default_factory=list)
    stray_memory: list[Path] = field(default_factory=list)
    unknown: list[RestorePoint] = field(default_factory=list)
    damaged: list[DamagedPoint] = field(default_factory=list)
    pointless: list[types.Snapshot] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Is there nothing to tell?"""
        return self == Findings(Leftovers())


def find(settings: Config) -> Findings:
    """Compare vault, staging and journal with ZFS, which lists all once; twice if points go."""
    vault.check(settings)
    unneeded = leftovers.find(settings)
    findings = Findings(unneeded)
    listing = zfs.all_snapshots()
    liveness = Liveness.by(listing)
    of_points: set[int] = set()
    datasets: set[str] = set()
    orphans = []
    with_memory = []
    # One after the other, as there may be many. What is published meanwhile is listed again.
    for point in vault.entries(settings.vault_dir):
        if isinstance(point, DamagedPoint):
            findings.damaged.append(point)
            continue
        datasets |= point.manifest.datasets
        for _, snapshot in liveness.existing(point.manifest):
            of_points.add(snapshot.guid)
            datasets.add(snapshot.dataset)
        findings.stray_memory.extend(vault.stray_memory(point))
        if liveness.orphaned(point.manifest):
            orphans.append(point)
            continue
        if point.manifest.memory:
            with_memory.append(point)
        if any(liveness.of(ref) is Life.UNKNOWN for ref in point.manifest.snapshots):
            findings.unknown.append(point)
    findings.orphans.extend(_confirmed(orphans))
    findings.old_memory.extend(_old_memory(settings, with_memory))
    findings.pointless.extend(_pointless(settings, listing, of_points, datasets))
    return findings


def _old_memory(settings: Config, points: list[RestorePoint]) -> list[RestorePoint]:
    """Those whose RAM goes; the newest RAM of a guest always stays."""
    guests = {point.manifest.uuid for point in points}
    if len(guests) == len(points):
        return []
    return old_memory.find(settings, points, Asked.of_all(settings))


def _confirmed(orphans: list[RestorePoint]) -> list[RestorePoint]:
    """Those that have no snapshot in a second listing either.

    A dataset that is renamed or promoted during a listing, as by a restore, may be missed in it.
    """
    if not orphans:
        return []
    again = Liveness.by(zfs.all_snapshots(guids_of(point.manifest for point in orphans)))
    return [point for point in orphans if again.orphaned(point.manifest)]


def _pointless(
    settings: Config, listing: types.SnapshotListing, of_points: set[int], datasets: set[str]
) -> list[types.Snapshot]:
    """The snapshots that belong to no point, of the datasets that guests have or had disks on."""
    for entry in all_entries(settings.journal_dir):
        datasets |= set(entry.datasets)
    return sorted(
        snapshot
        for snapshot in listing.snapshots
        if snapshot.dataset in datasets and snapshot.guid not in of_points
    )


def sweep(settings: Config) -> Findings:
    """Remove what `find` reports, as far as nothing is in the way; overlays are never removed."""
    with lock(settings.locks_dir, LOCK, "prune points", settings.limits.lock_timeout_s):
        findings = find(settings)
        for point in findings.orphans:
            remove(point)
        findings.leftovers.remove()
        for path in findings.stray_memory:
            vault.remove_files(path.parent, [path.name])
        removed = old_memory.remove(settings, findings.old_memory)
    return dataclasses.replace(findings, old_memory=removed)
