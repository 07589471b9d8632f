"""The datasets of a restore: clones that are swapped in, or a rollback."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

from zvmsnap.common.errors import RestoreFailed
from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config
from zvmsnap.journal.operation import OperationWriter, RestoreOperation
from zvmsnap.points import locate, vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.restore.replaced_guest import ReplacedGuest
from zvmsnap.zfs import branches, dataset_swap, volume, zfs
from zvmsnap.zfs.dataset_swap import SwapTree


class RestoredDisks:
    """The disks of the point, brought under the names of the replaced ones.

    No method changes the disks under a guest that runs. All may be repeated.
    """

    def __init__(self, writer: OperationWriter[RestoreOperation], replaced: ReplacedGuest) -> None:
        self._writer = writer
        self._replaced = replaced

    @property
    def _operation(self) -> RestoreOperation:
        return self._writer.operation

    def clone(self) -> None:
        """Clone the snapshots of the point, beside the datasets."""
        trees, written_bytes = dataset_swap.make_clones(self._operation.swap_trees)
        self._writer.note(swap_trees=trees, written_bytes=written_bytes)

    def discard_clones(self) -> None:
        """Destroy the clones again."""
        dataset_swap.destroy_clones(self._operation.swap_trees)

    def swap(self) -> None:
        """Let the datasets' names lead to the clones. Raises RestoreFailed and ZfsFailed."""
        self._require_stopped()
        dataset_swap.swap(self._operation.swap_trees)

    def swap_back(self) -> None:
        """Let them lead to the replaced datasets. Raises RestoreFailed and ZfsFailed."""
        if self._replaced.is_active() and not self.are_replaced():
            raise RestoreFailed(
                f"{self._operation.domain} was started meanwhile, on the restored disks: "
                "shut it off first"
            )
        dataset_swap.swap_back(self._operation.swap_trees)

    def promote(self) -> None:
        """Let the clones own the snapshots up to theirs."""
        dataset_swap.promote(self._operation.swap_trees)

    def demote(self) -> None:
        """Give these snapshots back to the replaced datasets."""
        dataset_swap.demote(self._operation.swap_trees)

    def roll_back(self) -> None:
        """Roll the datasets back: this cannot be undone. Raises RestoreFailed and ZfsFailed."""
        self._require_stopped()
        self._writer.note(rollback_begun=True)
        for snapshot in self._operation.rollback:
            zfs.rollback(snapshot)
        datasets = [snapshot.partition("@")[0] for snapshot in self._operation.rollback]
        known = branches.fresh(datasets)
        written_bytes = {dataset: each.written_bytes for dataset, each in known.items()}
        self._writer.note(written_bytes=written_bytes)
        existing = branches.below(datasets)
        for dataset in datasets:
            if existing[dataset].type == "volume":
                volume.wait_device(dataset, dataset_swap.DEVICE_TIMEOUT_S)

    def are_restored(self) -> bool:
        """Do all names lead to the restored disks? Of a rollback: has it begun?"""
        return all(self._swapped())

    def are_replaced(self) -> bool:
        """Do all names lead to the replaced disks? Of a rollback: has it not begun?"""
        return not any(self._swapped())

    def _require_stopped(self) -> None:
        if self._replaced.is_active():
            raise RestoreFailed(f"{self._operation.domain} was started meanwhile")

    def _swapped(self) -> Iterator[bool]:
        if not self._operation.swap_trees:
            yield self._operation.rollback_begun
            return
        datasets = zfs.lineages()  # of all or none, so what is missing does not exist
        for tree in self._operation.swap_trees:
            top = datasets.get(tree.top)
            yield top is not None and top.guid == tree.datasets[0].new_guid


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
