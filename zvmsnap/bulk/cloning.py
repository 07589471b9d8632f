"""Block clones of whole files: what both have in common lies on the disk once.

By FICLONE alone: OpenZFS 2.2 and later with block cloning on, XFS, btrfs. copy_file_range(2) would
copy all where blocks cannot be shared, which is more work than to write a new image.

On ZFS a clone takes over the record size of its source, whatever the dataset's is now (OpenZFS's
module/zfs/zfs_vnops.c, zfs_clone_range). So clones of clones would keep one that an administrator
has changed long since.
"""

from __future__ import annotations

import errno
import fcntl
import os

from zvmsnap.common import waiting

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)

# OpenZFS, of a source that is not in the pool yet. It writes every 5 seconds, if it can.
_NOT_YET = (errno.EAGAIN, errno.EBUSY)
_NOT_YET_S = 15.0
_POLL_S = 0.5


def clone(source: int, target: int) -> bool:
    """Make the new, empty file `target` share all blocks of `source`.

    False if that cannot be done, for whatever reason, or if `source` has records of another size
    than new files have: then `target` is still empty. If the disk fails or is full, whoever writes
    to it will see. Raises OSError if it cannot be emptied again.
    """
    try:
        # Of a file in which nothing was written yet, ZFS says the dataset's record size.
        if os.fstat(source).st_blksize != os.fstat(target).st_blksize:
            return False
        os.fsync(source)
        if waiting.wait_until(lambda: _is_cloned(source, target), _NOT_YET_S, _POLL_S):
            return True
    except OSError:
        pass
    os.ftruncate(target, 0)  # it may have a part
    return False


def _is_cloned(source: int, target: int) -> bool:
    """Share the blocks; False if that is possible later."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _NOT_YET:
            raise
        return False
    return True
