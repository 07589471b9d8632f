"""Which processes have a file open: the kernel's word, whatever libvirt's definition says."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def writers_of(path: Path) -> set[int]:
    """The processes that have this file, or device, open for writing now.

    Of a guest's disks they tell which one QEMU really writes to: it opens the images below an
    overlay for reading only. The paths in /proc tell less, as QEMU has a mount namespace of its
    own.
    """
    try:
        wanted = _identity(os.stat(path))
    except OSError:
        return set()
    return {
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if any(_writes(process, number, wanted) for number in _descriptors(process))
    }


def _descriptors(process: Path) -> list[str]:
    try:
        return os.listdir(process / "fd")
    except OSError:
        return []


def _writes(process: Path, number: str, wanted: tuple[int, ...]) -> bool:
    """Is this descriptor that file, open for writing?

    Only what is open for writing is asked for: a file on a server that is down may never answer.
    """
    with suppress(OSError, StopIteration):  # it may be closed meanwhile
        lines = (process / "fdinfo" / number).read_text().splitlines()
        flags = next(line.split()[1] for line in lines if line.startswith("flags:"))
        if int(flags, 8) & os.O_ACCMODE != os.O_RDONLY:
            return _identity(os.stat(process / "fd" / number)) == wanted
    return False


def _identity(status: os.stat_result) -> tuple[int, ...]:
    if stat.S_ISBLK(status.st_mode):
        return (status.st_rdev,)
    return (status.st_dev, status.st_ino)
