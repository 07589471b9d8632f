"""A point that was taken by hand goes, with its snapshots."""

from __future__ import annotations

import re
from collections.abc import Sequence

from zvmsnap import log, vault, zfs
from zvmsnap.config import Config
from zvmsnap.errors import DropRefused, ZfsFailed
from zvmsnap.locks import lock
from zvmsnap.point import Life, Liveness, Point

_SANOIDS = "autosnap_"
_TAKEN = re.compile(r"zvmsnap_.+_manual")


def snapshots(found: Point) -> list[str]:
    """The snapshots that go with it, as they are called now. Raises DropRefused and ZfsFailed."""
    answer = zfs.all_snapshots()
    there = Liveness(answer.present, answer.pools)
    for tie in found.manifest.snapshots:
        if there.of(tie) is Life.UNKNOWN:
            raise DropRefused(f"{tie.full_name}: its pool is not imported, so it cannot go with it")
    alive = there.alive(found.manifest)
    for tie in alive:
        if tie.name.startswith(_SANOIDS):
            raise DropRefused(f"{tie.full_name}: is sanoid's, which prunes it when it is time")
    names = sorted(tie.full_name for tie in alive)
    for use in zfs.uses(sorted({name.partition("@")[0] for name in names})):
        full_name = use.snapshot.full_name
        if full_name not in names:
            continue
        if use.clones:
            raise DropRefused(f"{full_name}: {use.clones[0]} depends on it; destroy that first")
        if use.holds:
            raise DropRefused(f"{full_name}: is held; zfs holds {full_name} tells by whom")
    return names


def surplus(config: Config, uuids: Sequence[str], keep: int, *, dry_run: bool = False) -> list[str]:
    """Drop what `zvmsnap take` has taken of these guests, but for the newest `keep` of each.

    Only under names that it has made up itself. Returns the points' names; says why one stays.
    Raises VaultMissing and LockTimeout.
    """
    taken = [p for p in vault.read(config)[0] if _TAKEN.fullmatch(p.manifest.moment)]
    dropped = []
    for uuid in uuids:
        own = sorted((p for p in taken if p.manifest.uuid == uuid), key=lambda p: p.taken)
        for found in own[: max(0, len(own) - keep)]:
            try:
                names = snapshots(found)
                if not dry_run:
                    drop(config, found, names)
                dropped.append(found.name)
            except (DropRefused, ZfsFailed) as error:
                log.plain().warning("%s: kept: %s", found.name, error)
    return dropped


def drop(config: Config, found: Point, names: Sequence[str]) -> None:
    """Destroy the snapshots, and remove the point. Raises ZfsFailed and LockTimeout.

    Interrupted in between, `zvmsnap prune` removes the point, as its snapshots are gone.
    """
    with lock(config.locks_dir, "vault", f"drop {found.name}", config.limits.lock_timeout_s):
        for name in names:
            zfs.destroy(name)
        vault.remove(found)
