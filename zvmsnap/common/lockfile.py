"""Locks named by intent; the kernel releases them when their holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zvmsnap.common.errors import LockTimeout
from zvmsnap.common.safe_files import PRIVATE_FILE, private_dir

_POLL_S = 0.05
_INTENT_MAX = 200


@contextmanager
def lock(directory: Path, name: str, intent: str, timeout_s: float) -> Iterator[None]:
    """Hold the lock `name`; its file says what for. Raises LockTimeout, which names the holder.

    The file stays.
    """
    path = private_dir(directory) / f"{name}.lock"
    # Real time, in tests too: whoever holds the lock works on in real time.
    deadline_s = time.monotonic() + timeout_s
    descriptor = _open(path)
    try:
        _acquire(descriptor, path, intent, timeout_s, deadline_s)
        while not _is_there(descriptor, path):  # its holder has removed it: others lock a new one
            stale, descriptor = descriptor, _open(path)
            os.close(stale)
            _acquire(descriptor, path, intent, timeout_s, deadline_s)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{intent} (pid {os.getpid()})".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def own_lock(directory: Path, name: str, intent: str, timeout_s: float) -> Iterator[None]:
    """As `lock`; its file is removed at the end: for names of which there are ever new ones."""
    with lock(directory, name, intent, timeout_s):
        try:
            yield
        finally:
            (directory / f"{name}.lock").unlink(missing_ok=True)


def is_held(directory: Path, name: str) -> bool:
    """Does any process hold that lock now?"""
    try:
        descriptor = os.open(directory / f"{name}.lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        # Shared: others who only look do not count as holders.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def held(directory: Path) -> dict[str, str]:
    """All locks that any process holds now: the name of each, and what for. Raises OSError."""
    found = {}
    for path in sorted(directory.glob("*.lock")):
        if is_held(directory, path.stem):
            found[path.stem] = _holder(path)
    return found


def _holder(path: Path) -> str:
    try:
        return path.read_bytes()[:_INTENT_MAX].decode(errors="replace")
    except FileNotFoundError:
        return ""


def _open(path: Path) -> int:
    # O_CLOEXEC: a child that outlives us must not keep it (as sanoid's own cron lock leaks).
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE)


def _is_there(descriptor: int, path: Path) -> bool:
    """Is the open file still the one of that name?"""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _acquire(descriptor: int, path: Path, intent: str, timeout_s: float, deadline_s: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                holder = os.pread(descriptor, _INTENT_MAX, 0).decode(errors="replace") or "unknown"
                raise LockTimeout(
                    f"waited {timeout_s:g} s for {path} to {intent}; it is held to {holder}", holder
                ) from None
            time.sleep(_POLL_S)
