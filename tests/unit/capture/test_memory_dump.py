import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.capture import memory_dump
from zvmsnap.capture.memory_dump import Action, DumpSupervisor, Verb, decide
from zvmsnap.common.errors import DomainGone, LibvirtFailed
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
    """Notes what is asked of it; its dump ends when its watch has done enough."""

    def __init__(self) -> None:
        self.pause_ms = 300
        self.calls: list[str] = []
        self.failing: dict[str, int] = {}
        self._state = "running"
        self._changed = threading.Condition()

    def _note(self, call: str) -> None:
        with self._changed:
            self.calls.append(call)
            self._changed.notify_all()
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
        with self._changed:
            self._state = "paused"
            self._changed.notify_all()

    def resume(self) -> None:
        self._note("resume")
        self._state = "running"

    def abort_job(self) -> None:
        self._note("abort")

    def dump_ends(self) -> None:
        """libvirt resumes the guest at the end of every dump."""
        self._state = "running"

    def dump_until(self, call: str, times: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.calls.count(call) >= times, 5), self.calls

    def dump_until_paused(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._state == "paused", 5), self.calls


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_dump, "_LOOK_EVERY_S", 0.002)
    monkeypatch.setattr(memory_dump, "_FLUSH_EVERY_S", 0.001)


class Watched:
    """A guest, its image, and a watch with the limits of the test."""

    def __init__(self, image: Path) -> None:
        image.touch()
        self.guest = FakeGuest()
        self.image = image
        self.cancelled = threading.Event()
        self.said: list[str] = []
        self.noted: list[tuple[dict[str, object], list[str]]] = []

    def watch(self, **limits: float) -> DumpSupervisor:
        changed = Limits(**limits)  # type: ignore[arg-type]
        return DumpSupervisor(
            self.guest,
            self.image,
            1000,
            changed,
            self.cancelled,
            self.said.append,
            lambda **changes: self._note(changes),
        )

    def _note(self, changes: dict[str, object]) -> None:
        self.noted.append((changes, list(self.guest.calls)))


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "memory.img")


def test_an_easy_dump_changes_only_the_allowed_pause(watched: Watched) -> None:
    with watched.watch():
        assert watched.guest.pause_ms == 30
        time.sleep(0.02)
    assert watched.guest.calls == ["allow 30", "allow 300"]
    assert watched.said == []


def test_pause_is_raised_step_by_step(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    table = iter([allow(pause_ms) for pause_ms in (30, 60, 60, 120, 90)])
    monkeypatch.setattr(memory_dump, "decide", lambda *_, **__: next(table, allow(1000)))
    with watched.watch():
        watched.guest.dump_until("allow 1000")
    assert watched.guest.calls == [f"allow {pause_ms}" for pause_ms in (30, 60, 120, 1000, 300)]


@pytest.mark.parametrize(
    ("limits", "image"),
    [
        pytest.param({"dump_pause_after_s": 0.01}, None, id="for its time"),
        pytest.param({"dump_pause_after_s": 60}, b"x" * 1501, id="for its size"),
    ],
)
def test_guest_is_paused_once_to_finish(
    watched: Watched, limits: dict[str, float], image: bytes | None
) -> None:
    if image:
        watched.image.write_bytes(image)
    with watched.watch(**limits):
        watched.guest.dump_until_paused()
        time.sleep(0.02)
        watched.guest.dump_ends()
    assert watched.guest.calls == ["allow 30", "suspend", "allow 300"]
    assert watched.said == ["its RAM changes faster than it can be written: pausing it to finish"]


def test_a_pause_that_comes_after_the_dump_does_not_stay(watched: Watched) -> None:
    with watched.watch(dump_pause_after_s=0.01):
        watched.guest.dump_until_paused()
    assert watched.guest.calls == ["allow 30", "suspend", "resume", "allow 300"]
    assert watched.guest.state() == "running"


def test_a_guest_that_somebody_else_paused_is_left_alone(watched: Watched) -> None:
    with watched.watch():
        watched.guest._state = "paused"
    assert watched.guest.calls == ["allow 30", "allow 300"]


def test_what_cannot_be_resumed_is_said(watched: Watched) -> None:
    watched.guest.failing = {"resume": 9}
    with watched.watch(dump_pause_after_s=0.01):
        watched.guest.dump_until_paused()
    assert watched.said[1:] == ["it may still be paused, as it could not be resumed: no resume"]
    assert watched.guest.pause_ms == 300


@pytest.mark.parametrize(
    ("deadline_s", "cancelled"),
    [pytest.param(0.01, False, id="deadline"), pytest.param(300, True, id="cancelled")],
)
def test_aborted(watched: Watched, deadline_s: float, cancelled: bool) -> None:
    if cancelled:
        watched.cancelled.set()
    with (
        pytest.raises(LibvirtFailed, match="aborted"),
        watched.watch(dump_abort_after_s=deadline_s),
    ):
        watched.guest.dump_until("abort")
        raise LibvirtFailed("aborted")
    assert set(watched.guest.calls) == {"allow 30", "abort", "allow 300"}
    assert watched.guest.calls[-1] == "allow 300"


def test_what_is_changed_is_written_down_before(watched: Watched) -> None:
    with watched.watch(dump_pause_after_s=0.01):
        watched.guest.dump_until_paused()
        watched.guest.dump_ends()
    assert watched.noted == [
        ({"original_downtime_ms": 300}, []),
        ({"paused": True}, ["allow 30"]),
        ({"original_downtime_ms": None}, ["allow 30", "suspend", "allow 300"]),
    ]


@pytest.mark.parametrize("cancelled", [False, True])
def test_nobody_suffers_while_the_job_of_somebody_else_is_waited_for(
    watched: Watched, cancelled: bool
) -> None:
    watched.image.unlink()
    with watched.watch(dump_pause_after_s=0.01, dump_abort_after_s=99):
        if cancelled:
            watched.cancelled.set()
        time.sleep(0.05)
        assert not {"abort", "suspend"} & set(watched.guest.calls)
        watched.cancelled.set()
        watched.image.touch()
        watched.guest.dump_until("abort")


def test_abort_is_tried_again(watched: Watched) -> None:
    watched.guest.failing = {"abort": 3}
    watched.cancelled.set()
    with watched.watch():
        watched.guest.dump_until("abort", times=4)
    assert watched.guest.failing == {"abort": 0}


def test_suspend_is_tried_again(watched: Watched) -> None:
    watched.guest.failing = {"suspend": 2}
    with watched.watch(dump_pause_after_s=0.01):
        watched.guest.dump_until_paused()
        watched.guest.dump_ends()
    assert watched.guest.calls == ["allow 30", *["suspend"] * 3, "allow 300"]


@pytest.mark.parametrize("failure", [LibvirtFailed("no dump"), DomainGone("gone"), OSError("no")])
def test_old_pause_comes_back_when_the_dump_fails(watched: Watched, failure: Exception) -> None:
    with pytest.raises(type(failure), match=str(failure)), watched.watch():
        raise failure
    assert watched.guest.pause_ms == 300


def test_old_pause_that_cannot_be_put_back_is_said(watched: Watched) -> None:
    watched.guest.failing = {"allow 300": 1}
    with watched.watch():
        pass
    assert watched.said == ["its allowed pause could not be put back to 300 ms: no allow 300"]
    # So that leave puts it back.
    assert watched.noted == [({"original_downtime_ms": 300}, [])]


def test_no_thread_begins_where_the_pause_cannot_be_set(watched: Watched) -> None:
    watched.guest.failing = {"allow 30": 1}
    before = threading.active_count()
    with pytest.raises(LibvirtFailed, match="no allow 30"), watched.watch():
        pytest.fail("the dump must not begin")
    assert threading.active_count() == before


def test_image_is_flushed_from_its_first_byte_on(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = threading.Event()
    sync = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        sync(descriptor)
        flushed.set()

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    watched.image.unlink()
    before = threading.active_count()
    with watched.watch():
        assert not flushed.wait(0.02)
        watched.image.write_bytes(b"RAM")
        assert flushed.wait(5)
    assert threading.active_count() == before
