"""Disk images, made by the real qemu-img; and RAM images, as libvirt writes them."""

import struct
import subprocess
from pathlib import Path

SIZE = 1 << 20


def run_qemu_img(*arguments: str | Path) -> None:
    """Run qemu-img, which the tests need (tests/lab/needs)."""
    subprocess.run(["qemu-img", *arguments], check=True, capture_output=True)


def make_base(path: Path) -> Path:
    """A raw disk of zeros, so that what is merged into it can simply be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


def make_overlay(path: Path, below: Path, kind: str = "raw") -> Path:
    """A qcow2 overlay on `below`, to which nothing was written yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    run_qemu_img("create", "-q", "-f", "qcow2", "-F", kind, "-b", below, path)
    return path


def write(image: Path, byte: int, at_kib: int = 0) -> None:
    """Write 64 KiB of a byte into a qcow2 image, as its guest would."""
    command = f"write -q -P {byte} {at_kib}k 64k"
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", command, str(image)], check=True, capture_output=True
    )


def holds(base: Path, byte: int, at_kib: int = 0) -> bool:
    """Does a raw disk hold what `write` wrote?"""
    with base.open("rb") as file:
        file.seek(at_kib << 10)
        return file.read(65536) == bytes([byte]) * 65536


_MAGIC = b"LibvirtQemudSave"
_QEMU = b"QEVM"
_PAGE_BYTES = 4096
_PAGES = 64
_BLOCK = b"pc.ram"
_ZERO, _LENGTHS, _PAGE, _EOS, _CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
_PART, _END = b"\x02\0\0\0\x02", b"\x03\0\0\0\x02"
_FOOTER = b"\x7e" + struct.pack(">I", 2)
DEVICES = b"\x04 and the state of its devices"


def qemu_stream(ram: bytes) -> bytes:
    """What QEMU writes of a machine whose RAM begins with that, and is zeros after it."""
    machine = b"pc-q35-10.0"
    stream = _QEMU + struct.pack(">IBI", 3, 7, len(machine)) + machine
    stream += b"\x01" + struct.pack(">IB3sII", 2, 3, b"ram", 0, 4)
    stream += struct.pack(">QB", _PAGES * _PAGE_BYTES | _LENGTHS, len(_BLOCK)) + _BLOCK
    stream += struct.pack(">QQ", _PAGES * _PAGE_BYTES, _EOS) + _FOOTER + _PART
    held = (len(ram).to_bytes(8) + ram).ljust(_PAGES * _PAGE_BYTES, b"\0")
    for at in range(0, len(held), _PAGE_BYTES):
        page = held[at : at + _PAGE_BYTES]
        flags = (_PAGE if any(page) else _ZERO) | (_CONTINUE if at else 0)
        stream += struct.pack(">Q", at | flags)
        stream += b"" if at else bytes([len(_BLOCK)]) + _BLOCK
        stream += page if any(page) else b"\0"
    end = struct.pack(">Q", _EOS) + _FOOTER
    return stream + end + _END + end + DEVICES


def ram_in(stream: bytes) -> bytes:
    """The RAM in such a stream, whoever has put it together."""
    assert stream.endswith(_FOOTER + DEVICES)
    stream = stream[stream.index(_PART) + len(_PART) :]
    held = bytearray(_PAGES * _PAGE_BYTES)
    while not (word := struct.unpack_from(">Q", stream)[0]) & _EOS:
        body = 8 if word & _CONTINUE else 9 + len(_BLOCK)
        length = _PAGE_BYTES if word & _PAGE else 1
        at = word // _PAGE_BYTES * _PAGE_BYTES
        held[at : at + length] = stream[body : body + length]
        stream = stream[body + length :]
    return bytes(held[8 : 8 + int.from_bytes(held[:8])])


def libvirt_image(xml: str, ram: bytes = b"RAM", *, running: bool = True) -> bytes:
    """What libvirt writes when it saves a machine; `ram` is what its RAM begins with."""
    data = xml.encode() + b"\0"
    fixed = struct.pack("=19I", 2, len(data), running, *bytes(16))
    return _MAGIC + fixed + data + qemu_stream(ram)


# A RAM image that libvirt can load.
RAM = libvirt_image("<domain/>")
