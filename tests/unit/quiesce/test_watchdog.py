"""How the watchdog is started, and how others see that it runs."""

import fcntl
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

import zvmsnap
from zvmsnap.common.errors import NotHeld
from zvmsnap.common.lockfile import is_held, lock
from zvmsnap.common.process import Process
from zvmsnap.common.waiting import now_s
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry
from zvmsnap.quiesce import watchdog

Hold = Callable[..., Entry]
DEAD = Process(4711, 815, "a-boot")
WORDS = ["4711", "815", "a-boot", "inf"]
NAME = "watchdog-4711-815"


class Started:
    """Notes how the watchdog would be started."""

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
def test_start(monkeypatch: pytest.MonkeyPatch, systemd: bool) -> None:
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
def test_relative_path_of_a_configuration_leads_the_watchdog_to_the_same_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, systemd: bool
) -> None:
    started = Started(monkeypatch, systemd)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZVMSNAP_CONFIG", "other.toml")
    watchdog.start_watchdog(DEAD)
    ((command,), (named,)) = started.commands, started.named
    if systemd:
        assert f"--setenv=ZVMSNAP_CONFIG={tmp_path}/other.toml" in command
    else:
        assert named["env"]["ZVMSNAP_CONFIG"] == f"{tmp_path}/other.toml"


@pytest.mark.parametrize("systemd", [True, False])
def test_a_watchdog_that_cannot_be_started_stops_no_run(
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


HOOK = """
import sys
from pathlib import Path
from zvmsnap.common.process import Process
from zvmsnap.hooks import stand_in
from zvmsnap.quiesce import watchdog
owner, sys.executable = Process.of(int(sys.argv[1])), sys.argv[2]
watchdog.shutil.which = lambda program: None
sys.exit(stand_in.run(lambda: watchdog.start_watchdog(owner) or 0))
"""


@pytest.mark.parametrize("reader", ["", "2>&1 | cat"])
def test_what_it_tells_is_heard_where_its_owner_is(tmp_path: Path, reader: str) -> None:
    """Nor does it keep whoever reads what the hook prints until its end."""
    program = tmp_path / "program"
    program.write_text(
        f"#!/bin/sh\nuntil [ -e {tmp_path}/over ]; do sleep 0.05; done\necho recovered >&2\n"
    )
    program.chmod(0o755)
    sanoid = f'"$0" -c "$1" $$ {program} {reader}; echo ended; exec >&-; sleep 1'
    with subprocess.Popen(
        ["sh", "-c", sanoid, sys.executable, HOOK],
        env={"PYTHONPATH": str(Path(zvmsnap.__file__).parents[1]), "PATH": os.environ["PATH"]},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.read() == "ended\n"
        (tmp_path / "over").touch()
        assert process.stderr.read() == "recovered\n"


class Starter:
    """In place of start_watchdog: the calls, and the lock of the watchdog that starts."""

    def __init__(self, config: Config) -> None:
        self.starts = True
        self.calls: list[tuple[Process, float]] = []
        self.over = ExitStack()
        self._config = config

    def start(self, owner: Process, post_within_s: float = math.inf) -> None:
        self.calls.append((owner, post_within_s))
        if self.starts:
            self.over.enter_context(lock(self._config.locks_dir, NAME, "watchdog", 0))


@pytest.fixture
def starter(config: Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starter]:
    made = Starter(config)
    monkeypatch.setattr(watchdog, "start_watchdog", made.start)
    with made.over:
        yield made


@pytest.mark.parametrize("post_within_s", [math.inf, 120, 0])
def test_a_watchdog_is_started_once(config: Config, starter: Starter, post_within_s: float) -> None:
    watchdog.require_watchdog(config, DEAD, post_within_s)
    assert starter.calls == [(DEAD, post_within_s)]
    watchdog.require_watchdog(config, DEAD, post_within_s)
    assert len(starter.calls) == 1


def test_a_watchdog_that_starts_slowly(
    config: Config, starter: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    def look(locks_dir: Path, name: str) -> bool:
        looks.append(name)
        if len(looks) == 5:
            starter.start(DEAD)
        return is_held(locks_dir, name)

    monkeypatch.setattr(watchdog, "start_watchdog", lambda owner, post_within_s: None)
    monkeypatch.setattr(watchdog, "is_held", look)
    watchdog.require_watchdog(config, DEAD, math.inf)
    assert looks == [NAME] * 5


def test_a_paused_guest_is_followed_soon(
    config: Config, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    def look(locks_dir: Path, name: str) -> bool:
        looks.append(name)
        return len(looks) == 3

    monkeypatch.setattr(watchdog, "is_held", look)
    entry = hold(ConsistencyLevel.PAUSED)
    watchdog.wait_until_followed(config, entry, threading.Event())
    assert looks == [f"follow-{entry.capture}"] * 3


def test_a_guest_that_nobody_follows_is_waited_for_no_longer_than_that(
    config: Config, hold: Hold
) -> None:
    begun_s = now_s()
    watchdog.wait_until_followed(config, hold(ConsistencyLevel.PAUSED), threading.Event())
    assert 10 <= now_s() - begun_s < 11


@pytest.mark.parametrize("why", ["no names are announced", "interrupted"])
def test_a_guest_that_is_not_waited_for(config: Config, hold: Hold, why: str) -> None:
    begun_s, cancelled = now_s(), threading.Event()
    entry = hold(ConsistencyLevel.PAUSED)
    if why == "interrupted":
        cancelled.set()
    else:
        entry = msgspec.structs.replace(entry, newest_txg_before={"tank/web": 5})
    watchdog.wait_until_followed(config, entry, cancelled)
    assert now_s() == begun_s


def test_no_watchdog_starts(config: Config, starter: Starter) -> None:
    starter.starts = False
    with pytest.raises(NotHeld, match="no watchdog runs"):
        watchdog.require_watchdog(config, DEAD, math.inf)
    assert starter.calls == [(DEAD, math.inf)]


def test_the_lock_file_of_a_killed_watchdog_does_not_count(
    config: Config, starter: Starter
) -> None:
    with lock(config.locks_dir, NAME, "watchdog", 0):
        assert is_held(config.locks_dir, NAME)
    assert (config.locks_dir / f"{NAME}.lock").exists()
    watchdog.require_watchdog(config, DEAD, math.inf)
    assert len(starter.calls) == 1


def test_the_watchdog_of_another_owner_does_not_count(config: Config, starter: Starter) -> None:
    with lock(config.locks_dir, "watchdog-4711-816", "watchdog", 0):
        watchdog.require_watchdog(config, DEAD, math.inf)
    assert len(starter.calls) == 1


def test_a_process_that_looks_for_a_watchdog_does_not_count(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several guests of a run look at the same time."""
    with lock(config.locks_dir, NAME, "watchdog", 0):
        pass
    flock, others = fcntl.flock, list[bool]()

    def looked(descriptor: int, operation: int) -> None:
        flock(descriptor, operation)
        monkeypatch.setattr(fcntl, "flock", flock)
        others.append(is_held(config.locks_dir, NAME))

    monkeypatch.setattr(fcntl, "flock", looked)
    assert not is_held(config.locks_dir, NAME)
    assert others == [False]


def test_no_lock_file(config: Config) -> None:
    assert not is_held(config.locks_dir, NAME)
    config.locks_dir.mkdir()
    assert not is_held(config.locks_dir, NAME)
    assert list(config.locks_dir.iterdir()) == []


def test_a_watchdog_that_does_not_start_is_told(
    config: Config, starter: Starter, caplog: pytest.LogCaptureFixture
) -> None:
    """systemd-run says only that it was asked: a configuration may be unreadable from there."""
    watchdog.warn_without_watchdog(config, DEAD)
    assert "the watchdog of this run has not started" in caplog.text
    assert "journalctl -u zvmsnap-watchdog-4711-815" in caplog.text
    caplog.clear()
    starter.start(DEAD)
    watchdog.warn_without_watchdog(config, DEAD)
    assert caplog.text == ""
