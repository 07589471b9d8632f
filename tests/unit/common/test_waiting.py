"""Waiting: asked often enough, not for longer than allowed, and by the tests' own clock."""

import threading
import time
from collections.abc import Iterator

import pytest

from tests.fakes.clock import TestClock
from zvmsnap.common import waiting
from zvmsnap.common.waiting import wait_until


def after(looks: int) -> Iterator[str]:
    yield from [""] * looks
    yield "so"


@pytest.mark.parametrize(
    ("comes_after", "timeout_s", "answer", "slept_s"),
    [
        pytest.param(0, 0.0, "so", 0.0, id="at once"),
        pytest.param(1, 0.0, "", 0.0, id="no time"),
        pytest.param(3, 10.0, "so", 6.0, id="in time"),
        pytest.param(5, 10.0, "so", 10.0, id="asked once more when the time is up"),
        pytest.param(6, 10.0, "", 10.0, id="too late"),
    ],
)
def test_wait_until(
    clock: TestClock, comes_after: int, timeout_s: float, answer: str, slept_s: float
) -> None:
    answers = after(comes_after)
    assert wait_until(lambda: next(answers), timeout_s, 2.0) == answer
    assert clock.now_s() == slept_s


def test_cancelled(clock: TestClock) -> None:
    cancelled = threading.Event()
    looks: list[int] = []

    def look() -> bool:
        looks.append(1)
        if len(looks) == 2:
            cancelled.set()
        return False

    assert not wait_until(look, 60, 1.0, cancelled=cancelled)
    assert len(looks) == 3


def test_each_thread_has_its_own_time(clock: TestClock) -> None:
    waiting.sleep(100)
    seen: list[float] = []
    thread = threading.Thread(target=lambda: seen.append(waiting.now_s()))
    thread.start()
    thread.join()
    assert (seen, waiting.now_s()) == ([0.0], 100.0)


def test_the_clock_of_the_machine() -> None:
    with waiting.clocked_by(waiting.Clock()):
        before_s = time.monotonic()
        waiting.sleep(0.01)
        assert not waiting.wait(threading.Event(), 0.01)
        assert before_s + 0.02 <= waiting.now_s() <= time.monotonic()
