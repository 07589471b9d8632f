"""What the header of a qcow2 image says of a file that has its data (docs/interop/qcow2.rst).

libvirt tells it only since 10.10, and of a guest that is off only where its definition names it. A
process for each disk and run would cost too much.
"""

from __future__ import annotations

import os
import struct

_MAGIC = b"QFI\xfb"
_HEAD = struct.Struct(">4sI64xQ20xI")  # magic, version, incompatible features, length of the header
_EXTENSION = struct.Struct(">II")  # type, length of its data
_EXTERNAL_DATA = 1 << 2
_DATA_FILE_NAME = 0x44415441
# The head and its extensions are in the first cluster; larger ones than of this size are rare.
_READ_BYTES = 64 << 10


def data_file(image: str) -> str:
    """The path of the file that has the image's data, "" if it has its data itself.

    A path that is not absolute is made so; what is no path stays. Raises OSError.
    """
    descriptor = os.open(image, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        head = os.pread(descriptor, _READ_BYTES, 0)
    finally:
        os.close(descriptor)
    if len(head) < _HEAD.size or not head.startswith(_MAGIC):
        return ""
    _, version, features, length = _HEAD.unpack_from(head)
    if version < 3 or not features & _EXTERNAL_DATA:
        return ""
    name = _extension(head, length)
    is_path = name and ":" not in name.split("/")[0]
    return os.path.join(os.path.dirname(image), name) if is_path else name or "unknown"


def _extension(head: bytes, begin: int) -> str:
    while begin + _EXTENSION.size <= len(head):
        kind, length = _EXTENSION.unpack_from(head, begin)
        begin += _EXTENSION.size
        if kind == _DATA_FILE_NAME:
            return os.fsdecode(head[begin : begin + length])
        if kind == 0:
            break
        begin += (length + 7) & ~7
    return ""
