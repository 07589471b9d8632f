import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.agent import FakeAgent
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
from zvmsnap.quiesce import deadline, thaw
from zvmsnap.virt.guest import Guest, Pause

OWNER = Process(4711, 815, "a-boot")
ANOTHER = Process(4712, 815, "a-boot")
Standing = Callable[..., Entry]
BOTH = pytest.mark.parametrize("level", [ConsistencyLevel.PAUSED, ConsistencyLevel.QUIESCED])


@pytest.fixture(autouse=True)
def _quick(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "_LOOK_EVERY_S", 0.005)
    monkeypatch.setattr(thaw, "_THAW_AGAIN_S", 0)


@pytest.fixture
def db(tmp_path: Path, config: Config, entry: Standing, host: FakeHost) -> DumpedGuest:
    """Another guest of the same owner, which stands still since long."""
    other = DumpedGuest("db", OTHER, vda=make_base(tmp_path / "tank" / "db.raw"))
    other.stands_still = Pause.JOB
    said = {"level": ConsistencyLevel.PAUSED, "paused": True, "disks_frozen_at_s": 1.0, "disks": ()}
    known = entry(uuid=OTHER, domain="db", owner=OWNER, held_since_s=since(1000), **said)
    Journal(config.journal_dir).write(known)
    host.known.append(other)
    return other


def since(seconds: float) -> float:
    return uptime_s() - seconds


def due() -> dict[str, Any]:
    """Since long enough for the default limit."""
    return {"owner": OWNER, "held_since_s": since(61)}


def within(config: Config, limit_s: float) -> Config:
    return msgspec.structs.replace(config, limits=Limits(max_freeze_s=limit_s))


def is_still(guest: FakeGuest) -> bool:
    return bool(guest.stands_still or (guest.agent and guest.agent.frozen))


def until(reached: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline_s, "never"
        time.sleep(0.002)


def of_guest(config: Config, uuid: str = UUID) -> Entry:
    entry = Journal(config.journal_dir).read(uuid)
    assert entry
    return entry


@BOTH
def test_let_go_though_somebody_hangs_with_its_lock(
    config: Config, guest: FakeGuest, standing: Standing, level: ConsistencyLevel
) -> None:
    known = standing(level, **due())
    with lock(config.locks_dir, UUID, "capture", 1), deadline.enforce_deadline(config, OWNER):
        until(lambda: not is_still(guest))
    assert guest.calls == ["resume" if level is ConsistencyLevel.PAUSED else "thaw"]
    assert of_guest(config) == known


@BOTH
def test_what_is_left_is_done_where_the_lock_can_be_had(
    config: Config,
    guest: FakeGuest,
    standing: Standing,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    level: ConsistencyLevel,
) -> None:
    path = tmp_path / "guest.d" / "web" / "post-thaw"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    path.chmod(0o755)
    config = msgspec.structs.replace(config, guest_scripts=str(tmp_path / "guest.d"))
    standing(level, thaw_script_due=level is ConsistencyLevel.QUIESCED, **due())
    with deadline.enforce_deadline(config, OWNER):
        until(lambda: of_guest(config).level is ConsistencyLevel.CRASH)
        until(lambda: not of_guest(config).thaw_script_due)
    left = of_guest(config)
    assert (left.paused, left.frozen, left.may_hold_guest) == (False, False, False)
    assert left.reason and "before its snapshot was known" in left.reason
    assert (tmp_path / "ran").exists() is (level is ConsistencyLevel.QUIESCED)
    was = "paused" if level is ConsistencyLevel.PAUSED else "frozen"
    assert f"web (tank/web): {was} for 61 s: let go, as nobody did" in caplog.text


@BOTH
def test_not_before(
    config: Config, guest: FakeGuest, standing: Standing, level: ConsistencyLevel
) -> None:
    known = standing(level, owner=OWNER, held_since_s=since(0))
    with deadline.enforce_deadline(within(config, 0.3), OWNER):
        until(lambda: not is_still(guest))
    assert uptime_s() - known.held_since_s >= 0.3


@pytest.mark.parametrize(
    "said",
    [
        pytest.param({"owner": OWNER, "held_since_s": since(5)}, id="not yet"),
        pytest.param({"owner": ANOTHER, "held_since_s": since(5000)}, id="of another owner"),
        pytest.param(
            {"owner": OWNER, "held_since_s": since(5000), "paused": False}, id="not by us any more"
        ),
    ],
)
def test_who_is_not_touched(
    config: Config, guest: FakeGuest, db: FakeGuest, standing: Standing, said: dict[str, Any]
) -> None:
    known = standing(ConsistencyLevel.PAUSED, **said)
    with deadline.enforce_deadline(config, OWNER):
        until(lambda: not is_still(db))
        until(lambda: of_guest(config, OTHER).level is ConsistencyLevel.CRASH)
    assert is_still(guest) and guest.calls == []
    assert of_guest(config) == known


UNTOLD: dict[str, Any] = {"owner": OWNER, "held_since_s": 0.0, "disks_frozen_at_s": 0.0}


def test_whose_hook_died_before_it_could_write_it_down(
    config: Config, guest: FakeGuest, standing: Standing
) -> None:
    standing(ConsistencyLevel.PAUSED, **UNTOLD)
    begun_s = time.monotonic()
    with deadline.enforce_deadline(within(config, 0.2), OWNER):
        until(lambda: not is_still(guest))
        until(lambda: not of_guest(config).paused)
    assert time.monotonic() - begun_s >= 0.2
    # That it has no coherent RAM is found when it is published.
    assert of_guest(config).disks_frozen_at_s == 0


def dumped(guest: FakeGuest) -> None:
    guest.job = True


def somebodys(guest: FakeGuest) -> None:
    guest.stands_still = Pause.OTHER


@pytest.mark.parametrize("change", [dumped, somebodys])
def test_whose_pause_is_another_one(
    config: Config,
    guest: FakeGuest,
    db: FakeGuest,
    standing: Standing,
    change: Callable[[FakeGuest], None],
) -> None:
    standing(ConsistencyLevel.PAUSED, **UNTOLD)
    change(guest)
    with deadline.enforce_deadline(within(config, 0.01), OWNER):
        until(lambda: not is_still(db))
        time.sleep(0.1)
        assert is_still(guest) and guest.calls == []
        # The dump ends, and leaves it standing.
        guest.job, guest.stands_still = False, Pause.JOB
        until(lambda: not is_still(guest))


def test_short_pauses_of_a_dump_are_not_added_up(
    config: Config, guest: FakeGuest, standing: Standing
) -> None:
    keeper = deadline._DeadlineKeeper(config, OWNER, threading.Event())
    known = standing(ConsistencyLevel.PAUSED, **UNTOLD)
    first_s = keeper._seen_still_since(guest, known)
    assert keeper._seen_still_since(guest, known) == first_s > 0
    guest.stands_still = None
    assert keeper._seen_still_since(guest, known) == 0
    guest.stands_still = Pause.JOB
    assert keeper._seen_still_since(guest, known) > first_s


def test_no_hypervisor_as_yet(
    config: Config,
    host: FakeHost,
    guest: FakeGuest,
    standing: Standing,
    caplog: pytest.LogCaptureFixture,
) -> None:
    standing(ConsistencyLevel.PAUSED, **due())
    host.reachable = False
    with deadline.enforce_deadline(config, OWNER):
        until(lambda: "guard: the deadline is not kept now: qemu:///system: no" in caplog.text)
        assert is_still(guest)
        host.reachable = True
        until(lambda: not is_still(guest))


def test_a_connection_that_broke_is_made_anew(
    config: Config,
    host: FakeHost,
    guest: FakeGuest,
    standing: Standing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when libvirt is started again: who was connected to it is told of errors for ever."""
    connections: list[int] = []
    look_up, connect = host.guest, host.connect

    def connected(uri: str) -> FakeHost:
        connections.append(len(connections))
        return connect(uri)

    def broken(uuid: str) -> Guest:
        if len(connections) < 2:
            raise LibvirtFailed(f"looking up {uuid}: client socket is closed", 1)
        return look_up(uuid)

    monkeypatch.setattr("zvmsnap.virt.host.Host", connected)
    monkeypatch.setattr(host, "guest", broken)
    standing(ConsistencyLevel.PAUSED, **due())
    with deadline.enforce_deadline(config, OWNER):
        until(lambda: not is_still(guest))


def test_a_journal_that_cannot_be_read_now(
    config: Config, guest: FakeGuest, standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing(ConsistencyLevel.PAUSED, **due())
    entries = Journal.entries
    failures: list[int] = []

    def fail(journal: Journal) -> list[Entry]:
        failures.append(1)
        if len(failures) in (1, 3):
            raise OSError("too many open files")
        return entries(journal)

    monkeypatch.setattr(Journal, "entries", fail)
    with deadline.enforce_deadline(config, OWNER):
        until(lambda: not is_still(guest))


def test_agent_that_does_not_answer_keeps_no_other_guest(
    config: Config,
    guest: FakeGuest,
    db: FakeGuest,
    standing: Standing,
    caplog: pytest.LogCaptureFixture,
) -> None:
    standing(ConsistencyLevel.QUIESCED, **due())
    assert guest.agent
    guest.agent.answering = False
    with deadline.enforce_deadline(config, OWNER):
        until(lambda: "web (tank/web): guard: not let go yet" in caplog.text)
        until(lambda: not is_still(db))
        assert is_still(guest) and of_guest(config).frozen
        guest.agent.answering = True
        until(lambda: not is_still(guest))


def test_guest_that_does_not_exist_any_more_keeps_no_other(
    config: Config,
    guest: FakeGuest,
    db: FakeGuest,
    standing: Standing,
    caplog: pytest.LogCaptureFixture,
) -> None:
    standing(ConsistencyLevel.PAUSED, **due())
    guest.exists = False
    with deadline.enforce_deadline(config, OWNER):
        until(lambda: not is_still(db))
        until(lambda: not of_guest(config).holds_guest)
    assert of_guest(config).level is ConsistencyLevel.CRASH
    assert "web" not in caplog.text.replace("db (tank/web)", "")


def test_another_moment_that_began_meanwhile_is_none_of_its_business(
    config: Config, guest: FakeGuest, db: FakeGuest, standing: Standing, entry: Standing
) -> None:
    standing(ConsistencyLevel.PAUSED, **due())
    newer = entry(
        capture=f"{UUID}.0000000f", level=ConsistencyLevel.QUIESCED, frozen=True, owner=ANOTHER
    )
    guest.at["resume"] = lambda: Journal(config.journal_dir).write(newer)
    with deadline.enforce_deadline(config, OWNER):
        until(lambda: not is_still(guest))
        until(lambda: not is_still(db))
    assert of_guest(config) == newer


def test_nobody_is_asked_where_nobody_may_stand_still(
    config: Config, guest: FakeGuest, host: FakeHost, entry: Standing
) -> None:
    host.reachable = False
    guest.agent = FakeAgent()
    Journal(config.journal_dir).write(entry(owner=OWNER, level=ConsistencyLevel.MEMORY))
    with deadline.enforce_deadline(config, OWNER):
        (keeper,) = [each for each in threading.enumerate() if each.name == "deadline"]
        time.sleep(0.05)
        assert keeper.is_alive()
    assert not keeper.is_alive()
    assert (guest.calls, guest.asked) == ([], [])
