"""A page image becomes libvirt's RAM image again: libvirt and QEMU load it as the one it was.

What differs: each page comes once, by ascending address, in one section. A page of zeros is sent
as such, not left out: what a RAM block has before it is loaded need not be zeros, as with firmware
and with RAM that is a file.

No page is copied by Python: the kernel reads them to where they belong in what is written, between
words that are laid there for many at once. They are checked on the way, which is most of the work,
and by no second thread or process (docs/architecture.md, "How fast an image is put together").
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator

from zvmsnap.bulk import progress, writing
from zvmsnap.bulk.progress import Progress
from zvmsnap.common.errors import ImageUnloadable
from zvmsnap.ram import page_image, stream
from zvmsnap.ram.check import checked_rest, compare_pages
from zvmsnap.ram.page_image import (
    CHUNK_BYTES,
    PAGE_BYTES,
    PAGES,
    RECORD_BYTES,
    Block,
    Digests,
    PageImage,
    RecordDigest,
    Table,
)
from zvmsnap.ram.stream import CONTINUE, PAGE, WORD, ZERO

_ZERO_PAGE = bytes(PAGE_BYTES)
_STRIDE = WORD.size + PAGE_BYTES
_RECORD_PAGES = RECORD_BYTES // PAGE_BYTES
# Pages that are read, and zeros that are written, at once. IOV_MAX is 1024.
_BATCH_PAGES = CHUNK_BYTES // PAGE_BYTES
_ZEROS_PAGES = 1 << 16


def write_image(
    image: PageImage,
    target: int,
    digests: Digests,
    *,
    head: bytes | None = None,
    durable: bool = False,
) -> None:
    """Write the image to the empty file `target`, with another `head` if one is given.

    Both files are checked on the way, so what was written counts only if this returns. `durable`:
    it is on the disk when this returns. Raises ImageUnloadable, also at the end, and OSError.
    """
    rest = checked_rest(image, digests)
    table = rest.table
    own_head = rest.bytes_of(0, table.head_bytes)
    _write(target, own_head if head is None else [head])
    _write(target, rest.bytes_of(table.head_bytes, table.opening_bytes))
    with progress.shown("put together", table.pages_bytes) as shown:
        digest = _write_pages(image.pages, table, target, shown, early=durable)
    compare_pages(image, digest, digests)
    closing = table.head_bytes + table.opening_bytes
    _write(target, rest.bytes_of(closing, table.closing_bytes))
    if durable:
        os.fsync(target)


def _write_pages(
    pages: int, table: Table, target: int, shown: Progress, *, early: bool
) -> RecordDigest:
    """One section with all pages; returns their digest. `early`: the disk begins at once."""
    flush = writing.EarlyFlush(target) if early else None
    writing.write(target, stream.section_opening(stream.PART, table.section))
    batch = _Batch()
    for block in table.blocks:
        sent = 0
        for place, after in page_image.data_ranges(pages, block.place, block.end):
            address = min(place - block.place, block.bytes)
            _write(target, _zeros(block, sent, address))
            batch.read(pages, place, after - place)
            sent = min(after - block.place, block.bytes)
            writing.write_vector(target, batch.sent(block, address, sent))
            shown.done_bytes = after
            if flush:
                flush.wrote(after - place)
        _write(target, _zeros(block, sent, block.bytes))
    writing.write(target, stream.section_end(table.section, table.footers))
    return batch.digest


class _Batch:
    """Pages on their way, each behind room for its word; `digest` is of all that were read."""

    def __init__(self) -> None:
        self.digest = RecordDigest()
        self._bytes = bytearray(_BATCH_PAGES * _STRIDE)
        self._view = memoryview(self._bytes)
        starts = range(WORD.size, len(self._bytes), _STRIDE)
        self._pages = [self._view[start : start + PAGE_BYTES] for start in starts]
        self._zeros: list[bool] = []

    def read(self, pages: int, place: int, length_bytes: int) -> None:
        """Read whole records. Raises OSError."""
        count = length_bytes // PAGE_BYTES
        if os.preadv(pages, self._pages[:count], place) != length_bytes:
            raise ImageUnloadable(f"{PAGES} became shorter while it was read")
        starts = range(WORD.size, count * _STRIDE, _STRIDE)
        self._zeros = [self._bytes.startswith(_ZERO_PAGE, start) for start in starts]
        for first in range(0, count, _RECORD_PAGES):
            if not all(self._zeros[first : first + _RECORD_PAGES]):
                record = self._pages[first : first + _RECORD_PAGES]
                self.digest.add(place + first * PAGE_BYTES, *record)

    def sent(self, block: Block, address: int, end: int) -> list[memoryview | bytes]:
        """What was read, as it is sent: the pages of a block from `address` to before `end`."""
        count = (end - address) // PAGE_BYTES
        if not count:
            return []  # behind its end, where only damage lies: read for its digest alone
        zeros = [number for number in range(count) if self._zeros[number]]
        words = _words(address, count, PAGE)
        for number in zeros:
            words[number] ^= PAGE ^ ZERO
        _lay(words, self._bytes, _STRIDE)
        parts: list[memoryview | bytes] = []
        begin = 0
        if not address:
            parts = [self._view[: WORD.size], _name(block)]
            begin = WORD.size
        for number in zeros:
            parts.append(self._view[begin : number * _STRIDE + WORD.size + 1])
            begin = (number + 1) * _STRIDE
        parts.append(self._view[begin : count * _STRIDE])
        return parts


def _zeros(block: Block, address: int, end: int) -> Iterator[bytes]:
    """Pages of zeros from `address` to before `end`, as they are sent."""
    stride = WORD.size + 1
    while address < end:
        count = min((end - address) // PAGE_BYTES, _ZEROS_PAGES)
        sent = bytearray(count * stride)
        _lay(_words(address, count, ZERO), sent, stride)
        if not address:
            sent[WORD.size : WORD.size] = _name(block)
        yield bytes(sent)
        address += count * PAGE_BYTES


def _words(address: int, count: int, kind: int) -> array[int]:
    """The words of `count` pages; a block's first page says that it begins another block."""
    first = address | kind | CONTINUE
    words = array("Q", range(first, first + count * PAGE_BYTES, PAGE_BYTES))
    if count and not address:
        words[0] ^= CONTINUE
    return words


def _lay(words: array[int], target: bytearray, stride: int) -> None:
    """Lay each word at the beginning of its stride, big endian."""
    words.byteswap()
    data = words.tobytes()
    end = len(words) * stride
    for each in range(WORD.size):
        target[each:end:stride] = data[each :: WORD.size]


def _name(block: Block) -> bytes:
    return bytes([len(block.name)]) + block.name.encode()


def _write(target: int, parts: Iterable[bytes]) -> None:
    for part in parts:
        writing.write(target, part)
