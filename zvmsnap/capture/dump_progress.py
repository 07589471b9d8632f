"""What is to be done about a dump of RAM, by how its passes over the RAM go. Pure.

QEMU writes RAM in passes: all of it in the first, and in each later one what the guest has changed
meanwhile. By itself it ends the dump when the rest can be written within the allowed pause. How
long that takes depends on the RAM and on the disk, so time alone says nothing: a guest of 256 GiB
may need an hour, and no pause at all. The first row that fits decides:

| the dump                                                            | what is done             |
|---------------------------------------------------------------------|--------------------------|
| is cancelled                                                        | aborted                  |
| has an image larger than the room reserved for it                   | aborted                  |
| goes on at less than dump_min_mib_per_s for a minute, and zvmsnap   | aborted                  |
| has not slowed it down                                              |                          |
| has the guest paused since max_freeze_s, by zvmsnap or by QEMU      | aborted                  |
| was found endless once                                              | the same again           |
| is stuck, or has no room for another such pass; its rest takes no   | that pause is allowed    |
| longer than pause_max_ms                                            |                          |
| comes to an end: its passes become shorter                          | nothing                  |
| is stuck since fewer than 3 passes, and has room for another one    | nothing: maybe a burst   |
| is stuck; its rest takes no longer than max_freeze_s, and has room  | guest is paused until    |
|                                                                     | the rest is written      |
| is stuck                                                            | aborted                  |

It is stuck when a pass has not a tenth less to write than the shortest one before, of those in
which it was not slowed down. It has no room
for another pass if its image, this pass and the next one are more than is reserved.

So no dump is endless: the size of the image is bounded, its speed is at least dump_min_mib_per_s,
and passes that write nothing become shorter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto

from zvmsnap.config.settings import Limits

_SHORTER = 0.9
_STUCK_PASSES = 3
_SPEED_OVER_S = 60.0
# What QEMU's estimate of its own speed may be off.
_SLACK = 1.25
_MIB = 1 << 20


class Verb(Enum):
    """What to do to a dump that is under way."""

    ALLOW = auto()
    PAUSE = auto()
    ABORT = auto()


@dataclass(frozen=True)
class Action:
    """A verb; the allowed pause that goes with ALLOW, and the reason for the others."""

    verb: Verb
    pause_ms: int = 0
    why: str = ""


@dataclass(frozen=True)
class Look:
    """What is seen of a dump at an instant.

    `number`: which pass it is in, from 1 on; 0 while libvirt tells nothing. `written_bytes`: what
    QEMU has written in all passes; `rest_bytes`: what is left of this one. `is_slowed`: by zvmsnap,
    as others are not so far.
    """

    at_s: float
    image_bytes: int
    is_paused: bool = False
    number: int = 0
    written_bytes: int = 0
    rest_bytes: int = 0
    is_slowed: bool = False

    @property
    def is_written(self) -> bool:
        """Is nothing left of this pass?"""
        return bool(self.number) and not self.rest_bytes


class DumpProgress:
    """Follows one dump, whose image may have `room_bytes`."""

    def __init__(self, limits: Limits, room_bytes: int, begun_s: float) -> None:
        self._limits = limits
        self._room_bytes = room_bytes
        self._last = Look(begun_s, 0)
        self._done_bytes = 0
        self._mark = (begun_s, 0)
        self._is_slow = False
        self._paused_since_s: float | None = None
        self._pass: Look | None = None  # as it was when its present pass began
        self._shortest_bytes = 0
        self._stuck_passes = 0
        self._was_slowed = False  # in its present pass
        self._found = Action(Verb.ALLOW, limits.pause_first_ms)

    def decide(self, look: Look, *, cancelled: bool) -> Action:
        """What the table above says."""
        self._follow(look)
        if cancelled:
            return _abort("it was cancelled")
        if look.image_bytes > self._room_bytes:
            return _abort(
                f"its image has grown beyond the {self._room_bytes // _MIB} MiB that are reserved "
                "for it in staging (limits.dump_max_ram_ratio)"
            )
        if self._is_slow:
            return _abort(
                f"it is written at less than {self._limits.dump_min_mib_per_s:g} MiB/s "
                "(limits.dump_min_mib_per_s)"
            )
        if self._paused_s(look) >= self._limits.max_freeze_s:
            return _abort(
                f"the guest is paused for it since {self._limits.max_freeze_s:g} s "
                "(limits.max_freeze_s)"
            )
        return self._found

    def _follow(self, look: Look) -> None:
        self._follow_speed(look)
        # Once all is written nothing can be aborted: libvirt flushes, and makes overlays.
        if not look.is_paused or look.is_written:
            self._paused_since_s = None
        elif self._paused_since_s is None:
            self._paused_since_s = look.at_s
        if look.number and self._pass is None:
            self._shortest_bytes = look.rest_bytes
            self._pass = look
        elif self._pass is not None and look.number > self._pass.number:
            if self._was_slowed:
                # The guest has changed the more meanwhile, and how fast the disk is nobody knows.
                self._shortest_bytes = look.rest_bytes
                self._stuck_passes = 0
            elif self._found.verb is Verb.ALLOW:
                self._found = self._decide_on_pass(self._pass, look)
            self._pass = look
            self._was_slowed = False
        self._was_slowed |= look.is_slowed
        self._last = look

    def _follow_speed(self, look: Look) -> None:
        """Progress is what was written, and pages of zeros that need not be."""
        last = self._last
        self._done_bytes += max(
            look.written_bytes - last.written_bytes,
            look.image_bytes - last.image_bytes,
            last.rest_bytes - look.rest_bytes,
            0,
        )
        if look.is_slowed:
            self._mark = (look.at_s, self._done_bytes)
        marked_s, marked_bytes = self._mark
        over_s = look.at_s - marked_s
        if over_s < _SPEED_OVER_S:
            return
        minimum_bytes = over_s * self._limits.dump_min_mib_per_s * _MIB
        self._is_slow = self._done_bytes - marked_bytes < minimum_bytes and not look.is_written
        self._mark = (look.at_s, self._done_bytes)

    def _paused_s(self, look: Look) -> float:
        return 0.0 if self._paused_since_s is None else look.at_s - self._paused_since_s

    def _decide_on_pass(self, last: Look, look: Look) -> Action:
        """The rows of the table for a pass that has just begun, as the one of `last` has ended."""
        pass_bytes, rest_s = _to_write(last, look)
        self._compare(pass_bytes)
        room_bytes = self._room_bytes - look.image_bytes
        has_room_for_more = room_bytes >= 2 * pass_bytes
        limits, allowed_ms = self._limits, self._found.pause_ms
        is_short = rest_s * 1000 <= limits.pause_max_ms and pass_bytes <= room_bytes
        if (
            is_short
            and allowed_ms < limits.pause_max_ms
            and (self._stuck_passes or not has_room_for_more)
        ):
            self._stuck_passes = 0
            wanted_ms = max(2 * allowed_ms, math.ceil(rest_s * 1000 * _SLACK))
            return Action(Verb.ALLOW, min(limits.pause_max_ms, wanted_ms))
        may_be_a_burst = self._stuck_passes < _STUCK_PASSES and has_room_for_more
        if not self._stuck_passes or may_be_a_burst:
            return self._found
        return self._end(has_room=pass_bytes <= room_bytes, rest_s=rest_s)

    def _compare(self, pass_bytes: int) -> None:
        if pass_bytes < self._shortest_bytes * _SHORTER:
            self._shortest_bytes = pass_bytes
            self._stuck_passes = 0
        else:
            self._stuck_passes += 1

    def _end(self, *, has_room: bool, rest_s: float) -> Action:
        """How a dump that is stuck is ended."""
        cause = "its RAM changes faster than it can be written"
        limit_s = self._limits.max_freeze_s
        if not has_room:
            return _abort(
                f"{cause}, and outgrows the {self._room_bytes // _MIB} MiB that are reserved for "
                "it in staging (limits.dump_max_ram_ratio)"
            )
        if rest_s > limit_s:
            return _abort(
                f"{cause}, and to pause it for the rest would take about {rest_s:.0f} s "
                f"(limits.max_freeze_s is {limit_s:g})"
            )
        why = f"{cause}: pausing it to finish, for about {rest_s:.1f} s"
        return Action(Verb.PAUSE, why=why)


def _to_write(last: Look, look: Look) -> tuple[int, float]:
    """What the pass that has just begun has to write, in bytes and, as fast as before, seconds."""
    passes = look.number - last.number
    sent_bytes = look.written_bytes - last.written_bytes
    # Of several short passes between two looks, the present one is seen somewhere in it.
    pass_bytes = max(look.rest_bytes, sent_bytes // passes if passes > 1 else 0)
    took_s = look.at_s - last.at_s
    return pass_bytes, took_s * pass_bytes / sent_bytes if sent_bytes > 0 else took_s


def _abort(why: str) -> Action:
    return Action(Verb.ABORT, why=why)
