import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from zvmsnap.common.errors import Cancelled
from zvmsnap.quiesce.barrier import FreezeBarrier, Stage

SOON_S = 60.0
A_WHILE_S = 0.05
RUNNING, CHOICE, PAUSE, PRE_FREEZE, FREEZE, DONE = Stage


class Guests:
    """Guests at a freeze barrier, each of which may wait there in a thread of its own."""

    def __init__(self, *names: str) -> None:
        self.barrier = FreezeBarrier(names)
        self.cancelled = threading.Event()
        self.pool = ThreadPoolExecutor(64)

    def enter(self, name: str, stage: Stage) -> Future[None]:
        return self.pool.submit(self.barrier.enter, name, stage, self.cancelled)


@pytest.fixture
def guests() -> Iterator[Guests]:
    made = Guests("web", "db")
    yield made
    made.cancelled.set()
    made.pool.shutdown()


def assert_waits(entering: Future[None]) -> None:
    with pytest.raises(TimeoutError):
        entering.result(A_WHILE_S)


@pytest.mark.parametrize(
    ("other", "stage", "waits"),
    [
        pytest.param(RUNNING, RUNNING, False, id="both run"),
        pytest.param(RUNNING, PAUSE, True, id="the other's RAM is dumped under overlays"),
        pytest.param(RUNNING, FREEZE, True, id="the other runs, freeze"),
        pytest.param(RUNNING, CHOICE, True, id="the other may want to be paused"),
        pytest.param(CHOICE, CHOICE, False, id="both want to be paused"),
        pytest.param(CHOICE, PAUSE, True, id="the other is refused, and dumped under overlays"),
        pytest.param(PAUSE, PAUSE, False, id="both are dumped"),
        pytest.param(PAUSE, FREEZE, True, id="the other is dumped, freeze"),
        pytest.param(FREEZE, PAUSE, False, id="the other is ahead"),
        pytest.param(FREEZE, FREEZE, False, id="both freeze"),
        pytest.param(PAUSE, PRE_FREEZE, True, id="the other is dumped, pre-freeze"),
        pytest.param(PRE_FREEZE, PAUSE, False, id="the other runs pre-freeze"),
        pytest.param(PRE_FREEZE, FREEZE, True, id="the other's pre-freeze"),
        pytest.param(DONE, PAUSE, False, id="the other is done"),
        pytest.param(DONE, FREEZE, False, id="the other is done, freeze"),
    ],
)
def test_who_waits_for_whom(guests: Guests, other: Stage, stage: Stage, waits: bool) -> None:
    if other is DONE:
        guests.barrier.finish("db")
    else:
        guests.enter("db", other)
    entering = guests.enter("web", stage)
    if waits:
        assert_waits(entering)
        guests.barrier.finish("db")
    entering.result(SOON_S)


def test_one_stage_after_the_other(guests: Guests) -> None:
    first = guests.enter("web", FREEZE)
    assert_waits(first)
    second = guests.enter("db", PAUSE)
    # web has passed this stage.
    second.result(SOON_S)
    assert_waits(first)
    guests.enter("db", FREEZE).result(SOON_S)
    first.result(SOON_S)


def test_no_guest_goes_back(guests: Guests) -> None:
    guests.barrier.finish("db")
    guests.enter("web", FREEZE).result(SOON_S)
    # Its next level begins at an earlier stage: db need not wait for that.
    guests.enter("web", PAUSE).result(SOON_S)
    guests.enter("db", FREEZE).result(SOON_S)


def test_a_guest_alone_never_waits() -> None:
    alone = FreezeBarrier(["web"])
    for stage in Stage:
        alone.enter("web", stage, threading.Event())
        assert not alone.has_passed_dumps("web")


@pytest.mark.parametrize(
    ("stage", "too_late"), [(RUNNING, False), (PAUSE, False), (PRE_FREEZE, True), (FREEZE, True)]
)
def test_no_dump_when_others_may_be_held(guests: Guests, stage: Stage, too_late: bool) -> None:
    guests.barrier.finish("db")  # it may be held, and waits for post
    guests.enter("web", stage).result(SOON_S)
    assert guests.barrier.has_passed_dumps("web") is too_late


def test_cancelled_while_it_waits(guests: Guests) -> None:
    entering = guests.enter("web", FREEZE)
    assert_waits(entering)
    guests.cancelled.set()
    with pytest.raises(Cancelled, match="interrupted while other guests were dumped"):
        entering.result(SOON_S)
    # A guest that need not wait is cancelled later, before its next step.
    guests.barrier.finish("db")
    guests.enter("web", FREEZE).result(SOON_S)


def test_so_many_are_dumped_at_once() -> None:
    narrow = FreezeBarrier(["web"], dumps=2)
    inside: list[int] = []
    most: list[int] = []
    two_are_inside = threading.Barrier(2)

    def work(number: int) -> None:
        with narrow.dump(f"guest{number}", threading.Event()):
            inside.append(number)
            two_are_inside.wait(SOON_S)
            most.append(len(inside))
            two_are_inside.wait(SOON_S)
            inside.remove(number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(12)))
    assert max(most) == 2


def test_one_that_hangs_makes_room_when_it_is_given_up() -> None:
    narrow, cancelled = FreezeBarrier(["web", "db"], dumps=1), threading.Event()
    with narrow.dump("web", cancelled), ThreadPoolExecutor(1) as pool:
        entering = pool.submit(narrow.dump("db", cancelled).__enter__)
        assert_waits(entering)
        narrow.finish("web")
        entering.result(SOON_S)


def test_cancelled_while_others_are_dumped() -> None:
    narrow, cancelled = FreezeBarrier(["web", "db"], dumps=1), threading.Event()
    with narrow.dump("web", cancelled), ThreadPoolExecutor(1) as pool:
        entering = pool.submit(narrow.dump("db", cancelled).__enter__)
        assert_waits(entering)
        cancelled.set()
        with pytest.raises(Cancelled, match="interrupted while other guests were dumped"):
            entering.result(SOON_S)


def test_more_guests_than_are_dumped_at_once() -> None:
    """Whatever levels they end at, all get through, and none is held while another runs."""
    names = [f"guest{number}" for number in range(12)]
    crowd, cancelled = FreezeBarrier(names, dumps=4), threading.Event()
    running = set(names)
    too_early: list[str] = []

    def capture(number: int, name: str) -> None:
        with crowd.dump(name, cancelled):
            time.sleep(0.001)
        running.discard(name)
        for stage in (PAUSE, FREEZE)[: number % 3]:
            crowd.enter(name, stage, cancelled)
            too_early.extend(running)
            with crowd.dump(name, cancelled):
                time.sleep(0.001)
        crowd.finish(name)

    with ThreadPoolExecutor(len(names)) as pool:
        captures = [pool.submit(capture, number, name) for number, name in enumerate(names)]
        try:
            for each in captures:
                each.result(SOON_S)
        finally:
            cancelled.set()
    assert too_early == []
