"""The watchdog of guests that are paused or frozen."""

import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.clock import ScriptedClock
from tests.fakes.guest import FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.common import waiting
from zvmsnap.common.process import Process, uptime_s
from zvmsnap.common.safe_files import private_dir
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.points import vault
from zvmsnap.recovery import watchdog_daemon
from zvmsnap.zfs import mounts

DEAD = Process(4711, 815, "a-boot")
WORDS = ["4711", "815", "a-boot"]
NAME = "watchdog-4711-815"
Hold = Callable[..., Entry]


@pytest.fixture(autouse=True)
def _seams(
    host: FakeHost,
    pools: FakeZfs,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pools.present = {"tank/web@autosnap_2026-11-20_03:00:00_hourly": 11}
    keys = ("staging", "vault", "journal", "locks")
    path = tmp_path / "config.toml"
    path.write_text("".join(f"{key} = '{getattr(config, key)}'\n" for key in keys))
    monkeypatch.setenv("ZVMSNAP_CONFIG", str(path))
    monkeypatch.setattr(mounts, "read_table", list)


def test_a_process_that_looks_for_the_watchdog_does_not_stop_it(
    config: Config, guest: FakeGuest, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(ConsistencyLevel.PAUSED, owner=DEAD)
    path = private_dir(config.locks_dir) / f"{NAME}.lock"
    flock, looking = fcntl.flock, os.open(path, os.O_RDWR | os.O_CREAT)
    flock(looking, fcntl.LOCK_SH)

    def look_until_it_waits(descriptor: int, operation: int) -> None:
        try:
            flock(descriptor, operation)
        except BlockingIOError:
            monkeypatch.setattr(fcntl, "flock", flock)
            os.close(looking)
            raise

    monkeypatch.setattr(fcntl, "flock", look_until_it_waits)
    assert watchdog_daemon.main([*WORDS, "inf"]) == 0
    assert guest.calls == ["resume"]


@pytest.mark.parametrize("level", [ConsistencyLevel.PAUSED, ConsistencyLevel.QUIESCED])
def test_sanoid_is_dead(
    config: Config, guest: FakeGuest, hold: Hold, level: ConsistencyLevel
) -> None:
    """Whatever the deadline: nobody will call post."""
    hold(level, owner=DEAD)
    assert watchdog_daemon.main([*WORDS, "inf"]) == 0
    assert guest.calls == ["resume" if level is ConsistencyLevel.PAUSED else "thaw"]
    assert Journal(config.journal_dir).entries() == []
    assert len(list(vault.entries(config.vault_dir))) == 1


def due() -> dict[str, Any]:
    return {"owner": DEAD, "held_since_s": uptime_s() - 61}


@pytest.mark.parametrize("level", [ConsistencyLevel.PAUSED, ConsistencyLevel.QUIESCED])
def test_a_script_that_called_pre_is_dead(
    config: Config, guest: FakeGuest, pools: FakeZfs, hold: Hold, level: ConsistencyLevel
) -> None:
    """It may have called pre, and may call post, from shells of their own."""
    pools.present = {}
    known = hold(level, **due())
    assert watchdog_daemon.main([*WORDS, "0"]) == 0
    assert set(guest.calls) == {"resume" if level is ConsistencyLevel.PAUSED else "thaw"}
    (left,) = Journal(config.journal_dir).entries()
    assert (left.capture, left.level) == (known.capture, ConsistencyLevel.CRASH)
    assert not list(config.locks_dir.glob("watchdog-*"))


def test_a_script_takes_the_snapshot(config: Config, guest: FakeGuest, hold: Hold) -> None:
    """Whoever takes it, a paused guest goes on then."""
    known = hold(ConsistencyLevel.PAUSED, owner=DEAD)
    assert watchdog_daemon.main([*WORDS, "0"]) == 0
    assert guest.calls == ["resume"]
    (left,) = Journal(config.journal_dir).entries()
    assert (left.capture, left.level) == (known.capture, ConsistencyLevel.PAUSED)
    assert left.snapshots_at_release == (11,)


@pytest.mark.parametrize(
    ("level", "changes"),
    [
        pytest.param(ConsistencyLevel.MEMORY, {}, id="on its overlays"),
        pytest.param(ConsistencyLevel.CRASH, {}, id="not held"),
        pytest.param(
            ConsistencyLevel.QUIESCED, {"frozen": False}, id="frozen and thawed, on its overlays"
        ),
        pytest.param(ConsistencyLevel.PAUSED, {"paused": False}, id="resumed"),
        pytest.param(ConsistencyLevel.PAUSED, {"owner": Process(1, 1, "a-boot")}, id="of another"),
    ],
)
def test_it_exits_if_no_guest_is_held(
    config: Config,
    guest: FakeGuest,
    hold: Hold,
    level: ConsistencyLevel,
    changes: dict[str, Any],
) -> None:
    known = hold(level, **{"owner": DEAD, **changes})
    ended = threading.Thread(target=watchdog_daemon.main, args=([*WORDS, "0"],), daemon=True)
    ended.start()
    ended.join(10)
    assert not ended.is_alive()
    assert Journal(config.journal_dir).entries() == [known]
    assert guest.calls == []


def test_it_runs_as_long_as_its_owner_lives_or_a_guest_is_held(
    config: Config, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = [True]
    monkeypatch.setattr(Process, "is_alive", lambda process: alive[0])
    known = hold(ConsistencyLevel.PAUSED, owner=DEAD)
    clock = ScriptedClock()
    clock.after = {
        3: lambda: alive.__setitem__(0, False),
        6: lambda: Journal(config.journal_dir).close(known),
    }
    with waiting.clocked_by(clock):
        watchdog_daemon.wait_until_none_held(config, DEAD)
    assert len(clock.slept) == 6


@pytest.mark.parametrize("word", ["inf", "120", "0"])
def test_the_deadline_is_kept_at_the_same_time(
    config: Config,
    guest: FakeGuest,
    hold: Hold,
    monkeypatch: pytest.MonkeyPatch,
    word: str,
) -> None:
    """Sanoid hangs between pre and post."""
    hold(ConsistencyLevel.PAUSED, **due())
    ends_s = time.monotonic() + 60
    monkeypatch.setattr(
        Process,
        "is_alive",
        lambda process: guest.paused_because is not None and time.monotonic() < ends_s,
    )
    assert watchdog_daemon.main([*WORDS, word]) == 0
    assert time.monotonic() < ends_s
    # Its snapshots exist: who waits for these may resume it at the same instant.
    assert set(guest.calls) == {"resume"} and guest.paused_because is None
