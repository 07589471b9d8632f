"""The volumes of a view: clones of snapshots, read-only, for its time alone.

The devices of snapshots would do, but `snapdev` may hide them. The kernel does not look for
partitions in the clones (`volmode=dev`): they are the guest's.
"""

from __future__ import annotations

from zvmsnap.clone.destroy import CLONE_PROPERTY, destroy_dataset
from zvmsnap.files.record import View
from zvmsnap.zfs import dataset_swap, volume, zfs

_PROPERTIES = {"readonly": "on", "volmode": "dev", "snapdev": "hidden", "zvmsnap:mode": "off"}


def make(view: View) -> None:
    """Clone them, marked, and wait for their devices. Raises ZfsFailed."""
    for name, origin in view.clones:
        zfs.clone(origin, name, _PROPERTIES | {CLONE_PROPERTY: view.mark})
    for name, _ in view.clones:
        volume.wait_device(name, dataset_swap.DEVICE_TIMEOUT_S)


def destroy(view: View) -> None:
    """Destroy those that bear the mark of the view, with snapshots of them. Raises ZfsFailed."""
    if not view.clones:
        return
    marks = zfs.marked(CLONE_PROPERTY)
    for name, _ in view.clones:
        if marks.get(name) == view.mark:
            destroy_dataset(name, with_snapshots=True)
