"""Are disks still as their snapshots hold them? Asked after a crash, before RAM is loaded.

Somebody may have started the guest meanwhile, and shut it off again: RAM that is loaded over disks
that were changed without it destroys file systems.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from zvmsnap.disks import location
from zvmsnap.zfs import mounts, zfs
from zvmsnap.zfs.mounts import DiskLocation, Mount

# The time of a snapshot has a resolution of one second.
_SAME_SECOND_S = 1


def written_to(
    locations: Mapping[str, DiskLocation],
    snapshots: Iterable[str],
    written_bytes: Mapping[str, int],
) -> list[str]:
    """The targets of the disks that were written to since the snapshots of their datasets.

    `written_bytes` says, for each dataset that is a volume, what ZFS reported as `written` when
    the volume was fresh. A filesystem is written to for labels and the like, too, so there the
    modification time of the file counts. Raises ZfsFailed and OSError.
    """
    names = dict(snapshot.split("@", 1) for snapshot in snapshots)
    table = mounts.read_table()
    return [
        target
        for target, where in locations.items()
        if _is_changed(where, names[where.dataset], written_bytes.get(where.dataset, 0), table)
    ]


def _is_changed(where: DiskLocation, name: str, fresh_bytes: int, table: list[Mount]) -> bool:
    if not where.path:
        return zfs.written_bytes(where.dataset, name) > fresh_bytes
    created_s = zfs.created_s(f"{where.dataset}@{name}")
    modified_s = os.stat(location.current_path(where, table)).st_mtime
    return modified_s > created_s + _SAME_SECOND_S
