"""QEMU's migration stream, as far as its RAM: what is read here must be understood wholly.

Sources: QEMU's migration/savevm.c and migration/ram.c. Numbers are big endian.

| what             | bytes                                                                       |
|------------------|-----------------------------------------------------------------------------|
| begin            | `QEVM`, version 3 (4)                                                       |
| configuration    | 7, length (4), machine; subsections                                         |
| subsection       | 5, length (1), name, version (4), data                                      |
| section begins   | 1, number (4), length (1), `ram`, instance 0 (4), version 4 (4), data       |
| section goes on  | 2 or, for the last time, 3; number (4), data                                |
| footer           | 0x7e, number (4): after each section, but not with old machines             |
| switchover       | 8, 11 (2), 0 (2): once before the last section of RAM, since QEMU 10.0      |
| data             | words (8), each an address with flags in its lower 12 bits, up to one EOS   |

| flags            | what follows the word                                                       |
|------------------|-----------------------------------------------------------------------------|
| MEM_SIZE         | length of all blocks as address; for each: length (1), name, its length (8) |
| PAGE             | unless CONTINUE: length (1), name of the block; a page                      |
| ZERO             | unless CONTINUE: length (1), name of the block; a byte 0: a page of zeros   |
| EOS              | nothing: the section's data end                                             |

Whatever else comes raises NotUnderstood: other flags (compression, xbzrle, multifd, RDMA), other
iterating sections, other commands (postcopy), capabilities (mapped-ram, ignore-shared).
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from zvmsnap.common.errors import NotUnderstood
from zvmsnap.ram import page_image
from zvmsnap.ram.page_image import PAGE_BYTES, Block

MAGIC = b"QEVM"
WORD = struct.Struct(">Q")
NUMBER = struct.Struct(">I")

CONFIGURATION, SUBSECTION, COMMAND, FOOTER = 0x07, 0x05, 0x08, 0x7E
START, PART, END, FULL, EOF = 0x01, 0x02, 0x03, 0x04, 0x00
_SWITCHOVER = b"\x00\x0b\x00\x00"
ZERO, MEM_SIZE, PAGE, EOS, CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
FLAGS = PAGE_BYTES - 1

_RAM = b"\x03ram" + NUMBER.pack(0) + NUMBER.pack(4)
# What stays in a CPU's cache; larger ones also cost a fault of each of their pages, each time.
_BUFFER_BYTES = 256 << 10
# How many pages are compared at once, at first, and how many times more if all of them matched.
_GUESS_PAGES, _GUESS_GROWTH = 16, 4
_HEAD_BYTES = {PAGE: WORD.size + PAGE_BYTES, ZERO: WORD.size + 1}
# What subsections of the configuration may be: their data's length.
_SUBSECTIONS = {b"configuration/target-page-bits": 4, b"configuration/uuid": 16}
_PAGE_BITS = b"configuration/target-page-bits"
_BLOCKS_MAX = 4096


@dataclass(frozen=True)
class Run:
    """Pages that follow each other: `place` of the first; `data` of all, None if they are zeros."""

    place: int
    length_bytes: int
    data: bytes | None


class RamStream:
    """Reads an image once from where QEMU's stream begins, page by page; flat in memory.

    First `begin`, then all of `runs`, then `rest`. `closing` is what comes before `rest`: the last
    section of RAM without its pages. All raise NotUnderstood and OSError.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.blocks: list[Block] = []
        self.section = 0
        self.footers = False
        self.closing = b""
        self._file = file
        self._buffer = b""
        self._at = 0
        self._kept: bytearray | None = bytearray()
        self._by_name: dict[str, Block] = {}
        self._block: Block | None = None

    def begin(self) -> bytes:
        """The opening: all bytes up to and with the section that begins RAM."""
        if self._take(4) != MAGIC or self._number() != 3:
            raise NotUnderstood("it is not a stream of QEMU, version 3")
        kind = self._configuration()
        if kind != START:
            raise NotUnderstood(f"QEMU's stream has a section of type {kind} before RAM")
        self.section = self._number()
        if self._take(len(_RAM)) != _RAM:
            raise NotUnderstood("the first section of QEMU's stream is not RAM of version 4")
        self._lengths()
        if self._word() != EOS:
            raise NotUnderstood("the list of RAM blocks is followed by what is not known")
        self.footers = self._peek() == bytes([FOOTER])
        self._footer()
        kept, self._kept = self._kept, None
        return bytes(kept or b"")

    def sent_bytes_min(self) -> int:
        """So many bytes the pages of all blocks take, if all are zeros."""
        return sum(block.pages_from(0) for block in self.blocks) * _HEAD_BYTES[ZERO]

    def runs(self) -> Iterator[Run]:
        """All pages in the order they were sent."""
        while (kind := self._take(1)[0]) == PART:
            yield from self._section()
        if kind == COMMAND:
            if self._take(len(_SWITCHOVER)) != _SWITCHOVER:
                raise NotUnderstood("QEMU's stream has a command among RAM")
            self.closing = bytes([COMMAND]) + _SWITCHOVER
            kind = self._take(1)[0]
        if kind != END:
            raise NotUnderstood(f"QEMU's stream has another section, of type {kind}, in RAM")
        yield from self._section()
        self.closing += section_opening(END, self.section) + section_end(self.section, self.footers)
        if self._peek() not in (bytes([FULL]), bytes([EOF])):
            raise NotUnderstood("RAM is followed by what is not the state of devices")

    def rest(self) -> Iterator[bytes]:
        """All bytes after RAM."""
        while data := self._buffer[self._at :] or self._file.read(_BUFFER_BYTES):
            self._buffer, self._at = b"", 0
            yield data

    def position(self) -> int:
        """How many bytes of the file were used up."""
        return self._file.tell() - (len(self._buffer) - self._at)

    # -- before the pages

    def _configuration(self) -> int:
        """Read it; returns the type of the section that follows."""
        if self._take(1)[0] != CONFIGURATION:
            raise NotUnderstood("QEMU's stream does not say which machine it is of")
        length = self._number()
        if length > 255:
            raise NotUnderstood("the name of QEMU's machine is too long")
        machine = self._take(length)
        if not machine.startswith(b"pc-"):
            raise NotUnderstood(f"its machine type {_text(machine)} is none of pc-*")
        while (kind := self._take(1)[0]) == SUBSECTION:
            self._subsection()
        return kind

    def _subsection(self) -> None:
        name = self._take(self._take(1)[0])
        version = self._number()
        if name not in _SUBSECTIONS or version != 1:
            raise NotUnderstood(f"QEMU's stream has the configuration {_text(name)}")
        data = self._take(_SUBSECTIONS[name])
        if name == _PAGE_BITS and 1 << min(NUMBER.unpack(data)[0], 63) != PAGE_BYTES:
            raise NotUnderstood("the pages of this guest are not of 4096 bytes")

    def _lengths(self) -> None:
        word = self._word()
        if word & FLAGS != MEM_SIZE:
            raise NotUnderstood("RAM does not begin with the list of its blocks")
        left = word - MEM_SIZE
        lengths: list[tuple[str, int]] = []
        while left > 0 and len(lengths) < _BLOCKS_MAX:
            name = self._take(self._take(1)[0]).decode("latin-1")
            lengths.append((name, self._word()))
            left -= lengths[-1][1]
        self.blocks = page_image.laid_out(lengths)
        if left or not lengths or not page_image.are_plausible(self.blocks):
            raise NotUnderstood("the list of RAM blocks contradicts itself")
        self._by_name = {block.name: block for block in self.blocks}

    # -- pages

    def _section(self) -> Iterator[Run]:
        """The pages of one section, whose type was read, up to its end."""
        if self._number() != self.section:
            raise NotUnderstood("QEMU's stream has another section than RAM in RAM")
        while (word := self._word()) != EOS:
            flags = word & FLAGS
            kind = flags & ~CONTINUE
            if kind not in (PAGE, ZERO):
                raise NotUnderstood(f"RAM has a word with the flags {flags:#x}")
            if not flags & CONTINUE:
                self._block = self._named()
            yield from self._pages(kind, word - flags)
        self._footer()

    def _pages(self, kind: int, address: int) -> Iterator[Run]:
        """The page whose word was read, and those in the buffer that go on behind it."""
        block = self._block
        if block is None or address >= block.bytes:
            raise NotUnderstood("RAM has a page outside of its blocks")
        yield Run(block.place + address, PAGE_BYTES, self._body(kind))
        address += PAGE_BYTES
        guess = _GUESS_PAGES
        while count := self._following(kind, address, min(guess, block.pages_from(address))):
            data = self._bodies(count) if kind == PAGE else None
            self._at += count * _HEAD_BYTES[kind]
            yield Run(block.place + address, count * PAGE_BYTES, data)
            address += count * PAGE_BYTES
            guess *= _GUESS_GROWTH

    def _named(self) -> Block:
        name = self._take(self._take(1)[0]).decode("latin-1")
        if name not in self._by_name:
            raise NotUnderstood(f"RAM has a page of the block {name[:64]!r}, not in its list")
        return self._by_name[name]

    def _body(self, kind: int) -> bytes | None:
        if kind == PAGE:
            return self._take(PAGE_BYTES)
        if self._take(1) != b"\0":
            raise NotUnderstood("RAM has a page that is filled with a byte other than zero")
        return None

    def _following(self, kind: int, address: int, count_max: int) -> int:
        """How many pages of this kind are next, at ascending addresses of the same block.

        Compared in bulk, as a loop for each page would take longer than to read it.
        """
        stride = _HEAD_BYTES[kind]
        if len(self._buffer) - self._at < stride:
            self._fill(stride)
        count = min(count_max, (len(self._buffer) - self._at) // stride)
        if count <= 0:
            return 0
        first = address | kind | CONTINUE
        if not self._buffer.startswith(WORD.pack(first), self._at):
            return 0
        words = array("Q", range(first, first + count * PAGE_BYTES, PAGE_BYTES))
        words.byteswap()
        read = bytearray(count * WORD.size)
        end = self._at + count * stride
        for each in range(WORD.size):
            read[each :: WORD.size] = self._buffer[self._at + each : end : stride]
        difference = int.from_bytes(read) ^ int.from_bytes(words.tobytes())
        count -= -(-difference.bit_length() // 64)
        if kind == ZERO:
            end = self._at + count * stride
            fills = self._buffer[self._at + WORD.size : end : stride]
            count -= len(fills.lstrip(b"\0"))
        return count

    def _bodies(self, count: int) -> bytes:
        stride = _HEAD_BYTES[PAGE]
        first = self._at + WORD.size
        view = memoryview(self._buffer)
        return b"".join(
            [view[at : at + PAGE_BYTES] for at in range(first, first + count * stride, stride)]
        )

    # -- bytes

    def _footer(self) -> None:
        if self.footers and (self._take(1)[0] != FOOTER or self._number() != self.section):
            raise NotUnderstood("a section of RAM does not end with its footer")

    def _word(self) -> int:
        word: int = WORD.unpack(self._take(WORD.size))[0]
        return word

    def _number(self) -> int:
        number: int = NUMBER.unpack(self._take(NUMBER.size))[0]
        return number

    def _peek(self) -> bytes:
        if self._at == len(self._buffer):
            self._fill(1)
        return self._buffer[self._at : self._at + 1]

    def _take(self, count: int) -> bytes:
        if len(self._buffer) - self._at < count:
            self._fill(count)
        data = self._buffer[self._at : self._at + count]
        if len(data) < count:
            raise NotUnderstood("QEMU's stream ends in the middle of RAM")
        self._at += count
        if self._kept is not None:
            self._kept += data
        return data

    def _fill(self, count: int) -> None:
        """Have at least `count` bytes in the buffer, if the file has as many."""
        self._buffer = self._buffer[self._at :] + self._file.read(max(count, _BUFFER_BYTES))
        self._at = 0


def section_opening(kind: int, section: int) -> bytes:
    """What a section of RAM begins with."""
    return bytes([kind]) + NUMBER.pack(section)


def section_end(section: int, footers: bool) -> bytes:
    """What a section of RAM ends with."""
    return WORD.pack(EOS) + (bytes([FOOTER]) + NUMBER.pack(section) if footers else b"")


def _text(name: bytes) -> str:
    return repr(name[:64].decode("latin-1"))
