"""RAM images as libvirt and QEMU write them, made of what a test says."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

PAGE_BYTES = 4096
ZERO, MEM_SIZE, PAGE, EOS, CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
DEVICES = b"\x04" + b"state of devices " * 40 + b"\x00"


def head(xml: str = "<domain/>", *, kind: int = 0, running: bool = True) -> bytes:
    data = xml.encode().ljust(200, b"\0")
    fixed = (b"LibvirtQemudSave", 2, len(data), int(running), kind, 0)
    return struct.pack("=16s5I56x", *fixed) + data


@dataclass
class Image:
    """Writes one image, section by section; pages are of the last section that was begun."""

    blocks: dict[str, int] = field(default_factory=lambda: {"pc.ram": 64 * PAGE_BYTES})
    machine: str = "pc-q35-7.2"
    footers: bool = True
    section: int = 2
    configuration: bytes = b""
    written: bytearray = field(default_factory=bytearray)
    last: str = ""

    def __post_init__(self) -> None:
        machine = self.machine.encode()
        self.written += b"QEVM" + struct.pack(">IBI", 3, 7, len(machine)) + machine
        self.written += self.configuration
        self.written += b"\x01" + struct.pack(">I", self.section) + b"\x03ram" + bytes(4)
        self.written += struct.pack(">I", 4)
        self.word(sum(self.blocks.values()) | MEM_SIZE)
        for name, length in self.blocks.items():
            self.written += bytes([len(name)]) + name.encode() + struct.pack(">Q", length)
        self.end()

    def word(self, word: int) -> None:
        self.written += struct.pack(">Q", word)

    def begin(self, kind: int = 2) -> None:
        self.written += bytes([kind]) + struct.pack(">I", self.section)

    def end(self) -> None:
        self.word(EOS)
        if self.footers:
            self.written += b"\x7e" + struct.pack(">I", self.section)

    def page(self, block: str, number: int, data: bytes | None) -> None:
        """One page; zeros without `data`."""
        flags = ZERO if data is None else PAGE
        self.word(number * PAGE_BYTES | flags | (CONTINUE if block == self.last else 0))
        if block != self.last:
            self.written += bytes([len(block)]) + block.encode()
            self.last = block
        self.written += b"\0" if data is None else data

    def image(self, devices: bytes = DEVICES) -> bytes:
        return head() + bytes(self.written) + devices


def page(seed: int) -> bytes:
    """A page that is like no other, and not zeros."""
    return struct.pack(">Q", seed + 1) * (PAGE_BYTES // 8)
