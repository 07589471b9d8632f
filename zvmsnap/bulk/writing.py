"""Large files: writes that are whole, holes, and a disk that has work meanwhile."""

from __future__ import annotations

import ctypes
import errno
import os

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h
_ZEROS = bytes(1 << 20)
_CANNOT_PUNCH = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_FLUSHED_BYTES = 8 << 20
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h

# What Python does not offer.
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


def write(file: int, data: bytes | memoryview) -> None:
    """Write all of `data`: write(2) may write less than it was given. Raises OSError."""
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


def punch(file: int, place: int, count: int) -> None:
    """Make `count` bytes zeros, as a hole; written where the file system cannot. Raises OSError."""
    while _fallocate(file, _KEEP_SIZE | _PUNCH_HOLE, place, count):
        code = ctypes.get_errno()
        if code == errno.EINTR:
            continue
        if code not in _CANNOT_PUNCH:
            raise OSError(code, os.strerror(code))
        for at in range(place, place + count, len(_ZEROS)):
            write_at(file, _ZEROS[: place + count - at], at)
        return


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
