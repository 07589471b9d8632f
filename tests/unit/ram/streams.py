"""RAM images as libvirt and QEMU write them, made of what a test says, and read page by page."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field

PAGE_BYTES = 4096
ZERO, MEM_SIZE, PAGE, EOS, CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
DEVICES = b"\x04" + b"state of devices " * 40 + b"\x00"


def head(xml: str = "<domain/>", *, kind: int = 0, running: bool = True) -> bytes:
    data = xml.encode().ljust(200, b"\0")
    return struct.pack("=16s5I56x", b"LibvirtQemudSave", 2, len(data), running, kind, 0) + data


@dataclass
class Image:
    """Writes one image, section by section."""

    blocks: dict[str, int] = field(default_factory=lambda: {"pc.ram": 8 * PAGE_BYTES})
    machine: bytes = b"pc-q35-7.2"
    configuration: bytes = b""
    footers: bool = True
    section: int = 2
    instance: int = 0
    written: bytearray = field(default_factory=bytearray)
    last: str = ""

    def __post_init__(self) -> None:
        self.written += b"QEVM" + struct.pack(">IBI", 3, 7, len(self.machine)) + self.machine
        self.written += self.configuration
        self.written += struct.pack(">BI4sII", 1, self.section, b"\x03ram", self.instance, 4)
        self.word(sum(self.blocks.values()) | MEM_SIZE)
        for name, length in self.blocks.items():
            self.written += bytes([len(name)]) + name.encode() + struct.pack(">Q", length)
        self.end()

    def word(self, word: int) -> None:
        self.written += struct.pack(">Q", word)

    def begin(self, kind: int = 2) -> None:
        self.written += struct.pack(">BI", kind, self.section)

    def end(self) -> None:
        self.word(EOS)
        if self.footers:
            self.written += struct.pack(">BI", 0x7E, self.section)

    def page(self, block: str, number: int, data: bytes | None) -> None:
        """One page; zeros without `data`."""
        flags = ZERO if data is None else PAGE
        self.word(number * PAGE_BYTES | flags | (CONTINUE if block == self.last else 0))
        if block != self.last:
            self.written += bytes([len(block)]) + block.encode()
            self.last = block
        self.written += b"\0" if data is None else data

    def switchover(self) -> None:
        """What QEMU 10.0 says before the last section."""
        self.written += b"\x08\x00\x0b\x00\x00"

    def all_pages(self, seed: int = 0) -> None:
        """All pages in order, in the last section."""
        self.begin(3)
        for block, length in self.blocks.items():
            for number in range(length // PAGE_BYTES):
                self.page(block, number, page(seed + number))
        self.end()

    def image(self, devices: bytes = DEVICES) -> bytes:
        return head() + bytes(self.written) + devices


def page(seed: int) -> bytes:
    """A page that is like no other, and not zeros."""
    return struct.pack(">Q", seed + 1) * (PAGE_BYTES // 8)


@dataclass
class Loaded:
    """What QEMU has after it has read an image: bytes that are no pages, and each block's RAM."""

    opening: bytes
    blocks: dict[str, bytes]
    commands: bytes
    closing: bytes


def load(image: bytes) -> Loaded:
    """Read an image as QEMU does, word by word. Raises AssertionError and struct.error."""
    stream = io.BytesIO(image)

    def number(form: str) -> int:
        value: int = struct.unpack(form, stream.read(struct.calcsize(form)))[0]
        return value

    def name() -> bytes:
        return stream.read(number(">B"))

    def footer() -> None:
        if image[stream.tell() : stream.tell() + 1] == b"\x7e":
            assert number(">B") and number(">I") == section

    fixed = struct.unpack("=16s5I56x", stream.read(92))
    stream.seek(92 + fixed[2])
    assert stream.read(8) == b"QEVM\0\0\0\x03"
    assert number(">B") == 7
    stream.read(number(">I"))
    while (kind := number(">B")) == 5:
        subsection = name()
        assert number(">I") == 1
        stream.read({b"configuration/target-page-bits": 4, b"configuration/uuid": 16}[subsection])
    assert kind == 1
    section = number(">I")
    assert (name(), stream.read(8)) == (b"ram", b"\0\0\0\0\0\0\0\x04")
    left = number(">Q") - MEM_SIZE
    blocks: dict[bytes, bytearray] = {}
    while left > 0:
        block = name()
        blocks[block] = bytearray(number(">Q"))
        left -= len(blocks[block])
    assert number(">Q") == EOS
    footer()
    opening = image[: stream.tell()]
    kind = 0
    block = commands = b""
    while kind != 3:
        kind = number(">B")
        if kind == 8:
            assert not commands
            commands = stream.read(4)
            continue
        assert kind == 3 or (kind == 2 and not commands)
        assert number(">I") == section
        while (word := number(">Q")) != EOS:
            flags, address = word % PAGE_BYTES, word // PAGE_BYTES * PAGE_BYTES
            block = block if flags & CONTINUE else name()
            assert flags & ~CONTINUE in (ZERO, PAGE)
            data = stream.read(1) * PAGE_BYTES if flags & ZERO else stream.read(PAGE_BYTES)
            assert len(data) == PAGE_BYTES
            assert address + PAGE_BYTES <= len(blocks[block])
            blocks[block][address : address + PAGE_BYTES] = data
        footer()
    ram = {name.decode(): bytes(content) for name, content in blocks.items()}
    return Loaded(opening, ram, commands, image[stream.tell() :])
