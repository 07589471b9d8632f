"""Block clones of whole files: what both share lies on the disk once."""

from __future__ import annotations

import errno
import fcntl
import os

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)

# How the kernel says that these two files cannot share, or not now: ioctl_ficlone(2). EAGAIN and
# EBUSY: OpenZFS, for blocks that were not written to the disk yet.
_CANNOT = (
    errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EPERM,
    errno.EAGAIN, errno.EBUSY, errno.ETXTBSY, errno.EISDIR, errno.EBADF,
)  # fmt: skip


def clone(source: int, target: int) -> bool:
    """Make the empty file `target` share all blocks of `source`; False if that cannot be done.

    Raises OSError if the disk fails or is full.
    """
    os.fsync(source)  # OpenZFS clones only what is on the disk
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True
