"""The header of libvirt's memory image: enough to tell whether libvirt will load it.

Layout (libvirt src/qemu/qemu_saveimage.h): 16 bytes magic, then five 32-bit words in host byte
order: version, length of the XML, was running, format, cookie offset; 14 unused words; the XML;
then the payload, which begins with `QEVM` if it is not compressed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from zvmsnap.errors import ImageUnloadable

_HEADER = struct.Struct("=16s5I14I")
_COMPLETE = b"LibvirtQemudSave"
_PARTIAL = b"LibvirtQemudPart"
_QEMU_MAGIC = b"QEVM"
_FORMATS = ("raw", "gzip", "bzip2", "xz", "lzop", "zstd")
_SPARSE = 6


@dataclass(frozen=True)
class Header:
    """What a loadable image says of itself."""

    format: str
    was_running: bool
    xml_bytes: int


def judge(path: Path) -> Header:
    """The header of an image that libvirt can load. Raises ImageUnloadable with the reason."""
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size:
            raise ImageUnloadable(f"{path} is only {len(head)} bytes long: no memory image")
        magic, _version, xml_bytes, was_running, kind, *_ = _HEADER.unpack(head)
        if magic == _PARTIAL:
            raise ImageUnloadable(f"{path} is incomplete: the dump was interrupted")
        if magic != _COMPLETE:
            raise ImageUnloadable(f"{path} is no memory image of libvirt")
        if kind == _SPARSE:
            # libvirt 11.3 writes a plain stream under this header, and cannot load it again.
            raise ImageUnloadable(
                f"{path} has the format sparse, which libvirt cannot load from a snapshot: "
                'set snapshot_image_format = "raw" in /etc/libvirt/qemu.conf'
            )
        if kind >= len(_FORMATS):
            raise ImageUnloadable(f"{path} has the unknown format {kind}")
        file.seek(_HEADER.size + xml_bytes)
        payload = file.read(len(_QEMU_MAGIC))
    if not payload or (_FORMATS[kind] == "raw" and payload != _QEMU_MAGIC):
        raise ImageUnloadable(f"{path} has no QEMU stream after its header")
    return Header(format=_FORMATS[kind], was_running=bool(was_running), xml_bytes=xml_bytes)
