"""One way to wait: check, sleep, check again, until it is so or the time is up.

All waiting goes through one clock, which tests replace: what they assert does not depend on how
busy the machine is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Answer = TypeVar("Answer")


class Clock:
    """The machine's own clock, which no change of the date moves."""

    def now_s(self) -> float:
        """Seconds since some fixed instant."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Let that time pass."""
        time.sleep(seconds)

    def wait(self, event: threading.Event | threading.Condition, timeout_s: float) -> bool:
        """Let that time pass, or less if the event comes; did it come?"""
        return event.wait(timeout_s)


_clock = Clock()


@contextmanager
def clocked_by(clock: Clock) -> Iterator[None]:
    """Wait by another clock: for tests."""
    global _clock
    own, _clock = _clock, clock
    try:
        yield
    finally:
        _clock = own


def now_s() -> float:
    """Seconds since some fixed instant, by the clock that everybody waits by."""
    return _clock.now_s()


def sleep(seconds: float) -> None:
    """Let that time pass."""
    _clock.sleep(seconds)


def wait(event: threading.Event | threading.Condition, timeout_s: float) -> bool:
    """Let that time pass, or less if the event comes; did it come?"""
    return _clock.wait(event, timeout_s)


def wait_until(
    check: Callable[[], Answer],
    timeout_s: float,
    poll_s: float,
    *,
    cancelled: threading.Event | None = None,
) -> Answer:
    """Call `check` every `poll_s` seconds until its answer is true; return its last answer.

    The last answer is a false one if `timeout_s` is over, or `cancelled` is set. `check` is called
    at least once, and once more when the time is up.
    """
    deadline_s = now_s() + timeout_s
    while True:
        is_last = now_s() >= deadline_s or (cancelled is not None and cancelled.is_set())
        answer = check()
        if answer or is_last:
            return answer
        if cancelled is None:
            sleep(poll_s)
        else:
            wait(cancelled, poll_s)
