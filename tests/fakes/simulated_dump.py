"""A dump of RAM, simulated: QEMU's passes over the RAM of a guest that changes it meanwhile."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from zvmsnap.capture.dump_progress import Action, DumpProgress, Look, Verb
from zvmsnap.config.settings import Limits

MIB = 1 << 20
GIB = 1 << 30

# How fast QEMU goes over pages of zeros, which it does not write.
_SCAN_BYTES_PER_S = 4 * GIB


@dataclass(frozen=True)
class Machine:
    """A guest, and the disk that its RAM is written to.

    Pages of `hot_bytes` of its RAM are changed at random, at `dirty_bytes_per_s`; a disk or a guest
    that changes its speed has a function of the time since the dump began.
    """

    ram_bytes: int
    disk_bytes_per_s: Callable[[float], float]
    dirty_bytes_per_s: Callable[[float], float] = lambda _at_s: 0
    hot_bytes: int = 0
    used: float = 1.0


@dataclass
class Outcome:
    """How a dump ended."""

    actions: list[Action]
    aborted: bool = False
    image_bytes: int = 0
    took_s: float = 0.0
    paused_s: float = 0.0

    @property
    def verbs(self) -> list[Verb]:
        """What was done to it."""
        return [action.verb for action in self.actions]


class SimulatedDump:
    """A dump that is looked at every `step_s` seconds, until it ends."""

    def __init__(self, machine: Machine, limits: Limits, room_bytes: int, step_s: float) -> None:
        self._machine = machine
        self._limits = limits
        self._room_bytes = room_bytes
        self._step_s = step_s
        self._allowed_ms = limits.pause_first_ms
        self._zero_bytes = machine.ram_bytes * (1 - machine.used)
        self._rest_bytes = float(machine.ram_bytes)
        self._dirty_bytes = 0.0
        self._written_bytes = 0.0
        self._number = 1
        self._at_s = 0.0
        self._paused = False
        self._outcome = Outcome([])

    def run(self) -> Outcome:
        """The whole of it."""
        progress = DumpProgress(self._limits, self._room_bytes, 0.0)
        while not self._pass_time():
            action = progress.decide(self._look(), cancelled=False)
            if not self._outcome.actions or action != self._outcome.actions[-1]:
                self._outcome.actions.append(action)
            self._allowed_ms = max(self._allowed_ms, action.pause_ms)
            self._paused = self._paused or action.verb is Verb.PAUSE
            if action.verb is Verb.ABORT:
                self._outcome.aborted = True
                break
        return dataclasses.replace(
            self._outcome, image_bytes=int(self._written_bytes), took_s=self._at_s
        )

    def _look(self) -> Look:
        written = int(self._written_bytes)
        return Look(self._at_s, written, self._paused, self._number, written, int(self._rest_bytes))

    def _pass_time(self) -> bool:
        """Let QEMU write for one step, in as many passes as that takes; did the dump end?"""
        machine = self._machine
        speed = machine.disk_bytes_per_s(self._at_s)
        left_s = self._step_s
        while left_s > 0:
            if self._number == 1 and self._zero_bytes > 0:
                scan_s = min(left_s, self._zero_bytes / _SCAN_BYTES_PER_S)
                self._zero_bytes -= scan_s * _SCAN_BYTES_PER_S
                self._rest_bytes -= scan_s * _SCAN_BYTES_PER_S
                left_s -= self._spend(scan_s)
                continue
            threshold_bytes = speed * self._allowed_ms / 1000
            if self._rest_bytes <= threshold_bytes:
                self._begin_pass()
                if self._rest_bytes <= threshold_bytes or (self._paused and not self._rest_bytes):
                    self._end(speed)
                    return True
            to_write = self._rest_bytes if self._paused else self._rest_bytes - threshold_bytes
            write_s = min(left_s, max(to_write / speed, 1e-4)) if speed else left_s
            self._rest_bytes = max(0.0, self._rest_bytes - write_s * speed)
            self._written_bytes += write_s * speed
            left_s -= self._spend(write_s)
        return False

    def _begin_pass(self) -> None:
        """What is left of the last pass may have been changed again."""
        at_most = max(self._rest_bytes, self._machine.hot_bytes)
        self._rest_bytes = min(at_most, self._rest_bytes + self._dirty_bytes)
        self._dirty_bytes = 0
        self._number += 1

    def _spend(self, seconds: float) -> float:
        """The guest runs on meanwhile, if it is not paused."""
        self._at_s += seconds
        if self._paused:
            self._outcome.paused_s += seconds
        elif self._machine.hot_bytes:
            changed = self._machine.dirty_bytes_per_s(self._at_s) * seconds
            hot = self._machine.hot_bytes
            self._dirty_bytes += min(hot - self._dirty_bytes, changed) * (
                1 - self._dirty_bytes / hot
            )
        return seconds

    def _end(self, speed: float) -> None:
        """QEMU pauses the guest for the rest."""
        last_s = self._rest_bytes / speed if speed else 0.0
        self._written_bytes += self._rest_bytes
        self._at_s += last_s
        self._outcome.paused_s += last_s
