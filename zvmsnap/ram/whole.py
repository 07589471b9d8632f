"""Whole writes: write(2) may write less than it was given; and writes that begin at once."""

from __future__ import annotations

import ctypes
import os

_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h

_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


def write(file: int, data: bytes | memoryview) -> None:
    """Write all of `data`. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def write_at(file: int, data: bytes, place: int) -> None:
    """Write all of `data` to `place`. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, place)
        view = view[written:]
        place += written


def write_vector(file: int, parts: list[memoryview | bytes]) -> None:
    """Write all of some parts, one after the other; not more than IOV_MAX. Raises OSError."""
    written = os.writev(file, parts)
    for part in parts:
        if written >= len(part):
            written -= len(part)
        else:
            write(file, memoryview(part)[written:])
            written = 0


def begin_to_flush(file: int, begin: int, end: int) -> None:
    """Have the kernel write these bytes of a file to the disk, without waiting for that.

    Whoever syncs the file later waits less. What fails, they see.
    """
    _sync_file_range(file, begin, end - begin, _SYNC_FILE_RANGE_WRITE)
