"""Points go with their last snapshot: in sanoid's pruning hook, and by hand for all that it missed.

A point stays while any of its snapshots exists, by guid. One whose pool is not imported is never
judged: nothing is known of its snapshots.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from zvmsnap import debris, log, sanoid, vault, zfs
from zvmsnap.config import Config
from zvmsnap.debris import Debris
from zvmsnap.journal import Journal
from zvmsnap.locks import lock
from zvmsnap.point import Life, Liveness, Point
from zvmsnap.sanoid import HookCall
from zvmsnap.vault import Damaged

_LOCK = "vault"


def forget(call: HookCall, config: Config) -> bool:
    """sanoid has destroyed these snapshots: remove the points that have none left.

    Reads only the points of that moment. True if nothing went wrong.
    """
    vault.check(config)
    destroyed = {f"{dataset}@{name}" for dataset in call.datasets for name in call.names}
    points, damaged = [], []
    for name in call.names:
        for found in vault.entries(config.vault_dir, sanoid.moment_of(name)):
            if isinstance(found, Damaged):
                damaged.append(found)
            elif destroyed & {tie.full_name for tie in found.manifest.snapshots}:
                points.append(found)
    for entry in damaged:
        log.plain().warning("%s", entry.why)
    if points:
        with lock(config.locks_dir, _LOCK, "prune points", config.limits.lock_timeout_s):
            answer = _asked_by_name(points)
            liveness = Liveness(answer.present, answer.pools, answer.homeless)
            for point in points:
                if liveness.orphaned(point.manifest):
                    _remove(point)
    return not damaged


def _remove(point: Point) -> None:
    vault.remove(point)
    log.about(point.manifest.domain, ",".join(sorted(point.manifest.datasets))).info(
        "point %s is gone with its last snapshot", point.name
    )


@dataclass(frozen=True)
class Findings:
    """What `zvmsnap prune` removes, and what it only reports."""

    debris: Debris
    orphans: list[Point] = field(default_factory=list)
    unknown: list[Point] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)
    pointless: list[zfs.Snapshot] = field(default_factory=list)


def find(config: Config) -> Findings:
    """Compare the vault, staging and the journal with ZFS, which is listed once for everything."""
    vault.check(config)
    found = Findings(debris=debris.find(config))
    points = []
    for entry in vault.entries(config.vault_dir):
        if isinstance(entry, Damaged):
            found.damaged.append(entry)
        else:
            points.append(entry)
    answer = zfs.all_snapshots()
    listed = _liveness(answer)
    guids = {snapshot.guid for snapshot in answer.present.values()}
    # A pool that is exported during the listing would make orphans of all its points, so what
    # seems lost is asked for once more.
    asked = _liveness(
        _asked_by_name([point for point in points if listed.orphaned(point.manifest)])
    )
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
    with lock(config.locks_dir, _LOCK, "prune points", config.limits.lock_timeout_s):
        found = find(config)
        for point in found.orphans:
            _remove(point)
        found.debris.remove()
    return found


def _asked_by_name(points: Iterable[Point]) -> zfs.Answer:
    return zfs.snapshots(tie.full_name for point in points for tie in point.manifest.snapshots)


def _liveness(answer: zfs.Answer) -> Liveness:
    return Liveness(answer.present, answer.pools)
