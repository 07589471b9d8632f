import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import pytest

from tests.fakes.agent import FakeAgent
from tests.fakes.clock import until
from tests.fakes.guest import OTHER, UUID, DumpedGuest, FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.images import make_base
from zvmsnap.common.errors import LibvirtFailed
from zvmsnap.common.lockfile import lock
from zvmsnap.common.process import Process, uptime_s
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config, Limits
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.quiesce import deadline
from zvmsnap.quiesce.deadline import DeadlineEnforcer
from zvmsnap.virt.guest import Guest, Pause
from zvmsnap.virt.host import Host

OWNER = Process(4711, 815, "a-boot")
ANOTHER = Process(4712, 815, "a-boot")
Hold = Callable[..., Entry]
HOUR_S = 3600.0
BOTH = pytest.mark.parametrize("level", [ConsistencyLevel.PAUSED, ConsistencyLevel.QUIESCED])


@pytest.fixture(autouse=True)
def _on_the_host(host: FakeHost) -> None:
    """The watchdog connects to the host with the guest."""


@pytest.fixture
def db(tmp_path: Path, config: Config, entry: Hold, host: FakeHost) -> DumpedGuest:
    """Another guest of the same owner, which is paused for an hour already."""
    other = DumpedGuest("db", OTHER, vda=make_base(tmp_path / "tank" / "db.raw"))
    other.paused_because = Pause.JOB
    said = {"level": ConsistencyLevel.PAUSED, "paused": True, "disks_frozen_at_s": 1.0, "disks": ()}
    known = entry(uuid=OTHER, domain="db", owner=OWNER, held_since_s=since(HOUR_S), **said)
    Journal(config.journal_dir).write(known)
    host.known.append(other)
    return other


def since(seconds: float) -> float:
    return uptime_s() - seconds


def overdue() -> dict[str, Any]:
    """Held for an hour, which is longer than the default limit."""
    return {"owner": OWNER, "held_since_s": since(HOUR_S)}


def within(config: Config, limit_s: float) -> Config:
    return msgspec.structs.replace(config, limits=Limits(max_freeze_s=limit_s))


def is_held(guest: FakeGuest) -> bool:
    return bool(guest.paused_because or (guest.agent and guest.agent.frozen))


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The UUIDs of the guests that were looked at, once for each look that has ended."""
    ended: list[str] = []
    check = DeadlineEnforcer._check

    def counted(
        enforcer: DeadlineEnforcer, guests: deadline._Guests, entry: Entry, lost: Event
    ) -> None:
        check(enforcer, guests, entry, lost)
        ended.append(entry.uuid)

    monkeypatch.setattr(DeadlineEnforcer, "_check", counted)
    return ended


def of_guest(config: Config, uuid: str = UUID) -> Entry:
    entry = Journal(config.journal_dir).read(uuid)
    assert entry
    return entry


@BOTH
def test_released_though_somebody_hangs_with_its_lock(
    config: Config, guest: FakeGuest, hold: Hold, level: ConsistencyLevel
) -> None:
    known = hold(level, **overdue())
    with lock(config.locks_dir, UUID, "capture", 1), deadline.enforce_deadline(config, OWNER):
        until(lambda: not is_held(guest))
    assert guest.calls == ["resume" if level is ConsistencyLevel.PAUSED else "thaw"]
    assert of_guest(config) == known


@BOTH
def test_post_thaw_and_the_entry_where_the_lock_is_free(
    config: Config,
    guest: FakeGuest,
    hold: Hold,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    level: ConsistencyLevel,
) -> None:
    path = tmp_path / "guest.d" / "web" / "post-thaw"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    path.chmod(0o755)
    config = msgspec.structs.replace(config, guest_scripts=str(tmp_path / "guest.d"))
    hold(level, thaw_script_due=level is ConsistencyLevel.QUIESCED, **overdue())
    with deadline.enforce_deadline(config, OWNER):
        until(lambda: of_guest(config).level is ConsistencyLevel.CRASH)
        until(lambda: not of_guest(config).thaw_script_due)
    entry = of_guest(config)
    assert (entry.paused, entry.frozen, entry.may_hold_guest) == (False, False, False)
    assert entry.reason and "before its snapshot was known" in entry.reason
    assert (tmp_path / "ran").exists() is (level is ConsistencyLevel.QUIESCED)
    was, done = ("paused", "resumed") if level is ConsistencyLevel.PAUSED else ("frozen", "thawed")
    said = rf"web \(tank/web\): was {was} for 36\d\d s: {done} at the deadline"
    assert re.search(said, caplog.text)


@BOTH
def test_not_before(config: Config, guest: FakeGuest, hold: Hold, level: ConsistencyLevel) -> None:
    known = hold(level, owner=OWNER, held_since_s=since(0))
    with deadline.enforce_deadline(within(config, 0.3), OWNER):
        until(lambda: not is_held(guest))
    assert uptime_s() - known.held_since_s >= 0.3


@pytest.mark.parametrize(
    ("held_s", "said"),
    [
        pytest.param(HOUR_S, {"owner": OWNER}, id="not yet"),
        pytest.param(9 * HOUR_S, {"owner": ANOTHER}, id="of another owner"),
        pytest.param(9 * HOUR_S, {"owner": OWNER, "paused": False}, id="resumed already"),
    ],
)
def test_which_guests_are_not_touched(
    config: Config,
    guest: FakeGuest,
    db: FakeGuest,
    hold: Hold,
    held_s: float,
    said: dict[str, Any],
) -> None:
    known = hold(ConsistencyLevel.PAUSED, held_since_s=since(held_s), **said)
    overdue_db = msgspec.structs.replace(of_guest(config, OTHER), held_since_s=since(9 * HOUR_S))
    Journal(config.journal_dir).write(overdue_db)
    with deadline.enforce_deadline(within(config, 5 * HOUR_S), OWNER):
        until(lambda: not is_held(db))
        until(lambda: of_guest(config, OTHER).level is ConsistencyLevel.CRASH)
    assert is_held(guest) and guest.calls == []
    assert of_guest(config) == known


UNNOTED: dict[str, Any] = {"owner": OWNER, "held_since_s": 0.0, "disks_frozen_at_s": 0.0}


def test_hook_died_before_it_could_note_the_pause(
    config: Config, guest: FakeGuest, hold: Hold
) -> None:
    hold(ConsistencyLevel.PAUSED, **UNNOTED)
    begun_s = time.monotonic()
    with deadline.enforce_deadline(within(config, 0.2), OWNER):
        until(lambda: not is_held(guest))
        until(lambda: not of_guest(config).paused)
    assert time.monotonic() - begun_s >= 0.2
    # Publishing sees that it has no coherent RAM.
    assert of_guest(config).disks_frozen_at_s == 0


def dumped(guest: FakeGuest) -> None:
    guest.job = True


def by_other(guest: FakeGuest) -> None:
    guest.paused_because = Pause.OTHER


@pytest.mark.parametrize("change", [dumped, by_other])
def test_pauses_that_are_not_of_zvmsnap(
    config: Config,
    guest: FakeGuest,
    checks: list[str],
    hold: Hold,
    change: Callable[[FakeGuest], None],
) -> None:
    hold(ConsistencyLevel.PAUSED, **UNNOTED)
    change(guest)
    with deadline.enforce_deadline(within(config, 0.01), OWNER):
        until(lambda: len(checks) > 20)
        assert is_held(guest) and guest.calls == []
        # The dump ends, and the guest stays paused.
        guest.job, guest.paused_because = False, Pause.JOB
        until(lambda: not is_held(guest))


def test_short_pauses_of_a_dump_are_not_added_up(
    config: Config, guest: FakeGuest, hold: Hold
) -> None:
    enforcer = DeadlineEnforcer(config, OWNER, threading.Event())
    known = hold(ConsistencyLevel.PAUSED, **UNNOTED)
    first_s = enforcer.paused_since_s(guest, known)
    assert enforcer.paused_since_s(guest, known) == first_s > 0
    guest.paused_because = None
    assert enforcer.paused_since_s(guest, known) == 0
    guest.paused_because = Pause.JOB
    assert enforcer.paused_since_s(guest, known) > first_s


def test_libvirt_does_not_run_yet(
    config: Config,
    host: FakeHost,
    guest: FakeGuest,
    hold: Hold,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hold(ConsistencyLevel.PAUSED, **overdue())
    host.reachable = False
    with deadline.enforce_deadline(config, OWNER):
        until(
            lambda: "watchdog: the deadline is not enforced now: qemu:///system: no" in caplog.text
        )
        assert is_held(guest)
        host.reachable = True
        until(lambda: not is_held(guest))


def test_a_connection_that_broke_is_made_anew(
    config: Config,
    host: FakeHost,
    guest: FakeGuest,
    hold: Hold,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when libvirt is restarted: an old connection to it fails for ever."""
    connections: list[int] = []
    look_up = host.guest

    def connected(uri: str) -> FakeHost:
        connections.append(len(connections))
        return host.reached(uri)

    def broken(uuid: str) -> Guest:
        if len(connections) < 2:
            raise LibvirtFailed(f"looking up {uuid}: client socket is closed", 1)
        return look_up(uuid)

    monkeypatch.setattr(Host, "connect", connected)
    monkeypatch.setattr(host, "guest", broken)
    hold(ConsistencyLevel.PAUSED, **overdue())
    with deadline.enforce_deadline(config, OWNER):
        until(lambda: not is_held(guest))


def test_a_journal_that_cannot_be_read_now(
    config: Config, guest: FakeGuest, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(ConsistencyLevel.PAUSED, **overdue())
    entries = Journal.entries
    failures: list[int] = []

    def fail(journal: Journal) -> list[Entry]:
        failures.append(1)
        if len(failures) in (1, 3):
            raise OSError("too many open files")
        return entries(journal)

    monkeypatch.setattr(Journal, "entries", fail)
    with deadline.enforce_deadline(config, OWNER):
        until(lambda: not is_held(guest))


def test_agent_that_does_not_answer_keeps_no_other_guest(
    config: Config,
    guest: FakeGuest,
    db: FakeGuest,
    hold: Hold,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hold(ConsistencyLevel.QUIESCED, **overdue())
    assert guest.agent
    guest.agent.answering = False
    with deadline.enforce_deadline(config, OWNER):
        until(lambda: "web (tank/web): watchdog: not resumed or thawed yet" in caplog.text)
        until(lambda: not is_held(db))
        assert is_held(guest) and of_guest(config).frozen
        guest.agent.answering = True
        until(lambda: not is_held(guest))


def test_guest_that_does_not_exist_any_more_keeps_no_other(
    config: Config,
    guest: FakeGuest,
    db: FakeGuest,
    hold: Hold,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hold(ConsistencyLevel.PAUSED, **overdue())
    guest.exists = False
    with deadline.enforce_deadline(config, OWNER):
        until(lambda: not is_held(db))
        until(lambda: not of_guest(config).holds_guest)
    assert of_guest(config).level is ConsistencyLevel.CRASH
    assert "web" not in caplog.text.replace("db (tank/web)", "")


def test_another_run_that_began_meanwhile_is_not_touched(
    config: Config, guest: FakeGuest, db: FakeGuest, hold: Hold, entry: Hold
) -> None:
    hold(ConsistencyLevel.PAUSED, **overdue())
    newer = entry(
        capture=f"{UUID}.0000000f", level=ConsistencyLevel.QUIESCED, frozen=True, owner=ANOTHER
    )
    guest.at["resume"] = lambda: Journal(config.journal_dir).write(newer)
    with deadline.enforce_deadline(config, OWNER):
        until(lambda: not is_held(guest))
        until(lambda: not is_held(db))
    assert of_guest(config) == newer


def test_no_guest_is_asked_where_none_may_be_held(
    config: Config,
    guest: FakeGuest,
    host: FakeHost,
    entry: Hold,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []
    entries = Journal.entries

    def counted(journal: Journal) -> list[Entry]:
        looks.append(1)
        return entries(journal)

    monkeypatch.setattr(Journal, "entries", counted)
    host.reachable = False
    guest.agent = FakeAgent()
    Journal(config.journal_dir).write(entry(owner=OWNER, level=ConsistencyLevel.MEMORY))
    with deadline.enforce_deadline(config, OWNER):
        (thread,) = [each for each in threading.enumerate() if each.name == "deadline"]
        until(lambda: len(looks) > 5)
        assert thread.is_alive()
    assert not thread.is_alive()
    assert (guest.calls, guest.asked) == ([], [])
