"""Destroys what was just used: QEMU and udev may have a dataset open a little longer."""

from __future__ import annotations

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.common.waiting import wait_until
from zvmsnap.zfs import volume, zfs

_WITHIN_S = 15
_POLL_S = 0.3


def destroy(dataset: str, *, with_snapshots: bool) -> None:
    """Destroy a dataset, waiting until nobody uses it any more. Raises ZfsFailed."""
    failure: ZfsFailed | None = None

    def destroyed() -> bool:
        nonlocal failure
        try:
            zfs.destroy(dataset, with_snapshots=with_snapshots)
            return True
        except ZfsFailed as error:
            failure = error
            return False

    if wait_until(destroyed, _WITHIN_S, _POLL_S) or not failure:
        return
    if held := volume.held_by(dataset):
        raise ZfsFailed(
            f"{dataset}: this host has it open itself, as {', '.join(held)}: deactivate that "
            "(vgchange -an GROUP), and keep LVM away from volumes: global_filter in lvm.conf"
        ) from failure
    raise failure
