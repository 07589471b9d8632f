"""The destination has newer snapshots than both sides have in common: the sender was turned back.

As after `zvmsnap restore`, or a rollback. Newer snapshots at the destination are not destroyed for
that. As after a restore, they live on under another name, and the old name holds what both sides
have.

    rename    TARGET, with all below it, to TARGET.before-TIME
    clone     each dataset that is sent, from the snapshot that both sides have
    promote   so that the history stays with the name

If this is interrupted, the next run sends the missing datasets as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zvmsnap.common.errors import SendRefused
from zvmsnap.common.snapshot_name import is_within
from zvmsnap.common.ssh import RemoteHost
from zvmsnap.zfs import zfs
from zvmsnap.zfs.dataset_swap import name_before
from zvmsnap.zfs.types import Snapshot, Subtree


def plan(diverged: Iterable[str], common: Mapping[str, Snapshot], subtree: Subtree) -> list[str]:
    """The datasets at the destination to rename, if these targets have diverged. Pure.

    `common` is the snapshot that both sides have, by target, for all datasets that are sent.
    Raises SendRefused.
    """
    tops: list[str] = []
    for target in sorted(diverged):
        if any(target.startswith(f"{top}/") for top in tops):
            continue
        for dataset in sorted(subtree.datasets):
            if dataset.startswith(f"{target}/") and dataset not in common:
                raise SendRefused(
                    f"{target}: the destination has newer snapshots of it than this host, and "
                    f"{dataset} below it, which is not sent with it: zfs rename one of them there"
                )
        tops.append(target)
    return tops


def rename_away(
    tops: Iterable[str],
    common: Mapping[str, Snapshot],
    subtree: Subtree,
    stamp: str,
    remote: RemoteHost,
) -> None:
    """Rename the datasets, and let their names hold what both sides have. Raises ZfsFailed."""
    for top in tops:
        renamed = name_before(top, stamp)
        zfs.rename(top, renamed, remote)
        for target, snapshot in sorted(common.items()):
            if not is_within(target, top):
                continue
            properties = {"readonly": "on"}
            if target in subtree.filesystems:
                # The user there may make filesystems, but only root may mount them.
                properties["canmount"] = "noauto"
            origin = f"{renamed}{target.removeprefix(top)}@{snapshot.name}"
            zfs.clone(origin, target, properties, remote)
            zfs.promote(target, remote)
