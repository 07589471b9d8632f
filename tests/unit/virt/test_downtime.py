import threading
import time
from collections.abc import Callable

import pytest

from zvmsnap.virt import downtime
from zvmsnap.virt.downtime import PauseClock


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time; nobody waits long for an event."""
    now_s = [100.0]
    monkeypatch.setattr(downtime, "_LATE_EVENT_S", 0.01)
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])

    def set_to(second: float) -> None:
        now_s[0] = second

    return set_to


@pytest.mark.parametrize(
    ("events", "paused_s"),
    [
        pytest.param("", 0, id="nothing happened"),
        pytest.param("1- 3+", 2, id="one pause"),
        pytest.param("1- 3+ 10- 14+", 6, id="two"),
        pytest.param("1- 2- 3+", 2, id="stopped twice"),
        pytest.param("1- 3+ 5+", 2, id="resumed twice"),
        pytest.param("1+ 2- 4+", 2, id="resumed before"),
        pytest.param("1- 3+ 4-", 2, id="stands still again"),
        pytest.param("1-", 0, id="still stands still"),
    ],
)
def test_pauses(at: Callable[[float], None], events: str, paused_s: float) -> None:
    clock = PauseClock()
    for event in events.split():
        at(100 + float(event[:-1]))
        (clock.stopped if event.endswith("-") else clock.resumed)()
    at(200)
    assert clock.seconds() == paused_s


def test_the_event_that_comes_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downtime, "_LATE_EVENT_S", 60)
    clock = PauseClock()
    clock.stopped()
    late = threading.Timer(0.02, clock.resumed)
    late.start()
    assert clock.seconds() >= 0.01
    late.join()
