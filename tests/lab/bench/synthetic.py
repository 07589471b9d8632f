"""A RAM image as libvirt writes one of a running guest, of no guest: its pages are made up.

Half of them are zeros, in stretches of some dozens, as the RAM of a guest that has run for a while.
No page is like another, and none can be compressed. Some are sent a second time, as those to which
a guest writes meanwhile.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

PAGE_BYTES = 4096
_ZERO, _MEM_SIZE, _PAGE, _EOS, _CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
_STRETCH_PAGES = 40
_SENT_AGAIN = 50  # one of so many
_SECTION = struct.pack(">I", 2)
_SECTION_END = struct.pack(">QB", _EOS, 0x7E) + _SECTION
_POOL_BYTES = 16 << 20
_HEAD_BYTES = 2000
_DEVICES = b"\x04" + bytes(range(1, 200)) * 400 + b"\x00"


def write(path: Path, ram_mib: int, seed: int) -> None:
    """Write it durably; the same for the same seed."""
    with path.open("wb") as file:
        for part in _parts(ram_mib << 20, random.Random(seed)):
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def _parts(ram_bytes: int, chance: random.Random) -> Iterator[bytes]:
    head = b"<domain/>".ljust(_HEAD_BYTES, b"\0")
    yield struct.pack("=16s5I56x", b"LibvirtQemudSave", 2, len(head), 1, 0, 0) + head
    yield b"QEVM" + struct.pack(">IBI", 3, 7, 10) + b"pc-q35-9.2"
    yield b"\x01" + _SECTION + b"\x03ram" + struct.pack(">II", 0, 4)
    yield struct.pack(">QB6sQ", ram_bytes | _MEM_SIZE, 6, b"pc.ram", ram_bytes) + _SECTION_END
    pool = chance.randbytes(_POOL_BYTES)
    count = ram_bytes // PAGE_BYTES
    yield b"\x02" + _SECTION + struct.pack(">QB6sB", _ZERO, 6, b"pc.ram", 0)
    number = 1
    while number < count:
        stretch = min(1 + int(chance.expovariate(1 / _STRETCH_PAGES)), count - number)
        is_zero = chance.random() < 0.5
        for each in range(number, number + stretch):
            yield _zeros(each) if is_zero else _page(each, pool)
        number += stretch
        yield _SECTION_END + b"\x02" + _SECTION
    yield _SECTION_END + b"\x03" + _SECTION
    for each in sorted(chance.sample(range(count), count // _SENT_AGAIN)):
        yield _page(each, pool)
    yield _SECTION_END + _DEVICES


def _zeros(number: int) -> bytes:
    return struct.pack(">QB", number * PAGE_BYTES | _ZERO | _CONTINUE, 0)


def _page(number: int, pool: bytes) -> bytes:
    """That page, whose first bytes no other has."""
    word = struct.pack(">QQ", number * PAGE_BYTES | _PAGE | _CONTINUE, number + 1)
    at = number * PAGE_BYTES % (_POOL_BYTES - PAGE_BYTES)
    return word + pool[at : at + PAGE_BYTES - 8]
