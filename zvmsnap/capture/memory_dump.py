"""While libvirt writes a RAM image: keep its pause short, and make sure that it ends.

libvirt itself sets no deadline for a live dump: a guest that dirties RAM faster than it is written
would be dumped for ever, into a file that grows without bound. And its final flush of the file
lies inside the guest's pause. So two threads accompany each dump:

* one flushes the growing file all the time, so that little is left to flush at the end;
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
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from zvmsnap.common.errors import LibvirtFailed
from zvmsnap.config.settings import Limits

_FLUSH_EVERY_S = 0.05
_LOOK_EVERY_S = 0.1


class Verb(Enum):
    """What to do to a dump under way."""

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
    """The table above."""
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


class Dumped(Protocol):
    """What the watch needs of a guest."""

    def migrate_max_downtime_ms(self) -> int: ...
    def migrate_set_max_downtime_ms(self, pause_ms: int) -> None: ...
    def state(self) -> str: ...
    def suspend(self) -> None: ...
    def resume(self) -> None: ...
    def abort_job(self) -> None: ...


class DumpSupervisor:
    """Accompanies one dump, as a context manager around libvirt's blocking call."""

    def __init__(
        self,
        guest: Dumped,
        image: Path,
        ram_bytes: int,
        limits: Limits,
        cancelled: threading.Event,
        say: Callable[[str], None],
        note: Callable[..., None],
        *,
        stays_paused: bool = False,
    ) -> None:
        self._guest = guest
        self._image = image
        self._ram_bytes = ram_bytes
        self._limits = limits
        self._cancelled = cancelled
        self._say = say
        self._note = note
        self._stays_paused = stays_paused
        self._over = threading.Event()
        self._paused = False
        self._threads = [
            threading.Thread(target=self._flush, name=f"flush {image}", daemon=True),
            threading.Thread(target=self._watch, name=f"watch {image}", daemon=True),
        ]

    def __enter__(self) -> DumpSupervisor:
        self._old_pause_ms = self._guest.migrate_max_downtime_ms()
        self._pause_ms = self._limits.pause_first_ms
        self._note(original_downtime_ms=self._old_pause_ms)
        self._guest.migrate_set_max_downtime_ms(self._pause_ms)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        if kind or not self._stays_paused:
            self._resume()
        try:
            self._guest.migrate_set_max_downtime_ms(self._old_pause_ms)
            self._note(original_downtime_ms=None)
        except LibvirtFailed as error:
            self._say(
                f"its allowed pause could not be put back to {self._old_pause_ms} ms: {error}"
            )

    def _resume(self) -> None:
        """libvirt resumes the guest after its dump, but not if our pause came an instant later."""
        try:
            if self._paused and self._guest.state() == "paused":
                self._guest.resume()
        except LibvirtFailed as error:
            self._say(f"it may still be paused, as it could not be resumed: {error}")

    def _flush(self) -> None:
        descriptor = None
        try:
            while not self._over.wait(_FLUSH_EVERY_S):
                try:
                    if descriptor is None:
                        descriptor = os.open(self._image, os.O_RDONLY | os.O_CLOEXEC)
                    os.fdatasync(descriptor)
                except FileNotFoundError:
                    continue
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _watch(self) -> None:
        begun_s = time.monotonic()
        while not self._over.wait(_LOOK_EVERY_S):
            action = decide(
                self._limits,
                self._ram_bytes,
                time.monotonic() - begun_s,
                self._image_bytes(),
                cancelled=self._cancelled.is_set(),
            )
            try:
                if action.verb is not Verb.ALLOW and not self._image.exists():
                    continue  # libvirt waits for the job of somebody else
                if action.verb is Verb.ABORT:
                    self._guest.abort_job()
                elif action.verb is Verb.PAUSE and not self._paused:
                    self._say("its RAM changes faster than it can be written: pausing it to finish")
                    self._note(paused=True)
                    self._guest.suspend()
                    self._paused = True
                elif action.verb is Verb.ALLOW and action.pause_ms > self._pause_ms:
                    self._guest.migrate_set_max_downtime_ms(action.pause_ms)
                    self._pause_ms = action.pause_ms
            except LibvirtFailed:
                # The dump may have ended this instant; if not, the next look tries again.
                continue

    def _image_bytes(self) -> int:
        try:
            return self._image.stat().st_size
        except FileNotFoundError:
            return 0
