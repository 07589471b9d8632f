"""Processes that cannot be mistaken for later ones, and a clock that all of them share."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

INIT = 1


class Process(msgspec.Struct, frozen=True):
    """A process that cannot be mistaken for a later one of the same number."""

    pid: int
    started: int  # clock ticks after boot, field 22 of /proc/PID/stat
    boot: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this number now; `started` is 0 if there is none."""
        return cls(pid, _started(pid), Path("/proc/sys/kernel/random/boot_id").read_text().strip())

    @classmethod
    def none(cls) -> Process:
        """No process: never alive."""
        return cls(0, 0, "")

    def is_alive(self) -> bool:
        """Does this very process still run?"""
        return self.started != 0 and Process.of(self.pid) == self


def uptime_s() -> float:
    """Seconds since boot: the same for all processes, whatever clocks are set to."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def parent_of(pid: int) -> int:
    """The parent of that process; init if there is no such process, or it cannot be read."""
    try:
        fields = _stat(pid)
    except OSError:
        return INIT
    return int(fields[1]) if fields else INIT


def _started(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third on; none if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The command's name may hold any byte but NUL, so fields count from the last parenthesis on.
    return stat.rpartition(b")")[2].split()
