from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.agent import FakeAgent
from tests.fakes.clock import TestClock
from tests.fakes.guest import UUID, FakeGuest
from zvmsnap.common import log
from zvmsnap.common.errors import DomainLocked, LibvirtFailed, NotHeld
from zvmsnap.common.process import uptime_s
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter, Journal
from zvmsnap.quiesce import thaw
from zvmsnap.virt.guest import Pause

ABOUT = log.about("web", "tank/web")
Held = Callable[..., Entry]
Change = Callable[[FakeGuest], None]


def journal(config: Config) -> Entry:
    (entry,) = Journal(config.journal_dir).entries()
    return entry


def release(config: Config, guest: FakeGuest, entry: Entry) -> Entry:
    thaw.resume_or_thaw(config, guest, EntryWriter(Journal(config.journal_dir), entry), ABOUT)
    return journal(config)


def as_it_was(guest: FakeGuest) -> None:
    pass


def by_user(guest: FakeGuest) -> None:
    guest.paused_because = Pause.USER


def io_error(guest: FakeGuest) -> None:
    guest.paused_because = Pause.IO_ERROR


def by_other(guest: FakeGuest) -> None:
    guest.paused_because = Pause.OTHER


def resumed(guest: FakeGuest) -> None:
    guest.paused_because = None


def off(guest: FakeGuest) -> None:
    guest.shut_off()


def gone(guest: FakeGuest) -> None:
    guest.exists = False


def agent(guest: FakeGuest) -> FakeAgent:
    assert guest.agent
    return guest.agent


def thawed(guest: FakeGuest) -> None:
    agent(guest).thaw()


def silent(guest: FakeGuest) -> None:
    agent(guest).answering = False


def fails(call: str, error: Exception, happening: Change = as_it_was) -> Change:
    """The next such call fails, after `happening`."""

    def change(guest: FakeGuest) -> None:
        def fail() -> None:
            happening(guest)
            raise error

        guest.at[call] = fail

    return change


TIMEOUT = LibvirtFailed("guest agent is not responding", 86)
WENT_ON = "it went on before its snapshot was known to be taken"
EARLY = "its file systems thawed before its snapshot was known"
SHUT_OFF = "it was shut off while its file systems were frozen"
PAUSED, QUIESCED, CRASH = ConsistencyLevel.PAUSED, ConsistencyLevel.QUIESCED, ConsistencyLevel.CRASH

DUMPED = {"disks_frozen_at_s": 0.0, "held_since_s": 0.0}

HELD = [
    pytest.param(PAUSED, {}, as_it_was, ["resume"], PAUSED, None, id="paused"),
    pytest.param(PAUSED, {}, by_user, ["resume"], PAUSED, None, id="paused to end its dump"),
    pytest.param(PAUSED, {}, resumed, [], CRASH, WENT_ON, id="paused, runs"),
    pytest.param(PAUSED, {}, off, [], CRASH, WENT_ON, id="paused, off"),
    pytest.param(PAUSED, {}, io_error, [], CRASH, WENT_ON, id="paused, by an I/O error"),
    pytest.param(PAUSED, {}, by_other, [], CRASH, WENT_ON, id="paused, by another cause"),
    pytest.param(PAUSED, DUMPED, as_it_was, ["resume"], PAUSED, None, id="dump of a dead hook"),
    pytest.param(PAUSED, DUMPED, resumed, [], PAUSED, None, id="dump that failed: it runs"),
    pytest.param(PAUSED, {"paused": False}, by_user, [], PAUSED, None, id="was resumed before"),
    pytest.param(QUIESCED, {}, as_it_was, ["thaw"], QUIESCED, None, id="quiesced"),
    pytest.param(QUIESCED, {}, thawed, ["thaw"], CRASH, EARLY, id="quiesced, thawed by itself"),
    pytest.param(QUIESCED, {}, off, [], CRASH, SHUT_OFF, id="quiesced, off"),
    pytest.param(
        QUIESCED,
        {"disks_frozen_at_s": 0.0},
        thawed,
        ["thaw"],
        QUIESCED,
        None,
        id="freeze that failed",
    ),
    pytest.param(QUIESCED, {"frozen": False}, thawed, [], QUIESCED, None, id="was thawed before"),
    pytest.param(
        QUIESCED, {}, fails("thaw", TIMEOUT), ["thaw"] * 2, QUIESCED, None, id="thawed at last"
    ),
    pytest.param(
        QUIESCED,
        {},
        fails("thaw", TIMEOUT, thawed),
        ["thaw"] * 2,
        QUIESCED,
        None,
        id="thaws, but says so too late",
    ),
    pytest.param(
        QUIESCED, {}, fails("thaw", TIMEOUT, off), ["thaw"], CRASH, SHUT_OFF, id="off meanwhile"
    ),
    pytest.param(
        ConsistencyLevel.MEMORY,
        {"paused": True},
        by_user,
        [],
        ConsistencyLevel.MEMORY,
        None,
        id="memory: release resumes it later",
    ),
    pytest.param(CRASH, {}, by_user, [], CRASH, None, id="crash"),
]


@pytest.mark.parametrize(("level", "said", "change", "calls", "becomes", "reason"), HELD)
def test_resume_or_thaw(
    config: Config,
    guest: FakeGuest,
    hold: Held,
    level: ConsistencyLevel,
    said: dict[str, Any],
    change: Change,
    calls: list[str],
    becomes: ConsistencyLevel,
    reason: str | None,
) -> None:
    known = hold(level, **said)
    change(guest)
    entry = release(config, guest, known)
    assert guest.calls == calls
    assert (entry.level, entry.reason) == (becomes, reason)
    assert not entry.frozen and not agent(guest).frozen
    if level is PAUSED:
        assert not entry.paused
    is_released = bool(calls) and becomes is level
    assert (entry.pause_s >= 5) is (is_released and known.held_since_s > 0)
    again = release(config, guest, entry)
    assert (guest.calls, again) == (calls, entry)


@pytest.mark.parametrize("attempts", [1, 2])
def test_agent_that_answers_after_a_while(
    config: Config,
    guest: FakeGuest,
    hold: Held,
    clock: TestClock,
    monkeypatch: pytest.MonkeyPatch,
    attempts: int,
) -> None:
    known = hold(QUIESCED)
    silent(guest)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        agent(guest).answering = len(slept) == attempts

    monkeypatch.setattr(clock, "sleep", sleep)
    entry = release(config, guest, known)
    assert (entry.level, entry.frozen, len(slept)) == (QUIESCED, False, attempts)


def test_agent_that_does_not_answer_is_asked_by_the_next_one(
    config: Config, guest: FakeGuest, hold: Held, tmp_path: Path
) -> None:
    known = hold(QUIESCED, thaw_script_due=True)
    config = with_post_thaw(config, tmp_path, "touch ran")
    silent(guest)
    with pytest.raises(NotHeld, match=r"cannot be thawed now: .*by hand: virsh domfsthaw web"):
        release(config, guest, known)
    assert journal(config) == known
    assert len(guest.asked) == thaw._THAW_ATTEMPTS
    assert not (tmp_path / "ran").exists()
    agent(guest).answering = True
    assert release(config, guest, known).level is QUIESCED
    assert (tmp_path / "ran").exists()


def test_guest_that_cannot_be_resumed_is_resumed_by_the_next_one(
    config: Config, guest: FakeGuest, hold: Held
) -> None:
    known = hold(PAUSED)
    fails("resume", LibvirtFailed("no", 38))(guest)
    with pytest.raises(LibvirtFailed):
        release(config, guest, known)
    assert journal(config) == known
    assert release(config, guest, known).level is PAUSED
    assert guest.paused_because is None


def with_post_thaw(config: Config, tmp_path: Path, text: str) -> Config:
    path = tmp_path / "guest.d" / "web" / "post-thaw"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\ncd {tmp_path}\n{text}\n")
    path.chmod(0o755)
    return msgspec.structs.replace(config, guest_scripts=str(tmp_path / "guest.d"))


@pytest.mark.parametrize(
    ("said", "change", "runs"),
    [
        pytest.param({}, as_it_was, False, id="pre-freeze was not begun"),
        pytest.param({"thaw_script_due": True}, as_it_was, True, id="frozen"),
        pytest.param({"thaw_script_due": True}, thawed, True, id="thawed by itself"),
        pytest.param({"thaw_script_due": True}, off, True, id="off"),
        pytest.param(
            {
                "thaw_script_due": True,
                "frozen": False,
                "disks_frozen_at_s": 0.0,
                "step": "pre-freeze",
            },
            thawed,
            True,
            id="pre-freeze failed",
        ),
    ],
)
def test_post_thaw(
    config: Config,
    guest: FakeGuest,
    hold: Held,
    tmp_path: Path,
    said: dict[str, Any],
    change: Change,
    runs: bool,
) -> None:
    known = hold(QUIESCED, **said)
    change(guest)
    config = with_post_thaw(config, tmp_path, "echo $ZVMSNAP_UUID >> ran")
    entry = release(config, guest, known)
    assert not entry.thaw_script_due
    assert (tmp_path / "ran").exists() is runs
    release(config, guest, entry)
    if runs:
        assert (tmp_path / "ran").read_text() == f"{UUID}\n"


@pytest.mark.parametrize("exists", [True, False], ids=["fails", "is gone"])
def test_post_thaw_that_fails_changes_nothing(
    config: Config,
    guest: FakeGuest,
    hold: Held,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    exists: bool,
) -> None:
    known = hold(QUIESCED, thaw_script_due=True)
    if exists:
        config = with_post_thaw(config, tmp_path, "echo no database\nexit 4")
    entry = release(config, guest, known)
    assert (entry.level, entry.thaw_script_due) == (QUIESCED, False)
    assert ("post-thaw: failed (4): no database" in caplog.text) is exists


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param(as_it_was, "", id="frozen"),
        pytest.param(thawed, EARLY, id="thawed by itself"),
        pytest.param(off, SHUT_OFF, id="off"),
        pytest.param(silent, "cannot be thawed now", id="does not answer"),
    ],
)
def test_thaw_file_systems(
    config: Config, guest: FakeGuest, hold: Held, change: Change, why: str
) -> None:
    writer = EntryWriter(Journal(config.journal_dir), hold(QUIESCED))
    change(guest)
    if why:
        with pytest.raises(NotHeld, match=why):
            thaw.thaw_file_systems(config, guest, writer, ABOUT)
    else:
        thaw.thaw_file_systems(config, guest, writer, ABOUT)
        assert 5 <= journal(config).pause_s < 500
    assert journal(config).frozen is agent(guest).frozen is (change is silent)


def busy(guest: FakeGuest) -> None:
    guest.job = True


AT_DEADLINE = [
    pytest.param(PAUSED, {}, as_it_was, "paused", ["resume"], id="paused"),
    pytest.param(PAUSED, {}, by_user, "paused", ["resume"], id="paused to end its dump"),
    pytest.param(PAUSED, {}, busy, "", [], id="paused, but its RAM is being written"),
    pytest.param(
        PAUSED, {}, fails("has_job", DomainLocked("no", 68)), "", [], id="paused, and locked"
    ),
    pytest.param(PAUSED, {}, io_error, "", [], id="paused, by an I/O error"),
    pytest.param(PAUSED, {}, resumed, "", [], id="paused, runs"),
    pytest.param(PAUSED, {}, off, "", [], id="paused, off"),
    pytest.param(PAUSED, {"paused": False}, by_user, "", [], id="paused by somebody, after us"),
    pytest.param(QUIESCED, {}, as_it_was, "frozen", ["thaw"], id="quiesced"),
    pytest.param(QUIESCED, {}, thawed, "", [], id="quiesced, thawed by itself"),
    pytest.param(QUIESCED, {}, off, "", [], id="quiesced, off"),
    pytest.param(QUIESCED, {}, by_user, None, [], id="quiesced, but paused by somebody"),
    pytest.param(QUIESCED, {"frozen": False}, as_it_was, "", [], id="frozen by somebody, not us"),
    pytest.param(QUIESCED, {}, silent, None, [], id="quiesced, does not answer"),
    pytest.param(QUIESCED, {}, gone, None, [], id="quiesced, gone"),
]


@pytest.mark.parametrize(("level", "said", "change", "was", "calls"), AT_DEADLINE)
def test_without_the_lock(
    config: Config,
    guest: FakeGuest,
    hold: Held,
    level: ConsistencyLevel,
    said: dict[str, Any],
    change: Change,
    was: str | None,
    calls: list[str],
) -> None:
    known = hold(level, **said)
    change(guest)
    if was is None:
        with pytest.raises(LibvirtFailed):
            thaw.resume_or_thaw_unlocked(guest, known)
    else:
        assert thaw.resume_or_thaw_unlocked(guest, known) == was
    assert guest.calls == calls
    # Only who has the guest's lock changes the journal.
    assert journal(config) == known


def test_post_sees_what_was_done_at_the_deadline(
    config: Config, guest: FakeGuest, hold: Held
) -> None:
    for level, reason in ((PAUSED, WENT_ON), (QUIESCED, EARLY)):
        known = hold(level)
        assert thaw.resume_or_thaw_unlocked(guest, known)
        entry = release(config, guest, known)
        assert (entry.level, entry.reason) == (CRASH, reason)


def test_the_clock_of_held_guests_is_the_same_for_all_processes() -> None:
    says_s = float(Path("/proc/uptime").read_text().split()[0])
    assert abs(uptime_s() - says_s) < 60
