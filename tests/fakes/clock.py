"""A clock for tests: waiting takes almost no time, and each thread has a time of its own."""

import threading
import time
from collections.abc import Callable

from zvmsnap.common.waiting import Clock

_REALLY_S = 0.001


class TestClock(Clock):
    """A sleep lasts a millisecond, and counts as the seconds that were asked for.

    So a deadline is over after as many polls as on a host, however busy this machine is. The time
    of a thread passes by its own sleeps alone.
    """

    __test__ = False

    def __init__(self) -> None:
        self._own = threading.local()

    def now_s(self) -> float:
        return getattr(self._own, "slept_s", 0.0)

    def sleep(self, seconds: float) -> None:
        self._own.slept_s = self.now_s() + seconds
        time.sleep(min(seconds, _REALLY_S))

    def wait(self, event: threading.Event | threading.Condition, timeout_s: float) -> bool:
        self._own.slept_s = self.now_s() + timeout_s
        return event.wait(min(timeout_s, _REALLY_S))


class ScriptedClock(TestClock):
    """Notes how long is slept, without sleeping, and lets something happen after some sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []
        self.after: dict[int, Callable[[], None]] = {}

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        assert len(self.slept) < 50, "never ends"
        self.after.get(len(self.slept), lambda: None)()


def until(reached: Callable[[], bool]) -> None:
    """Really wait until something is so, however busy this machine is."""
    deadline_s = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline_s, "never"
        time.sleep(0.002)
