"""Stores the RAM image of a point in the directory in which that is put together.

| libvirt's image is     | `image.pages` | it becomes                                              |
|------------------------|---------------|---------------------------------------------------------|
| raw, and understood    | true          | a page image, which was read back and compared          |
| raw, not understood    | true          | as below; the manifest says why                         |
| raw, without room for  | true          | the same                                                |
| pages                  |               |                                                         |
| any other              | any           | by `image.compression` a copy, or the same file again   |

There is no room, too, if pages would take it from guests on their overlays: in the file system of
staging there must be some left beside a whole image. The same file again takes none.

The image in staging stays as it is until its point is published (`close` removes it). So this may
be repeated after any interruption, which begins anew: at each instant there is the image in
staging, or the point.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from zvmsnap.bulk import progress, writing
from zvmsnap.common import foreign, log, safe_files
from zvmsnap.common.errors import NotUnderstood
from zvmsnap.common.foreign import LINE_MAX
from zvmsnap.common.log import Logger
from zvmsnap.common.safe_files import sync_dir
from zvmsnap.disks import staging
from zvmsnap.points import vault
from zvmsnap.points.manifest import MEMORY, MEMORY_ZSTD, Memory
from zvmsnap.points.point import RestorePoint, vault_of
from zvmsnap.ram.page_image import PAGES, RECORD_BYTES, REST
from zvmsnap.ram.take_apart import take_apart

# Points without RAM, as those of shorter intervals may be, are passed over to find a base.
_BASE_AMONG = 100
# So are those of other guests, where the guest has none under its name.
_BASE_AMONG_ALL = 1000

_CHUNK_BYTES = 4 << 20

# How a file system says that the same file cannot have a second name there: link(2).
_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

_MOVED = "a run of an older version had moved it into the vault"


@dataclass(frozen=True)
class RamStore:
    """Where the image of a guest goes, and how: `zstd_level` None is uncompressed.

    `spare_bytes` stay free in the file system of staging.
    """

    directory: Path
    domain: str
    uuid: str
    pages: bool
    zstd_level: int | None
    log: Logger
    spare_bytes: int = 0

    def store(self, image: Path, image_format: str) -> Memory:
        """Store it, durably. Raises OSError."""
        moved = self.directory / MEMORY
        if not image.exists() and moved.exists():
            # As older versions have left it.
            return msgspec.structs.replace(self._hashed(moved, image_format), why_plain=_MOVED)
        image.stat()
        for name in (MEMORY, MEMORY_ZSTD, PAGES, REST):
            (self.directory / name).unlink(missing_ok=True)
        why = self._why_plain(image, image_format)
        if not why:
            try:
                return self._store_pages(image, image_format)
            except NotUnderstood as error:
                why = str(error)
                self.log.info("its RAM is stored as libvirt wrote it: %s", why)
            except Exception as error:
                # Whatever is wrong with its pages, there is an image to be stored.
                why = log.one_line(error)
                self.log.warning("its RAM is stored as libvirt wrote it: %s", why)
        stored = self._store_plain(image, image_format)
        return msgspec.structs.replace(stored, why_plain=foreign.printable(why, LINE_MAX))

    def _why_plain(self, image: Path, image_format: str) -> str:
        """Why no page image is tried; "" if it is."""
        if not self.pages:
            return "image.pages is false"
        if image_format != "raw":
            return f"libvirt has compressed it: {image_format}"
        status = image.stat()
        is_with_staging = status.st_dev == self.directory.stat().st_dev
        needed_bytes = status.st_size + self.spare_bytes
        free_bytes = staging.free_bytes(self.directory)
        if is_with_staging and free_bytes < needed_bytes:
            return (
                f"the file system of staging and vault had {free_bytes >> 20} MiB free, and pages "
                f"may need {needed_bytes >> 20} MiB"
            )
        return ""

    def _store_pages(self, image: Path, image_format: str) -> Memory:
        pages, rest = self.directory / PAGES, self.directory / REST
        with self._base() as base:
            try:
                apart = take_apart(image, pages, rest, base=base)
            except OSError as error:
                if base is None or error.errno in _NO_ROOM:
                    raise
                self.log.warning("nothing is shared with the last RAM image: %s", error)
                apart = take_apart(image, pages, rest)
        sync_dir(self.directory)
        return Memory(
            file=PAGES,
            format=image_format,
            compression="none",
            image_bytes=image.stat().st_size,
            stored_bytes=apart.records * RECORD_BYTES + apart.rest_bytes,
            sha256=apart.digests.pages,
            rest_file=REST,
            rest_sha256=apart.digests.rest,
        )

    @contextmanager
    def _base(self) -> Iterator[int | None]:
        """The pages of the guest's newest page image, open for reading; None if it has none."""
        descriptor = self._opened_base(self.domain, _BASE_AMONG)
        if descriptor is None:
            # Its name may be new: points stay under the name that the guest had.
            descriptor = self._opened_base(None, _BASE_AMONG_ALL)
        try:
            yield descriptor
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _opened_base(self, domain: str | None, among: int) -> int | None:
        for point in vault.newest_points(vault_of(self.directory), domain, among):
            memory = point.manifest.memory
            if memory and memory.is_paged and point.manifest.uuid == self.uuid:
                descriptor = _opened(point, memory.file)
                if descriptor is not None:
                    return descriptor
        return None

    def _store_plain(self, image: Path, image_format: str) -> Memory:
        if self.zstd_level is None and _link(image, self.directory / MEMORY):
            return self._hashed(self.directory / MEMORY, image_format)
        stored = self.directory / (MEMORY if self.zstd_level is None else MEMORY_ZSTD)
        digest = hashlib.sha256()
        _store_copy(image, stored, digest.update, self.zstd_level)
        sync_dir(self.directory)
        return _memory(stored, image_format, image.stat().st_size, digest.hexdigest())

    def _hashed(self, plain: Path, image_format: str) -> Memory:
        """The plain image, which is in its place."""
        digest = hashlib.sha256()
        image_bytes = plain.stat().st_size
        with plain.open("rb") as source:
            _pump("hashed", source, digest.update, image_bytes)
            os.fsync(source.fileno())
        sync_dir(self.directory)
        return _memory(plain, image_format, image_bytes, digest.hexdigest())


def _opened(point: RestorePoint, name: str) -> int | None:
    try:
        with safe_files.opened_within(point.directory, [vault_of(point.directory)]) as directory:
            return safe_files.open_file(name, directory)
    except OSError:
        return None  # it was pruned just now, or is damaged, which `verify` tells


def _link(image: Path, stored: Path) -> bool:
    """Let the file have a second name there; can it?"""
    try:
        os.link(image, stored, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        return False
    return True


def _memory(stored: Path, image_format: str, image_bytes: int, sha256: str) -> Memory:
    return Memory(
        file=stored.name,
        format=image_format,
        compression="none" if stored.name == MEMORY else "zstd",
        image_bytes=image_bytes,
        stored_bytes=stored.stat().st_size,
        sha256=sha256,
    )


def _store_copy(
    image: Path, stored: Path, hashed: Callable[[bytes], None], zstd_level: int | None
) -> None:
    # Half an image must not fill up the vault: after a failure it is removed.
    with image.open("rb") as source, safe_files.created(stored) as target:

        def write(data: bytes) -> None:
            hashed(data)
            writing.write(target, data)

        image_bytes = image.stat().st_size
        if zstd_level is None:
            _pump("copied", source, write, image_bytes)
        else:
            import zstandard

            compressor = zstandard.ZstdCompressor(
                level=zstd_level, threads=-1, write_checksum=True
            ).compressobj(size=image_bytes)
            _pump("compressed", source, lambda data: write(compressor.compress(data)), image_bytes)
            write(compressor.flush())
        os.fsync(target)


def _pump(what: str, source: BinaryIO, take: Callable[[bytes], object], total_bytes: int) -> None:
    """Read all of `source`; by that the image is `what`, as the progress says."""
    with progress.shown(what, total_bytes) as shown:
        while data := source.read(_CHUNK_BYTES):
            take(data)
            shown.done_bytes += len(data)
