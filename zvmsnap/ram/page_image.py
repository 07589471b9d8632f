"""A page image: a guest's RAM with each page at its own place, in two files.

`memory.pages` is sparse. Each RAM block of QEMU has a fixed place in it, a multiple of 1 MiB, and a
page lies in its block by its address; pages of zeros are holes. So two images of one guest differ
where its RAM differs, and nowhere else. A record is 16 KiB of it, the unit of sharing and checking.

`memory.rest` holds all other bytes of libvirt's image as they were, in order:

| bytes          | what                                                                           |
|----------------|--------------------------------------------------------------------------------|
| 16             | `zvmsnap-ram-rest`                                                             |
| 4              | version of this layout, big endian: 1                                          |
| 4              | length of the table, big endian                                                |
| that           | the table, JSON: see `Table`                                                   |
| `head_bytes`   | libvirt's head: header, XML, cookie                                            |
| `opening_bytes`| QEMU's stream, up to and with the section that begins its RAM                  |
| `closing_bytes`| QEMU's stream from the last section of RAM on, without its pages; devices      |

Between opening and closing were the pages. docs/reference/page-images.md says the same to people.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from zvmsnap.common.errors import ImageUnloadable
from zvmsnap.virt import save_image
from zvmsnap.virt.save_image import Head

PAGES = "memory.pages"
REST = "memory.rest"

PAGE_BYTES = 4096
RECORD_BYTES = 16 << 10
# More than any record or extent of a file system, so that blocks are cloned wholly.
BLOCK_ALIGNMENT_BYTES = 1 << 20

_MAGIC = b"zvmsnap-ram-rest"
_VERSION = 1
_FIXED = struct.Struct(f">{len(_MAGIC)}sII")
_PLACE = struct.Struct(">Q")
# A block's row has some 60 bytes; QEMU has a block for each DIMM, firmware and video memory.
_TABLE_BYTES_MAX = 1 << 20
# ext4 ends at 16 TiB, and no guest of QEMU has more RAM.
FILE_BYTES_MAX = 16 << 40
CHUNK_BYTES = 1 << 20
# So much the kernel reads while the bytes before it are worked on.
_AHEAD_BYTES = 8 * CHUNK_BYTES
ZERO_RECORD = bytes(RECORD_BYTES)


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One RAM block of QEMU: `place` is its first byte in `memory.pages`."""

    name: str
    bytes: int
    place: int

    @property
    def end(self) -> int:
        """Where the next block would begin."""
        return _aligned(self.place + self.bytes)

    def pages_from(self, address: int) -> int:
        """How many pages it has from `address` on."""
        return max(0, self.bytes - address) // PAGE_BYTES


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `memory.rest` says of itself and of `memory.pages`.

    `section` is the number that QEMU gave its RAM; `footers`: do its sections end with one?
    """

    head_bytes: int
    opening_bytes: int
    closing_bytes: int
    section: int
    footers: bool
    blocks: list[Block]
    page_bytes: int = PAGE_BYTES
    record_bytes: int = RECORD_BYTES

    @property
    def pages_bytes(self) -> int:
        """The length of `memory.pages`."""
        return pages_bytes(self.blocks)


@dataclass(frozen=True)
class Digests:
    """What tells a page image from every other; both in hexadecimal.

    `pages` is of the records that are not all zeros, each with its place: see `RecordDigest`.
    `rest` is the SHA-256 of the file.
    """

    pages: str
    rest: str


@dataclass(frozen=True)
class PageImage:
    """Both files, open for reading; `name` is what messages call the image."""

    pages: int
    rest: int
    name: str


@dataclass
class RecordDigest:
    """One digest of all records that are not zeros, and a sum that does not depend on their order.

    A record's own digest is SHA-256 of its place (8 bytes, big endian) and its content. The digest
    is SHA-256 of place and digest of each, by ascending place: holes cost nothing. The sum adds the
    digests, so it can follow an image that is written in any order, also a record that is written
    again.
    """

    total: int = 0
    records: int = 0
    _ordered: hashlib._Hash = field(default_factory=hashlib.sha256)

    def add(self, place: int, *record: bytes | memoryview) -> None:
        """A record, in one or several parts."""
        own = record_digest(place, *record)
        self._ordered.update(_PLACE.pack(place) + own)
        self.total += int.from_bytes(own)
        self.records += 1

    def hexdigest(self) -> str:
        return self._ordered.hexdigest()


def record_digest(place: int, *record: bytes | memoryview) -> bytes:
    """The digest of one record: of its place, too, so that none can stand for another."""
    digest = hashlib.sha256(_PLACE.pack(place))
    for part in record:
        digest.update(part)
    return digest.digest()


def laid_out(lengths: list[tuple[str, int]]) -> list[Block]:
    """The blocks of QEMU by name and length, each at its place, in QEMU's order."""
    blocks = []
    place = 0
    for name, length in lengths:
        blocks.append(Block(name, length, place))
        place = blocks[-1].end
    return blocks


def pages_bytes(blocks: list[Block]) -> int:
    """The length of `memory.pages`: to where a block after the last one would begin."""
    return max((each.end for each in blocks), default=0)


def _aligned(place: int) -> int:
    return -(-place // BLOCK_ALIGNMENT_BYTES) * BLOCK_ALIGNMENT_BYTES


# -- memory.rest


def rest_opening(table: Table) -> bytes:
    """What `memory.rest` begins with: the bytes of libvirt's image follow."""
    written = msgspec.json.encode(table)
    return _FIXED.pack(_MAGIC, _VERSION, len(written)) + written


@dataclass(frozen=True)
class Rest:
    """An open `memory.rest`: its table, and where the bytes of libvirt's image begin."""

    file: int
    table: Table
    begin: int

    def bytes_of(self, begin: int, count: int) -> Iterator[bytes]:
        """`count` bytes of libvirt's image from `begin` on, counted without its pages."""
        place = self.begin + begin
        end = place + count
        while place < end:
            data = os.pread(self.file, min(CHUNK_BYTES, end - place), place)
            if not data:
                raise ImageUnloadable(f"{REST} became shorter while it was read")
            place += len(data)
            yield data

    def head(self, name: str) -> Head:
        """libvirt's head, with the definition inside. Raises ImageUnloadable."""
        count = self.table.head_bytes + self.table.opening_bytes
        return save_image.read_head(Chunks(self.bytes_of(0, count)), f"{REST} of {name}")


class Chunks:
    """A stream of chunks, read by length."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def read(self, size: int, /) -> bytes:
        parts = []
        while size > 0 and (part := self._left or next(self._chunks, b"")):
            parts.append(part[:size])
            self._left = part[size:]
            size -= len(parts[-1])
        return b"".join(parts)


def read_rest(image: PageImage) -> Rest:
    """The table of a page image, checked against the lengths of both files.

    Raises ImageUnloadable with what is wrong, and OSError.
    """
    name = f"{REST} of {image.name}"
    magic, version, count = _fixed(os.pread(image.rest, _FIXED.size, 0), name)
    if magic != _MAGIC or count > _TABLE_BYTES_MAX:
        raise ImageUnloadable(f"{name} is no rest of a page image: it is damaged")
    if version != _VERSION:
        raise ImageUnloadable(f"{name} is of version {version}, which this version cannot read")
    try:
        table = msgspec.json.decode(os.pread(image.rest, count, _FIXED.size), type=Table)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ImageUnloadable(f"{name} has a table that is damaged ({error})") from error
    rest = Rest(image.rest, table, _FIXED.size + count)
    if fault := _fault(rest, image):
        raise ImageUnloadable(f"{name} {fault}: it is damaged")
    return rest


def _fixed(data: bytes, name: str) -> tuple[bytes, int, int]:
    if len(data) < _FIXED.size:
        raise ImageUnloadable(f"{name} is only {len(data)} bytes long: it is damaged")
    magic, version, count = _FIXED.unpack(data)
    return magic, version, count


def _fault(rest: Rest, image: PageImage) -> str:
    table = rest.table
    lengths = (table.head_bytes, table.opening_bytes, table.closing_bytes)
    if (table.page_bytes, table.record_bytes) != (PAGE_BYTES, RECORD_BYTES):
        return f"has pages of {table.page_bytes} and records of {table.record_bytes} bytes"
    if min(lengths) < 0 or rest.begin + sum(lengths) != os.fstat(image.rest).st_size:
        return "has not the length that its table says"
    if not 0 <= table.section < 1 << 32 or not are_plausible(table.blocks):
        return "has a table of blocks that contradicts itself"
    if os.fstat(image.pages).st_size != table.pages_bytes:
        return f"says that {PAGES} has {table.pages_bytes} bytes, which it has not"
    return ""


def are_plausible(blocks: list[Block]) -> bool:
    """Is each block named once, of whole pages, and at the place that the layout gives it?"""
    end = sum(max(0, each.bytes) for each in blocks)
    return (
        end <= FILE_BYTES_MAX
        and len({each.name for each in blocks}) == len(blocks)
        and all(_is_plausible(each) for each in blocks)
        and blocks == laid_out([(each.name, each.bytes) for each in blocks])
    )


def _is_plausible(block: Block) -> bool:
    return (
        0 < len(block.name) < 256
        and block.name.isascii()
        and block.name.isprintable()
        and block.bytes >= 0
        and block.bytes % PAGE_BYTES == 0
    )


def file_digest(file: int) -> str:
    """SHA-256 of a whole file. Raises OSError."""
    digest = hashlib.sha256()
    place = 0
    while data := os.pread(file, CHUNK_BYTES, place):
        digest.update(data)
        place += len(data)
    return digest.hexdigest()


# -- memory.pages


def records(pages: int, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Place and content of each record that is not all zeros, by ascending place.

    From `begin` on, a multiple of a record, up to the one before `end`. Holes are not read. Raises
    OSError.
    """
    for place, after in data_ranges(pages, begin, os.fstat(pages).st_size if end is None else end):
        data = os.pread(pages, after - place, place)
        for at in range(0, len(data), RECORD_BYTES):
            record = data[at : at + RECORD_BYTES]
            if record != ZERO_RECORD:
                yield place + at, record


def data_ranges(pages: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the file may have data, in whole records: first byte and the one after the last.

    No range is longer than a chunk. The kernel is asked to read ahead meanwhile. Raises OSError.
    """
    asked = begin
    while begin < end:
        try:
            data = os.lseek(pages, begin, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to its end
                return
            raise
        if data >= end:
            return
        hole = os.lseek(pages, data, os.SEEK_HOLE)
        after = -(-min(hole, end) // RECORD_BYTES) * RECORD_BYTES
        begin = max(begin, data // RECORD_BYTES * RECORD_BYTES)
        while begin < after:
            if begin + _AHEAD_BYTES > asked:
                asked = max(begin, asked)
                os.posix_fadvise(pages, asked, 2 * _AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
                asked += 2 * _AHEAD_BYTES
            yield begin, min(after, begin + CHUNK_BYTES)
            begin += CHUNK_BYTES
        begin = after
