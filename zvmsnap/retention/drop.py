"""Drops points that were taken by hand, with their snapshots."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from zvmsnap.common import log
from zvmsnap.common.errors import DropRefused, LockTimeout, PointGone, ZfsFailed
from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config
from zvmsnap.journal import other_versions, snapshot_match
from zvmsnap.journal.waiting import all_entries
from zvmsnap.points import vault
from zvmsnap.points.liveness import Life, Liveness, guids_of
from zvmsnap.points.point import RestorePoint, in_order, is_by_clock
from zvmsnap.points.vault import DamagedPoint
from zvmsnap.retention.forget import LOCK
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import Snapshot

_PREFIX_OF_SANOID = "autosnap_"
_RUN_OF_TAKE = re.compile(r"zvmsnap_.+_manual")


def snapshots(settings: Config, points: Sequence[RestorePoint]) -> list[str]:
    """The snapshots that are destroyed with these points, under their present names.

    Raises DropRefused and ZfsFailed.
    """
    known = vault.read(settings)
    return _droppable(settings, points, known, _liveness(known[0]))


def destroy(settings: Config, points: Sequence[RestorePoint], names: Sequence[str]) -> None:
    """Destroy the snapshots, and remove the points. Raises ZfsFailed, LockTimeout and PointGone.

    If it is interrupted, `zvmsnap prune` removes the points whose snapshots are gone.
    """
    intent = f"drop {', '.join(point.name for point in points)}"
    with lock(settings.locks_dir, LOCK, intent, settings.limits.lock_timeout_s):
        if gone := [point.name for point in points if not point.directory.exists()]:
            raise PointGone(f"{', '.join(gone)}: was removed meanwhile")
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
    taken = [point for point in points if _RUN_OF_TAKE.fullmatch(point.manifest.run)]
    old = _all_but_newest(taken, keep)
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
            liveness = liveness or _liveness(points)
            to_destroy = _droppable(settings, together, known, liveness)
            if not dry_run:
                destroy(settings, together, to_destroy)
            dropped += names
        except PointGone as error:
            log.plain().info("%s", error)  # another `take --keep` was quicker
        except (DropRefused, ZfsFailed, LockTimeout) as error:
            log.plain().warning("%s: kept: %s", ", ".join(names), error)
    return dropped


def _all_but_newest(points: Sequence[RestorePoint], keep: int) -> list[RestorePoint]:
    """All but the newest `keep` of each guest, the oldest first."""
    by_guest: dict[str, list[RestorePoint]] = {}
    for point in points:
        by_guest.setdefault(point.manifest.uuid, []).append(point)
    old = []
    for own in by_guest.values():
        if len(own) > keep and is_by_clock(own):
            log.plain().warning(
                "%s: its points are in several pools: which are the newest, only the clock says",
                own[0].manifest.domain,
            )
        old += in_order(own)[: max(0, len(own) - keep)]
    return old


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


def _liveness(points: Iterable[RestorePoint]) -> Liveness:
    return Liveness.by(zfs.all_snapshots(guids_of(point.manifest for point in points)))


def _droppable(
    settings: Config,
    points: Sequence[RestorePoint],
    known: tuple[Sequence[RestorePoint], Sequence[DamagedPoint]],
    liveness: Liveness,
) -> list[str]:
    """The existing snapshots of these points, if nothing else needs any. Raises DropRefused."""
    all_points, unreadable = known
    existing = _existing(points, liveness)
    _check_other_points(existing, points, all_points)
    _check_unreadable_points(points, unreadable)
    _check_journal(settings, existing)
    _check_other_versions(settings, points)
    _check_clones_and_holds(existing)
    return sorted(snapshot.full_name for snapshot in existing.values())


def _existing(points: Sequence[RestorePoint], liveness: Liveness) -> dict[int, Snapshot]:
    """The snapshots of the points, as they are now, by guid. Raises DropRefused."""
    existing = {}
    for ref in (ref for point in points for ref in point.manifest.snapshots):
        life, snapshot = liveness.of(ref), liveness.now(ref)
        if life is Life.UNKNOWN:
            raise DropRefused(
                f"{ref.full_name}: its pool is not imported, so it cannot be destroyed"
            )
        if snapshot is None:
            if life is Life.ALIVE:
                raise DropRefused(
                    f"{ref.full_name}: {len(liveness.replicas(ref))} copies of it "
                    "exist, and nothing tells which is the guest's: zfs destroy the others"
                )
            continue
        if snapshot.name.startswith(_PREFIX_OF_SANOID):
            raise DropRefused(f"{snapshot.full_name}: is sanoid's, which prunes it when it is time")
        existing[snapshot.guid] = snapshot
    return existing


def _check_other_points(
    existing: Mapping[int, Snapshot],
    points: Sequence[RestorePoint],
    all_points: Sequence[RestorePoint],
) -> None:
    """Guests may share a dataset, and so its snapshots."""
    dropped = {point.directory for point in points}
    for other in all_points:
        shared = [existing[guid] for guid in guids_of([other.manifest]) & existing.keys()]
        if shared and other.directory not in dropped:
            raise DropRefused(
                f"{min(shared).full_name}: {other.name} needs it, too; drop both, or none"
            )


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


def _check_journal(settings: Config, existing: Mapping[int, Snapshot]) -> None:
    datasets = {snapshot.dataset for snapshot in existing.values()}
    for entry in all_entries(settings.journal_dir):
        if not datasets & {entry.relocated_datasets.get(each, each) for each in entry.datasets}:
            continue
        if shared := [ref for ref in snapshot_match.of(entry) if ref.guid in existing]:
            raise DropRefused(f"{shared[0].full_name}: a point of {entry.domain} waits for it")


def _check_other_versions(settings: Config, points: Sequence[RestorePoint]) -> None:
    """Their work may need any snapshot of the guest, and nobody here knows which."""
    uuids = {point.manifest.uuid for point in points}
    for file in other_versions.files(settings.journal_dir):
        if file.uuid in uuids:
            raise DropRefused(str(file))


def _check_clones_and_holds(existing: Mapping[int, Snapshot]) -> None:
    for usage in zfs.snapshot_usage(sorted({each.dataset for each in existing.values()})):
        full_name = usage.snapshot.full_name
        if usage.snapshot.guid not in existing:
            continue
        if usage.clones:
            raise DropRefused(f"{full_name}: {usage.clones[0]} depends on it; destroy that first")
        if usage.holds:
            raise DropRefused(f"{full_name}: is held; zfs holds {full_name} tells by whom")
