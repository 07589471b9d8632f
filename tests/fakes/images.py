"""Disk images, made by the real qemu-img; and RAM images, as libvirt writes them."""

import struct
import subprocess
from pathlib import Path

SIZE = 1 << 20
# A RAM image that libvirt can load, for those who read its header: no XML, and QEMU's stream.
RAM = b"LibvirtQemudSave" + bytes(19 * 4) + b"QEVM and RAM"


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


def libvirt_image(xml: str, ram: bytes = b"RAM", *, running: bool = True) -> bytes:
    """What libvirt writes when it saves a machine; `ram` is all that QEMU has to say."""
    data = xml.encode() + b"\0"
    return _MAGIC + struct.pack("=19I", 2, len(data), running, *bytes(16)) + data + _QEMU + ram
