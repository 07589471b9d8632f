"""Copies files and trees out of a view, into a directory of this host.

All that is copied is the guest's word, and nothing of it reaches beyond the directory:

| in the guest           | here                                                               |
|------------------------|--------------------------------------------------------------------|
| a file                 | its bytes as they are read, whatever size it claims; holes stay    |
| a directory            | a directory, and what is in it                                     |
| a symlink              | a symlink, if it leads to a place in the tree; else left out       |
| a device, pipe, socket | left out                                                           |
| a name                 | the same bytes                                                     |
| permissions            | those of owner, group and others, but to write for the owner alone |
| owner, set-user-ID ... | of whoever copies; none                                            |

It is copied into a directory beside its place, which nobody else can enter, and appears there by
one rename.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from zvmsnap.common.errors import FilesImpossible
from zvmsnap.files.tree import Entry, kind_of

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK_BYTES = 1 << 20
_PERMISSIONS = 0o755
_DEPTH_MAX = 250  # one open directory for each, here and there
_NAMED_MAX = 100
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass
class Copied:
    """How far it is: files and bytes; what is not copied, by its path in the tree, and why.

    `left_out` is left out by the table, `failed` could not be copied. Of either the first are
    named: a guest may have any number.
    """

    files: int = 0
    read_bytes: int = 0
    left_out: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    left_out_count: int = 0
    failed_count: int = 0

    def leave_out(self, path: str, why: str) -> None:
        """Note what is left out by the table."""
        self.left_out_count += 1
        if self.left_out_count <= _NAMED_MAX:
            self.left_out.append(f"{path}: {why}")

    def fail(self, path: str, why: str) -> None:
        """Note what could not be copied."""
        self.failed_count += 1
        if self.failed_count <= _NAMED_MAX:
            self.failed.append(f"{path}: {why}")


def copy_out(
    entry: Entry, name: str, into: Path, max_bytes: int, copied: Copied | None = None
) -> tuple[Path, Copied]:
    """Copy a file or tree to `into`/`name`; returns where it is, and what was copied.

    `max_bytes` is the size of all disks of the guest: a file that claims to be larger is left out.
    `copied` may be looked at meanwhile. Raises FilesImpossible, with nothing left behind.
    """
    target = into / name
    copied = copied if copied is not None else Copied()
    if os.path.lexists(target):
        raise FilesImpossible(f"{target}: exists already; say another directory with --to")
    work = into / f".zvmsnap-{secrets.token_hex(4)}.part"
    try:
        into.mkdir(parents=True, exist_ok=True)
        work.mkdir(mode=0o700)
        descriptor = os.open(work, _DIRECTORY)
        try:
            _Copy(copied, max_bytes).take(entry, name, descriptor)
        finally:
            os.close(descriptor)
        if not os.path.lexists(work / name):
            whys = (*copied.failed, *copied.left_out)
            raise FilesImpossible(f"nothing is copied: {'; '.join(whys)}")
        os.rename(work / name, target)
    except OSError as error:
        where = target if error.errno in _FULL else entry.path
        raise FilesImpossible(f"{where}: {error.strerror}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target, copied


class _Copy:
    def __init__(self, copied: Copied, max_bytes: int) -> None:
        self._copied = copied
        self._max_bytes = max_bytes

    def take(self, entry: Entry, name: str, into: int) -> None:
        """Copy one thing, with what is in it."""
        self._take(entry.directory, entry.name, into, name, ())

    def _take(
        self, source: int, source_name: str, into: int, name: str, above: tuple[str, ...]
    ) -> None:
        path = (*above, name)
        try:
            status = os.stat(source_name, dir_fd=source, follow_symlinks=False)
            kinds: dict[str, Callable[[], None]] = {
                "file": lambda: self._file(source, source_name, into, name, status),
                "directory": lambda: self._directory(source, source_name, into, path, status),
                "symlink": lambda: self._symlink(source, source_name, into, path),
            }
            kind = kind_of(status.st_mode)
            if kind not in kinds:
                return self._leave_out(path, f"is a {kind}")
            kinds[kind]()
        except OSError as error:
            if error.errno in (*_FULL, errno.ENOTCONN, errno.ECONNABORTED):
                raise
            self._copied.fail("/".join(path), error.strerror or str(error))
        return None

    def _file(
        self, source: int, source_name: str, into: int, name: str, status: os.stat_result
    ) -> None:
        if status.st_size > self._max_bytes:
            raise OSError(errno.EFBIG, f"claims {status.st_size} bytes, more than all disks have")
        reading = os.open(source_name, _READ, dir_fd=source)
        try:
            # It may be opened by nobody else before it is whole.
            writing = os.open(name, _WRITE, 0o600, dir_fd=into)
            try:
                self._bytes(reading, writing)
                os.fchmod(writing, status.st_mode & _PERMISSIONS)
                os.utime(writing, ns=(status.st_atime_ns, status.st_mtime_ns))
            finally:
                os.close(writing)
        finally:
            os.close(reading)
        self._copied.files += 1

    def _bytes(self, reading: int, writing: int) -> None:
        length = 0
        while chunk := os.read(reading, _CHUNK_BYTES):
            if chunk.count(0) == len(chunk):
                os.lseek(writing, len(chunk), os.SEEK_CUR)
            else:
                view = memoryview(chunk)
                while view:
                    view = view[os.write(writing, view) :]
            length += len(chunk)
            self._copied.read_bytes += len(chunk)
        os.ftruncate(writing, length)

    def _directory(
        self,
        source: int,
        source_name: str,
        into: int,
        path: tuple[str, ...],
        status: os.stat_result,
    ) -> None:
        if len(path) > _DEPTH_MAX:
            return self._leave_out(path, f"is below more than {_DEPTH_MAX} directories")
        reading = os.open(source_name, _DIRECTORY, dir_fd=source)
        try:
            os.mkdir(path[-1], 0o700, dir_fd=into)
            writing = os.open(path[-1], _DIRECTORY, dir_fd=into)
            try:
                for name in sorted(os.listdir(reading)):
                    self._take(reading, name, writing, name, path)
                os.fchmod(writing, status.st_mode & _PERMISSIONS | stat.S_IRWXU)
                os.utime(writing, ns=(status.st_atime_ns, status.st_mtime_ns))
            finally:
                os.close(writing)
        finally:
            os.close(reading)
        return None

    def _symlink(self, source: int, source_name: str, into: int, path: tuple[str, ...]) -> None:
        target = os.readlink(source_name, dir_fd=source)
        if not _stays_inside(target, depth=len(path) - 2):
            return self._leave_out(path, f"is a symlink that leads out: {target}")
        os.symlink(target, path[-1], dir_fd=into)
        return None

    def _leave_out(self, path: tuple[str, ...], why: str) -> None:
        self._copied.leave_out("/".join(path), why)


def _stays_inside(target: str, depth: int) -> bool:
    """Does a symlink in a directory that is so deep in the tree lead to a place in the tree?

    After a name no step up counts: the name may itself be a symlink, and lead anywhere in the tree.
    """
    if target.startswith("/"):
        return False
    parts = [part for part in target.split("/") if part not in ("", ".")]
    steps = 0
    while steps < len(parts) and parts[steps] == "..":
        steps += 1
    return steps <= depth and ".." not in parts[steps:]
