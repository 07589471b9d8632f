"""Points that were taken by hand go, with their snapshots."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from zvmsnap.common import log
from zvmsnap.common.errors import DropRefused, LockTimeout, ZfsFailed
from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config
from zvmsnap.journal import snapshot_match
from zvmsnap.journal.journal import Journal
from zvmsnap.points import vault
from zvmsnap.points.liveness import Life, Liveness
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs import zfs

_SANOIDS = "autosnap_"
_TAKEN = re.compile(r"zvmsnap_.+_manual")


def snapshots(config: Config, points: Sequence[RestorePoint]) -> list[str]:
    """The snapshots that go with these points, as they are called now.

    Raises DropRefused and ZfsFailed.
    """
    return _snapshots(config, points, vault.read(config)[0], _there())


def drop(config: Config, points: Sequence[RestorePoint], names: Sequence[str]) -> None:
    """Destroy the snapshots, and remove the points. Raises ZfsFailed and LockTimeout.

    Interrupted in between, `zvmsnap prune` removes the points, as their snapshots are gone.
    """
    intent = f"drop {', '.join(point.name for point in points)}"
    with lock(config.locks_dir, "vault", intent, config.limits.lock_timeout_s):
        for name in names:
            zfs.destroy(name)
        for point in points:
            vault.remove(point)


def surplus(config: Config, uuids: Sequence[str], keep: int, *, dry_run: bool = False) -> list[str]:
    """Drop what `zvmsnap take` has taken of these guests, but for the newest `keep` of each.

    Only under names that it has made up itself. What other guests have of the same snapshots goes
    along, if it is old, too. Returns the points' names; says why one stays.
    Raises VaultMissing.
    """
    points = vault.read(config)[0]
    old = _old([each for each in points if _TAKEN.fullmatch(each.manifest.run)], keep)
    moments: dict[str, list[RestorePoint]] = {}
    for point in old:
        if point.manifest.uuid in uuids:
            moments.setdefault(point.manifest.run, []).append(point)
    dropped: list[str] = []
    there: Liveness | None = None
    for own in moments.values():
        together = own + _of_the_same_snapshots(own, old)
        said = [point.name for point in together]
        try:
            there = there or _there()
            names = _snapshots(config, together, points, there)
            if not dry_run:
                drop(config, together, names)
            dropped += said
        except (DropRefused, ZfsFailed, LockTimeout) as error:
            log.plain().warning("%s: kept: %s", ", ".join(said), error)
    return dropped


def _old(points: Sequence[RestorePoint], keep: int) -> list[RestorePoint]:
    """All but the newest `keep` of each guest, the oldest first."""
    newer: Counter[str] = Counter()
    old = []
    for point in sorted(points, key=lambda point: point.created, reverse=True):
        if newer[point.manifest.uuid] >= keep:
            old.append(point)
        newer[point.manifest.uuid] += 1
    return old[::-1]


def _of_the_same_snapshots(
    points: Sequence[RestorePoint], others: Sequence[RestorePoint]
) -> list[RestorePoint]:
    """Guests that share a dataset with those who are taken get points, too; and so on."""
    found: list[RestorePoint] = []
    guids: set[int] = set()
    more = list(points)
    while more:
        found += more
        guids |= {tie.guid for point in more for tie in point.manifest.snapshots}
        more = [
            other
            for other in others
            if other not in found and any(tie.guid in guids for tie in other.manifest.snapshots)
        ]
    return found[len(points) :]


def _there() -> Liveness:
    answer = zfs.all_snapshots()
    return Liveness(answer.present, answer.pools)


def _snapshots(
    config: Config,
    points: Sequence[RestorePoint],
    everybodys: Sequence[RestorePoint],
    there: Liveness,
) -> list[str]:
    names: set[str] = set()
    for found in points:
        for tie in found.manifest.snapshots:
            if there.of(tie) is Life.UNKNOWN:
                raise DropRefused(f"{tie.full_name}: its pool is not imported, so it cannot go")
        for tie in there.alive(found.manifest):
            if tie.name.startswith(_SANOIDS):
                raise DropRefused(f"{tie.full_name}: is sanoid's, which prunes it when it is time")
            names.add(tie.full_name)
    _no_other_needs(names, points, everybodys, there)
    datasets = {name.partition("@")[0] for name in names}
    for entry in Journal(config.journal_dir).entries():
        if not datasets & {entry.relocated_datasets.get(each, each) for each in entry.datasets}:
            continue
        if shared := names & {tie.full_name for tie in snapshot_match.of(entry)}:
            raise DropRefused(f"{min(shared)}: a point of {entry.domain} waits for it")
    for use in zfs.snapshot_usage(sorted(datasets)):
        full_name = use.snapshot.full_name
        if full_name not in names:
            continue
        if use.clones:
            raise DropRefused(f"{full_name}: {use.clones[0]} depends on it; destroy that first")
        if use.holds:
            raise DropRefused(f"{full_name}: is held; zfs holds {full_name} tells by whom")
    return sorted(names)


def _no_other_needs(
    names: set[str],
    points: Sequence[RestorePoint],
    everybodys: Sequence[RestorePoint],
    there: Liveness,
) -> None:
    """Guests may share a dataset, and so the snapshot. Raises DropRefused."""
    going = {point.directory for point in points}
    for other in everybodys:
        shared = names & {tie.full_name for tie in there.alive(other.manifest)}
        if shared and other.directory not in going:
            raise DropRefused(f"{min(shared)}: {other.name} needs it, too; drop both, or none")
