"""The QEMU process of a guest: which files and devices it really has open, and whether it works.

Paths are not enough. A link below /dev may lead to another device than when QEMU opened it, and a
file may have been replaced. libvirt gives QEMU a /dev of its own, with nodes and links as they were
when the guest was started; what QEMU opens again, it opens there.
"""

from __future__ import annotations

import os
import time
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from zvmsnap.common.process import OpenFile, is_stopped, open_files

_PROC = Path("/proc")
_PID_FILES = Path("/run/libvirt/qemu")  # stateDir in libvirt's src/qemu/qemu_conf.c
_LINKS_MAX = 40

# No disk that works lets a reader wait for so long. A QEMU that only waits reads and does less than
# this meanwhile; one that gets its RAM ready (hugepages, allocation mode='immediate') works.
STUCK_S = 300.0
_READ_BYTES = 1 << 20
_WORKED_S = 15.0


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

    def progress(self) -> tuple[int, float]:
        """How many bytes it has read, and for how many seconds its threads have worked.

        Zeros if it has ended.
        """
        try:
            counters = dict(
                line.split(": ", 1) for line in (self._directory / "io").read_text().splitlines()
            )
            ticks = (self._directory / "stat").read_text().rpartition(")")[2].split()[11:13]
            return int(counters["rchar"]), sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        except (OSError, LookupError, ValueError):
            return 0, 0.0

    def memory_bytes(self) -> int:
        """How much memory it uses, swapped or in huge pages, too; 0 if it cannot be told."""
        sizes = {"VmRSS", "VmSwap", "HugetlbPages"}
        try:
            lines = (self._directory / "status").read_text().splitlines()
            return sum(
                int(line.split()[1]) << 10 for line in lines if line.partition(":")[0] in sizes
            )
        except (OSError, LookupError, ValueError):
            return 0

    def has_file(self, path: str) -> bool:
        """Has it the very file open to which `path` leads?"""
        try:
            wanted = os.stat(path)
        except OSError:
            return False
        return any(each.is_same(path, wanted) for each in self._opened)

    @property
    def open_paths(self) -> list[str]:
        """What it has open, by the paths that the kernel has for it now.

        They follow a file that was moved; of one that was removed they end in ` (deleted)`.
        """
        return [each.leads_to for each in self._opened]

    def device(self, path: str) -> int | None:
        """The number of the block device that it has opened as `path`; None if it has none so."""
        try:
            status = os.lstat(f"{self._directory}/root{self._resolved(path)}")
        except OSError:
            return None
        return status.st_rdev if status.st_rdev in self._devices else None

    @cached_property
    def _opened(self) -> list[OpenFile]:
        return open_files(self._directory)

    @cached_property
    def _devices(self) -> frozenset[int | None]:
        return frozenset(each.device for each in self._opened)

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


class LoadWatch:
    """Notices that a RAM image is not loaded any more: QEMU reads nothing, and does not work.

    A load that goes on may take any time: 256 GiB from a slow disk take an hour. What libvirt does
    before it and after it takes less than the limit.
    """

    def __init__(self, name: str, uuid: str) -> None:
        self._name, self._uuid = name, uuid
        self._seen = (0, 0.0)
        self._moved_at_s = time.monotonic()

    def is_stuck(self) -> bool:
        """To be asked every few seconds."""
        now_s = time.monotonic()
        process = QemuProcess.find(self._name, self._uuid)
        read_bytes, worked_s = process.progress() if process else (0, 0.0)
        if read_bytes - self._seen[0] >= _READ_BYTES or worked_s - self._seen[1] >= _WORKED_S:
            self._seen = (read_bytes, worked_s)
            self._moved_at_s = now_s
        return now_s - self._moved_at_s >= STUCK_S
