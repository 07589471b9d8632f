import threading
import time
from collections.abc import Callable

import pytest

from tests.fakes.clock import TestClock
from zvmsnap.common import waiting
from zvmsnap.virt.guest_state import PauseClock


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time."""
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])

    def set_to(second: float) -> None:
        now_s[0] = second

    return set_to


@pytest.mark.parametrize(
    ("events", "paused_s"),
    [
        pytest.param("", 0, id="no event"),
        pytest.param("1- 3+", 2, id="one pause"),
        pytest.param("1- 3+ 10- 14+", 6, id="two"),
        pytest.param("1- 2- 3+", 2, id="paused twice"),
        pytest.param("1- 3+ 5+", 2, id="resumed twice"),
        pytest.param("1+ 2- 4+", 2, id="resumed before"),
        pytest.param("1- 3+ 4-", 2, id="paused again"),
        pytest.param("1-", 0, id="still paused"),
    ],
)
def test_pauses(at: Callable[[float], None], events: str, paused_s: float) -> None:
    pauses = PauseClock()
    for event in events.split():
        at(100 + float(event[:-1]))
        (pauses.paused if event.endswith("-") else pauses.resumed)()
    at(200)
    assert pauses.total_s() == paused_s


class Late(TestClock):
    """A clock on which an event comes while it is waited for."""

    def __init__(self, event: Callable[[], None]) -> None:
        super().__init__()
        self._event = event

    def wait(self, event: threading.Event | threading.Condition, timeout_s: float) -> bool:
        self._event()
        return super().wait(event, timeout_s)


def test_a_late_event_of_the_end_is_waited_for(at: Callable[[float], None]) -> None:
    pauses = PauseClock()
    pauses.paused()
    at(103)
    with waiting.clocked_by(Late(pauses.resumed)):
        assert pauses.total_s() == 3


def test_a_late_event_of_the_beginning_is_waited_for(at: Callable[[float], None]) -> None:
    pauses = PauseClock()
    at(103)
    with waiting.clocked_by(Late(pauses.paused)):
        assert pauses.paused_since_s() == 103


def test_without_an_event_the_pause_begins_now(at: Callable[[float], None]) -> None:
    at(105)
    assert PauseClock().paused_since_s() == 105
