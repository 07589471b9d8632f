"""What others do meanwhile: another hook, the watchdog, an administrator, a host out of memory."""

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.capture_scene import OWNER, RUN, Scene, agent_of, failing
from tests.fakes.clock import ScriptedClock, until
from tests.fakes.guest import OTHER, UUID, FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.take_scene import configure
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.common import lockfile, log, waiting
from zvmsnap.common.errors import Cancelled
from zvmsnap.common.process import Process, uptime_s
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config, Limits
from zvmsnap.finalize import after_snapshot
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter, Journal
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.points import vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.quiesce import deadline, thaw
from zvmsnap.recovery import recover, report, watchdog_daemon
from zvmsnap.virt import connection
from zvmsnap.virt.guest import JobProgress, Pause
from zvmsnap.virt.host import Host
from zvmsnap.zfs import mounts

NAME = f"{RUN}_hourly"
POST = HookCall(Role.POST, ("tank/web",), (NAME,))
NOBODY = Process(1, 1, "b")
Hold = Callable[..., Entry]


def entries(config: Config) -> list[Entry]:
    return Journal(config.journal_dir).entries()


def levels_of(config: Config) -> list[ConsistencyLevel]:
    entries = vault.entries(config.vault_dir)
    return [point.manifest.level for point in entries if isinstance(point, RestorePoint)]


def test_a_guest_of_an_undone_run_has_begun_another_run(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": "crash"}
    scene.when["> waiting"] = scene.cancelled.set
    newer: list[Entry] = []

    def lock(*arguments: Any) -> Any:
        (old,) = scene.entries()
        said: dict[str, Any] = {
            "level": ConsistencyLevel.PAUSED,
            "paused": True,
            "disks_frozen_at_s": time.time(),
        }
        capture_of_another = f"{UUID}.0000beef"
        newer.append(msgspec.structs.replace(old, capture=capture_of_another, owner=NOBODY, **said))
        Journal(scene.config.journal_dir).write(newer[0])
        guest.paused_because = Pause.JOB
        return lockfile.lock(*arguments)

    monkeypatch.setattr("zvmsnap.journal.journal.lock", lock)
    with pytest.raises(Cancelled, match="interrupted"):
        scene.pre()
    assert guest.paused_because
    assert scene.entries() == newer


def test_the_watchdog_resumes_the_guest_that_post_is_about_to_resume(
    config: Config,
    guest: FakeGuest,
    hold: Hold,
    host: FakeHost,
    pools: FakeZfs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Post has read the journal, and waits for the lock; then an administrator pauses the guest."""
    monkeypatch.setattr(mounts, "read_table", list)
    pools.present = {f"tank/web@{NAME}": 11}
    known = hold(ConsistencyLevel.PAUSED)

    def connect(uri: str) -> FakeHost:
        guest.resume()
        thaw.resume_or_thaw(
            config,
            guest,
            EntryWriter(Journal(config.journal_dir), known),
            log.about("web", "tank/web"),
        )
        guest.paused_because = Pause.USER
        return host

    monkeypatch.setattr(Host, "connect", connect)
    after_snapshot.finish_run(POST, config, OWNER)
    assert levels_of(config) == [ConsistencyLevel.CRASH]
    assert guest.paused_because is Pause.USER


@pytest.mark.parametrize("post_within_s", ["inf", "0"])
def test_watchdog_outlives_a_host_without_descriptors(
    config: Config,
    guest: FakeGuest,
    hold: Hold,
    host: FakeHost,
    pools: FakeZfs,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    post_within_s: str,
) -> None:
    monkeypatch.setattr(mounts, "read_table", list)
    configure(tmp_path, config, monkeypatch)
    with (tmp_path / "config.toml").open("a") as file:
        file.write("[limits]\nmax_freeze_s = 1\n")
    hold(ConsistencyLevel.PAUSED, owner=OWNER)
    looks = Journal.entries
    failed: list[int] = []

    def fail(journal: Journal) -> list[Entry]:
        if not failed:
            failed.append(1)
            raise OSError(24, "too many open files")
        return looks(journal)

    monkeypatch.setattr(Journal, "entries", fail)
    code = watchdog_daemon.main([str(OWNER.pid), str(OWNER.started), OWNER.boot, post_within_s])
    assert (code, guest.paused_because, failed) == (0, None, [1])


def test_watchdog_outlives_a_host_without_threads(
    config: Config,
    guest: FakeGuest,
    hold: Hold,
    host: FakeHost,
    pools: FakeZfs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """libvirt's events have a thread of their own."""
    monkeypatch.setattr(mounts, "read_table", list)
    hold(ConsistencyLevel.PAUSED, owner=OWNER)
    failed: list[int] = []

    def connect(uri: str) -> FakeHost:
        if not failed:
            failed.append(1)
            raise RuntimeError("can't start new thread")
        return host

    monkeypatch.setattr(Host, "connect", connect)
    assert watchdog_daemon.watch(config, OWNER)
    assert guest.paused_because is None


def test_loop_of_events_is_started_by_the_next_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_loop_started", threading.Lock())
    for name in ("virEventRegisterDefaultImpl", "virEventRunDefaultImpl"):
        monkeypatch.setattr(f"libvirt.{name}", lambda: None, raising=False)
    started: list[str] = []

    def start(thread: threading.Thread) -> None:
        started.append(thread.name)
        if len(started) == 1:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError):
        connection._start_event_loop()
    connection._start_event_loop()
    connection._start_event_loop()
    assert started == ["libvirt-events"] * 2


def test_watchdog_goes_when_its_guest_is_gone(
    config: Config,
    guest: FakeGuest,
    hold: Hold,
    host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold(ConsistencyLevel.PAUSED, owner=OWNER, held_since_s=1.0)
    guest.exists = False
    with deadline.enforce_deadline(config, OWNER):
        waiting = threading.Thread(
            target=watchdog_daemon.wait_until_none_held, args=(config, OWNER), daemon=True
        )
        waiting.start()
        waiting.join(10)
        assert not waiting.is_alive()


def test_deadline_outlives_a_host_without_threads(
    config: Config,
    guest: FakeGuest,
    hold: Hold,
    host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold(ConsistencyLevel.PAUSED, owner=OWNER, held_since_s=uptime_s() - 61)
    start = threading.Thread.start
    failed: list[int] = []

    def fail(thread: threading.Thread) -> None:
        if thread.name != "deadline" and not failed:
            failed.append(1)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    with deadline.enforce_deadline(config, OWNER):
        until(lambda: guest.paused_because is None)


def test_watchdog_does_not_go_while_a_guest_is_frozen(
    config: Config,
    guest: FakeGuest,
    hold: Hold,
    host: FakeHost,
    pools: FakeZfs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A guest so busy that its agent does not answer for minutes."""
    monkeypatch.setattr(mounts, "read_table", list)
    monkeypatch.setattr(thaw, "_THAW_ATTEMPTS", 1)
    hold(ConsistencyLevel.QUIESCED, owner=OWNER)
    agent = guest.agent
    assert agent
    agent.answering = False
    clock = ScriptedClock()
    clock.after[10] = lambda: setattr(agent, "answering", True)
    with waiting.clocked_by(clock):
        assert watchdog_daemon.watch(config, OWNER)
    assert not agent.frozen
    # 2, 4, 8, 16, 32 and 60 s, with looks at staging in between.
    assert clock.slept == [2, 4, 8, 10, 6, 10, 10, 10, 2, *[10] * 6, 1]


def test_post_is_not_overdue_while_pre_works_for_another_guest(
    scene: Scene, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, uuid in (("web", UUID), ("db", OTHER)):
        scene.add(name, uuid)
    over: list[int] = []
    monkeypatch.setattr(Process, "is_alive", lambda _process: not over)
    scene.host.known[1].at["snapshot"] = lambda: time.sleep(0.8)
    watch = threading.Thread(
        target=watchdog_daemon.watch, args=(scene.config, OWNER, 0.3), daemon=True
    )
    watch.start()
    assert scene.pre(post_within_s=0.3)
    assert sorted(entry.domain for entry in scene.entries()) == ["db", "web"]
    over.append(1)
    watch.join(10)
    assert scene.entries() == []


def test_pause_that_could_not_be_ended_is_ended_by_post(
    scene: Scene, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zvmsnap paused the guest, just after the dump had ended."""
    guest = scene.add()
    scene.modes["tank/web"] = {"": "memory"}
    scene.change(limits=Limits(pause_first_ms=1, pause_max_ms=1))
    dump = guest.snapshot_create

    def suspend() -> None:
        guest.paused_because = Pause.USER

    def create(xml: str, *, disk_only: bool = False, reuse_overlays: bool = False) -> None:
        dump(xml, disk_only=disk_only, reuse_overlays=reuse_overlays)
        until(lambda: bool(guest.paused_because))
        time.sleep(0.05)

    passes = itertools.count(1)
    monkeypatch.setattr(guest, "suspend", suspend, raising=False)
    monkeypatch.setattr(guest, "snapshot_create", create)
    monkeypatch.setattr(guest, "job_progress", lambda: JobProgress(next(passes), 0, 1024))
    guest.at["resume"] = failing("cannot acquire state change lock")
    scene.pre()
    pools.present[f"tank/web@{NAME}"] = 11
    after_snapshot.finish_run(POST, scene.config, OWNER)
    assert (scene.entries(), guest.paused_because) == ([], None)


def test_pre_that_died_after_pre_freeze(
    config: Config,
    guest: FakeGuest,
    hold: Hold,
    host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The pre hook of a script that does not call post: post-thaw runs, and the watchdog ends."""
    config = msgspec.structs.replace(
        config, limits=Limits(max_freeze_s=1), guest_scripts=str(tmp_path / "guest.d")
    )
    path = tmp_path / "guest.d" / "web" / "post-thaw"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho ran >> {tmp_path}/ran\n")
    path.chmod(0o755)
    hold(
        ConsistencyLevel.QUIESCED,
        owner=OWNER,
        frozen=False,
        thaw_script_due=True,
        disks_frozen_at_s=0.0,
    )
    assert guest.agent
    guest.agent.thaw()
    with deadline.enforce_deadline(config, OWNER):
        watchdog_daemon.wait_until_none_held(config, OWNER)
    assert not entries(config)[0].thaw_script_due
    assert (tmp_path / "ran").read_text() == "ran\n"


@pytest.mark.parametrize("level", [ConsistencyLevel.PAUSED, ConsistencyLevel.QUIESCED])
def test_journal_that_was_damaged_while_a_guest_is_held(
    config: Config,
    guest: FakeGuest,
    hold: Hold,
    host: FakeHost,
    pools: FakeZfs,
    level: ConsistencyLevel,
) -> None:
    hold(level)
    (config.journal_dir / f"{UUID}.json").write_text("{")
    (needed,) = recover.recover_guests(config, dry_run=True).outcomes
    assert needed.result is report.Result.NEEDED
    assert needed.findings == ("its journal entry could not be read",)
    recovered = recover.recover_guests(config)
    assert recovered.complete
    assert guest.agent and not (guest.paused_because or guest.agent.frozen)
    assert [outcome.result for outcome in recovered.outcomes] == [report.Result.RECOVERED]
    assert (entries(config), levels_of(config)) == ([], [])
    assert recover.recover_guests(config).outcomes == []


def test_journal_that_was_damaged_while_a_guest_is_frozen_on_its_overlay(
    config: Config, guest: FakeGuest, hold: Hold, host: FakeHost, pools: FakeZfs
) -> None:
    hold(ConsistencyLevel.QUIESCED)
    guest.on_overlay("vda", config.staging_dir / f"{UUID}.00000001" / "vda.zvmsnap.qcow2")
    (config.journal_dir / f"{UUID}.json").write_text("{")
    assert recover.recover_guests(config).complete
    assert guest.agent and not guest.agent.frozen
    assert guest.live["vda"].endswith("vda.raw")


def test_journal_that_was_damaged_while_libvirt_dumps(
    config: Config, guest: FakeGuest, hold: Hold, host: FakeHost, pools: FakeZfs
) -> None:
    hold(ConsistencyLevel.PAUSED)
    (config.journal_dir / f"{UUID}.json").write_text("{")
    guest.paused_because, guest.job = None, True
    assert not recover.recover_guests(config).complete
    guest.paused_because, guest.job = Pause.JOB, False
    assert recover.recover_guests(config).complete
    assert guest.paused_because is None


def test_a_damaged_entry_keeps_no_guest_from_its_points(scene: Scene) -> None:
    """Though the agent does not answer whether the guest is frozen."""
    guest = scene.add()
    scene.config.journal_dir.mkdir()
    (scene.config.journal_dir / f"{UUID}.damaged").write_text("{")
    agent_of(guest).answering = False
    assert scene.pre()
    assert [entry.level for entry in scene.entries()] == [ConsistencyLevel.MEMORY]
