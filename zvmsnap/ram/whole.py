"""Whole writes: write(2) may write less than it was given; and writes that begin at once."""

from __future__ import annotations

import ctypes
import os

_FLUSHED_BYTES = 8 << 20
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


class EarlyFlush:
    """Has the kernel write a file to the disk meanwhile: whoever syncs it in the end waits less.

    Else the kernel would keep up to a tenth of the host's memory, and write that when the guests
    want to write, too. What fails, whoever syncs the file sees.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._waiting_bytes = 0

    def wrote(self, count: int) -> None:
        """So many bytes were written, anywhere in the file."""
        self._waiting_bytes += count
        if self._waiting_bytes >= _FLUSHED_BYTES:
            _sync_file_range(self._file, 0, 0, _SYNC_FILE_RANGE_WRITE)
            self._waiting_bytes = 0
