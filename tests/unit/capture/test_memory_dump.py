import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.capture import memory_dump
from zvmsnap.capture.memory_dump import Action, Dump, DumpSupervisor, Verb, decide
from zvmsnap.common.errors import DomainGone, LibvirtFailed
from zvmsnap.common.waiting import Clock
from zvmsnap.config.settings import Limits

GIB = 1 << 30
LIMITS = Limits(
    pause_first_ms=30,
    pause_max_ms=1000,
    dump_raise_pause_after_s=20,
    dump_pause_after_s=80,
    dump_abort_after_s=300,
    dump_max_ram_ratio=1.5,
)


def allow(pause_ms: int) -> Action:
    return Action(Verb.ALLOW, pause_ms)


PAUSE, ABORT = Action(Verb.PAUSE), Action(Verb.ABORT)


@pytest.mark.parametrize(
    ("elapsed_s", "image_bytes", "cancelled", "expected"),
    [
        pytest.param(0, 0, False, allow(30), id="begin"),
        pytest.param(19.99, GIB, False, allow(30), id="just before the first raise"),
        pytest.param(20, GIB, False, allow(60), id="first raise"),
        pytest.param(29.99, GIB, False, allow(60), id="just before the second raise"),
        pytest.param(30, GIB, False, allow(120), id="second raise"),
        pytest.param(69.99, GIB, False, allow(960), id="just before the last raise"),
        pytest.param(70, GIB, False, allow(1000), id="never more than the most"),
        pytest.param(79.99, GIB, False, allow(1000), id="just before the pause"),
        pytest.param(80, GIB, False, PAUSE, id="pause"),
        pytest.param(299.99, GIB, False, PAUSE, id="just before the end"),
        pytest.param(300, GIB, False, ABORT, id="end"),
        pytest.param(0, 3 * GIB // 2, False, allow(30), id="image just as large as allowed"),
        pytest.param(0, 3 * GIB // 2 + 1, False, PAUSE, id="image too large"),
        pytest.param(20, 9 * GIB, False, PAUSE, id="image too large while raising"),
        pytest.param(300, 9 * GIB, False, ABORT, id="image too large at the end"),
        pytest.param(0, 0, True, ABORT, id="cancelled at once"),
        pytest.param(100, 9 * GIB, True, ABORT, id="cancelled while paused"),
    ],
)
def test_decide(elapsed_s: float, image_bytes: int, cancelled: bool, expected: Action) -> None:
    assert decide(LIMITS, GIB, elapsed_s, image_bytes, cancelled=cancelled) == expected


TIMES = st.floats(0.1, 1000)
PAUSES = st.integers(1, 10_000)


@given(st.tuples(PAUSES, PAUSES).map(sorted), TIMES, TIMES, TIMES, st.lists(TIMES, min_size=2))
def test_any_limits(
    pauses: list[int], raise_s: float, pause_s: float, abort_s: float, elapsed: list[float]
) -> None:
    limits = Limits(
        pause_first_ms=pauses[0],
        pause_max_ms=pauses[1],
        dump_raise_pause_after_s=raise_s,
        dump_pause_after_s=pause_s,
        dump_abort_after_s=abort_s,
    )
    order = [Verb.ALLOW, Verb.PAUSE, Verb.ABORT]
    last = Action(Verb.ALLOW, 0)
    for elapsed_s in sorted(elapsed):
        action = decide(limits, GIB, elapsed_s, 0, cancelled=False)
        assert (action.verb is Verb.ABORT) == (elapsed_s >= abort_s)
        assert order.index(action.verb) >= order.index(last.verb)
        if action.verb is Verb.ALLOW:
            assert pauses[0] <= action.pause_ms <= pauses[1]
            assert action.pause_ms >= last.pause_ms
        last = action


class FakeGuest:
    """Notes what is asked of it; its dump ends when its supervisor has done enough."""

    def __init__(self) -> None:
        self.pause_ms = 300
        self.calls: list[str] = []
        self.failing: dict[str, int] = {}
        self._state = "running"

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if self.failing.get(call, 0) > 0:
            self.failing[call] -= 1
            raise LibvirtFailed(f"no {call}")

    def migrate_max_downtime_ms(self) -> int:
        return self.pause_ms

    def migrate_set_max_downtime_ms(self, pause_ms: int) -> None:
        self._note(f"allow {pause_ms}")
        self.pause_ms = pause_ms

    def state(self) -> str:
        return self._state

    def suspend(self) -> None:
        self._note("suspend")
        self._state = "paused"

    def resume(self) -> None:
        self._note("resume")
        self._state = "running"

    def abort_job(self) -> None:
        self._note("abort")

    def is_paused_by_somebody(self) -> None:
        self._state = "paused"

    def dump_ends(self) -> None:
        """libvirt resumes the guest at the end of every dump."""
        self._state = "running"


class DumpClock(Clock):
    """A clock that goes on only when the test says so; counts how often it was waited for."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self._looks = 0
        self._looked = threading.Condition()

    def now_s(self) -> float:
        return self.time_s

    def wait(self, event: threading.Event | threading.Condition, timeout_s: float) -> bool:
        if threading.current_thread().name.startswith("watch"):
            with self._looked:
                self._looks += 1
                self._looked.notify_all()
        return event.wait(0.001)

    def pass_s(self, seconds: float) -> None:
        """Let time pass, until the supervisor has looked and done what the time demands."""
        self.time_s += seconds
        self.let_look()

    def let_look(self, times: int = 1) -> None:
        """Return when the supervisor has looked so often, and done what it saw fit."""
        with self._looked:
            # The look that is under way may have begun before the change.
            wanted = self._looks + times + 1
            assert self._looked.wait_for(lambda: self._looks >= wanted, 60)


class Notes:
    """What an observer was told, each with the calls that the guest had had by then."""

    def __init__(self, guest: FakeGuest) -> None:
        self._guest = guest
        self.told: list[tuple[str, list[str]]] = []
        self.warnings: list[str] = []

    def changes_downtime(self, original_ms: int) -> None:
        self._tell(f"changes {original_ms}")

    def restored_downtime(self) -> None:
        self._tell("restored")

    def pauses(self) -> None:
        self._tell("pauses")

    def warns(self, message: str) -> None:
        self.warnings.append(message)

    def _tell(self, what: str) -> None:
        self.told.append((what, list(self._guest.calls)))


class Supervised:
    """A guest, its image of at most 1000 bytes, and a supervisor with the limits of the test."""

    def __init__(self, image: Path) -> None:
        image.touch()
        self.guest = FakeGuest()
        self.image = image
        self.clock = DumpClock()
        self.cancelled = threading.Event()
        self.notes = Notes(self.guest)

    def dump(self, limits: Limits = LIMITS, *, stays_paused: bool = False) -> DumpSupervisor:
        dump = Dump(self.image, 1000, stays_paused)
        return DumpSupervisor(
            self.guest, dump, limits, self.notes, self.cancelled, clock=self.clock
        )


@pytest.fixture
def supervised(tmp_path: Path) -> Supervised:
    return Supervised(tmp_path / "memory.img")


def test_an_easy_dump_changes_only_the_allowed_pause(supervised: Supervised) -> None:
    with supervised.dump():
        assert supervised.guest.pause_ms == 30
        supervised.clock.let_look(3)
    assert supervised.guest.calls == ["allow 30", "allow 300"]
    assert supervised.notes.warnings == []


def test_the_allowed_pause_is_raised_step_by_step(supervised: Supervised) -> None:
    with supervised.dump():
        for seconds in (19, 1, 5, 5, 40):
            supervised.clock.pass_s(seconds)
    allowed = ("allow 30", "allow 60", "allow 120", "allow 1000", "allow 300")
    assert supervised.guest.calls == list(allowed)


def test_the_allowed_pause_is_never_lowered(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = iter([allow(pause_ms) for pause_ms in (30, 60, 60, 120, 90)])
    monkeypatch.setattr(memory_dump, "decide", lambda *_, **__: next(table, allow(1000)))
    with supervised.dump():
        supervised.clock.let_look(6)
    assert supervised.guest.calls == [f"allow {pause_ms}" for pause_ms in (30, 60, 120, 1000, 300)]


@pytest.mark.parametrize(
    ("after_s", "image"),
    [
        pytest.param(80, b"", id="for its time"),
        pytest.param(0, b"x" * 1501, id="for its size"),
    ],
)
def test_guest_is_paused_once_to_finish(
    supervised: Supervised, after_s: float, image: bytes
) -> None:
    supervised.image.write_bytes(image)
    with supervised.dump():
        supervised.clock.pass_s(after_s)
        assert supervised.guest.state() == "paused"
        supervised.clock.let_look(3)
        supervised.guest.dump_ends()
    assert supervised.guest.calls == ["allow 30", "suspend", "allow 300"]
    assert supervised.notes.warnings == [
        "its RAM changes faster than it can be written: pausing it to finish"
    ]


@pytest.mark.parametrize("stays_paused", [False, True])
def test_a_pause_that_comes_after_the_dump(supervised: Supervised, stays_paused: bool) -> None:
    with supervised.dump(stays_paused=stays_paused):
        supervised.clock.pass_s(80)
    resumed = [] if stays_paused else ["resume"]
    assert supervised.guest.calls == ["allow 30", "suspend", *resumed, "allow 300"]
    assert supervised.guest.state() == ("paused" if stays_paused else "running")


def test_a_guest_that_somebody_else_paused_is_not_resumed(supervised: Supervised) -> None:
    with supervised.dump():
        supervised.guest.is_paused_by_somebody()
    assert supervised.guest.calls == ["allow 30", "allow 300"]


def test_a_guest_that_cannot_be_resumed_is_warned_of(supervised: Supervised) -> None:
    supervised.guest.failing = {"resume": 9}
    with supervised.dump():
        supervised.clock.pass_s(80)
    assert supervised.notes.warnings[1:] == [
        "it may still be paused, as it could not be resumed: no resume"
    ]
    assert supervised.guest.pause_ms == 300


@pytest.mark.parametrize(
    ("after_s", "cancelled"),
    [pytest.param(300, False, id="deadline"), pytest.param(0, True, id="cancelled")],
)
def test_aborted(supervised: Supervised, after_s: float, cancelled: bool) -> None:
    if cancelled:
        supervised.cancelled.set()
    with pytest.raises(LibvirtFailed, match="aborted"), supervised.dump():
        supervised.clock.pass_s(after_s)
        raise LibvirtFailed("aborted")
    assert set(supervised.guest.calls) == {"allow 30", "abort", "allow 300"}
    assert supervised.guest.calls[-1] == "allow 300"


def test_the_observer_is_told_before_a_change(supervised: Supervised) -> None:
    with supervised.dump():
        supervised.clock.pass_s(80)
        supervised.guest.dump_ends()
    assert supervised.notes.told == [
        ("changes 300", []),
        ("pauses", ["allow 30"]),
        ("restored", ["allow 30", "suspend", "allow 300"]),
    ]


@pytest.mark.parametrize("cancelled", [False, True])
def test_no_pause_and_no_abort_before_the_dump_begins(
    supervised: Supervised, cancelled: bool
) -> None:
    """libvirt waits for the job of somebody else."""
    supervised.image.unlink()
    with supervised.dump():
        if cancelled:
            supervised.cancelled.set()
        supervised.clock.pass_s(80)
        supervised.clock.pass_s(300)
        assert not {"abort", "suspend"} & set(supervised.guest.calls)
        supervised.image.touch()
        supervised.clock.let_look()
        assert "abort" in supervised.guest.calls


def test_abort_is_tried_again(supervised: Supervised) -> None:
    supervised.guest.failing = {"abort": 3}
    supervised.cancelled.set()
    with supervised.dump():
        supervised.clock.let_look(4)
    assert supervised.guest.failing == {"abort": 0}
    assert supervised.guest.calls.count("abort") >= 4


def test_suspend_is_tried_again(supervised: Supervised) -> None:
    supervised.guest.failing = {"suspend": 2}
    with supervised.dump():
        supervised.clock.pass_s(80)
        supervised.clock.let_look(3)
        supervised.guest.dump_ends()
    assert supervised.guest.calls == ["allow 30", *["suspend"] * 3, "allow 300"]


@pytest.mark.parametrize("failure", [LibvirtFailed("no dump"), DomainGone("gone"), OSError("no")])
def test_the_allowed_pause_is_restored_when_the_dump_fails(
    supervised: Supervised, failure: Exception
) -> None:
    with pytest.raises(type(failure), match=str(failure)), supervised.dump():
        raise failure
    assert supervised.guest.pause_ms == 300


def test_an_allowed_pause_that_cannot_be_restored_is_warned_of(supervised: Supervised) -> None:
    supervised.guest.failing = {"allow 300": 1}
    with supervised.dump():
        pass
    assert supervised.notes.warnings == [
        "its allowed pause could not be put back to 300 ms: no allow 300"
    ]
    # So the journal still says so, and release restores it.
    assert supervised.notes.told == [("changes 300", [])]


def test_no_thread_begins_where_the_allowed_pause_cannot_be_set(supervised: Supervised) -> None:
    supervised.guest.failing = {"allow 30": 1}
    before = threading.active_count()
    with pytest.raises(LibvirtFailed, match="no allow 30"), supervised.dump():
        pytest.fail("the dump must not begin")
    assert threading.active_count() == before


def test_image_is_flushed_from_its_first_byte_on(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = threading.Event()
    sync = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        sync(descriptor)
        flushed.set()

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    supervised.image.unlink()
    before = threading.active_count()
    with supervised.dump():
        assert not flushed.wait(0.02)
        supervised.image.write_bytes(b"RAM")
        assert flushed.wait(60)
    assert threading.active_count() == before
