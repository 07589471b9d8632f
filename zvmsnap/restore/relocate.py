"""Snapshots have moved with their datasets: their points must find them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config
from zvmsnap.points import locate, vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs import zfs
from zvmsnap.zfs.dataset_swap import SwapTree


def retie(config: Config, units: Iterable[SwapTree]) -> None:
    """Write into all points where the snapshots of these units are now.

    Raises ZfsFailed, LockTimeout and OSError; may be repeated.
    """
    names = [
        side + member.path
        for unit in units
        for side in (unit.top, unit.set_aside)
        for member in unit.datasets
    ]
    if not names:
        return
    there = zfs.datasets()
    present = [
        use.snapshot for use in zfs.snapshot_usage([name for name in names if name in there])
    ]
    timeout_s = config.limits.lock_timeout_s
    with lock(config.locks_dir, "vault", "tell points of a restore", timeout_s):
        for found in vault.entries(config.vault_dir):
            if not isinstance(found, RestorePoint):
                continue
            if new := locate.relocated(found.manifest, present):
                with suppress(FileNotFoundError):
                    vault.rewrite(found, new)
