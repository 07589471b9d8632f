"""Drops points that were taken by hand, with their snapshots."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from zvmsnap.common import log
from zvmsnap.common.errors import DropRefused, LockTimeout, ZfsFailed
from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config
from zvmsnap.journal import other_versions, snapshot_match
from zvmsnap.journal.waiting import all_entries
from zvmsnap.points import vault
from zvmsnap.points.liveness import Life, Liveness
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import DamagedPoint
from zvmsnap.retention.forget import LOCK
from zvmsnap.zfs import zfs

_PREFIX_OF_SANOID = "autosnap_"
_RUN_OF_TAKE = re.compile(r"zvmsnap_.+_manual")


def snapshots(settings: Config, points: Sequence[RestorePoint]) -> list[str]:
    """The snapshots that are destroyed with these points, under their present names.

    Raises DropRefused and ZfsFailed.
    """
    return _droppable(settings, points, vault.read(settings), _liveness())


def destroy(settings: Config, points: Sequence[RestorePoint], names: Sequence[str]) -> None:
    """Destroy the snapshots, and remove the points. Raises ZfsFailed and LockTimeout.

    If it is interrupted, `zvmsnap prune` removes the points whose snapshots are gone.
    """
    intent = f"drop {', '.join(point.name for point in points)}"
    with lock(settings.locks_dir, LOCK, intent, settings.limits.lock_timeout_s):
        for name in names:
            zfs.destroy(name)
        for point in points:
            vault.remove(point)


def surplus(
    settings: Config, uuids: Sequence[str], keep: int, *, dry_run: bool = False
) -> list[str]:
    """Drop all points that `zvmsnap take` made of these guests, but for the newest `keep` of each.

    Only runs whose name zvmsnap has made up. Points that other guests have of the same snapshots
    are dropped too, if they are surplus as well. Returns the names of the points that are dropped;
    the log says why a point is kept. Raises VaultMissing.
    """
    known = points, _ = vault.read(settings)
    old = _all_but_newest([p for p in points if _RUN_OF_TAKE.fullmatch(p.manifest.run)], keep)
    runs: dict[str, list[RestorePoint]] = {}
    for point in old:
        if point.manifest.uuid in uuids:
            runs.setdefault(point.manifest.run, []).append(point)
    dropped: list[str] = []
    liveness: Liveness | None = None
    for own in runs.values():
        together = own + _sharing_snapshots(own, old)
        names = [point.name for point in together]
        try:
            liveness = liveness or _liveness()
            to_destroy = _droppable(settings, together, known, liveness)
            if not dry_run:
                destroy(settings, together, to_destroy)
            dropped += names
        except (DropRefused, ZfsFailed, LockTimeout) as error:
            log.plain().warning("%s: kept: %s", ", ".join(names), error)
    return dropped


def _all_but_newest(points: Sequence[RestorePoint], keep: int) -> list[RestorePoint]:
    """All but the newest `keep` of each guest, the oldest first."""
    newer: Counter[str] = Counter()
    old = []
    for point in sorted(points, key=lambda point: point.created, reverse=True):
        if newer[point.manifest.uuid] >= keep:
            old.append(point)
        newer[point.manifest.uuid] += 1
    return old[::-1]


def _sharing_snapshots(
    points: Sequence[RestorePoint], others: Sequence[RestorePoint]
) -> list[RestorePoint]:
    """Those of the others that share snapshots with the points, or with each other in turn.

    Guests that share a dataset with a guest that is taken get points, too.
    """
    connected: list[RestorePoint] = []
    guids: set[int] = set()
    more = list(points)
    while more:
        connected += more
        guids |= {ref.guid for point in more for ref in point.manifest.snapshots}
        more = [
            other
            for other in others
            if other not in connected and any(ref.guid in guids for ref in other.manifest.snapshots)
        ]
    return connected[len(points) :]


def _liveness() -> Liveness:
    return Liveness.by(zfs.all_snapshots())


def _droppable(
    settings: Config,
    points: Sequence[RestorePoint],
    known: tuple[Sequence[RestorePoint], Sequence[DamagedPoint]],
    liveness: Liveness,
) -> list[str]:
    """The existing snapshots of these points, if nothing else needs any. Raises DropRefused."""
    all_points, unreadable = known
    names = _existing(points, liveness)
    _check_other_points(names, points, all_points, liveness)
    _check_unreadable_points(points, unreadable)
    datasets = {name.partition("@")[0] for name in names}
    _check_journal(settings, names, datasets)
    _check_other_versions(settings, points)
    _check_clones_and_holds(names, datasets)
    return sorted(names)


def _existing(points: Sequence[RestorePoint], liveness: Liveness) -> set[str]:
    names: set[str] = set()
    for point in points:
        for ref in point.manifest.snapshots:
            if liveness.of(ref) is Life.UNKNOWN:
                raise DropRefused(
                    f"{ref.full_name}: its pool is not imported, so it cannot be destroyed"
                )
        for ref in liveness.alive(point.manifest):
            if ref.name.startswith(_PREFIX_OF_SANOID):
                raise DropRefused(f"{ref.full_name}: is sanoid's, which prunes it when it is time")
            names.add(ref.full_name)
    return names


def _check_other_points(
    names: set[str],
    points: Sequence[RestorePoint],
    all_points: Sequence[RestorePoint],
    liveness: Liveness,
) -> None:
    """Guests may share a dataset, and so its snapshots."""
    dropped = {point.directory for point in points}
    for other in all_points:
        shared = names & {ref.full_name for ref in liveness.alive(other.manifest)}
        if shared and other.directory not in dropped:
            raise DropRefused(f"{min(shared)}: {other.name} needs it, too; drop both, or none")


def _check_unreadable_points(
    points: Sequence[RestorePoint], unreadable: Sequence[DamagedPoint]
) -> None:
    """One of the same run, damaged or of another version, may need the snapshots as well."""
    runs = {point.manifest.run for point in points}
    for other in unreadable:
        if any(vault.is_of_run(other.directory.name, run) for run in runs):
            raise DropRefused(
                f"a point that may need the same snapshots cannot be read: {other.why}"
            )


def _check_journal(settings: Config, names: set[str], datasets: set[str]) -> None:
    for entry in all_entries(settings.journal_dir):
        if not datasets & {entry.relocated_datasets.get(each, each) for each in entry.datasets}:
            continue
        if shared := names & {ref.full_name for ref in snapshot_match.of(entry)}:
            raise DropRefused(f"{min(shared)}: a point of {entry.domain} waits for it")


def _check_other_versions(settings: Config, points: Sequence[RestorePoint]) -> None:
    """Their work may need any snapshot of the guest, and nobody here knows which."""
    uuids = {point.manifest.uuid for point in points}
    for file in other_versions.files(settings.journal_dir):
        if file.uuid in uuids:
            raise DropRefused(str(file))


def _check_clones_and_holds(names: set[str], datasets: set[str]) -> None:
    for usage in zfs.snapshot_usage(sorted(datasets)):
        full_name = usage.snapshot.full_name
        if full_name not in names:
            continue
        if usage.clones:
            raise DropRefused(f"{full_name}: {usage.clones[0]} depends on it; destroy that first")
        if usage.holds:
            raise DropRefused(f"{full_name}: is held; zfs holds {full_name} tells by whom")
