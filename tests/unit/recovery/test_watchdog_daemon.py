import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.fakes.clock import ScriptedClock
from tests.fakes.guest import UUID, FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.images import holds
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.common import waiting
from zvmsnap.common.errors import DomainBusy, LibvirtFailed, ZvmsnapError
from zvmsnap.common.lockfile import lock
from zvmsnap.common.process import Process
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config, Limits
from zvmsnap.disks import jobs
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.points import vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.recovery import watchdog_daemon
from zvmsnap.zfs import mounts

Stage = Callable[..., Entry]
T = "autosnap_2026-11-20_03:00:00"
DEAD = Process(4711, 815, "a-boot")
MIB = 1 << 20


@pytest.fixture
def clock() -> Iterator[ScriptedClock]:
    """Every sleep is one between two looks of the watchdog."""
    clock = ScriptedClock()
    with waiting.clocked_by(clock):
        yield clock


@pytest.fixture(autouse=True)
def _seams(
    clock: ScriptedClock, host: FakeHost, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools.present = {f"tank/web@{T}_hourly": 11}
    monkeypatch.setattr(mounts, "read_table", list)


@pytest.fixture
def sanoid(monkeypatch: pytest.MonkeyPatch) -> Process:
    """A sanoid that lives until `dies`."""
    owner = Process.of(os.getpid())
    monkeypatch.setattr(Process, "is_alive", lambda process: process == owner and ALIVE[0])
    ALIVE[0] = True
    return owner


ALIVE = [True]


def dies() -> None:
    ALIVE[0] = False


def free(monkeypatch: pytest.MonkeyPatch, mib: int) -> None:
    answer = SimpleNamespace(f_bavail=mib << 8, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: answer)


def entries(config: Config) -> list[Entry]:
    return Journal(config.journal_dir).entries()


def points(config: Config) -> list[RestorePoint]:
    return [p for p in vault.entries(config.vault_dir) if isinstance(p, RestorePoint)]


def test_exits_when_sanoid_is_dead_and_no_entry_is_open(
    config: Config, clock: ScriptedClock
) -> None:
    assert watchdog_daemon.watch(config, DEAD)
    assert clock.slept == []


def test_runs_as_long_as_sanoid_lives(
    config: Config, clock: ScriptedClock, sanoid: Process
) -> None:
    clock.after[3] = dies
    assert watchdog_daemon.watch(config, sanoid)
    assert clock.slept == [1.0] * 3


def test_does_nothing_while_sanoid_lives(
    config: Config,
    guest: FakeGuest,
    clock: ScriptedClock,
    sanoid: Process,
    staged: Stage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free(monkeypatch, 256)
    known = staged(owner=sanoid)

    def look() -> None:
        assert entries(config) == [known]
        assert guest.calls == []
        dies()

    clock.after[2] = look
    assert watchdog_daemon.watch(config, sanoid)
    assert entries(config) == []
    assert holds(Path(guest.live["vda"]), 7)
    assert [point.manifest.level for point in points(config)] == [ConsistencyLevel.MEMORY]


def test_runs_of_another_sanoid_are_not_touched(
    config: Config, guest: FakeGuest, staged: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 0)
    known = staged(owner=Process(4712, 815, "a-boot"))
    assert watchdog_daemon.watch(config, DEAD)
    assert entries(config) == [known]
    assert guest.calls == []


def test_tries_again_each_time_after_twice_as_long(
    config: Config, host: FakeHost, clock: ScriptedClock, staged: Stage
) -> None:
    staged(owner=DEAD)
    host.reachable = False

    def comes_back() -> None:
        host.reachable = True

    clock.after[3] = comes_back
    assert watchdog_daemon.watch(config, DEAD)
    assert clock.slept == [2.0, 4.0, 8.0, 1.0]
    assert entries(config) == []


def test_gives_up_after_some_attempts(
    config: Config, host: FakeHost, clock: ScriptedClock, staged: Stage
) -> None:
    """What is left needs nobody's guest: it is on its own disks, and the point waits."""
    known = staged(owner=DEAD, step="store")
    host.reachable = False
    assert not watchdog_daemon.watch(config, DEAD)
    assert sum(clock.slept) == 2 + 4 + 8 + 16 + 32 + 60 + 60
    assert max(clock.slept) == 10
    assert entries(config) == [known]


def test_a_backup_by_somebody_else_is_waited_for_without_end(
    config: Config,
    guest: FakeGuest,
    clock: ScriptedClock,
    staged: Stage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is said once who is in the way, and once that staging runs low meanwhile."""
    caplog.set_level(logging.WARNING)
    known = staged(owner=DEAD)
    guest.job, guest.kind_of_job, guest.block_jobs = True, "backup", {"vda"}
    free(monkeypatch, 9999)
    config = msgspec.structs.replace(config, limits=Limits(busy_timeout_s=0))
    minutes: list[int] = []

    def goes_on() -> None:
        (entry,) = entries(config)
        assert entry.in_the_way == "a job (backup) on vda"
        assert guest.calls == []
        assert Path(known.disks[0].overlay).exists()
        minutes.append(1)
        if len(minutes) == 5:
            free(monkeypatch, 255)
        if len(minutes) == 12:
            guest.job = False
        clock.slept.clear()
        clock.after = {10: goes_on}

    clock.after = {10: goes_on}
    assert watchdog_daemon.watch(config, DEAD)
    assert len(minutes) >= 12  # of a hundred seconds each: far more than its 8 attempts
    assert caplog.text.count("a job (backup) on vda") == 1
    assert caplog.text.count("finishing what was interrupted: run") == 1
    assert caplog.text.count("has 255 MiB left, and web may still be on overlays") == 1
    assert entries(config) == []
    assert holds(Path(guest.live["vda"]), 7)


def test_only_the_first_attempt_waits_for_the_end_of_a_job(
    config: Config,
    guest: FakeGuest,
    clock: ScriptedClock,
    staged: Stage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody else waits for the guest's lock, nor another guest for its turn."""
    staged(owner=DEAD)
    guest.job, guest.kind_of_job = True, "migration"
    waited_s: list[float] = []

    def wait_idle(guest: FakeGuest, timeout_s: float) -> None:
        waited_s.append(timeout_s)
        if len(waited_s) < 4:
            raise DomainBusy(f"web: a job since {timeout_s} s")

    monkeypatch.setattr(jobs, "wait_idle", wait_idle)
    assert watchdog_daemon.watch(config, DEAD)
    assert waited_s == [config.limits.busy_timeout_s, 0, 0, 0]
    assert caplog.text.count("web: a job since") == 1


@pytest.mark.parametrize(
    ("mib", "released_early"), [(0, True), (255, True), (256, False), (9999, False)]
)
def test_staging_that_runs_full(
    config: Config,
    guest: FakeGuest,
    clock: ScriptedClock,
    sanoid: Process,
    staged: Stage,
    pools: FakeZfs,
    monkeypatch: pytest.MonkeyPatch,
    mib: int,
    released_early: bool,
) -> None:
    free(monkeypatch, mib)
    known = staged(owner=sanoid)
    on_overlay = dict(guest.live)
    taken, pools.present = pools.present, {}

    def look() -> None:
        pools.present = taken
        (entry,) = entries(config)
        assert (guest.live == on_overlay) is not released_early
        assert (entry.released_early, entry.capture) == (released_early, known.capture)
        guest.calls.clear()

    clock.after = {1: look, 2: dies}
    assert watchdog_daemon.watch(config, sanoid)
    # There is no point of a snapshot that was taken during a merge.
    assert [point.manifest.level for point in points(config)] == [ConsistencyLevel.MEMORY] * (
        not released_early
    )
    assert holds(Path(guest.live["vda"]), 7)
    # Its overlays are merged once; the rest is for post.
    assert guest.calls == ([] if released_early else ["commit vda", "pivot vda"])


def test_staging_that_runs_full_after_the_snapshot(
    config: Config,
    guest: FakeGuest,
    clock: ScriptedClock,
    sanoid: Process,
    staged: Stage,
    pools: FakeZfs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of several types, which sanoid takes one after the other."""
    free(monkeypatch, 0)
    staged(owner=sanoid, snapshot_names=(f"{T}_monthly", f"{T}_hourly"))
    pools.present = {f"tank/web@{T}_monthly": 11}

    def take() -> None:
        pools.present[f"tank/web@{T}_hourly"] = 12
        dies()

    clock.after = {1: take}
    assert watchdog_daemon.watch(config, sanoid)
    (point,) = points(config)
    assert point.manifest.level is ConsistencyLevel.MEMORY
    assert [ref.name for ref in point.manifest.snapshots] == [f"{T}_monthly"]
    assert f"overlays were being merged: tank/web@{T}_hourly" in caplog.text
    assert holds(Path(guest.live["vda"]), 7)


def test_staging_that_runs_full_between_the_snapshots_of_two_pools(
    config: Config,
    clock: ScriptedClock,
    sanoid: Process,
    staged: Stage,
    pools: FakeZfs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    free(monkeypatch, 0)
    known = staged(owner=sanoid)
    elsewhere = {"target": "vdb", "dataset": "fast/web", "overlay": ""}
    disks = (*known.disks, msgspec.structs.replace(known.disks[0], **elsewhere))
    Journal(config.journal_dir).write(msgspec.structs.replace(known, disks=disks))
    ((taken, guid),) = pools.present.items()
    late = taken.replace("tank", "fast")

    def take() -> None:
        pools.present[late] = guid + 1
        dies()

    clock.after = {1: take}
    assert watchdog_daemon.watch(config, sanoid)
    assert points(config) == []
    assert f"in the middle of a merge: {late}, {taken}" in caplog.text


def test_nothing_is_released_early_while_a_hook_works_on_the_guest(
    config: Config,
    guest: FakeGuest,
    clock: ScriptedClock,
    sanoid: Process,
    staged: Stage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free(monkeypatch, 0)
    known = staged(owner=sanoid)

    def look() -> None:
        assert entries(config) == [known]
        assert guest.calls == []
        raise StopIteration

    clock.after[2] = look
    with lock(config.locks_dir, UUID, "capture", 1), pytest.raises(StopIteration):
        watchdog_daemon.watch(config, sanoid)


@pytest.mark.parametrize(
    "now",
    [
        pytest.param(None, id="finished meanwhile"),
        pytest.param({"capture": f"{UUID}.0000000f"}, id="another run meanwhile"),
    ],
)
def test_only_the_entry_that_was_read_is_released_early(
    config: Config, guest: FakeGuest, staged: Stage, now: dict[str, Any] | None
) -> None:
    known = staged()
    journal = Journal(config.journal_dir)
    journal.close(known)
    if now is not None:
        journal.write(msgspec.structs.replace(known, **now))
    before = entries(config)
    watchdog_daemon._release_early(config, journal, known, config.staging_dir)
    assert entries(config) == before
    assert guest.calls == []


def test_a_failed_early_release_is_logged_and_the_watchdog_goes_on(
    config: Config,
    guest: FakeGuest,
    clock: ScriptedClock,
    sanoid: Process,
    staged: Stage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    free(monkeypatch, 0)
    staged(owner=sanoid)

    def fail() -> None:
        raise LibvirtFailed("no commit", 38)

    guest.at["commit vda"] = fail
    clock.after[2] = dies
    assert watchdog_daemon.watch(config, sanoid)
    assert "no commit" in caplog.text
    assert entries(config) == []
    assert holds(Path(guest.live["vda"]), 7)


@pytest.fixture
def settings(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("staging", "vault", "journal", "locks")
    path = tmp_path / "config.toml"
    path.write_text("".join(f"{key} = '{getattr(config, key)}'\n" for key in keys))
    monkeypatch.setenv("ZVMSNAP_CONFIG", str(path))


WORDS = ["4711", "815", "a-boot", "inf"]


@pytest.mark.parametrize("words", [[], ["1"], ["x", "1", "b"], [*WORDS, "more"]])
def test_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert watchdog_daemon.main(words) == 2
    assert "usage: zvmsnap watchdog PID STARTED BOOT" in capsys.readouterr().err


def test_main(settings: None, config: Config, guest: FakeGuest, staged: Stage) -> None:
    staged(owner=DEAD)
    assert watchdog_daemon.main(WORDS) == 0
    assert entries(config) == []
    assert not list(config.locks_dir.glob("watchdog-*"))


def test_a_second_watchdog_exits_at_once(
    settings: None, config: Config, guest: FakeGuest, staged: Stage
) -> None:
    known = staged(owner=DEAD)
    with lock(config.locks_dir, "watchdog-4711-815", "watchdog", 1):
        assert watchdog_daemon.main(WORDS) == 0
        assert (config.locks_dir / "watchdog-4711-815.lock").exists()
    assert entries(config) == [known]


def test_exit_code_after_it_gave_up(
    settings: None, config: Config, host: FakeHost, staged: Stage
) -> None:
    staged(owner=DEAD, step="store")
    host.reachable = False
    assert watchdog_daemon.main(WORDS) == 1


@pytest.mark.parametrize("error", [ZvmsnapError("no"), OSError("no")])
def test_a_failure_is_one_line(
    settings: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def fail(*_arguments: object) -> bool:
        raise error

    monkeypatch.setattr(watchdog_daemon, "watch", fail)
    assert watchdog_daemon.main(WORDS) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("error: watchdog: no")
