"""Processes that cannot be mistaken for later ones, and a clock that all of them share."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec


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


def _started(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # The command's name may hold any byte but NUL; fields count from behind the last parenthesis.
    return int(stat.rpartition(b")")[2].split()[19])
