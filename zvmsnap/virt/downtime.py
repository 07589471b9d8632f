"""Measures from libvirt's events how long a guest stands still."""

from __future__ import annotations

import threading
import time

# Events come through the loop's thread, a little after the call that caused them returned.
_LATE_EVENT_S = 1.0


class PauseClock:
    """Adds up the time between a guest's stops and its next steps."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._total_s = 0.0
        self._since_s: float | None = None
        self._pauses = 0
        # What the job itself says, for the last of RAM: without the flush of the image, without
        # the overlays.
        self.last_ram_s = 0.0

    def stopped(self) -> None:
        """The guest stands still from now on."""
        with self._changed:
            if self._since_s is None:
                self._since_s = time.monotonic()
            self._changed.notify_all()

    def resumed(self) -> None:
        """The guest goes on."""
        with self._changed:
            if self._since_s is not None:
                self._total_s += time.monotonic() - self._since_s
                self._since_s = None
                self._pauses += 1
            self._changed.notify_all()

    def stopped_at_s(self) -> float:
        """When the pause that still lasts began (time.monotonic); now, if it cannot be told.

        Waits a moment for the event that tells.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._since_s is not None, _LATE_EVENT_S)
            return time.monotonic() if self._since_s is None else self._since_s

    def told_by_job(self, downtime_s: float) -> None:
        """The statistics of libvirt's job have come."""
        with self._changed:
            self.last_ram_s = downtime_s
            self._changed.notify_all()

    def seconds(self) -> float:
        """Seconds paused so far; waits a moment for the event that ends the pause."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._pauses > 0 and self._since_s is None, _LATE_EVENT_S
            )
            return self._total_s
