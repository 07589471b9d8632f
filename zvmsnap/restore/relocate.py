"""Writes into points where their snapshots are, when these have moved with their datasets."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config
from zvmsnap.points import locate, vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs import zfs
from zvmsnap.zfs.dataset_swap import SwapTree


def relocate_points(config: Config, trees: Iterable[SwapTree]) -> None:
    """Write into all points where the snapshots of these datasets are now.

    Raises ZfsFailed, LockTimeout and OSError; may be repeated.
    """
    names = [
        top + dataset.path
        for tree in trees
        for top in (tree.top, tree.replaced_top)
        for dataset in tree.datasets
    ]
    if not names:
        return
    datasets, pools = zfs.lineages(), zfs.pool_guids()
    usages = zfs.snapshot_usage([name for name in names if name in datasets])
    existing = {usage.snapshot.guid: usage.snapshot for usage in usages}
    timeout_s = config.limits.lock_timeout_s
    with lock(config.locks_dir, "vault", "update points of a restore", timeout_s):
        for entry in vault.entries(config.vault_dir):
            if not isinstance(entry, RestorePoint):
                continue
            if manifest := locate.relocated(entry.manifest, existing, datasets, pools):
                with suppress(FileNotFoundError):
                    vault.rewrite(entry, manifest)
