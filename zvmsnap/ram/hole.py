"""Holes in files, by fallocate(2), which Python does not offer."""

from __future__ import annotations

import ctypes
import errno
import os

from zvmsnap.ram.whole import write_at

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_CHUNK = bytes(1 << 20)
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def punch(file: int, place: int, count: int) -> None:
    """Make `count` bytes zeros, as a hole; written where the file system cannot. Raises OSError."""
    while _fallocate(file, _KEEP_SIZE | _PUNCH_HOLE, place, count):
        code = ctypes.get_errno()
        if code == errno.EINTR:
            continue
        if code not in _CANNOT:
            raise OSError(code, os.strerror(code))
        for at in range(place, place + count, len(_CHUNK)):
            write_at(file, _CHUNK[: place + count - at], at)
        return
