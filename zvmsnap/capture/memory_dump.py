"""While libvirt writes a RAM image: keep the guest's pause short, and make sure that it ends.

libvirt itself sets no deadline for a live dump: a guest that changes RAM faster than it is written
would be dumped for ever, into a file that grows without bound. And libvirt's final flush of the
file is part of the guest's pause. So two threads accompany each dump:

* one flushes the growing file all the time, so that little remains to be flushed at the end;
* one decides by this table what to do now:

| since the dump began                 | image      | what                                        |
|--------------------------------------|------------|---------------------------------------------|
| before dump_raise_pause_after_s      | below cap  | allowed pause = pause_first_ms              |
| before dump_pause_after_s            | below cap  | allowed pause doubles up to pause_max_ms    |
| before dump_abort_after_s            | any        | guest is paused until the rest is written   |
| any                                  | above cap  | the same                                    |
| from dump_abort_after_s, or cancelled| any        | dump is aborted                             |
"""

from __future__ import annotations

import math
import os
import threading
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from zvmsnap.common.errors import LibvirtFailed
from zvmsnap.common.waiting import Clock
from zvmsnap.config.settings import Limits

_FLUSH_EVERY_S = 0.05
_POLL_S = 0.1


class Verb(Enum):
    """What to do to a dump that is under way."""

    ALLOW = auto()
    PAUSE = auto()
    ABORT = auto()


@dataclass(frozen=True)
class Action:
    """A verb, and the allowed pause that goes with it."""

    verb: Verb
    pause_ms: int = 0


def decide(
    limits: Limits, ram_bytes: int, elapsed_s: float, image_bytes: int, *, cancelled: bool
) -> Action:
    """What the table above says."""
    if cancelled or elapsed_s >= limits.dump_abort_after_s:
        return Action(Verb.ABORT)
    if (
        elapsed_s >= limits.dump_pause_after_s
        or image_bytes > ram_bytes * limits.dump_max_ram_ratio
    ):
        return Action(Verb.PAUSE)
    if elapsed_s < limits.dump_raise_pause_after_s:
        return Action(Verb.ALLOW, limits.pause_first_ms)
    doublings = max(1, math.ceil(math.log2(limits.pause_max_ms / limits.pause_first_ms)))
    each_s = (limits.dump_pause_after_s - limits.dump_raise_pause_after_s) / doublings
    done = 1 + int((elapsed_s - limits.dump_raise_pause_after_s) / each_s)
    return Action(Verb.ALLOW, min(limits.pause_max_ms, limits.pause_first_ms * 2**done))


class DumpableGuest(Protocol):
    """What the supervisor needs of a guest."""

    def migrate_max_downtime_ms(self) -> int: ...
    def migrate_set_max_downtime_ms(self, pause_ms: int) -> None: ...
    def state(self) -> str: ...
    def suspend(self) -> None: ...
    def resume(self) -> None: ...
    def abort_job(self) -> None: ...


class DumpObserver(Protocol):
    """Who is told what the supervisor does, by the caller's thread and by one of its own."""

    def changes_downtime(self, original_ms: int) -> None:
        """QEMU's allowed pause, which is that long now, is about to be changed."""

    def restored_downtime(self) -> None:
        """QEMU's allowed pause is what it was before."""

    def pauses(self) -> None:
        """The guest is about to be paused, to end the dump."""

    def warns(self, message: str) -> None:
        """Something that an administrator should know."""


@dataclass(frozen=True)
class Dump:
    """The image that libvirt writes, and the RAM that goes into it.

    `stays_paused`: libvirt does not resume the guest after the dump.
    """

    image: Path
    ram_bytes: int
    stays_paused: bool = False

    def written_bytes(self) -> int:
        """How large the image is by now."""
        try:
            return self.image.stat().st_size
        except FileNotFoundError:
            return 0


class DumpSupervisor:
    """Accompanies one dump, as a context manager around libvirt's blocking call.

    By a clock of its own: QEMU writes in real time, whatever the tests' clock says.
    """

    def __init__(
        self,
        guest: DumpableGuest,
        dump: Dump,
        limits: Limits,
        observer: DumpObserver,
        cancelled: threading.Event,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._guest = guest
        self._dump = dump
        self._limits = limits
        self._observer = observer
        self._cancelled = cancelled
        self._clock = clock or Clock()
        self._ended = threading.Event()
        self._paused = False
        self._threads = [
            threading.Thread(target=self._flush, name=f"flush {dump.image}", daemon=True),
            threading.Thread(target=self._supervise, name=f"watch {dump.image}", daemon=True),
        ]

    def __enter__(self) -> DumpSupervisor:
        self._original_ms = self._guest.migrate_max_downtime_ms()
        self._allowed_ms = self._limits.pause_first_ms
        self._observer.changes_downtime(self._original_ms)
        self._guest.migrate_set_max_downtime_ms(self._allowed_ms)
        self._begun_s = self._clock.now_s()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        if kind or not self._dump.stays_paused:
            self._resume()
        try:
            self._guest.migrate_set_max_downtime_ms(self._original_ms)
            self._observer.restored_downtime()
        except LibvirtFailed as error:
            self._observer.warns(
                f"its allowed pause could not be put back to {self._original_ms} ms: {error}"
            )

    def _resume(self) -> None:
        """libvirt resumes the guest after its dump, but not if it was paused an instant later."""
        try:
            if self._paused and self._guest.state() == "paused":
                self._guest.resume()
        except LibvirtFailed as error:
            self._observer.warns(f"it may still be paused, as it could not be resumed: {error}")

    def _flush(self) -> None:
        descriptor = None
        try:
            while not self._clock.wait(self._ended, _FLUSH_EVERY_S):
                try:
                    if descriptor is None:
                        descriptor = os.open(self._dump.image, os.O_RDONLY | os.O_CLOEXEC)
                    os.fdatasync(descriptor)
                except FileNotFoundError:
                    continue
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _supervise(self) -> None:
        while not self._clock.wait(self._ended, _POLL_S):
            action = decide(
                self._limits,
                self._dump.ram_bytes,
                self._clock.now_s() - self._begun_s,
                self._dump.written_bytes(),
                cancelled=self._cancelled.is_set(),
            )
            try:
                self._do(action)
            except LibvirtFailed:
                # The dump may have just ended; if not, this is tried again.
                continue

    def _do(self, action: Action) -> None:
        if action.verb is not Verb.ALLOW and not self._dump.image.exists():
            return  # the dump has not begun: libvirt waits for somebody else's job
        if action.verb is Verb.ABORT:
            self._guest.abort_job()
        elif action.verb is Verb.PAUSE and not self._paused:
            self._observer.warns(
                "its RAM changes faster than it can be written: pausing it to finish"
            )
            self._observer.pauses()
            self._guest.suspend()
            self._paused = True
        elif action.verb is Verb.ALLOW and action.pause_ms > self._allowed_ms:
            self._guest.migrate_set_max_downtime_ms(action.pause_ms)
            self._allowed_ms = action.pause_ms
