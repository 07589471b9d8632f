"""The guard of guests that stand still: it is there before they do, and goes after them."""

import fcntl
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.guest import FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.common.atomic_file import private_dir
from zvmsnap.common.errors import NotHeld
from zvmsnap.common.lockfile import is_held, lock
from zvmsnap.common.process import Process, uptime_s
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks import jobs
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.points import vault
from zvmsnap.quiesce import watchdog
from zvmsnap.recovery import watchdog_daemon
from zvmsnap.zfs import mounts

DEAD = Process(4711, 815, "a-boot")
WORDS = ["4711", "815", "a-boot"]
NAME = "watchdog-4711-815"
Standing = Callable[..., Entry]


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
    monkeypatch.setattr(jobs, "_LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(watchdog_daemon, "_LOOK_EVERY_S", 0.005)


class Armed:
    """In place of `arm`: what was armed, and the guard that then comes."""

    def __init__(self, config: Config) -> None:
        self.comes = True
        self.calls: list[tuple[Process, float]] = []
        self.over = ExitStack()
        self._config = config

    def arm(self, owner: Process, post_within_s: float = math.inf) -> None:
        self.calls.append((owner, post_within_s))
        if self.comes:
            self.over.enter_context(lock(self._config.locks_dir, NAME, "guard", 0))


@pytest.fixture
def armed(config: Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[Armed]:
    made = Armed(config)
    monkeypatch.setattr(watchdog, "start_watchdog", made.arm)
    with made.over:
        yield made


@pytest.mark.parametrize("post_within_s", [math.inf, 120, 0])
def test_a_guard_comes(config: Config, armed: Armed, post_within_s: float) -> None:
    watchdog.require_watchdog(config, DEAD, post_within_s)
    assert armed.calls == [(DEAD, post_within_s)]
    watchdog.require_watchdog(config, DEAD, post_within_s)
    assert len(armed.calls) == 1


def test_a_guard_that_takes_its_time(
    config: Config, armed: Armed, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting = threading.Timer(0.05, lambda: Armed.arm(armed, DEAD))
    monkeypatch.setattr(watchdog, "start_watchdog", lambda owner, post_within_s: starting.start())
    watchdog.require_watchdog(config, DEAD, math.inf)
    starting.join()
    assert is_held(config.locks_dir, NAME)


def test_no_guard_comes(config: Config, armed: Armed, monkeypatch: pytest.MonkeyPatch) -> None:
    armed.comes = False
    with pytest.raises(NotHeld, match="no watchdog runs"):
        watchdog.require_watchdog(config, DEAD, math.inf)
    assert armed.calls == [(DEAD, math.inf)]


def test_the_lock_of_a_guard_that_was_killed_is_no_guard(config: Config, armed: Armed) -> None:
    with lock(config.locks_dir, NAME, "guard", 0):
        assert is_held(config.locks_dir, NAME)
    assert (config.locks_dir / f"{NAME}.lock").exists()
    watchdog.require_watchdog(config, DEAD, math.inf)
    assert len(armed.calls) == 1


def test_nor_is_the_guard_of_another(config: Config, armed: Armed) -> None:
    with lock(config.locks_dir, "watchdog-4711-816", "guard", 0):
        watchdog.require_watchdog(config, DEAD, math.inf)
    assert len(armed.calls) == 1


def test_who_looks_for_a_guard_is_not_taken_for_one(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several guests of a moment look at one time."""
    with lock(config.locks_dir, NAME, "guard", 0):
        pass
    flock, others = fcntl.flock, list[bool]()

    def looked(descriptor: int, operation: int) -> None:
        flock(descriptor, operation)
        monkeypatch.setattr(fcntl, "flock", flock)
        others.append(is_held(config.locks_dir, NAME))

    monkeypatch.setattr(fcntl, "flock", looked)
    assert not is_held(config.locks_dir, NAME)
    assert others == [False]


def test_who_looks_for_a_guard_does_not_keep_it_away(
    config: Config, guest: FakeGuest, standing: Standing
) -> None:
    standing(ConsistencyLevel.PAUSED, owner=DEAD)
    path = private_dir(config.locks_dir) / f"{NAME}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    looked = threading.Timer(0.05, lambda: os.close(descriptor))
    looked.start()
    assert watchdog_daemon.main([*WORDS, "inf"]) == 0
    looked.join()
    assert guest.calls == ["resume"]


def test_who_holds_nothing(config: Config) -> None:
    assert not is_held(config.locks_dir, NAME)
    config.locks_dir.mkdir()
    assert not is_held(config.locks_dir, NAME)
    assert list(config.locks_dir.iterdir()) == []


@pytest.mark.parametrize("level", [ConsistencyLevel.PAUSED, ConsistencyLevel.QUIESCED])
def test_sanoid_is_dead(
    config: Config, guest: FakeGuest, standing: Standing, level: ConsistencyLevel
) -> None:
    """Whatever the deadline: nobody will call post."""
    standing(level, owner=DEAD)
    assert watchdog_daemon.main([*WORDS, "inf"]) == 0
    assert guest.calls == ["resume" if level is ConsistencyLevel.PAUSED else "thaw"]
    assert Journal(config.journal_dir).entries() == []
    assert len(list(vault.entries(config.vault_dir))) == 1


def due() -> dict[str, Any]:
    return {"owner": DEAD, "held_since_s": uptime_s() - 61}


@pytest.mark.parametrize("level", [ConsistencyLevel.PAUSED, ConsistencyLevel.QUIESCED])
def test_a_script_that_called_pre_is_dead(
    config: Config, guest: FakeGuest, standing: Standing, level: ConsistencyLevel
) -> None:
    """It may have called pre, and may call post, from shells of their own."""
    known = standing(level, **due())
    assert watchdog_daemon.main([*WORDS, "0"]) == 0
    assert set(guest.calls) == {"resume" if level is ConsistencyLevel.PAUSED else "thaw"}
    (left,) = Journal(config.journal_dir).entries()
    assert (left.capture, left.level) == (known.capture, ConsistencyLevel.CRASH)
    assert not list(config.locks_dir.glob("watchdog-*"))


@pytest.mark.parametrize(
    ("level", "said"),
    [
        pytest.param(ConsistencyLevel.MEMORY, {}, id="on its overlays"),
        pytest.param(ConsistencyLevel.CRASH, {}, id="as it is"),
        pytest.param(
            ConsistencyLevel.QUIESCED, {"frozen": False}, id="frozen and thawed, on its overlays"
        ),
        pytest.param(ConsistencyLevel.PAUSED, {"paused": False}, id="let go"),
        pytest.param(ConsistencyLevel.PAUSED, {"owner": Process(1, 1, "a-boot")}, id="of another"),
    ],
)
def test_it_goes_where_nobody_stands_still(
    config: Config,
    guest: FakeGuest,
    standing: Standing,
    level: ConsistencyLevel,
    said: dict[str, Any],
) -> None:
    known = standing(level, **{"owner": DEAD, **said})
    ended = threading.Thread(target=watchdog_daemon.main, args=([*WORDS, "0"],), daemon=True)
    ended.start()
    ended.join(10)
    assert not ended.is_alive()
    assert Journal(config.journal_dir).entries() == [known]
    assert guest.calls == []


def test_it_stays_as_long_as_its_owner_lives_or_somebody_stands_still(
    config: Config, standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, slept = [True], 0
    monkeypatch.setattr(Process, "is_alive", lambda process: alive[0])
    known = standing(ConsistencyLevel.PAUSED, owner=DEAD)

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += 1
        if slept == 3:
            alive[0] = False
        if slept == 6:
            Journal(config.journal_dir).close(known)

    monkeypatch.setattr(time, "sleep", sleep)
    watchdog_daemon.wait_for_still(config, DEAD)
    assert slept == 6


@pytest.mark.parametrize("word", ["inf", "120", "0"])
def test_the_deadline_is_kept_beside_all_else(
    config: Config,
    guest: FakeGuest,
    standing: Standing,
    monkeypatch: pytest.MonkeyPatch,
    word: str,
) -> None:
    """Sanoid hangs between pre and post."""
    standing(ConsistencyLevel.PAUSED, **due())
    ends_s = time.monotonic() + 10
    monkeypatch.setattr(
        Process,
        "is_alive",
        lambda process: guest.paused_because is not None and time.monotonic() < ends_s,
    )
    assert watchdog_daemon.main([*WORDS, word]) == 0
    assert time.monotonic() < ends_s
    assert guest.calls == ["resume"]
