"""Our files: written whole or not at all, and by no symlink in a directory of somebody else.

A power cut leaves the old or the new file, never half of one.

A guest's owner has the mountpoint of its dataset, a sender the vault that is sent to, QEMU's user
the firmware variables. Each may put a link, a pipe, or a file without end where ours is expected,
at any time. So a directory is opened component by component, each in the one before (as
RESOLVE_BENEATH of openat2(2), which Python does not have), and what is in it is reached by its
descriptor, wherever somebody moves it meanwhile. What is refused is an OSError that says so.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

PRIVATE_DIR = 0o700
PASSABLE_DIR = 0o711
PRIVATE_FILE = 0o600
PUBLIC_FILE = 0o644

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ITSELF = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS_MAX = 40  # as path_resolution(7)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def private_dir(path: Path) -> Path:
    """Make `path`, for root alone, and its parents as needed."""
    return _make(path, PRIVATE_DIR)


def passable_dir(path: Path) -> Path:
    """Make `path` and its parents as needed, so that QEMU's user can pass through to its files."""
    return _make(path, PASSABLE_DIR)


def _make(path: Path, mode: int) -> Path:
    try:
        _make_missing(path, mode)
    except FileNotFoundError:
        # Somebody has just removed a directory above it, which was empty.
        _make_missing(path, mode)
    return path


def _make_missing(path: Path, mode: int) -> None:
    for directory in reversed([p for p in (path, *path.parents) if not p.is_dir()]):
        directory.mkdir(exist_ok=True)
        # mkdir's own mode would obey the umask of whoever called sanoid.
        directory.chmod(mode if directory == path else PASSABLE_DIR)


def write_atomic(path: Path, data: bytes, mode: int = PRIVATE_FILE) -> None:
    """Replace `path` by `data`, durably, readable by the owner of its directory alone.

    That is root, or the user as whom points are sent to this vault. Raises OSError.
    """
    with opened("", path.parent) as directory:
        write_in(directory, path.name, data, mode)


def write_in(directory: int, name: str, data: bytes, mode: int = PRIVATE_FILE) -> None:
    """As `write_atomic`, in a directory that is open. Raises OSError."""
    owner = os.fstat(directory)
    is_others = os.geteuid() == 0 and owner.st_uid != 0
    own = (owner.st_uid, owner.st_gid) if is_others else None
    write(name, directory, data, own, mode)


@contextmanager
def created(path: Path) -> Iterator[int]:
    """A new file for us alone, open for reading and writing; removed if the work on it fails.

    Raises OSError, also if there is one of that name.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, PRIVATE_FILE)
    try:
        yield descriptor
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def remove_durably(path: Path) -> None:
    """Remove `path`, and temporary files of writers that were killed. Raises OSError."""
    if path.exists():
        for file in (path, *path.parent.glob(f".{path.name}.*.tmp")):
            file.unlink(missing_ok=True)
        sync_dir(path.parent)


def sync_dir(path: Path) -> None:
    """Make renames and removals in directory `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_to_free(path: Path, wanted: Path) -> Path:
    """Rename to `wanted`, with a number behind it if that exists already. Raises OSError."""
    number = 1
    free = wanted
    while os.path.lexists(free):
        number += 1
        free = wanted.with_name(f"{wanted.name}.{number}")
    os.rename(path, free)
    return free


# -- in directories of others


@contextmanager
def opened(path: str | PurePath, below: str | Path | int, *, make: int = 0) -> Iterator[int]:
    """The directory `path` in the directory `below`, by no symlink behind that; "" is itself.

    `make` is the mode of directories that are made if they are missing; 0: none is. Raises OSError.
    """
    descriptor = _top(below)
    try:
        for component in PurePath(path).parts:
            inner = _open_directory(descriptor, component, make)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened_within(
    path: str | PurePath, roots: Iterable[Path] | None, *, make: int = 0
) -> Iterator[int]:
    """The absolute directory `path`, below one of `roots`, as of `opened`.

    Without `roots` it may be anywhere, and only itself is no symlink. Raises OSError, also if it
    is below none of them.
    """
    directory = PurePath(path)
    if roots is None:
        roots = [Path(directory.parent)]
    for root in roots:
        if directory.is_relative_to(root):
            with opened(directory.relative_to(root), root, make=make) as descriptor:
                yield descriptor
            return
    raise OSError(errno.EACCES, f"{path} is outside of what it may be in")


@contextmanager
def opened_by_own_links(path: str | PurePath) -> Iterator[int]:
    """The absolute directory `path`, by no symlink but those that root, or we, have made.

    An administrator moves directories so. Raises OSError.
    """
    descriptor = _top("/")
    left = list(reversed(PurePath(path).parts))
    links = 0
    try:
        while left:
            component = left.pop()
            if target := _own_link(descriptor, component):
                links += 1
                if links > _LINKS_MAX:
                    raise OSError(errno.ELOOP, f"{path} is behind too many symlinks")
                left += reversed(target.parts)
                continue
            if component in ("/", ".."):
                inner = os.open(component, _DIRECTORY, dir_fd=descriptor)
            else:
                inner = _open_directory(descriptor, component)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _own_link(directory: int, name: str) -> PurePath | None:
    """Where a symlink leads that root, or we, have made; None if it is none of these.

    QEMU's user owns the directory above the firmware variables: so the link counts, as of
    protected_symlinks in proc_sys_fs(5), and not what it is in.
    """
    try:
        descriptor = os.open(name, _ITSELF, dir_fd=directory)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISLNK(status.st_mode) or status.st_uid not in (0, os.geteuid()):
            return None
        return PurePath(os.readlink("", dir_fd=descriptor))
    finally:
        os.close(descriptor)


@contextmanager
def own_directory(directory: int, name: str) -> Iterator[int]:
    """A directory of ours in another, for nobody else; it is made if there is none of that name.

    Raises OSError if what has its name is no directory, or another user's.
    """
    descriptor = _open_directory(directory, name, PRIVATE_DIR)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise OSError(errno.EPERM, f"{name} is another user's directory")
        os.fchmod(descriptor, PRIVATE_DIR)
        yield descriptor
    finally:
        os.close(descriptor)


def open_file(name: str, directory: int | None = None, *, block: bool = False) -> int:
    """Open a regular file, or with `block` a block device, to be read; never wait for a pipe.

    Raises OSError.
    """
    if directory is not None:
        _check_name(name)
    try:
        descriptor = os.open(name, _READ, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, f"{name} is a symlink; not followed") from error
        raise
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISBLK(mode) if block else stat.S_ISREG(mode)):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{name} is no {'block device' if block else 'regular file'}")
    return descriptor


def read(name: str, directory: int | None, max_bytes: int, *, block: bool = False) -> bytes:
    """All of a file, as of `open_file`. Raises OSError, also if it is larger than `max_bytes`."""
    with os.fdopen(open_file(name, directory, block=block), "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"{name} is larger than {max_bytes >> 20} MiB")
    return data


def write(
    name: str,
    directory: int,
    data: bytes,
    owner: tuple[int, int] | None = None,
    mode: int = PRIVATE_FILE,
) -> None:
    """Replace a file by `data`, durably; for us alone, or for its `owner`. Raises OSError."""
    _check_name(name)
    temporary = f".{name}.{os.urandom(4).hex()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, PRIVATE_FILE, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if owner:
                os.fchown(descriptor, *owner)
            if mode != PRIVATE_FILE:
                os.fchmod(descriptor, mode)  # whatever the umask is
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
        raise
    os.fsync(directory)


def is_beneath(relative: str) -> bool:
    """Can that be the path of a file below a directory: relative, and with no step up?"""
    return bool(relative) and all(map(_is_name, relative.split("/")))


def _check_name(name: str) -> None:
    if not _is_name(name):
        raise OSError(errno.EINVAL, f"{name!r} names nothing in a directory")


def _is_name(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _top(below: str | Path | int) -> int:
    if isinstance(below, int):
        return os.open(".", _DIRECTORY, dir_fd=below)
    return os.open(below, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _open_directory(directory: int, name: str, make: int = 0) -> int:
    _check_name(name)
    if make:
        with suppress(FileExistsError):
            os.mkdir(name, make, dir_fd=directory)
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except OSError as error:
        # ENOTDIR: with O_DIRECTORY also what a symlink is said to be.
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            why = f"{name} is a symlink, or no directory; not followed"
            raise OSError(error.errno, why) from error
        raise
