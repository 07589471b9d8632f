"""The head of libvirt's RAM image: will libvirt load it? And: give it another XML.

Layout (libvirt src/qemu/qemu_saveimage.h): 16 bytes magic, then five 32-bit words in host byte
order: version, length of the data, was running, format, cookie offset; 14 unused words; the data;
then the payload, which begins with `QEVM` if it is not compressed. The data: the XML, a NUL; the
cookie at its offset (0: no cookie), a NUL; zeros as space for a longer XML.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zvmsnap.common.errors import ImageUnloadable

_HEADER = struct.Struct("=16s5I14I")
_RUNNING = struct.Struct("=I")
_RUNNING_OFFSET = struct.calcsize("=16sII")
_COMPLETE = b"LibvirtQemudSave"
_PARTIAL = b"LibvirtQemudPart"
_QEMU_MAGIC = b"QEVM"
_FORMATS = ("raw", "gzip", "bzip2", "xz", "lzop", "zstd")
_SPARSE = 6

# An XML has some 10 KiB; libvirt adds 64 KiB. More is damage, and must not fill our memory.
_MAX_DATA_BYTES = 64 << 20


class Stream(Protocol):
    """What an image is read from: a file, or a decompressor."""

    def read(self, size: int, /) -> bytes:
        """Exactly `size` bytes, less only at the end."""


@dataclass(frozen=True)
class Header:
    """What a loadable image says of itself."""

    format: str
    was_running: bool
    xml_bytes: int


@dataclass(frozen=True)
class Head:
    """All bytes before the payload, as they are in the image, and the payload's first bytes."""

    name: str
    header: Header
    stored: bytes
    opening: bytes

    @property
    def xml(self) -> str:
        """The definition of the domain. Raises ImageUnloadable."""
        text, end, _ = self._data[: self._cookie_offset or None].partition(b"\0")
        try:
            if end:
                return text.decode()
        except UnicodeDecodeError:
            pass
        raise ImageUnloadable(f"{self.name} holds no definition that can be read: it is damaged")

    def with_xml(self, xml: str) -> bytes:
        """The head with another definition: of the same length if that fits in, else longer."""
        text = xml.encode() + b"\0"
        data = (text + self._cookie).ljust(self.header.xml_bytes, b"\0")
        magic, version, _, was_running, kind, _, *unused = _HEADER.unpack_from(self.stored)
        offset = len(text) if self._cookie else 0
        return _HEADER.pack(magic, version, len(data), was_running, kind, offset, *unused) + data

    @property
    def _data(self) -> bytes:
        return self.stored[_HEADER.size :]

    @property
    def _cookie_offset(self) -> int:
        return _cookie_offset(self.stored)

    @property
    def _cookie(self) -> bytes:
        """The cookie and its NUL; empty without a cookie."""
        if not self._cookie_offset:
            return b""
        return self._data[self._cookie_offset :].partition(b"\0")[0] + b"\0"


def is_partial(path: Path) -> bool:
    """Is it still being written, or was its dump interrupted?"""
    try:
        with path.open("rb") as file:
            return file.read(len(_PARTIAL)) == _PARTIAL
    except OSError:
        return False


def read_header(path: Path) -> Header:
    """The header of an image that libvirt can load. Raises ImageUnloadable with the reason."""
    with path.open("rb") as file:
        return read_head(file, str(path)).header


def xml_of(path: Path) -> str:
    """The definition inside an image that libvirt can load. Raises ImageUnloadable."""
    with path.open("rb") as file:
        return read_head(file, str(path)).xml


def read_head(stream: Stream, name: str) -> Head:
    """The head of an image that libvirt can load; the payload goes on after its `opening`.

    `name` is what messages call the image. Raises ImageUnloadable with the reason.
    """
    fixed = stream.read(_HEADER.size)
    header = _parse_header(fixed, name)
    stored = fixed + stream.read(header.xml_bytes)
    opening = stream.read(len(_QEMU_MAGIC))
    if not opening or (header.format == "raw" and opening != _QEMU_MAGIC):
        raise ImageUnloadable(f"{name} has no QEMU stream after its header")
    return Head(name, header, stored, opening)


def _parse_header(fixed: bytes, name: str) -> Header:
    if len(fixed) < _HEADER.size:
        raise ImageUnloadable(f"{name} is only {len(fixed)} bytes long: no RAM image")
    magic, _version, data_bytes, was_running, kind, *_ = _HEADER.unpack(fixed)
    if magic == _PARTIAL:
        raise ImageUnloadable(f"{name} is incomplete: the dump was interrupted")
    if magic != _COMPLETE:
        raise ImageUnloadable(f"{name} is no RAM image of libvirt")
    if kind == _SPARSE:
        # libvirt 11.3 writes a plain stream under this header, and cannot load it again.
        raise ImageUnloadable(
            f"{name} has the format sparse, which libvirt cannot load from a snapshot: "
            'set snapshot_image_format = "raw" in /etc/libvirt/qemu.conf'
        )
    if kind >= len(_FORMATS):
        raise ImageUnloadable(f"{name} has the unknown format {kind}")
    if data_bytes > _MAX_DATA_BYTES or _cookie_offset(fixed) > data_bytes:
        raise ImageUnloadable(f"{name} has a header that contradicts its length: it is damaged")
    return Header(format=_FORMATS[kind], was_running=bool(was_running), xml_bytes=data_bytes)


def _cookie_offset(fixed: bytes) -> int:
    offset: int = _HEADER.unpack_from(fixed)[5]
    return offset


def mark_running(image: int) -> None:
    """In the head of the image, a file open for writing, the guest was running. Raises OSError."""
    os.pwrite(image, _RUNNING.pack(1), _RUNNING_OFFSET)
