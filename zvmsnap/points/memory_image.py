"""The RAM image of a point: stored in the vault, checked, and made a file that libvirt can load.

libvirt reads an image more than once, so it must be a plain file: a compressed one is unpacked
first. Images are streamed: memory use does not depend on their size.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from zvmsnap.common import safe_files
from zvmsnap.common.errors import ImageUnloadable
from zvmsnap.common.safe_files import PRIVATE_FILE, sync_dir
from zvmsnap.common.waiting import Call
from zvmsnap.points.manifest import MEMORY, MEMORY_ZSTD, Memory
from zvmsnap.points.point import vault_of
from zvmsnap.virt import save_image
from zvmsnap.virt.save_image import Head, Header

_CHUNK_BYTES = 4 << 20
_PROGRESS_EVERY_S = 0.5

# A multiple of every record size: ZFS clones whole records only.
_SHARED_BYTES = 1 << 30

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
    with _opened(stored, memory) as file:
        _verify_rest(file, stored, memory, given_up)
        file.seek(0)
        with _unpacked(file, stored, memory) as image:
            return save_image.read_head(image, str(stored)).header


@contextmanager
def checking(stored: Path, memory: Memory) -> Iterator[Callable[[], Header]]:
    """Check an image in a thread while other work goes on; yields what waits for the result.

    That raises what `check` raises, and GivenUp if reading hangs.
    """
    given_up = threading.Event()
    call = Call(lambda: check(stored, memory, given_up))
    try:
        yield call.answer
    finally:
        given_up.set()


def header_of(stored: Path, memory: Memory) -> Header:
    """The header of a stored image, of which only the beginning is read. Raises as `xml_of`."""
    with _opened(stored, memory) as file, _unpacked(file, stored, memory) as image:
        return save_image.read_head(image, str(stored)).header


def xml_of(stored: Path, memory: Memory) -> str:
    """The definition inside a stored image; only its beginning is read.

    Raises ImageUnloadable and OSError.
    """
    with _opened(stored, memory) as file, _unpacked(file, stored, memory) as image:
        return save_image.read_head(image, str(stored)).xml


def materialize(stored: Path, memory: Memory, target: Path, *, xml: str | None) -> Path:
    """Returns the path of an image that libvirt can load, with the definition `xml` if given.

    | stored as  | xml   | returned                                                           |
    |------------|-------|--------------------------------------------------------------------|
    | plain file | None  | `stored`                                                           |
    | plain file | given | `target`, a copy that shares its blocks if the file system can     |
    | zstd       | any   | `target`, unpacked; checksum and length are verified on the way    |

    `stored` is never changed. `target` must not exist, and does not after a failure. A plain file
    is not verified here, but by `check`. Raises ImageUnloadable and OSError.
    """
    with _opened(stored, memory) as source, _unpacked(source, stored, memory) as image:
        if image is source and xml is None:
            return stored
        with _created(target) as file:
            head = save_image.read_head(image, str(stored))
            new = head.stored if xml is None else head.with_xml(xml)
            if image is source:
                _copy(source, file, head, new)
            else:
                file.write(new + head.opening)
                _unpack(image, file, memory.image_bytes - len(head.stored + head.opening), stored)
                _verify_rest(source, stored, memory)
    return target


@contextmanager
def _opened(stored: Path, memory: Memory) -> Iterator[_Stored]:
    try:
        with safe_files.opened_within(stored.parent, [vault_of(stored.parent)]) as directory:
            descriptor = safe_files.open_file(stored.name, directory)
    except OSError as error:
        raise ImageUnloadable(f"{stored} cannot be opened: {error.strerror}") from error
    with _Stored(descriptor) as file:
        stored_bytes = os.fstat(descriptor).st_size
        if stored_bytes != memory.stored_bytes:
            raise ImageUnloadable(
                f"{stored} is {stored_bytes} bytes long, not {memory.stored_bytes} "
                "as its manifest says: it is damaged"
            )
        yield file


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


@contextmanager
def _created(target: Path) -> Iterator[BinaryIO]:
    """A new file, which is removed if the work on it fails."""
    descriptor = os.open(
        target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def store(image: Path, directory: Path, image_format: str, *, zstd_level: int | None) -> Memory:
    """Move a RAM image from staging into an incoming directory; `zstd_level` None: uncompressed.

    On the same file system it is renamed, otherwise copied; either way it is hashed, and durable
    on return. An image that an interrupted run has moved already is used. Raises OSError.
    """
    plain = directory / MEMORY
    file_system = directory.stat().st_dev
    if not image.exists() and plain.exists():
        image = plain
    if image != plain and image.stat().st_dev == file_system and zstd_level is None:
        os.rename(image, plain)
        image = plain
    image_bytes = image.stat().st_size
    digest = hashlib.sha256()
    if image == plain:
        with plain.open("rb") as source:
            _pump(source, digest.update, image_bytes)
            os.fsync(source.fileno())
        stored = plain
    else:
        stored = plain if zstd_level is None else directory / MEMORY_ZSTD
        _store_copy(image, stored, digest.update, zstd_level)
    sync_dir(directory)
    return Memory(
        file=stored.name,
        format=image_format,
        compression="none" if stored == plain else "zstd",
        image_bytes=image_bytes,
        stored_bytes=stored.stat().st_size,
        sha256=digest.hexdigest(),
    )


def _store_copy(
    image: Path, stored: Path, hashed: Callable[[bytes], None], zstd_level: int | None
) -> None:
    descriptor = os.open(
        stored, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE
    )
    try:
        _write_copy(image, descriptor, hashed, zstd_level)
    except BaseException:
        # Half an image must not fill up the vault.
        stored.unlink(missing_ok=True)
        raise


def _write_copy(
    image: Path, descriptor: int, hashed: Callable[[bytes], None], zstd_level: int | None
) -> None:
    with image.open("rb") as source, os.fdopen(descriptor, "wb") as target:

        def write(data: bytes) -> None:
            hashed(data)
            target.write(data)

        image_bytes = image.stat().st_size
        if zstd_level is None:
            _pump(source, write, image_bytes)
        else:
            import zstandard

            compressor = zstandard.ZstdCompressor(
                level=zstd_level, threads=-1, write_checksum=True
            ).compressobj(size=image_bytes)
            _pump(source, lambda data: write(compressor.compress(data)), image_bytes)
            write(compressor.flush())
        target.flush()
        os.fsync(target.fileno())


def _pump(source: BinaryIO, take: Callable[[bytes], object], total_bytes: int) -> None:
    on_terminal = sys.stderr.isatty()
    shown_s = time.monotonic()
    done_bytes = 0
    while data := source.read(_CHUNK_BYTES):
        take(data)
        done_bytes += len(data)
        if on_terminal and time.monotonic() - shown_s > _PROGRESS_EVERY_S:
            shown_s = time.monotonic()
            percent = 100 * done_bytes // max(1, total_bytes)
            print(f"\rRAM image: {percent:3} % of {total_bytes >> 20} MiB", end="", file=sys.stderr)
    if on_terminal:
        print("\r\x1b[K", end="", file=sys.stderr)
