"""Locks between processes of this host.

A lock belongs to an open file, so it goes with the last process that holds the file
open: a QEMU that inherited it keeps what it runs on from being removed.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labkit import progress, settings


def _open(name: str) -> int:
    directory = settings.cache_dir() / "locks"
    directory.mkdir(exist_ok=True)
    return os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _holder(fd: int) -> str:
    return os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold the lock alone; wait for whoever has it."""
    fd = _open(name)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with progress.step(f"waiting for {name}, held by {_holder(fd)}"):
                fcntl.flock(fd, fcntl.LOCK_EX)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(fd)


def in_use(name: str) -> int:
    """Mark as in use; the mark lasts until the last copy of the descriptor is closed."""
    fd = _open(name)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


@contextmanager
def unless_in_use(name: str) -> Iterator[bool]:
    """Yield True, and keep it so, if nobody marked it as in use."""
    fd = _open(name)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def remove_unused(path: Path) -> bool:
    """Remove a file tree unless it is in use; its name is the name of its lock."""
    with unless_in_use(path.name) as free:
        if free:
            # Out of the way first: a reader sees all of it or nothing.
            doomed = path.with_name(f".doomed-{path.name}-{os.getpid()}")
            try:
                path.rename(doomed)
            except FileNotFoundError:
                return False
            shutil.rmtree(doomed)
        return free
