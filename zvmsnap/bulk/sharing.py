"""How much of a file lies on the disk for it alone, and how much it shares with others.

By FIEMAP, as Linux's Documentation/filesystems/fiemap.rst has it. XFS and btrfs say of each extent
whether it is shared, and ext4 shares none. OpenZFS has no FIEMAP, and says what
cloning saves only of a whole pool (`bclonesaved`): of a file there it is unknown.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from dataclasses import dataclass

_FIEMAP = 0xC020660B  # linux/fs.h: _IOWR('f', 11, struct fiemap)
_REQUEST = struct.Struct("=QQIIII")  # begin, length, flags, extents mapped, room for, reserved
_EXTENT = struct.Struct("=QQQ16xI12x")  # logical, physical, length, flags
_LAST, _SHARED = 0x1, 0x2000
_EXTENTS = 1024
# 16 GiB in pieces of one record. Who has more waits too long for one number.
_EXTENTS_MAX = 1 << 20

_CANNOT = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS)


@dataclass(frozen=True)
class OnDisk:
    """What a file takes."""

    alone_bytes: int
    shared_bytes: int


def on_disk(file: int) -> OnDisk | None:
    """What an open file takes; None if its file system does not say. Raises OSError."""
    alone = shared = begin = 0
    for _ in range(_EXTENTS_MAX // _EXTENTS):
        try:
            extents = _extents(file, begin)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            return None
        for logical, _physical, length, flags in extents:
            begin = logical + length
            if flags & _SHARED:
                shared += length
            else:
                alone += length
        if not extents or extents[-1][3] & _LAST:
            return OnDisk(alone, shared)
    return None


def _extents(file: int, begin: int) -> list[tuple[int, int, int, int]]:
    """The next extents of a file from `begin` on."""
    room = bytearray(_REQUEST.size + _EXTENTS * _EXTENT.size)
    _REQUEST.pack_into(room, 0, begin, (1 << 64) - 1 - begin, 0, 0, _EXTENTS, 0)
    fcntl.ioctl(file, _FIEMAP, room)
    mapped = _REQUEST.unpack_from(room)[3]
    return [_EXTENT.unpack_from(room, _REQUEST.size + n * _EXTENT.size) for n in range(mapped)]
