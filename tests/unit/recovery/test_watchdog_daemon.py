import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.fakes.guest import UUID, FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.images import holds
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.common.errors import LibvirtFailed, ZvmsnapError
from zvmsnap.common.lockfile import lock
from zvmsnap.common.process import Process
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks import jobs
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.points import vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.quiesce import watchdog
from zvmsnap.recovery import watchdog_daemon
from zvmsnap.zfs import mounts

Stage = Callable[..., Entry]
T = "autosnap_2026-11-20_03:00:00"
DEAD = Process(4711, 815, "a-boot")
MIB = 1 << 20


class Clock:
    """Counts the looks of the guard, and lets something happen after some of them."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.after: dict[int, Callable[[], None]] = {}

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        assert len(self.slept) < 50, "never ends"
        self.after.get(len(self.slept), lambda: None)()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "sleep", made.sleep)
    return made


@pytest.fixture(autouse=True)
def _seams(clock: Clock, host: FakeHost, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch) -> None:
    pools.present = {f"tank/web@{T}_hourly": 11}
    monkeypatch.setattr(mounts, "read_table", list)
    monkeypatch.setattr(jobs, "_LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(watchdog_daemon, "_ANOTHER_IS_THERE_S", 0)


@pytest.fixture
def sanoid(monkeypatch: pytest.MonkeyPatch) -> Process:
    """A sanoid that runs until `dies`."""
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


def test_goes_when_sanoid_is_dead_and_nothing_is_open(config: Config, clock: Clock) -> None:
    assert watchdog_daemon.watch(config, DEAD)
    assert clock.slept == []


def test_stays_as_long_as_sanoid_runs(config: Config, clock: Clock, sanoid: Process) -> None:
    clock.after[3] = dies
    assert watchdog_daemon.watch(config, sanoid)
    assert clock.slept == [1.0] * 3


def test_touches_nothing_while_sanoid_runs(
    config: Config,
    guest: FakeGuest,
    clock: Clock,
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


def test_moments_of_another_sanoid_are_none_of_its_business(
    config: Config, guest: FakeGuest, staged: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 0)
    known = staged(owner=Process(4712, 815, "a-boot"))
    assert watchdog_daemon.watch(config, DEAD)
    assert entries(config) == [known]
    assert guest.calls == []


def test_tries_again_farther_and_farther_apart(
    config: Config, host: FakeHost, clock: Clock, staged: Stage
) -> None:
    staged(owner=DEAD)
    host.reachable = False

    def comes_back() -> None:
        host.reachable = True

    clock.after[3] = comes_back
    assert watchdog_daemon.watch(config, DEAD)
    assert clock.slept == [2.0, 4.0, 8.0, 8.0]
    assert entries(config) == []


def test_gives_up_in_the_end(config: Config, host: FakeHost, clock: Clock, staged: Stage) -> None:
    known = staged(owner=DEAD)
    host.reachable = False
    assert not watchdog_daemon.watch(config, DEAD)
    assert clock.slept == [2.0**number for number in range(1, watchdog_daemon._ATTEMPTS)]
    assert entries(config) == [known]


@pytest.mark.parametrize(
    ("mib", "released_early"), [(0, True), (255, True), (256, False), (9999, False)]
)
def test_staging_that_runs_full(
    config: Config,
    guest: FakeGuest,
    clock: Clock,
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
    # What a snapshot saw of a merge is no point at all.
    assert [point.manifest.level for point in points(config)] == [ConsistencyLevel.MEMORY] * (
        not released_early
    )
    assert holds(Path(guest.live["vda"]), 7)
    # Given up once, and then left to post.
    assert guest.calls == ([] if released_early else ["commit vda", "pivot vda"])


def test_staging_that_runs_full_behind_the_snapshot(
    config: Config,
    guest: FakeGuest,
    clock: Clock,
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
    assert [tie.name for tie in point.manifest.snapshots] == [f"{T}_monthly"]
    assert f"overlays were being merged: tank/web@{T}_hourly" in caplog.text
    assert holds(Path(guest.live["vda"]), 7)


def test_staging_that_runs_full_between_the_snapshots_of_two_pools(
    config: Config,
    clock: Clock,
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


@pytest.mark.parametrize(
    ("reserve_mib", "room_mib", "expected_mib"), [(256, 1024, 256), (256, 1, 1), (8, 8, 8)]
)
def test_reserve_is_no_more_than_the_room_that_pre_saw_to(
    config: Config, reserve_mib: int, room_mib: int, expected_mib: int
) -> None:
    limits = msgspec.structs.replace(
        config.limits, staging_reserve_mib=reserve_mib, overlay_room_mib=room_mib
    )
    reserve_bytes = watchdog_daemon._reserve_bytes(msgspec.structs.replace(config, limits=limits))
    assert reserve_bytes == expected_mib << 20


def test_nothing_is_given_up_while_a_hook_works_on_the_guest(
    config: Config,
    guest: FakeGuest,
    clock: Clock,
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
        pytest.param({"capture": f"{UUID}.0000000f"}, id="another moment meanwhile"),
    ],
)
def test_only_the_moment_that_was_seen_is_given_up(
    config: Config, guest: FakeGuest, staged: Stage, now: dict[str, Any] | None
) -> None:
    seen = staged()
    journal = Journal(config.journal_dir)
    journal.close(seen)
    if now is not None:
        journal.write(msgspec.structs.replace(seen, **now))
    before = entries(config)
    watchdog_daemon._give_up(config, journal, seen)
    assert entries(config) == before
    assert guest.calls == []


def test_what_cannot_be_given_up_is_said_and_the_guard_stays(
    config: Config,
    guest: FakeGuest,
    clock: Clock,
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


def test_second_guard_ends_at_once(
    settings: None, config: Config, guest: FakeGuest, staged: Stage
) -> None:
    known = staged(owner=DEAD)
    with lock(config.locks_dir, "watchdog-4711-815", "guard", 1):
        assert watchdog_daemon.main(WORDS) == 0
        assert (config.locks_dir / "watchdog-4711-815.lock").exists()
    assert entries(config) == [known]


def test_guard_that_gave_up_says_so(
    settings: None, config: Config, host: FakeHost, staged: Stage
) -> None:
    staged(owner=DEAD)
    host.reachable = False
    assert watchdog_daemon.main(WORDS) == 1


@pytest.mark.parametrize("error", [ZvmsnapError("no"), OSError("no")])
def test_guard_that_fails_is_one_line(
    settings: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def fail(*_arguments: object) -> bool:
        raise error

    monkeypatch.setattr(watchdog_daemon, "watch", fail)
    assert watchdog_daemon.main(WORDS) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("error: guard: no")


class Started:
    """Notes how the guard would be started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, systemd: bool) -> None:
        self.commands: list[list[str]] = []
        self.named: list[dict[str, Any]] = []
        is_dir = Path.is_dir
        monkeypatch.setattr(
            Path,
            "is_dir",
            lambda path: systemd if str(path) == "/run/systemd/system" else is_dir(path),
        )
        monkeypatch.setattr(shutil, "which", lambda program: f"/bin/{program}")
        monkeypatch.setattr(subprocess, "run", self.note)
        monkeypatch.setattr(subprocess, "Popen", self.note)

    def note(self, command: list[str], **named: Any) -> None:
        self.commands.append(command)
        self.named.append(named)


@pytest.mark.parametrize("systemd", [True, False])
def test_arm(monkeypatch: pytest.MonkeyPatch, systemd: bool) -> None:
    started = Started(monkeypatch, systemd)
    monkeypatch.setenv("ZVMSNAP_CONFIG", "/etc/other.toml")
    watchdog.start_watchdog(DEAD)
    ((command,), (named,)) = started.commands, started.named
    assert command[-7:] == ["-m", "zvmsnap", "watchdog", *WORDS]
    if systemd:
        assert command[0] == "/bin/systemd-run"
        assert "--unit=zvmsnap-watchdog-4711-815" in command
        assert "--setenv=ZVMSNAP_CONFIG=/etc/other.toml" in command
    else:
        # Whatever kills sanoid's process group must not kill it.
        assert named["start_new_session"] is True


@pytest.mark.parametrize("systemd", [True, False])
def test_a_guard_that_cannot_be_started_stops_no_moment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, systemd: bool
) -> None:
    started = Started(monkeypatch, systemd)

    def fail(*_arguments: object, **_named: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr(subprocess, "Popen", fail)
    watchdog.start_watchdog(DEAD)
    assert "no watchdog for this run" in caplog.text
    assert started.commands == []
