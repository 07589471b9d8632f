"""The notes of libvirt on an image that was in use when it was snapshotted.

libvirt keeps the owner of an image that it lends to QEMU in extended attributes, with a count of
users. A snapshot, and so a clone or a rollback, has the same notes: a guest of another user or
label is refused as "already in use", and the file is never given back to its owner.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

_PREFIX = "trusted.libvirt.security."
_OWNER = re.compile(rb"\+(\d+):\+(\d+)\0?")


def give_back(path: str) -> None:
    """Give a file to the owner that libvirt has noted, and forget its notes. Raises OSError."""
    noted = [name for name in os.listxattr(path) if name.startswith(_PREFIX)]
    if not noted:
        return
    with suppress(KeyError, OverflowError):
        owner = {name: os.getxattr(path, name) for name in noted}[f"{_PREFIX}dac"]
        if ids := _OWNER.fullmatch(owner):
            os.chown(path, int(ids[1]), int(ids[2]))
    for name in noted:
        os.removexattr(path, name)
