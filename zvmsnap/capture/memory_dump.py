"""While libvirt writes a RAM image: keep the guest's pause short, and make sure that it ends.

libvirt itself sets no deadline for a live dump: a guest that changes RAM faster than it is written
would be dumped for ever, into a file that grows without bound. And libvirt's final flush of the
file is part of the guest's pause. So threads accompany each dump:

* one flushes the growing file all the time, so that little remains to be flushed at the end;
* one does what dump_progress decides: allows QEMU a longer pause, pauses the guest until the rest
  is written, or aborts the dump. Where guests are to be paused together, it slows the dump down
  while it is ahead of the others (quiesce/together);
* one sees when the overlays were last changed before the guest goes on: after that the guest's own
  writes change them.

Whatever fails, they go on. The guest is not paused as long as that cannot be written down: after a
crash nobody would know that it is to be resumed. An abort needs no note.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zvmsnap.capture.dump_progress import Action, DumpProgress, Look, Verb
from zvmsnap.common.errors import LibvirtFailed
from zvmsnap.common.waiting import Clock
from zvmsnap.config.settings import Limits
from zvmsnap.points.manifest import PauseParts
from zvmsnap.virt.guest import JobProgress, Pause
from zvmsnap.virt.guest_state import PauseClock

_FLUSH_EVERY_S = 0.05
_LOOK_EVERY_S = 0.1
_KEEP_PACE_EVERY_S = 0.05
_SEE_EVERY_S = 0.02
# The least that libvirt can ask for, and what it asks for when it begins a dump
# (QEMU_DOMAIN_MIG_BANDWIDTH_MAX in its src/qemu/qemu_domain.h).
_TRICKLE_MIB_PER_S = 1
_FULL_MIB_PER_S = (2**63 - 1) >> 20
_ENDS_WITHIN_S = 60
# Times of files are those of the kernel's last tick; events come through another thread.
_CLOCKS_DIFFER_S = 0.1


class DumpableGuest(Protocol):
    """What the supervisor needs of a guest."""

    def migrate_max_downtime_ms(self) -> int: ...
    def migrate_set_max_downtime_ms(self, pause_ms: int) -> None: ...
    def pause_reason(self) -> Pause | None: ...
    def job_progress(self) -> JobProgress: ...
    def migrate_max_speed_mib(self) -> int: ...
    def migrate_set_max_speed_mib(self, mib_per_s: int) -> None: ...
    def suspend(self) -> None: ...
    def resume(self) -> None: ...
    def abort_job(self) -> None: ...


class DumpObserver(Protocol):
    """Who is told what the supervisor does, by the caller's thread and by one of its own."""

    def changes_downtime(self, original_ms: int) -> None:
        """QEMU's allowed pause, which is that long now, is about to be changed."""

    def changes_speed(self, original_mib_per_s: int) -> None:
        """The speed that libvirt allows migrations, so much now, is about to be changed."""

    def restored(self) -> None:
        """Both are what they were before."""

    def pauses(self) -> None:
        """The guest is about to be paused, to end the dump."""

    def warns(self, message: str) -> None:
        """Something that an administrator should know."""


class Pace(Protocol):
    """How a dump goes on beside others, all of which are to end together."""

    def is_ahead(self, rest_bytes: int, /) -> bool:
        """Has it less left than another one? `rest_bytes`: of QEMU's pass over its RAM."""

    def is_waited_for(self) -> bool:
        """Does another guest stand still already, until this dump has ended?"""


@dataclass(frozen=True)
class Dump:
    """The image that libvirt writes, the room that is reserved for it, and the guest's overlays.

    `stays_paused`: libvirt does not resume the guest after the dump, and whoever releases it puts
    back what QEMU and libvirt allow themselves. `pace`: None if it is dumped alone.
    """

    image: Path
    room_bytes: int
    stays_paused: bool = False
    overlays: tuple[Path, ...] = ()
    pace: Pace | None = None

    def written_bytes(self) -> int:
        """How large the image is by now."""
        try:
            return self.image.stat().st_size
        except FileNotFoundError:
            return 0

    def completed_at_s(self) -> float:
        """When libvirt changed the head of the image, once all of it is on disk (time.time)."""
        return self.image.stat().st_mtime

    def overlays_changed_at_s(self) -> float:
        """When one of them was last given to QEMU's user, or written to (time.time)."""
        return max(path.stat().st_ctime for path in self.overlays)


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
        self._original_mib_per_s: int | None = None
        self._is_slowed = False
        # Why the dump was aborted; "" if it was not.
        self.why_aborted = ""
        self._warnings: set[str] = set()
        # When overlays were seen to have changed (time.monotonic), and when they had (time.time).
        self._overlay_changes: list[tuple[float, float]] = []
        self._threads = [
            threading.Thread(target=self._flush, name=f"flush {dump.image}", daemon=True),
            threading.Thread(target=self._supervise, name=f"watch {dump.image}", daemon=True),
        ]
        if dump.overlays:
            self._threads.append(
                threading.Thread(target=self._see_overlays, name=f"see {dump.image}", daemon=True)
            )

    def __enter__(self) -> DumpSupervisor:
        self._original_ms = self._guest.migrate_max_downtime_ms()
        self._allowed_ms = self._limits.pause_first_ms
        self._observer.changes_downtime(self._original_ms)
        self._guest.migrate_set_max_downtime_ms(self._allowed_ms)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(_ENDS_WITHIN_S)  # it may hang: in QEMU, or in a suspended pool
        if self._dump.stays_paused and not kind:
            return  # it is paused until it is released: that puts all back, too
        self._resume()
        try:
            self._guest.migrate_set_max_downtime_ms(self._original_ms)
            if self._original_mib_per_s is not None:
                self._guest.migrate_set_max_speed_mib(self._original_mib_per_s)
            self._observer.restored()
        except LibvirtFailed as error:
            self._observer.warns(
                f"its allowed pause could not be put back to {self._original_ms} ms: {error}"
            )
        except OSError as error:
            # It is put back once more, by whoever ends the run.
            self._observer.warns(f"its allowed pause was put back, but not noted so: {error}")

    def _resume(self) -> None:
        """libvirt resumes the guest after its dump, but not if it was paused an instant later."""
        try:
            if self._paused and self._guest.pause_reason():
                self._guest.resume()
        except LibvirtFailed as error:
            self._observer.warns(f"it may still be paused, as it could not be resumed: {error}")

    def pause_parts(self, pause: PauseClock) -> PauseParts:
        """What the guest was paused for in the dump that has ended, as far as that can be told."""
        try:
            completed_at_s = self._dump.completed_at_s()
        except OSError:
            return PauseParts()
        file_clock_s = time.time() - time.monotonic()
        overlays_s = [
            changed_at_s - file_clock_s
            for seen_s, changed_at_s in self._overlay_changes
            if pause.ended_s and seen_s < pause.ended_s
        ]
        ends_s = {
            "ram_s": pause.ram_ended_s,
            "flush_s": completed_at_s - file_clock_s,
            "overlays_s": max(overlays_s, default=None),
            "resume_s": pause.ended_s,
        }
        return PauseParts(**_parts_s(pause.began_s, ends_s, pause.ended_s or time.monotonic()))

    def _see_overlays(self) -> None:
        last_at_s = 0.0
        while not self._clock.wait(self._ended, _SEE_EVERY_S):
            with suppress(OSError):  # it only tells a person
                seen_s, changed_at_s = time.monotonic(), self._dump.overlays_changed_at_s()
                if changed_at_s > last_at_s:
                    last_at_s = changed_at_s
                    self._overlay_changes.append((seen_s, changed_at_s))

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
                except OSError as error:
                    self._warn_once(f"its RAM image cannot be flushed ahead: {error}")
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _supervise(self) -> None:
        progress = None
        every_s = _KEEP_PACE_EVERY_S if self._dump.pace else _LOOK_EVERY_S
        while not self._clock.wait(self._ended, every_s):
            try:
                if not self._dump.image.exists():
                    continue  # the dump has not begun: libvirt waits for somebody else's job
                if progress is None:
                    progress = DumpProgress(
                        self._limits, self._dump.room_bytes, self._clock.now_s()
                    )
                look = self._look()
                self._do(progress.decide(look, cancelled=self._cancelled.is_set()))
                self._keep_pace(look)
            except LibvirtFailed:
                # The dump may have just ended; if not, this is tried again.
                continue
            except Exception as error:  # a full disk, or no memory: the watch goes on
                self._warn_once(f"while its RAM is dumped: {error}")

    def _look(self) -> Look:
        image_bytes = self._dump.image.stat().st_size
        try:
            is_paused = self._paused or self._guest.pause_reason() is Pause.JOB
            job = self._guest.job_progress()
        except LibvirtFailed:
            # Of the image alone its size and its speed can be told.
            is_paused, job = self._paused, JobProgress()
        return Look(
            self._clock.now_s(),
            image_bytes,
            is_paused,
            job.number,
            job.written_bytes,
            job.rest_bytes,
            self._is_slowed,
        )

    def _keep_pace(self, look: Look) -> None:
        """Slow the dump down while it is ahead of others; end it soon if these wait for it."""
        pace = self._dump.pace
        if pace is None or not look.number:
            return
        if pace.is_waited_for():
            self._do(Action(Verb.ALLOW, self._limits.pause_max_ms))
        is_ahead = pace.is_ahead(look.rest_bytes)
        if is_ahead == self._is_slowed:
            return
        if self._original_mib_per_s is None:
            original_mib_per_s = self._guest.migrate_max_speed_mib()
            self._observer.changes_speed(original_mib_per_s)
            self._original_mib_per_s = original_mib_per_s
        self._guest.migrate_set_max_speed_mib(_TRICKLE_MIB_PER_S if is_ahead else _FULL_MIB_PER_S)
        self._is_slowed = is_ahead

    def _do(self, action: Action) -> None:
        if action.verb is Verb.ABORT:
            self.why_aborted = action.why
            self._guest.abort_job()
        elif action.verb is Verb.PAUSE and not self._paused:
            self._observer.pauses()
            self._warn_once(action.why)
            self._guest.suspend()
            self._paused = True
        elif action.verb is Verb.ALLOW and action.pause_ms > self._allowed_ms:
            self._guest.migrate_set_max_downtime_ms(action.pause_ms)
            self._allowed_ms = action.pause_ms

    def _warn_once(self, message: str) -> None:
        """Log it once, though it is tried again and again."""
        if message not in self._warnings:
            self._warnings.add(message)
            self._observer.warns(message)


def _parts_s(
    begin_s: float | None, ends_s: Mapping[str, float | None], last_s: float
) -> dict[str, float]:
    """How long each part took, of which the end is known, and the end of the one before it.

    An end outside of the pause is not known: somebody has set the clock of the files meanwhile.
    """
    parts_s: dict[str, float] = {}
    if begin_s is None:
        return parts_s
    since_s: float | None = begin_s
    for part, end_s in ends_s.items():
        if end_s is None or not begin_s - _CLOCKS_DIFFER_S < end_s < last_s + _CLOCKS_DIFFER_S:
            since_s = None
            continue
        if since_s is not None:
            parts_s[part] = max(0.0, end_s - since_s)
        since_s = max(since_s or begin_s, end_s)
    return parts_s
