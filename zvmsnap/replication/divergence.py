"""The destination has newer snapshots than what both sides have: here time was turned back.

As after `zvmsnap restore`, or a rollback. What is newer there is not destroyed for that: as here,
it lives on under another name, and the old name holds what both sides have.

    rename    TARGET, with all below it, to TARGET.before-TIME
    clone     each dataset that is sent, from the snapshot that both sides have
    promote   so that history stays with the name

Interrupted in between, a dataset is sent as a whole again by the next run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zvmsnap.common.errors import SendRefused
from zvmsnap.common.ssh import RemoteHost
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import Snapshot, Subtree


def plan(diverged: Iterable[str], common: Mapping[str, Snapshot], branch: Subtree) -> list[str]:
    """The datasets there that are renamed, for these that have diverged. Pure.

    `common` is what both sides have, by dataset there, of all that is sent. Raises SendRefused.
    """
    tops: list[str] = []
    for target in sorted(diverged):
        if any(target.startswith(f"{top}/") for top in tops):
            continue
        for below in sorted(branch.datasets):
            if below.startswith(f"{target}/") and below not in common:
                raise SendRefused(
                    f"{target}: has newer snapshots there than here, and holds {below}, which is "
                    "not sent with it: zfs rename one of them there"
                )
        tops.append(target)
    return tops


def set_aside(
    tops: Iterable[str],
    common: Mapping[str, Snapshot],
    branch: Subtree,
    stamp: str,
    far: RemoteHost,
) -> None:
    """Do it, there. Raises ZfsFailed."""
    for top in tops:
        former = f"{top}.before-{stamp}"
        zfs.rename(top, former, far)
        for target, snapshot in sorted(common.items()):
            if target != top and not target.startswith(f"{top}/"):
                continue
            settings = {"readonly": "on"}
            if target in branch.filesystems:
                # The user there may make filesystems, but only root may mount them.
                settings["canmount"] = "noauto"
            origin = f"{former}{target.removeprefix(top)}@{snapshot.name}"
            zfs.clone(origin, target, settings, far)
            zfs.promote(target, far)
