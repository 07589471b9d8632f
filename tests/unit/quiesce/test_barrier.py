import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from zvmsnap.common.errors import Cancelled
from zvmsnap.quiesce import barrier
from zvmsnap.quiesce.barrier import FreezeBarrier, Stage

SOON_S = 10.0
A_WHILE_S = 0.05
WORK, PAUSE, SCRIPT, FREEZE, DONE = Stage


class Yard:
    """Guests at a gate, each of which may wait there in a thread of its own."""

    def __init__(self, *names: str) -> None:
        self.gate = FreezeBarrier(names)
        self.cancelled = threading.Event()
        self.pool = ThreadPoolExecutor(64)

    def enter(self, name: str, stage: Stage) -> Future[None]:
        return self.pool.submit(self.gate.enter, name, stage, self.cancelled)


@pytest.fixture
def yard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:
    monkeypatch.setattr(barrier, "_LOOK_AGAIN_S", 0.01)
    made = Yard("web", "db")
    yield made
    made.cancelled.set()
    made.pool.shutdown()


def assert_waits(entering: Future[None]) -> None:
    with pytest.raises(TimeoutError):
        entering.result(A_WHILE_S)


@pytest.mark.parametrize(
    ("other", "stage", "waits"),
    [
        pytest.param(WORK, WORK, False, id="both at work"),
        pytest.param(WORK, PAUSE, True, id="the other's RAM is dumped under overlays"),
        pytest.param(WORK, FREEZE, True, id="the other works, freeze"),
        pytest.param(PAUSE, PAUSE, False, id="both are dumped"),
        pytest.param(PAUSE, FREEZE, True, id="the other is dumped, freeze"),
        pytest.param(FREEZE, PAUSE, False, id="nobody waits for who comes later"),
        pytest.param(FREEZE, FREEZE, False, id="both freeze"),
        pytest.param(PAUSE, SCRIPT, True, id="the other is dumped, pre-freeze"),
        pytest.param(SCRIPT, PAUSE, False, id="nobody waits for who is ahead"),
        pytest.param(SCRIPT, FREEZE, True, id="the other's pre-freeze"),
        pytest.param(DONE, PAUSE, False, id="the other is done"),
        pytest.param(DONE, FREEZE, False, id="the other is done, freeze"),
    ],
)
def test_who_waits_for_whom(yard: Yard, other: Stage, stage: Stage, waits: bool) -> None:
    if other is DONE:
        yard.gate.leave("db")
    else:
        yard.enter("db", other)
    entering = yard.enter("web", stage)
    if waits:
        assert_waits(entering)
        yard.gate.leave("db")
    entering.result(SOON_S)


def test_one_stage_after_the_other(yard: Yard) -> None:
    first = yard.enter("web", FREEZE)
    assert_waits(first)
    second = yard.enter("db", PAUSE)
    # web is ahead of it already.
    second.result(SOON_S)
    assert_waits(first)
    yard.enter("db", FREEZE).result(SOON_S)
    first.result(SOON_S)


def test_nobody_goes_back(yard: Yard) -> None:
    yard.gate.leave("db")
    yard.enter("web", FREEZE).result(SOON_S)
    # A level for which it failed is followed by one of an earlier stage: nobody waits again.
    yard.enter("web", PAUSE).result(SOON_S)
    yard.enter("db", FREEZE).result(SOON_S)


def test_who_is_alone_never_waits() -> None:
    alone = FreezeBarrier(["web"])
    for stage in Stage:
        alone.enter("web", stage, threading.Event())
        assert not alone.keeps_from_dumping("web")


@pytest.mark.parametrize(
    ("stage", "too_late"), [(WORK, False), (PAUSE, False), (SCRIPT, True), (FREEZE, True)]
)
def test_nobody_is_dumped_when_others_may_stand_still(
    yard: Yard, stage: Stage, too_late: bool
) -> None:
    yard.gate.leave("db")  # it may stand still, and waits for post
    yard.enter("web", stage).result(SOON_S)
    assert yard.gate.keeps_from_dumping("web") is too_late


def test_cancelled_while_it_waits(yard: Yard) -> None:
    entering = yard.enter("web", FREEZE)
    assert_waits(entering)
    yard.cancelled.set()
    with pytest.raises(Cancelled, match="interrupted while other guests were dumped"):
        entering.result(SOON_S)
    # Who need not wait sees for himself that he is cancelled.
    yard.gate.leave("db")
    yard.enter("web", FREEZE).result(SOON_S)


def test_so_much_work_at_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barrier, "_AT_ONCE", 2)
    narrow = FreezeBarrier(["web"])
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with narrow.place():
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.005)
            inside.remove(number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(12)))
    assert max(most) == 2


def test_more_guests_than_places() -> None:
    """Whatever levels they end at: all get through, and nobody stands still while one works."""
    names = [f"guest{number}" for number in range(3 * barrier._AT_ONCE)]
    crowd, cancelled = FreezeBarrier(names), threading.Event()
    working = set(names)
    too_early: list[str] = []

    def take(number: int, name: str) -> None:
        with crowd.place():
            time.sleep(0.001)
        working.discard(name)
        for stage in (PAUSE, FREEZE)[: number % 3]:
            crowd.enter(name, stage, cancelled)
            too_early.extend(working)
            with crowd.place():
                time.sleep(0.001)
        crowd.leave(name)

    with ThreadPoolExecutor(len(names)) as pool:
        taking = [pool.submit(take, number, name) for number, name in enumerate(names)]
        try:
            for each in taking:
                each.result(SOON_S)
        finally:
            cancelled.set()
    assert too_early == []
