"""Writing files so that a power cut leaves the old or the new one, never half of one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

PRIVATE_DIR = 0o700
PASSABLE_DIR = 0o711
PRIVATE_FILE = 0o600


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


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, durably, readable by the owner of its directory alone.

    That is root, or the user as whom points are sent to this vault. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            owner = os.stat(path.parent)
            if os.geteuid() == 0 and owner.st_uid != 0:
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_dir(path.parent)


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
