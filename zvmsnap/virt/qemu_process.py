"""The QEMU process of a guest: which files and devices it really has open.

Paths are not enough. A link below /dev may lead to another device than when QEMU opened it, and a
file may have been replaced. libvirt gives QEMU a /dev of its own, with nodes and links as they were
when the guest was started; what QEMU opens again, it opens there.
"""

from __future__ import annotations

import os
import stat
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from zvmsnap.common.process import is_stopped

_PROC = Path("/proc")
_PID_FILES = Path("/run/libvirt/qemu")  # stateDir in libvirt's src/qemu/qemu_conf.c
_LINKS_MAX = 40


class QemuProcess:
    """One process, by its directory in /proc."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @classmethod
    def find(cls, name: str, uuid: str) -> QemuProcess | None:
        """That of a running guest; None if there is none, or it may not be looked at."""
        try:
            noted = [(_PID_FILES / f"{name}.pid").read_text().strip()]
        except OSError:
            noted = []
        everyone = (each for each in os.listdir(_PROC) if each.isdigit())
        for candidates in (noted, everyone):
            for pid in candidates:
                if _is_of(_PROC / pid, uuid):
                    return cls(_PROC / pid) if _may_look_at(_PROC / pid) else None
        return None

    @property
    def is_stopped(self) -> bool:
        """Is it stopped, by a signal or a debugger?"""
        return is_stopped(int(self._directory.name))

    @property
    def has_own_names(self) -> bool:
        """Has it a /dev of its own, which does not follow the host's?"""
        try:
            own, host = (os.readlink(each / "ns/mnt") for each in (self._directory, _PROC / "1"))
        except OSError:
            return False
        return own != host

    def has_file(self, path: str) -> bool:
        """Has it the very file open to which `path` leads?"""
        # The path of a file may begin otherwise where the process sees other mounts.
        name = os.path.basename(os.path.realpath(path))
        try:
            wanted = os.stat(path)
            return any(
                os.path.samestat(os.stat(descriptor), wanted)
                for descriptor, leads_to in self._descriptors
                if os.path.basename(leads_to) == name
            )
        except OSError:
            return False

    def device(self, path: str) -> int | None:
        """The number of the block device that it has opened as `path`; None if it has none so."""
        try:
            status = os.lstat(f"{self._directory}/root{self._resolved(path)}")
        except OSError:
            return None
        return status.st_rdev if status.st_rdev in self._devices else None

    @cached_property
    def _descriptors(self) -> list[tuple[Path, str]]:
        """Each open file, and the path that the kernel has for it. Empty if that may not be seen.

        Only the links are read: to ask for a file on a server that is down may take for ever.
        """
        found = []
        try:
            for descriptor in (self._directory / "fd").iterdir():
                found.append((descriptor, os.readlink(descriptor)))
        except OSError:
            pass  # the process has ended, or this descriptor was closed: what was seen counts
        return found

    @cached_property
    def _devices(self) -> frozenset[int]:
        numbers = set()
        for descriptor, leads_to in self._descriptors:
            if not leads_to.startswith("/dev/"):
                continue
            try:
                status = os.stat(descriptor)
            except OSError:
                continue
            if stat.S_ISBLK(status.st_mode):
                numbers.add(status.st_rdev)
        return frozenset(numbers)

    def _resolved(self, path: str) -> str:
        """`path`, with the links followed that it is in the /dev of the process."""
        for _ in range(_LINKS_MAX):
            try:
                target = os.readlink(f"{self._directory}/root{path}")
            except OSError:
                break
            path = os.path.normpath(os.path.join(os.path.dirname(path), target))
        return path


def _is_of(directory: Path, uuid: str) -> bool:
    try:
        words = (directory / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return (b"-uuid", uuid.encode()) in pairwise(words)


def _may_look_at(directory: Path) -> bool:
    """May we see what the process has open? Else it would seem to have nothing open."""
    try:
        os.listdir(directory / "fd")
    except PermissionError:
        return False
    except OSError:
        pass  # it has ended
    return True
