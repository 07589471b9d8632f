"""Which files the header of a qcow2 image names: its backing file, and its data file.

Who made the image may have written any there. By QEMU's docs/interop/qcow2.rst. It is read here and
not by qemu-img, as a process for each disk and run would cost too much.
"""

from __future__ import annotations

import os
import struct

HEAD_BYTES = 2 << 20  # the whole header, with all that it names, is in the first cluster

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQI")
_FEATURES_AT, _LENGTH_AT = 72, 100
_EXTERNAL_DATA = 1 << 2
_DATA_FILE = 0x44415441
_BACKING_FORMAT = 0xE2792ACA
_V2_BYTES = 72
_VERSION_OF_FEATURES = 3
_HEAD_OF_MOST_BYTES = 64 << 10


def data_file(image: str) -> str:
    """The path of the file that has the image's data, "" if it has its data itself.

    libvirt tells it only since 10.10, and of a guest that is off only where the definition does.
    What is no path stays as it is named. Raises OSError, and ValueError if it cannot be told.
    """
    descriptor = os.open(image, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        head = os.pread(descriptor, _HEAD_OF_MOST_BYTES, 0)
        has_data_file = len(head) > _LENGTH_AT and _has_data_file(head)
        if has_data_file and len(head) == _HEAD_OF_MOST_BYTES:
            head += os.pread(descriptor, HEAD_BYTES - len(head), len(head))
    finally:
        os.close(descriptor)
    if not has_data_file:
        return ""
    name = named_in(head)[-1]
    is_path = ":" not in name.partition("/")[0]
    return os.path.join(os.path.dirname(image), name) if is_path else name


def named_in(head: bytes) -> tuple[str, ...]:
    """The files that are named in the beginning of an image; none if it is no qcow2 image.

    Raises ValueError if it cannot be told.
    """
    if head[:4] != _MAGIC:
        return ()
    try:
        _, version, backing_at, backing_bytes = _HEADER.unpack_from(head)
        named = [_text(head, backing_at, backing_bytes)] if backing_at else []
        data_file = _extension(head, version, _DATA_FILE)
        has_data_file = _has_data_file(head)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"its header cannot be read: {error}") from error
    if data_file is None and has_data_file:
        raise ValueError("it does not say where its data file is")
    return (*named, *([data_file] if data_file is not None else []))


def backing_format(head: bytes) -> str | None:
    """As what QEMU opens the backing file; None if this is no qcow2 image with one.

    "" if the header does not say: QEMU looks at what is in the file. Raises ValueError.
    """
    if head[:4] != _MAGIC:
        return None
    try:
        _, version, backing_at, _ = _HEADER.unpack_from(head)
        return (_extension(head, version, _BACKING_FORMAT) or "") if backing_at else None
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"its header cannot be read: {error}") from error


def _has_data_file(head: bytes) -> bool:
    """Raises IndexError."""
    if head[:4] != _MAGIC or _number(head, 4) < _VERSION_OF_FEATURES:
        return False
    return bool(head[_FEATURES_AT + 7] & _EXTERNAL_DATA)


def _extension(head: bytes, version: int, wanted: int) -> str | None:
    """The text of an extension of the header. Of two QEMU takes the last: nobody has two."""
    text = None
    at = _V2_BYTES if version < _VERSION_OF_FEATURES else _number(head, _LENGTH_AT)
    while kind := _number(head, at):
        length = _number(head, at + 4)
        if kind == wanted:
            if text is not None:
                raise IndexError("it says the same twice")
            text = _text(head, at + 8, length)
        at += 8 + (length + 7) // 8 * 8
    return text


def _number(head: bytes, at: int) -> int:
    number: int = struct.unpack_from(">I", head, at)[0]
    return number


def _text(head: bytes, at: int, length: int) -> str:
    text = head[at : at + length]
    if len(text) != length:
        raise IndexError("it names a file behind its end")
    if b"\0" in text:
        raise IndexError("it names a file with a NUL byte, which no file has")
    return text.decode()
