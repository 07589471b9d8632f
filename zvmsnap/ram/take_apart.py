"""libvirt's RAM image becomes a page image, in one pass and flat in memory; then it is read back.

While the pages go into the file, the digests of its records are summed up, of what the stream had.
Afterwards the file is read from the disk, and its records summed up again. So each byte that was
sent is checked where it lies, for the price of reading what is not zero: the stream is not read
twice, and nothing is kept for each page. A page that was sent twice is the reason for a sum: the
digest of its first content is taken away again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from zvmsnap.bulk import progress, writing
from zvmsnap.bulk.cloning import clone
from zvmsnap.common.errors import ImageUnloadable, NotUnderstood
from zvmsnap.common.safe_files import created
from zvmsnap.ram import page_image
from zvmsnap.ram.check import read_all
from zvmsnap.ram.page_image import CHUNK_BYTES, Chunks, Digests, PageImage, Table
from zvmsnap.ram.record_file import RecordFile
from zvmsnap.ram.stream import RamStream
from zvmsnap.virt import save_image
from zvmsnap.virt.save_image import Head

# libvirt's head has some 100 KiB. A longer one is stored as it is.
_HEAD_CHUNKS_MAX = 4


@dataclass(frozen=True)
class TakenApart:
    """What became of an image: the lengths of both files, and what tells them from any other.

    `pages_bytes` is with holes. `records` is how many records are not zeros; `records_written` how
    many times one was written, and not left as the base had it.
    """

    pages_bytes: int
    rest_bytes: int
    digests: Digests
    was_running: bool
    records: int
    records_written: int


def take_apart(image: Path, pages: Path, rest: Path, *, base: int | None = None) -> TakenApart:
    """Write both files of the page image of `image`, durably, and read them back.

    On return the original may go. `base` is the `memory.pages`, open for reading, of an older image
    of the same guest: what is equal is shared with it, if the file system can. What a crash has
    left of both files is written anew; after an error they are removed. The caller makes the
    directory durable.

    Raises NotUnderstood with the reason: then the image is to be stored as it is. Raises OSError.
    """
    pages.unlink(missing_ok=True)
    rest.unlink(missing_ok=True)
    with image.open("rb") as source, created(pages) as target, created(rest) as other:
        cloned = base is not None and clone(base, target)
        written = _write(source, target, other, cloned=cloned)
        return _read_back(written, PageImage(target, other, str(pages.parent)))


@dataclass(frozen=True)
class _Written:
    """What was written: to be compared with what is read back."""

    records: RecordFile
    rest: str
    was_running: bool


def _write(source: BinaryIO, pages: int, rest: int, *, cloned: bool) -> _Written:
    head = _head(source)
    source.seek(len(head.stored))
    stream = RamStream(source)
    opening = stream.begin()
    image_bytes = os.fstat(source.fileno()).st_size
    if stream.sent_bytes_min() > image_bytes:
        raise NotUnderstood("it is too short for all its RAM")
    records = _write_pages(stream, pages, cloned=cloned)
    table = Table(
        head_bytes=len(head.stored),
        opening_bytes=len(opening),
        closing_bytes=len(stream.closing) + image_bytes - stream.position(),
        section=stream.section,
        footers=stream.footers,
        blocks=stream.blocks,
    )
    begin = (page_image.rest_opening(table), head.stored, opening, stream.closing)
    digest = _write_rest(rest, chain(begin, stream.rest()))
    return _Written(records, digest, head.header.was_running)


def _write_pages(stream: RamStream, pages: int, *, cloned: bool) -> RecordFile:
    """All pages, each at its place, durably; that none is missing was seen."""
    length_bytes = page_image.pages_bytes(stream.blocks)
    records = RecordFile(pages, length_bytes, cloned=cloned)
    # Pages that were sent twice count twice.
    with progress.shown("taken apart", length_bytes) as shown:
        for run in stream.runs():
            records.put(run.place, run.length_bytes, run.data)
            shown.done_bytes += run.length_bytes
    for block in stream.blocks:
        if not records.sent.has_all(block.place, block.place + block.bytes):
            raise NotUnderstood(f"not all of the block {block.name} was sent")
    records.finish()
    return records


def _write_rest(rest: int, parts: Iterable[bytes]) -> str:
    """All of it, durably; returns its digest."""
    digest = hashlib.sha256()
    for data in parts:
        digest.update(data)
        writing.write(rest, data)
    os.fsync(rest)
    return digest.hexdigest()


def _head(source: BinaryIO) -> Head:
    """libvirt's head. Whatever length it claims, no more is read than the file has."""
    chunks = iter(lambda: source.read(CHUNK_BYTES), b"")
    try:
        head = save_image.read_head(Chunks(islice(chunks, _HEAD_CHUNKS_MAX)), "the image")
    except ImageUnloadable as error:
        raise NotUnderstood(str(error)) from error
    if head.header.format != "raw":
        raise NotUnderstood(f"libvirt has compressed it: {head.header.format}")
    return head


def _read_back(written: _Written, image: PageImage) -> TakenApart:
    """Read both files from the disk, and compare them with what the stream had."""
    for file in (image.pages, image.rest):
        # What is written is on the disk; without these pages the kernel must read it there.
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    digest = read_all(image.pages, "read back")
    if (digest.total, digest.records) != (written.records.total, written.records.count):
        raise NotUnderstood("its pages were read back other than they were sent")
    if page_image.file_digest(image.rest) != written.rest:
        raise NotUnderstood("its rest was read back other than it was written")
    try:
        page_image.read_rest(image)
    except ImageUnloadable as error:
        raise NotUnderstood(f"what was made of it cannot be read: {error}") from error
    return TakenApart(
        pages_bytes=os.fstat(image.pages).st_size,
        rest_bytes=os.fstat(image.rest).st_size,
        digests=Digests(digest.hexdigest(), written.rest),
        was_running=written.was_running,
        records=digest.records,
        records_written=written.records.written,
    )
