"""Datasets that are made for some work, and go with it: clones to be read, a guest in the making.

Each bears the id of its work as `zvmsnap:temporary` from its first instant on, and the journal
names it before that, with the process that works. So whoever ends the work of a dead process
destroys what bears its mark, and nothing of somebody else that has the same name.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from zvmsnap.clone import own_places
from zvmsnap.config import properties
from zvmsnap.zfs import branches, zfs

PROPERTY = properties.TEMPORARY


def remove(names: Sequence[str], key: str) -> None:
    """Destroy those of these datasets, parents first, that work `key` has made.

    Raises ZfsFailed.
    """
    if not names:
        return
    marks = zfs.marked(PROPERTY)
    for name in reversed(names):
        if marks.get(name) == key:
            branches.destroy_released(name, with_snapshots=True)
    for name in names:
        with suppress(OSError):
            (own_places.CLONES / name).rmdir()
