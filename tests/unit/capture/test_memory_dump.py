import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from zvmsnap.capture.memory_dump import Dump, DumpSupervisor, Pace
from zvmsnap.common.errors import DomainGone, LibvirtFailed
from zvmsnap.common.waiting import Clock
from zvmsnap.config.settings import Limits
from zvmsnap.points.manifest import PauseParts
from zvmsnap.virt.guest import JobProgress, Pause
from zvmsnap.virt.guest_state import PauseClock

MIB = 1 << 20
LIMITS = Limits(pause_first_ms=30, pause_max_ms=1000, dump_min_mib_per_s=4, max_freeze_s=60)


class FakeGuest:
    """Notes what is asked of it; its dump ends when its supervisor has done enough."""

    def __init__(self) -> None:
        self.pause_ms = 300
        self.mib_per_s = 2000
        self.calls: list[str] = []
        self.failing: dict[str, int] = {}
        self.progress = JobProgress()
        self.paused_because: Pause | None = None

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

    def migrate_max_speed_mib(self) -> int:
        return self.mib_per_s

    def migrate_set_max_speed_mib(self, mib_per_s: int) -> None:
        self._note(f"speed {mib_per_s}")
        self.mib_per_s = mib_per_s

    def pause_reason(self) -> Pause | None:
        return self.paused_because

    def job_progress(self) -> JobProgress:
        if self.failing.get("progress"):
            raise LibvirtFailed("no progress")
        return self.progress

    def suspend(self) -> None:
        self._note("suspend")
        self.paused_because = Pause.USER

    def resume(self) -> None:
        self._note("resume")
        self.paused_because = None

    def abort_job(self) -> None:
        self._note("abort")

    def dump_ends(self) -> None:
        """libvirt resumes the guest at the end of every dump."""
        self.paused_because = None


class DumpClock(Clock):
    """A clock that goes on only when the test says so; counts how often it was waited for."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self._looks = 0
        self._seen = 0
        self._looked = threading.Condition()
        self._changes: list[Callable[[], None]] = []

    def now_s(self) -> float:
        return self.time_s

    def wait(self, event: threading.Event | threading.Condition, timeout_s: float) -> bool:
        if threading.current_thread().name.startswith("watch"):
            with self._looked:
                while self._changes:
                    self._changes.pop(0)()
                self._looks += 1
                self._looked.notify_all()
        if threading.current_thread().name.startswith("see"):
            with self._looked:
                self._seen += 1
                self._looked.notify_all()
        return event.wait(0.001)

    def let_see(self) -> None:
        """Return when the overlays were looked at once more."""
        with self._looked:
            wanted = self._seen + 2
            assert self._looked.wait_for(lambda: self._seen >= wanted, 60)

    def pass_s(self, seconds: float, change: Callable[[], None] = lambda: None) -> None:
        """Let time pass, until the supervisor has looked and done what the time demands.

        What changes with it changes between two looks: none sees but a part of it.
        """

        def go_on() -> None:
            change()
            self.time_s += seconds

        with self._looked:
            self._changes.append(go_on)
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

    def changes_speed(self, original_mib_per_s: int) -> None:
        self._tell(f"changes speed {original_mib_per_s}")

    def restored(self) -> None:
        self._tell("restored")

    def pauses(self) -> None:
        self._tell("pauses")

    def warns(self, message: str) -> None:
        self.warnings.append(message)

    def _tell(self, what: str) -> None:
        self.told.append((what, list(self._guest.calls)))


class Supervised:
    """A guest, the image of its dump, and a supervisor with the limits of the test."""

    def __init__(self, image: Path) -> None:
        image.touch()
        self.guest = FakeGuest()
        self.image = image
        self.clock = DumpClock()
        self.cancelled = threading.Event()
        self.notes = Notes(self.guest)

    def dump(
        self,
        limits: Limits = LIMITS,
        *,
        stays_paused: bool = False,
        room_bytes: int = 10**12,
        pace: Pace | None = None,
    ) -> DumpSupervisor:
        dump = Dump(self.image, room_bytes, stays_paused, pace=pace)
        return DumpSupervisor(
            self.guest, dump, limits, self.notes, self.cancelled, clock=self.clock
        )

    def passes(self, count: int, each_s: float = 10) -> None:
        """As many passes, none of which has less to write than the one before."""
        for _ in range(count):
            self.clock.pass_s(each_s, self._end_pass)

    def _end_pass(self) -> None:
        last = self.guest.progress
        self.guest.progress = JobProgress(
            last.number + 1, last.written_bytes + 100 * MIB, 100 * MIB
        )


class ChangingDump(Dump):
    """A dump whose overlays have changed when the test says so (time.time)."""

    changed_at_s: ClassVar[float] = 0.0

    def overlays_changed_at_s(self) -> float:
        return ChangingDump.changed_at_s


STUCK = 4  # passes after which the guest is paused


@pytest.fixture
def supervised(tmp_path: Path) -> Supervised:
    return Supervised(tmp_path / "memory.img")


def test_an_easy_dump_changes_only_the_allowed_pause(supervised: Supervised) -> None:
    with supervised.dump():
        assert supervised.guest.pause_ms == 30
        supervised.passes(1, each_s=20)
    assert supervised.guest.calls == ["allow 30", "allow 300"]
    assert supervised.notes.warnings == []


def test_the_allowed_pause_is_raised_as_the_passes_demand(supervised: Supervised) -> None:
    with supervised.dump():
        supervised.passes(4, each_s=0.3)
    assert supervised.guest.calls == [
        "allow 30",
        "allow 375",
        "allow 750",
        "allow 1000",
        "allow 300",
    ]


def test_guest_is_paused_once_to_finish(supervised: Supervised) -> None:
    with supervised.dump():
        supervised.passes(STUCK)
        assert supervised.guest.paused_because
        supervised.clock.let_look(3)
        supervised.guest.dump_ends()
    assert supervised.guest.calls == ["allow 30", "suspend", "allow 300"]
    assert supervised.notes.warnings == [
        "its RAM changes faster than it can be written: pausing it to finish, for about 10.0 s"
    ]


def test_pause_that_lasts_too_long_is_ended_by_an_abort(supervised: Supervised) -> None:
    """The disk has become slow since."""
    supervisor = supervised.dump()
    with pytest.raises(LibvirtFailed, match="aborted"), supervisor:
        supervised.passes(STUCK)
        supervised.image.write_bytes(b"x" * MIB)
        supervised.clock.pass_s(49)
        assert supervised.guest.calls == ["allow 30", "suspend"]
        supervised.clock.pass_s(11)
        raise LibvirtFailed("aborted")
    assert supervisor.why_aborted == "the guest is paused for it since 60 s (limits.max_freeze_s)"
    assert supervised.guest.calls[-2:] == ["resume", "allow 300"]
    assert supervised.guest.paused_because is None


def test_pause_of_qemu_that_lasts_too_long_is_ended_by_an_abort(supervised: Supervised) -> None:
    """It took the disk for faster than it is."""
    with pytest.raises(LibvirtFailed, match="aborted"), supervised.dump():
        supervised.passes(2)
        supervised.guest.paused_because = Pause.JOB
        supervised.clock.pass_s(0)
        supervised.clock.pass_s(60)
        assert "abort" in supervised.guest.calls
        raise LibvirtFailed("aborted")


@pytest.mark.parametrize("because", [Pause.USER, Pause.IO_ERROR])
def test_pause_of_somebody_else_is_none_of_the_dump(supervised: Supervised, because: Pause) -> None:
    with supervised.dump():
        supervised.guest.paused_because = because
        supervised.passes(1)
        for _ in range(2):
            supervised.guest.progress = JobProgress(1, 1000 * MIB, 50 * MIB)
            supervised.clock.pass_s(50)
    assert supervised.guest.calls == ["allow 30", "allow 300"]
    assert supervised.guest.paused_because is because


@pytest.mark.parametrize("stays_paused", [False, True])
def test_a_pause_that_comes_after_the_dump(supervised: Supervised, stays_paused: bool) -> None:
    with supervised.dump(stays_paused=stays_paused):
        supervised.passes(STUCK)
    # Whoever releases a guest that stays paused puts its allowed pause back, too.
    over = [] if stays_paused else ["resume", "allow 300"]
    assert supervised.guest.calls == ["allow 30", "suspend", *over]
    assert bool(supervised.guest.paused_because) is stays_paused


def test_a_guest_that_cannot_be_resumed_is_warned_of(supervised: Supervised) -> None:
    supervised.guest.failing = {"resume": 9}
    with supervised.dump():
        supervised.passes(STUCK)
    assert supervised.notes.warnings[1:] == [
        "it may still be paused, as it could not be resumed: no resume"
    ]
    assert supervised.guest.pause_ms == 300


def test_aborted_when_cancelled(supervised: Supervised) -> None:
    supervised.cancelled.set()
    with pytest.raises(LibvirtFailed, match="aborted"), supervised.dump():
        supervised.clock.let_look()
        raise LibvirtFailed("aborted")
    assert set(supervised.guest.calls) == {"allow 30", "abort", "allow 300"}
    assert supervised.guest.calls[-1] == "allow 300"


def test_aborted_before_it_outgrows_what_is_reserved(supervised: Supervised) -> None:
    supervisor = supervised.dump(room_bytes=1000)
    with supervisor:
        supervised.image.write_bytes(b"x" * 1000)
        supervised.clock.let_look()
        assert "abort" not in supervised.guest.calls
        supervised.image.write_bytes(b"x" * 1001)
        supervised.clock.let_look()
        assert "abort" in supervised.guest.calls
    assert "are reserved for it in staging" in supervisor.why_aborted


def test_no_abort_is_prevented_by_progress_that_cannot_be_told(supervised: Supervised) -> None:
    supervised.guest.failing = {"progress": 1}
    with supervised.dump(room_bytes=1000):
        supervised.image.write_bytes(b"x" * 1001)
        supervised.clock.let_look()
    assert "abort" in supervised.guest.calls


class FakePace:
    """Says what the test says."""

    def __init__(self) -> None:
        self.ahead = False
        self.waited_for = False
        self.told: list[int] = []

    def is_ahead(self, rest_bytes: int) -> bool:
        self.told.append(rest_bytes)
        return self.ahead

    def is_waited_for(self) -> bool:
        return self.waited_for


@pytest.fixture
def pace(supervised: Supervised) -> FakePace:
    supervised.guest.progress = JobProgress(1, 1000 * MIB, 50 * MIB)
    return FakePace()


def test_a_dump_that_is_ahead_is_slowed_until_it_is_not(
    supervised: Supervised, pace: FakePace
) -> None:
    with supervised.dump(stays_paused=True, pace=pace):
        supervised.clock.let_look(3)
        assert supervised.guest.calls == ["allow 30"]
        pace.ahead = True
        supervised.clock.let_look(3)
        assert supervised.guest.calls == ["allow 30", "speed 1"]
        pace.ahead = False
        supervised.clock.let_look(3)
    assert supervised.guest.calls == ["allow 30", "speed 1", "speed 8796093022207"]
    assert pace.told[0] == 50 * MIB
    assert supervised.notes.told == [("changes 300", []), ("changes speed 2000", ["allow 30"])]


def test_a_dump_that_is_slowed_is_not_too_slow(supervised: Supervised, pace: FakePace) -> None:
    with supervised.dump(stays_paused=True, pace=pace):
        pace.ahead = True
        supervised.clock.let_look(3)
        for _ in range(3):
            supervised.clock.pass_s(61)
        assert "abort" not in supervised.guest.calls
        pace.ahead = False
        supervised.clock.let_look(3)
        supervised.clock.pass_s(61)
        supervised.clock.let_look()
        assert "abort" in supervised.guest.calls


def test_passes_in_which_it_was_slowed_say_nothing(supervised: Supervised, pace: FakePace) -> None:
    with supervised.dump(stays_paused=True, pace=pace):
        pace.ahead = True
        supervised.clock.let_look(3)
        supervised.passes(STUCK + 2)
    assert supervised.guest.calls == ["allow 30", "speed 1"]


def test_a_dump_that_others_wait_for_may_end_with_a_longer_pause(
    supervised: Supervised, pace: FakePace
) -> None:
    with supervised.dump(stays_paused=True, pace=pace):
        pace.waited_for = True
        supervised.clock.let_look(3)
    assert supervised.guest.calls == ["allow 30", "allow 1000"]


def test_a_slowed_dump_that_fails_leaves_all_as_it_was(
    supervised: Supervised, pace: FakePace
) -> None:
    with (
        pytest.raises(LibvirtFailed, match="aborted"),
        supervised.dump(stays_paused=True, pace=pace),
    ):
        pace.ahead = True
        supervised.clock.let_look(3)
        raise LibvirtFailed("aborted")
    assert supervised.guest.calls == ["allow 30", "speed 1", "allow 300", "speed 2000"]
    assert supervised.notes.told[-1] == ("restored", supervised.guest.calls)


def test_a_dump_is_not_slowed_where_that_cannot_be_noted(
    supervised: Supervised, pace: FakePace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash nobody would know what the speed was."""
    full(supervised.notes, monkeypatch, "changes_speed")
    with supervised.dump(stays_paused=True, pace=pace):
        pace.ahead = True
        supervised.clock.let_look(3)
    assert supervised.guest.calls == ["allow 30"]


def test_the_observer_is_told_before_a_change(supervised: Supervised) -> None:
    with supervised.dump():
        supervised.passes(STUCK)
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
    with supervised.dump(room_bytes=0):
        if cancelled:
            supervised.cancelled.set()
        supervised.passes(STUCK)
        assert supervised.guest.calls == ["allow 30"]
        supervised.image.write_bytes(b"x")
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
        supervised.passes(STUCK)
        supervised.clock.let_look(3)
        supervised.guest.dump_ends()
    assert supervised.guest.calls == ["allow 30", *["suspend"] * 3, "allow 300"]


# -- a full journal

FULL = OSError(errno.ENOSPC, "No space left on device")


def full(notes: Notes, monkeypatch: pytest.MonkeyPatch, *calls: str) -> None:
    def fail(*_arguments: object) -> None:
        raise FULL

    for call in calls:
        monkeypatch.setattr(notes, call, fail)


def test_no_pause_that_cannot_be_noted_but_the_watch_goes_on(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, supervised.dump(room_bytes=1 << 30):
        full(supervised.notes, patch, "pauses")
        supervised.passes(STUCK)
        supervised.clock.let_look(3)
        assert supervised.guest.calls == ["allow 30"]
        os.truncate(supervised.image, (1 << 30) + 1)
        supervised.clock.let_look()
        assert supervised.guest.calls[1] == "abort"
    (warning,) = supervised.notes.warnings
    assert "No space left on device" in warning


def test_the_pause_comes_when_it_can_be_noted_again(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    with supervised.dump():
        with monkeypatch.context() as patch:
            full(supervised.notes, patch, "pauses")
            supervised.passes(STUCK)
            assert supervised.guest.calls == ["allow 30"]
        supervised.clock.let_look()
        assert supervised.guest.calls == ["allow 30", "suspend"]
        supervised.guest.dump_ends()


def test_cancellation_needs_no_note(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(supervised.notes, monkeypatch, "pauses")
    with supervised.dump():
        supervised.passes(STUCK)
        supervised.cancelled.set()
        supervised.clock.let_look()
        assert "abort" in supervised.guest.calls


def test_whatever_goes_wrong_the_watch_goes_on(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    with supervised.dump():
        with monkeypatch.context() as patch:
            patch.setattr(supervised.guest, "job_progress", lambda: 1 // 0)
            supervised.clock.let_look(3)
        supervised.cancelled.set()
        supervised.clock.let_look()
        assert "abort" in supervised.guest.calls


def test_a_dump_is_not_lost_because_the_end_cannot_be_noted(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(supervised.notes, monkeypatch, "restored")
    with supervised.dump():
        pass
    assert supervised.guest.pause_ms == 300
    assert "not noted" in supervised.notes.warnings[0]


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


# -- what the guest was paused for


class Night:
    """A pause from 100 on; the clock of files is 5000 s before the other one."""

    def __init__(self, supervised: Supervised, monkeypatch: pytest.MonkeyPatch) -> None:
        self._supervised = supervised
        self._now_s = 100.0
        self.pause = PauseClock()
        monkeypatch.setattr(time, "monotonic", lambda: self._now_s)
        monkeypatch.setattr(time, "time", lambda: self._now_s + 5000)
        monkeypatch.setattr(ChangingDump, "changed_at_s", 0.0)

    def supervisor(self, *, stays_paused: bool = False) -> DumpSupervisor:
        of_night, image = self._supervised, self._supervised.image
        overlays = () if stays_paused else (image.with_name("vda.zvmsnap.qcow2"),)
        dump = ChangingDump(image, 10**12, stays_paused, overlays)
        return DumpSupervisor(
            of_night.guest, dump, LIMITS, of_night.notes, of_night.cancelled, clock=of_night.clock
        )

    def at(self, second: float, event: Callable[[], None]) -> None:
        self._now_s = second
        event()

    def completes_image(self, second: float) -> None:
        os.utime(self._supervised.image, (5000 + second, 5000 + second))

    def changes_overlays(self, second: float) -> None:
        ChangingDump.changed_at_s = 5000 + second
        self._supervised.clock.let_see()


@pytest.fixture
def night(supervised: Supervised, monkeypatch: pytest.MonkeyPatch) -> Night:
    return Night(supervised, monkeypatch)


def rounded(parts: PauseParts) -> PauseParts:
    return PauseParts(*(round(part_s, 3) for part_s in msgspec.structs.astuple(parts)))


@pytest.mark.parametrize(
    ("is_told", "completed_at_s", "parts"),
    [
        pytest.param(True, 100.09, PauseParts(0, 0.07, 0.02, 0.91, 0, 0.3), id="all"),
        pytest.param(False, 100.09, PauseParts(0, 0, 0, 0.91, 0, 0.3), id="no event of the job"),
        pytest.param(True, 90, PauseParts(0, 0.07, 0, 0, 0, 0.3), id="the clock of files was set"),
        pytest.param(
            True, 100.06, PauseParts(0, 0.07, 0, 0.93, 0, 0.3), id="the event came a little late"
        ),
    ],
)
def test_parts_of_a_pause(
    night: Night, is_told: bool, completed_at_s: float, parts: PauseParts
) -> None:
    with night.supervisor() as supervisor:
        night.at(100, night.pause.paused)
        if is_told:
            night.at(100.07, lambda: night.pause.job_ended(0.05))
        night.completes_image(completed_at_s)
        night.at(100.6, lambda: night.changes_overlays(100.5))
        night.at(101.1, lambda: night.changes_overlays(101.0))
        night.at(101.3, night.pause.resumed)
        night.at(101.4, lambda: night.changes_overlays(101.4))  # the guest writes
    assert rounded(supervisor.pause_parts(night.pause)) == parts


def test_of_a_guest_that_stays_paused_ram_and_flush_are_told(night: Night) -> None:
    with night.supervisor(stays_paused=True) as supervisor:
        night.at(100, night.pause.paused)
        night.at(100.07, lambda: night.pause.job_ended(0.05))
        night.completes_image(100.2)
        night.at(100.4, lambda: None)
    assert rounded(supervisor.pause_parts(night.pause)) == PauseParts(0, 0.07, 0.13, 0, 0, 0)


def test_without_an_image_nothing_is_told(night: Night, supervised: Supervised) -> None:
    """It only tells a person: the level is reached, or fails when the image's head is read."""
    with night.supervisor() as supervisor:
        night.at(100, night.pause.paused)
        supervised.image.unlink()
    assert supervisor.pause_parts(night.pause) == PauseParts()


def test_without_an_event_of_the_pause_nothing_is_told(night: Night) -> None:
    with night.supervisor() as supervisor:
        night.completes_image(100)
    assert supervisor.pause_parts(night.pause) == PauseParts()
