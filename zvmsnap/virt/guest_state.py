"""What a guest does: its state, the job under way, why it is paused, and for how long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import wraps
from typing import Any, TypeVar

import libvirt

from zvmsnap.common import waiting
from zvmsnap.common.errors import LibvirtFailed

# Events come through the loop's thread, a little after the call that caused them returned.
_LATE_EVENT_S = 1.0


STATES = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "shutting down",
    libvirt.VIR_DOMAIN_SHUTOFF: "shut off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "suspended by its own power management",
}


JOBS = {
    libvirt.VIR_DOMAIN_JOB_OPERATION_SAVE: "save",
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN: "migration",
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT: "migration",
    libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT: "snapshot",
    libvirt.VIR_DOMAIN_JOB_OPERATION_DUMP: "dump",
    libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP: "backup",
}

_Guest = TypeVar("_Guest")
_Said = TypeVar("_Said")


def knows_backup(
    of_backup: _Said,
) -> Callable[[Callable[[_Guest], _Said]], Callable[[_Guest], _Said]]:
    """Let a question about the job under way have that answer where libvirt has no data of it.

    A backup that begins, or has just ended, is one: "backup job data missing" is no more than an
    internal error (qemuBackupGetJobInfoStats in libvirt's qemu_backup.c).
    """

    def of(ask: Callable[[_Guest], _Said]) -> Callable[[_Guest], _Said]:
        @wraps(ask)
        def asked(guest: _Guest) -> _Said:
            try:
                return ask(guest)
            except LibvirtFailed as error:
                if error.code != libvirt.VIR_ERR_INTERNAL_ERROR:
                    raise
                return of_backup

        return asked

    return of


@dataclass(frozen=True)
class JobProgress:
    """How far a dump of RAM is, as QEMU says.

    `number`: of its pass over the RAM, from 1 on; 0 if QEMU does not tell yet. `written_bytes`: in
    all passes; `rest_bytes`: what is left of this one.
    """

    number: int = 0
    written_bytes: int = 0
    rest_bytes: int = 0

    @classmethod
    def of(cls, stats: Mapping[str, Any]) -> JobProgress:
        """What libvirt's statistics of the job say."""
        names = ("memory_iteration", "memory_processed", "memory_remaining")
        return cls(*(int(stats.get(name, 0)) for name in names))


class Pause(Enum):
    """Why a guest is paused."""

    USER = "a request"
    IO_ERROR = "an I/O error, as of a full overlay"
    JOB = "a job that ended or died"
    OTHER = "a cause of its own"


PAUSES = {
    libvirt.VIR_DOMAIN_PAUSED_USER: Pause.USER,
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: Pause.IO_ERROR,
    libvirt.VIR_DOMAIN_PAUSED_UNKNOWN: Pause.JOB,
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: Pause.JOB,
    libvirt.VIR_DOMAIN_PAUSED_SAVE: Pause.JOB,
    libvirt.VIR_DOMAIN_PAUSED_DUMP: Pause.JOB,
    libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT: Pause.JOB,
}


_BLOCK_JOBS = {
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL: "pull",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY: "copy",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT: "commit",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT: "active-commit",
}


@dataclass(frozen=True)
class BlockJob:
    """A job on one disk: its kind, as in a definition, and how far it is."""

    kind: str
    done_bytes: int = 0
    total_bytes: int = 0

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> BlockJob:
        """What libvirt says of the job; its kind is "" if it is none of these."""
        return cls(_BLOCK_JOBS.get(info["type"], ""), info["cur"], info["end"])


class PauseClock:
    """Adds up the pauses of a guest.

    `began_s` and `ended_s` are of the last pause, `ram_ended_s` is when libvirt's job for RAM ended
    (time.monotonic); None: no event tells, or not yet.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._total_s = 0.0
        self._since_s: float | None = None
        self._pauses = 0
        # What libvirt's job says: the pause for the last of RAM, without the flush of the image
        # and without the overlays.
        self.last_ram_s = 0.0
        self.began_s: float | None = None
        self.ended_s: float | None = None
        self.ram_ended_s: float | None = None

    def paused(self) -> None:
        """The guest was paused now."""
        with self._changed:
            if self._since_s is None:
                self._since_s = self.began_s = time.monotonic()
                self.ended_s = None
            self._changed.notify_all()

    def resumed(self) -> None:
        """The guest was resumed now."""
        with self._changed:
            if self._since_s is not None:
                self.ended_s = time.monotonic()
                self._total_s += self.ended_s - self._since_s
                self._since_s = None
                self._pauses += 1
            self._changed.notify_all()

    def job_ended(self, downtime_s: float) -> None:
        """libvirt's job has ended; its statistics say `downtime_s`."""
        with self._changed:
            self.last_ram_s = downtime_s
            self.ram_ended_s = time.monotonic()
            self._changed.notify_all()

    def on_lifecycle(self, _connection: Any, _domain: Any, event: int, *_details: object) -> None:
        """As libvirt calls it."""
        if event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED:
            self.paused()
        elif event == libvirt.VIR_DOMAIN_EVENT_RESUMED:
            self.resumed()

    def on_job(self, _connection: Any, _domain: Any, stats: dict[str, Any], *_: object) -> None:
        """As libvirt calls it."""
        self.job_ended(float(stats.get("downtime", 0)) / 1000)

    def paused_since_s(self) -> float:
        """When the present pause began (time.monotonic); now, if no event tells.

        Waits a little for the event.
        """
        with self._changed:
            self._wait_for(lambda: self._since_s is not None)
            return time.monotonic() if self._since_s is None else self._since_s

    def total_s(self) -> float:
        """Seconds paused so far; waits a little for the event that ends the pause."""
        with self._changed:
            self._wait_for(lambda: self._pauses > 0 and self._since_s is None)
            return self._total_s

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        deadline_s = waiting.now_s() + _LATE_EVENT_S
        while not condition() and (left_s := deadline_s - waiting.now_s()) > 0:
            waiting.wait(self._changed, left_s)
