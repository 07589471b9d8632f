"""Which files the header of a qcow2 image names: its backing file, and its data file. Pure.

Who made the image may have written any there. By QEMU's docs/interop/qcow2.rst.
"""

from __future__ import annotations

import struct

HEAD_BYTES = 2 << 20  # the whole header, with all that it names, is in the first cluster

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQI")
_FEATURES_AT, _LENGTH_AT = 72, 100
_EXTERNAL_DATA = 1 << 2
_DATA_FILE = 0x44415441
_V2_BYTES = 72


def named_in(head: bytes) -> tuple[str, ...]:
    """The files that are named in the beginning of an image; none if it is no qcow2 image.

    Raises ValueError if it cannot be told.
    """
    if head[:4] != _MAGIC:
        return ()
    try:
        _, version, backing_at, backing_bytes = _HEADER.unpack_from(head)
        named = [_text(head, backing_at, backing_bytes)] if backing_at else []
        length = _V2_BYTES if version < 3 else _number(head, _LENGTH_AT)
        data_file = _data_file(head, length)
        has_data_file = version >= 3 and head[_FEATURES_AT + 7] & _EXTERNAL_DATA
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"its header cannot be read: {error}") from error
    if data_file is None and has_data_file:
        raise ValueError("it does not say where its data file is")
    return (*named, *([data_file] if data_file is not None else []))


def _data_file(head: bytes, at: int) -> str | None:
    while kind := _number(head, at):
        length = _number(head, at + 4)
        if kind == _DATA_FILE:
            return _text(head, at + 8, length)
        at += 8 + (length + 7) // 8 * 8
    return None


def _number(head: bytes, at: int) -> int:
    number: int = struct.unpack_from(">I", head, at)[0]
    return number


def _text(head: bytes, at: int, length: int) -> str:
    text = head[at : at + length]
    if len(text) != length:
        raise IndexError("it names a file behind its end")
    return text.decode()
