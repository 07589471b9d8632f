"""A page image becomes libvirt's RAM image again: libvirt and QEMU load it as the one it was.

What differs: each page comes once, by ascending address, in one section, the last one of RAM, as
those of devices follow it. A page of zeros is sent as such, and not left out: what a RAM block has
before it is loaded need not be zeros, as with firmware, and RAM that is a file.
"""

from __future__ import annotations

from collections.abc import Iterator

from zvmsnap.common.errors import ImageUnloadable
from zvmsnap.ram import page_image, whole
from zvmsnap.ram.page_image import PAGE_BYTES, PAGES, REST, Block, Digests, PageImage, RecordDigest
from zvmsnap.ram.stream import CONTINUE, END, EOS, FOOTER, NUMBER, PAGE, WORD, ZERO

_ZERO_PAGE = bytes(PAGE_BYTES)
_PAGES_MAX = 256


def write_image(
    image: PageImage, target: int, digests: Digests, *, head: bytes | None = None
) -> None:
    """Write the image to `target`, a file or a pipe, with another `head` if one is given.

    Both files are checked on the way, so what was written counts only if this returns. Raises
    ImageUnloadable, also at the end, and OSError.
    """
    if page_image.file_digest(image.rest) != digests.rest:
        raise ImageUnloadable(f"{REST} of {image.name} does not match its checksum: it is damaged")
    rest = page_image.read_rest(image)
    table = rest.table
    if head is None:
        head = b"".join(rest.bytes_of(0, table.head_bytes))
    whole.write(target, head)
    for data in rest.bytes_of(table.head_bytes, table.opening_bytes):
        whole.write(target, data)
    section = NUMBER.pack(table.section)
    whole.write(target, bytes([END]) + section)
    digest = RecordDigest()
    for block in table.blocks:
        for data in _block(image.pages, block, digest):
            whole.write(target, data)
    whole.write(target, WORD.pack(EOS) + (bytes([FOOTER]) + section if table.footers else b""))
    for data in rest.bytes_of(table.head_bytes + table.opening_bytes, table.closing_bytes):
        whole.write(target, data)
    if digest.hexdigest() != digests.pages:
        raise ImageUnloadable(f"{PAGES} of {image.name} does not match its checksum: it is damaged")


def _block(pages: int, block: Block, digest: RecordDigest) -> Iterator[bytes]:
    """All pages of one block, as they are sent; what lies behind it is only checked."""
    sent = 0
    for place, record in page_image.records(pages, block.place, block.end):
        digest.add(place, record)
        first = min(place - block.place, block.bytes)
        yield from _zeros(block, sent, first)
        sent = min(first + len(record), block.bytes)
        for address in range(first, sent, PAGE_BYTES):
            page = record[address - first : address - first + PAGE_BYTES]
            if page == _ZERO_PAGE:
                yield _word(block, address, ZERO) + b"\0"
            else:
                yield _word(block, address, PAGE) + page
    yield from _zeros(block, sent, block.bytes)


def _zeros(block: Block, address: int, end: int) -> Iterator[bytes]:
    """Pages of zeros."""
    while address < end:
        yield _word(block, address, ZERO) + b"\0"
        address += PAGE_BYTES


def _word(block: Block, address: int, kind: int) -> bytes:
    """The word before a page; the first page of a block names it."""
    if address:
        return WORD.pack(address | kind | CONTINUE)
    return WORD.pack(address | kind) + bytes([len(block.name)]) + block.name.encode()
