"""Waiting: asked often enough, not for longer than allowed, and by the tests' own clock."""

import threading
import time
from collections.abc import Iterator

import pytest

from tests.fakes.clock import TestClock
from zvmsnap.common import waiting
from zvmsnap.common.errors import GivenUp
from zvmsnap.common.process import HangWatch
from zvmsnap.common.waiting import Call, in_parallel, wait_until


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


# -- calls that can be given up


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """What a call waits for that does not end before the test does."""
    event = threading.Event()
    yield event
    event.set()


def test_call_that_ends() -> None:
    def fail() -> None:
        raise OSError("no")

    assert Call(lambda: 7).answer() == 7
    with pytest.raises(OSError, match="no"):
        Call(fail).answer()


def test_call_that_does_not_end_is_given_up(never: threading.Event) -> None:
    with pytest.raises(GivenUp, match=r"no answer: given up after 0\.01 s"):
        Call(never.wait).answer(0.01)


def test_call_that_hangs_in_the_kernel_is_given_up(
    never: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HangWatch, "hangs", lambda _watch: True)
    monkeypatch.setattr(waiting, "_LOOK_EVERY_S", 0.01)
    call = Call(never.wait)
    with pytest.raises(GivenUp, match="hangs in the kernel: given up after 45 s"):
        call.answer()
    monkeypatch.setattr(HangWatch, "hangs", lambda _watch: False)
    never.set()
    assert call.answer()
    assert not call.hangs()


def test_others_are_served_while_one_hangs(
    never: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(Call, "hangs", lambda call: call._do == never.wait)
    works = {"hangs": never.wait, **{str(number): threading.Event().is_set for number in range(9)}}
    served = {key: call.ended() for key, call in in_parallel(works, 1)}
    assert served == {"hangs": False, **{str(number): True for number in range(9)}}


def test_so_many_at_once() -> None:
    inside: list[int] = []
    most: list[int] = []
    both = threading.Barrier(2)

    def work() -> None:
        inside.append(1)
        both.wait(10)
        most.append(len(inside))
        both.wait(10)
        inside.pop()

    assert len(list(in_parallel(dict.fromkeys("abcdef", work), 2))) == 6
    assert max(most) == 2


def test_what_finds_no_thread_says_so_and_others_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, asked = threading.Thread.start, list[threading.Thread]()

    def refuse_the_second(thread: threading.Thread) -> None:
        asked.append(thread)
        if len(asked) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_the_second)
    calls = dict(in_parallel({number: number.bit_count for number in (1, 3, 7)}, 3))
    assert (calls[1].answer(), calls[7].answer()) == (1, 3)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        calls[3].answer()
