"""The file system of the journal is full: nothing can be noted, but nobody stops acting."""

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.fakes.capture_scene import OWNER, Scene
from tests.fakes.clock import until
from tests.fakes.guest import UUID, FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.common.process import Process, uptime_s
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.finalize import after_snapshot
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.quiesce import deadline
from zvmsnap.recovery import watchdog_daemon
from zvmsnap.zfs import mounts

Hold = Callable[..., Entry]
NAME = "autosnap_2026-11-20_03:00:00_hourly"
POST = HookCall(Role.POST, ("tank/web",), (NAME,))
BOTH = pytest.mark.parametrize("level", [ConsistencyLevel.PAUSED, ConsistencyLevel.QUIESCED])


@contextmanager
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """No entry can be written; yields the steps of those that could not be."""
    refused: list[str] = []

    def write(_journal: Journal, entry: Entry) -> None:
        refused.append(entry.step)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", write)
        yield refused


def is_held(guest: FakeGuest) -> bool:
    return bool(guest.paused_because or (guest.agent and guest.agent.frozen))


@BOTH
def test_post_lets_a_held_guest_go(
    config: Config,
    guest: FakeGuest,
    hold: Hold,
    host: FakeHost,
    pools: FakeZfs,
    monkeypatch: pytest.MonkeyPatch,
    level: ConsistencyLevel,
) -> None:
    known = hold(level, owner=OWNER)
    monkeypatch.setattr(mounts, "read_table", list)
    pools.present[f"tank/web@{NAME}"] = 11
    with full(monkeypatch):
        assert not after_snapshot.finish_run(POST, config, OWNER)
        assert not is_held(guest)
    assert Journal(config.journal_dir).read(UUID) == known
    # With room again it is finished; that it was held for the snapshot nobody knows any more.
    after_snapshot.finish_run(POST, config, OWNER)
    assert Journal(config.journal_dir).entries() == []
    (manifest,) = config.vault_dir.rglob("manifest.json")
    assert '"level": "crash"' in manifest.read_text()


@BOTH
def test_the_deadline_is_enforced(
    config: Config,
    guest: FakeGuest,
    hold: Hold,
    host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    level: ConsistencyLevel,
) -> None:
    hold(level, owner=OWNER, held_since_s=uptime_s() - 3600)
    with full(monkeypatch) as refused, deadline.enforce_deadline(config, OWNER):
        until(lambda: not is_held(guest))
        until(lambda: len(refused) > 2)
    assert caplog.text.count("goes on, but that cannot be noted yet") == 1
    assert "not resumed or thawed" not in caplog.text
    with deadline.enforce_deadline(config, OWNER):
        until(lambda: not Journal(config.journal_dir).entries()[0].is_held)
    assert Journal(config.journal_dir).entries()[0].level is ConsistencyLevel.CRASH


@BOTH
def test_the_watchdog_goes_on(
    config: Config,
    guest: FakeGuest,
    hold: Hold,
    host: FakeHost,
    pools: FakeZfs,
    monkeypatch: pytest.MonkeyPatch,
    level: ConsistencyLevel,
) -> None:
    """The owner is dead: the guest goes on at once, and the run is ended when there is room."""
    hold(level, owner=OWNER)
    monkeypatch.setattr(mounts, "read_table", list)
    monkeypatch.setattr(Process, "is_alive", lambda _process: False)
    watch = threading.Thread(target=watchdog_daemon.watch, args=(config, OWNER), daemon=True)
    with full(monkeypatch) as refused:
        watch.start()
        until(lambda: not is_held(guest))
        until(lambda: len(refused) > 2)
        assert watch.is_alive()
    watch.join(60)
    assert not watch.is_alive()
    assert Journal(config.journal_dir).entries() == []


@BOTH
def test_pre_puts_the_guest_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, level: ConsistencyLevel
) -> None:
    """The journal becomes full just after the guest was paused, or its file systems frozen."""
    guest = scene.add()
    scene.modes["tank/web"] = {"": f"{level},required"}
    call = "snapshot" if level is ConsistencyLevel.PAUSED else "freeze"
    guest.at[call] = lambda: monkeypatch.setattr(Journal, "write", refuse)
    assert not scene.pre()
    assert not is_held(guest)


def refuse(_journal: Journal, _entry: Entry) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
