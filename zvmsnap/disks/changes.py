"""Are disks still what their snapshots hold? Asked after a crash, before RAM is loaded.

Somebody may have started the guest meanwhile, and shut it off again: RAM over disks that went on
without it destroys file systems.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from zvmsnap.disks import location
from zvmsnap.zfs import mounts, zfs
from zvmsnap.zfs.mounts import DiskLocation

# A snapshot's time is told in whole seconds.
_SAME_SECOND_S = 1


def written_to(
    places: Mapping[str, DiskLocation], snapshots: Iterable[str], written_bytes: Mapping[str, int]
) -> list[str]:
    """Those of the disks, by target, that were written to since the snapshots of their datasets.

    A volume tells what was written to it; `written_bytes` is what it told when it was fresh. In a
    filesystem labels and the like are written too, so there the file's own time counts.
    Raises ZfsFailed and OSError.
    """
    names = dict(snapshot.split("@", 1) for snapshot in snapshots)
    table = mounts.read_table()
    found = []
    for target, place in places.items():
        name = names[place.dataset]
        if not place.path:
            now_bytes = zfs.written_bytes(place.dataset, name)
            changed = now_bytes > written_bytes.get(place.dataset, 0)
        else:
            taken_s = zfs.created_s(f"{place.dataset}@{name}")
            written_s = os.stat(location.path_of(place, table)).st_mtime
            changed = written_s > taken_s + _SAME_SECOND_S
        if changed:
            found.append(target)
    return found
