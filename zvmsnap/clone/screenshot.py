"""A guest's screen as PNG, which newer libvirt gives; older gives a portable pixmap."""

from __future__ import annotations

import re
import struct
import zlib

# ppm(5) of netpbm: a comment may be wherever white space may be, and counts as such; a single
# byte of white space ends the header.
_GAP = rb"(?:[ \t\n\v\f\r]|#[^\r\n]*[\r\n])+"
_HEADER = re.compile(
    rb"P6" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})[ \t\n\v\f\r]"
)
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB_OF_8_BITS = (8, 2, 0, 0, 0)


def png_of(picture: bytes) -> bytes:
    """The picture as PNG. Raises ValueError unless it is PNG, or a P6 of maxval 255."""
    return picture if picture.startswith(_SIGNATURE) else _converted(picture)


def _converted(ppm: bytes) -> bytes:
    header = _HEADER.match(ppm)
    if header is None:
        raise ValueError("is no binary portable pixmap (P6)")
    width, height, maxval = (int(number) for number in header.groups())
    if maxval != 255:
        raise ValueError(f"has a maxval of {maxval}, not 255")
    row_bytes = 3 * width
    pixels = memoryview(ppm)[header.end() :]
    if not row_bytes or not height or len(pixels) != row_bytes * height:
        raise ValueError(f"has {len(pixels)} bytes of pixels, which are not {width} x {height}")
    # Each row begins with its filter: none.
    rows = b"".join(
        b"\0" + pixels[begin : begin + row_bytes] for begin in range(0, len(pixels), row_bytes)
    )
    return (
        _SIGNATURE
        + _chunk(b"IHDR", struct.pack(">II5B", width, height, *_RGB_OF_8_BITS))
        + _chunk(b"IDAT", zlib.compress(rows))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
