"""One way to wait: check, sleep, check again, until it is so or the time is up.

All waiting goes through one clock, which tests replace: what they assert does not depend on how
busy the machine is. But for one kind: what may never end is a `Call`, in a thread of its own, which
can be given up.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from zvmsnap.common.errors import GivenUp
from zvmsnap.common.process import HANGS, HangWatch

Answer = TypeVar("Answer")
Key = TypeVar("Key")

_LOOK_EVERY_S = 1.0


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


@contextmanager
def in_background(name: str, run: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run it in a thread of that name; when the block ends, set its event and wait for its end."""
    ended = threading.Event()
    thread = threading.Thread(target=run, args=(ended,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Call(Generic[Answer]):
    """A call in a thread of its own, which can be given up: it goes on, and nobody waits for it.

    Nor does the end of this process, unless the thread hangs in the kernel (hooks/stand_in). It is
    waited for in real time, in tests too.
    """

    def __init__(self, do: Callable[[], Answer]) -> None:
        """Begin it. If no thread can be started, that is what it raises."""
        self._do = do
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="call", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._error = error
            self._ended.set()
        self._watch = HangWatch(Path(f"/proc/self/task/{self._thread.native_id}"))

    def ended(self, within_s: float = 0) -> bool:
        """Has it ended, or does it within that time?"""
        return self._ended.wait(within_s)

    def hangs(self) -> bool:
        """Does it hang in the kernel? To be asked every second or so."""
        return not self._ended.is_set() and self._watch.hangs()

    def answer(self, limit_s: float = math.inf) -> Answer:
        """Wait for its answer, or raise what it raises.

        Raises GivenUp after `limit_s`, and earlier if the thread hangs in the kernel.
        """
        deadline_s = time.monotonic() + limit_s
        while not self.ended(min(_LOOK_EVERY_S, max(0, deadline_s - time.monotonic()))):
            if self.hangs():
                raise GivenUp(HANGS)
            if time.monotonic() >= deadline_s:
                raise GivenUp(f"no answer: given up after {limit_s:g} s")
        if self._error:
            raise self._error
        return self._answer

    def _run(self) -> None:
        try:
            self._answer = self._do()
        except BaseException as error:
            self._error = error
        finally:
            self._ended.set()


def in_parallel(
    works: Mapping[Key, Callable[[], Answer]], at_once: int
) -> Iterator[tuple[Key, Call[Answer]]]:
    """Begin all works, so many at once; yields each as soon as it has ended, or hangs."""
    todo = dict(works)
    under_way: dict[Key, Call[Answer]] = {}
    while todo or under_way:
        while todo and len(under_way) < at_once:
            key = next(iter(todo))
            under_way[key] = Call(todo.pop(key))
        over = [key for key, call in under_way.items() if call.ended() or call.hangs()]
        for key in over:
            yield key, under_way.pop(key)
        if not over:
            next(iter(under_way.values())).ended(_LOOK_EVERY_S / 5)
