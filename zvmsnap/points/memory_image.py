"""The RAM image of a point: checked, and made a file that libvirt can load.

libvirt reads an image more than once, so it must be a plain file: a compressed one is unpacked
first, a page image is put together. Images are streamed: memory use does not depend on their size.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from zvmsnap.bulk.sharing import OnDisk, on_disk
from zvmsnap.common import safe_files
from zvmsnap.common.errors import ImageUnloadable
from zvmsnap.common.safe_files import created, sync_dir
from zvmsnap.common.waiting import Call
from zvmsnap.points.manifest import Memory
from zvmsnap.points.point import vault_of
from zvmsnap.ram import page_image
from zvmsnap.ram.check import check as check_pages
from zvmsnap.ram.check import checked_rest, compare_pages, read_all
from zvmsnap.ram.page_image import Digests, PageImage
from zvmsnap.ram.put_together import write_image
from zvmsnap.virt import save_image
from zvmsnap.virt.save_image import Head, Header

_CHUNK_BYTES = 4 << 20

# A multiple of every record size: ZFS clones whole records only.
_SHARED_BYTES = 1 << 30

_BLOCK_BYTES = 512  # of st_blocks, whatever the file system has: stat(2)
_ZEROS = bytes(1 << 20)

# How a file system says that it has no hard links: link(2).
_CANNOT_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
# How the kernel says that it cannot copy between these two files: copy_file_range(2).
_CANNOT_SHARE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class _Stored(io.BufferedReader):
    """A file of the vault; what is read from it is hashed."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(io.FileIO(descriptor))
        self.sha256 = hashlib.sha256()

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.sha256.update(data)
        return data


def check(stored: Path, memory: Memory, given_up: threading.Event | None = None) -> Header:
    """Read the whole image: is it the one of the manifest, and can libvirt load it?

    Raises ImageUnloadable with what is wrong, and OSError. `given_up`: nobody waits for that.
    """
    if memory.is_paged:
        with _page_image(stored, memory) as image:
            return check_pages(image, _digests(memory), given_up)
    with _opened(stored, memory) as file:
        _verify_rest(file, stored, memory, given_up)
        file.seek(0)
        with _unpacked(file, stored, memory) as unpacked:
            return save_image.read_head(unpacked, str(stored)).header


def check_before(stored: Path, memory: Memory, given_up: threading.Event | None = None) -> Header:
    """What `materialize`, which is to follow, does not check on its way. Raises as `check`.

    Pages are read once, as they are put together: what is checked is what libvirt loads.
    """
    if not memory.is_paged:
        return check(stored, memory, given_up)
    with _page_image(stored, memory) as image:
        return checked_rest(image, _digests(memory)).head(image.name).header


@contextmanager
def checking(stored: Path, memory: Memory, *, whole: bool) -> Iterator[Callable[[], Header]]:
    """Check an image in a thread while other work goes on; yields what waits for the result.

    All of it if `whole`, else as `check_before`. What waits raises what these raise, and GivenUp
    if reading hangs.
    """
    given_up = threading.Event()
    do = check if whole else check_before
    call = Call(lambda: do(stored, memory, given_up))
    try:
        yield call.answer
    finally:
        given_up.set()


def header_of(stored: Path, memory: Memory) -> Header:
    """The header of a stored image, of which only the beginning is read. Raises as `xml_of`."""
    return _head(stored, memory).header


def xml_of(stored: Path, memory: Memory) -> str:
    """The definition inside a stored image; only its beginning is read.

    Raises ImageUnloadable and OSError.
    """
    return _head(stored, memory).xml


def _head(stored: Path, memory: Memory) -> Head:
    if memory.is_paged:
        with _page_image(stored, memory) as image:
            return page_image.read_rest(image).head(image.name)
    with _opened(stored, memory) as file, _unpacked(file, stored, memory) as unpacked:
        return save_image.read_head(unpacked, str(stored))


@dataclass(frozen=True)
class RamUsage:
    """What RAM takes on the disk; of that, what it takes alone, and shares. None: unknown."""

    disk_bytes: int
    alone_bytes: int | None
    shared_bytes: int | None


def usage(stored: Path, memory: Memory, *, shares: bool = True) -> RamUsage | None:
    """What its files take; None if one cannot be opened. Not to ask what is shared is quicker."""
    disk_bytes = 0
    parts: list[OnDisk | None] = []
    try:
        for name in memory.files:
            descriptor = _open(stored.with_name(name))
            try:
                disk_bytes += os.fstat(descriptor).st_blocks * _BLOCK_BYTES
                parts.append(on_disk(descriptor) if shares else None)
            finally:
                os.close(descriptor)
    except (ImageUnloadable, OSError):
        return None
    known = [part for part in parts if part]
    if len(known) < len(parts):
        return RamUsage(disk_bytes, None, None)
    alone_bytes = sum(part.alone_bytes for part in known)
    return RamUsage(disk_bytes, alone_bytes, sum(part.shared_bytes for part in known))


def checksums(stored: Path, memory: Memory) -> dict[str, str]:
    """The SHA-256 of each stored file as a whole, by its name, as sha256sum says it.

    Pages are read for that, and checked; other files are not. Raises ImageUnloadable and OSError.
    """
    if not memory.is_paged:
        return {memory.file: memory.sha256}
    whole = _WholeDigest()
    with _page_image(stored, memory) as image:
        digest = read_all(image.pages, "checked", take=whole.add)
        compare_pages(image, digest, _digests(memory))
        whole.add(os.fstat(image.pages).st_size, b"")
    return {memory.file: whole.sha256.hexdigest(), memory.rest_file: memory.rest_sha256}


class _WholeDigest:
    """The SHA-256 of a file of which only what is not zeros is read."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self._end = 0

    def add(self, place: int, data: bytes) -> None:
        """What comes next; all before it that was not added is zeros."""
        for at in range(self._end, place, len(_ZEROS)):
            self.sha256.update(_ZEROS[: place - at])
        self.sha256.update(data)
        self._end = place + len(data)


def materialize(
    stored: Path, memory: Memory, target: Path, *, xml: str | None, durable: bool = False
) -> Path:
    """Returns the path of an image that libvirt can load, with the definition `xml` if given.

    | stored as  | xml   | returned                                                           |
    |------------|-------|--------------------------------------------------------------------|
    | plain file | None  | `stored`                                                           |
    | plain file | given | `target`, a copy that shares its blocks if the file system can     |
    | zstd       | any   | `target`, unpacked; checksum and length are verified on the way    |
    | page image | any   | `target`, put together; both digests are verified on the way       |

    `stored` is never changed. `target` must not exist, and does not after a failure. A plain file
    is not verified here, but by `check`. `durable`: what was made is on the disk. Raises
    ImageUnloadable and OSError.
    """
    if memory.is_loadable and xml is None:
        with _opened(stored, memory):
            return stored
    with created(target) as file:
        _write(stored, memory, file, xml, durable=durable)
    if durable:
        sync_dir(target.parent)
    return target


def export(stored: Path, memory: Memory, target: Path, *, ran: bool = False) -> None:
    """Write the image to the new file `target`, durably, as libvirt wrote it, verified.

    With `ran`, libvirt lets the guest run when it is loaded, though it was paused. The file appears
    when it is complete. Raises ImageUnloadable, FileExistsError and OSError.
    """
    if memory.is_loadable:
        check(stored, memory)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    half = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
    with created(half) as file:
        _write(stored, memory, file, None, durable=True)
        if ran:
            save_image.mark_running(file)
            os.fsync(file)
        _name(half, target)
    sync_dir(target.parent)


def _name(half: Path, target: Path) -> None:
    """Give a file its name, unless another file has it."""
    try:
        os.link(half, target)
        half.unlink()
    except OSError as error:
        if error.errno not in _CANNOT_LINK or os.path.lexists(target):
            raise
        os.rename(half, target)


def _write(stored: Path, memory: Memory, target: int, xml: str | None, *, durable: bool) -> None:
    if memory.is_paged:
        with _page_image(stored, memory) as paged:
            head = None
            if xml is not None:
                head = page_image.read_rest(paged).head(paged.name).with_xml(xml)
            write_image(paged, target, _digests(memory), head=head, durable=durable)
        return
    with os.fdopen(target, "wb", closefd=False) as file:
        _write_stream(stored, memory, file, xml)
    if durable:
        os.fsync(target)


def _write_stream(stored: Path, memory: Memory, target: BinaryIO, xml: str | None) -> None:
    """An image that is stored as libvirt wrote it, or compressed."""
    with _opened(stored, memory) as source, _unpacked(source, stored, memory) as image:
        own = save_image.read_head(image, str(stored))
        new = own.stored if xml is None else own.with_xml(xml)
        if image is source:
            _copy(source, target, own, new)
        else:
            target.write(new + own.opening)
            _unpack(image, target, memory.image_bytes - len(own.stored + own.opening), stored)
            _verify_rest(source, stored, memory)


@contextmanager
def _page_image(stored: Path, memory: Memory) -> Iterator[PageImage]:
    """Both files of a page image, open; `stored` is its pages. Raises ImageUnloadable."""
    pages = _open(stored)
    try:
        rest = _open(stored.with_name(memory.rest_file))
        try:
            yield PageImage(pages, rest, str(stored.parent))
        finally:
            os.close(rest)
    finally:
        os.close(pages)


def _digests(memory: Memory) -> Digests:
    return Digests(memory.sha256, memory.rest_sha256)


@contextmanager
def _opened(stored: Path, memory: Memory) -> Iterator[_Stored]:
    descriptor = _open(stored)
    with _Stored(descriptor) as file:
        stored_bytes = os.fstat(descriptor).st_size
        if stored_bytes != memory.stored_bytes:
            raise ImageUnloadable(
                f"{stored} is {stored_bytes} bytes long, not {memory.stored_bytes} "
                "as its manifest says: it is damaged"
            )
        yield file


def _open(stored: Path) -> int:
    try:
        with safe_files.opened_within(stored.parent, [vault_of(stored.parent)]) as directory:
            return safe_files.open_file(stored.name, directory)
    except OSError as error:
        raise ImageUnloadable(f"{stored} cannot be opened: {error.strerror}") from error


@contextmanager
def _unpacked(source: _Stored, stored: Path, memory: Memory) -> Iterator[BinaryIO]:
    """The image itself; `source` if it is not compressed."""
    if memory.compression == "none":
        yield source
        return
    if memory.compression != "zstd":
        raise ImageUnloadable(
            f"{stored} is compressed by {memory.compression!r}, which this version cannot read"
        )
    import zstandard

    try:
        yield zstandard.ZstdDecompressor().stream_reader(source, closefd=False)
    except zstandard.ZstdError as error:
        raise ImageUnloadable(f"{stored} cannot be unpacked: it is damaged ({error})") from error


def _unpack(image: BinaryIO, target: BinaryIO, missing_bytes: int, stored: Path) -> None:
    # Stop as soon as it is too long: a small file can unpack to any length.
    while missing_bytes >= 0 and (data := image.read(_CHUNK_BYTES)):
        missing_bytes -= len(data)
        target.write(data)
    if missing_bytes:
        raise ImageUnloadable(
            f"{stored} does not unpack to the length that its manifest says: it is damaged"
        )


def _verify_rest(
    source: _Stored, stored: Path, memory: Memory, given_up: threading.Event | None = None
) -> None:
    while not (given_up and given_up.is_set()) and source.read(_CHUNK_BYTES):
        pass
    if source.sha256.hexdigest() != memory.sha256:
        raise ImageUnloadable(f"{stored} does not match its checksum: it is damaged")


def _copy(source: BinaryIO, target: BinaryIO, head: Head, new: bytes) -> None:
    """Copy, with another head. If that is as long, all other blocks can be shared."""
    if len(new) == len(head.stored):
        _copy_from(source, target, 0, 0)
    else:
        _copy_from(source, target, len(head.stored), len(new))
    target.seek(0)
    target.write(new)


def _copy_from(source: BinaryIO, target: BinaryIO, start: int, offset: int) -> None:
    """Copy from `start` on to `offset` in the target, by the kernel if it can.

    The kernel shares the blocks on btrfs and XFS, and on OpenZFS 2.2 and later.
    """
    try:
        while count := os.copy_file_range(
            source.fileno(), target.fileno(), _SHARED_BYTES, start, offset
        ):
            start += count
            offset += count
    except OSError as error:
        if error.errno not in _CANNOT_SHARE:
            raise
    source.seek(start)
    target.seek(offset)
    shutil.copyfileobj(source, target, _CHUNK_BYTES)
