"""`zvmsnap idle`: what would go on with the code of another version."""

import os
from collections.abc import Callable

import pytest

from tests.fakes.clock import TestClock
from zvmsnap.common import waiting
from zvmsnap.common.lockfile import lock
from zvmsnap.common.process import Process
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal

Run = Callable[..., tuple[int, str, str]]
UUID = "5a6b7c8d-0000-4000-8000-000000000001"


@pytest.fixture
def run_of_web(config: Config, entry: Callable[..., Entry]) -> Entry:
    """A run that is under way: its owner is this process."""
    begun = entry(uuid=UUID, domain="web", step="dump", owner=Process.of(os.getpid()))
    Journal(config.journal_dir).write(begun)
    return begun


def test_nothing(run: Run) -> None:
    assert run("idle") == (0, "nothing is under way\n", "")


def test_a_run_is_named(run: Run, run_of_web: Entry) -> None:
    code, out, err = run("idle")
    assert (code, err) == (1, "")
    (line,) = out.splitlines()
    assert line.startswith(f"web: run {run_of_web.run} is under way at step dump")


def test_what_was_interrupted_does_not_count(
    run: Run, config: Config, entry: Callable[..., Entry]
) -> None:
    Journal(config.journal_dir).write(entry(uuid=UUID, owner=Process.none()))
    assert run("idle")[0] == 0


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        (UUID, 1, f"{UUID}: restore web@x (pid {os.getpid()})\n"),
        ("watchdog-4711-815", 1, f"watchdog-4711-815: restore web@x (pid {os.getpid()})\n"),
        ("send-nas", 0, "nothing is under way\n"),
        ("vault", 0, "nothing is under way\n"),
    ],
)
def test_whose_lock_counts(run: Run, config: Config, name: str, code: int, said: str) -> None:
    with lock(config.locks_dir, name, "restore web@x", 0):
        assert run("idle") == (code, said, "")
    assert run("idle")[0] == 0


def test_it_waits_for_the_end_and_says_so_once(
    run: Run, config: Config, run_of_web: Entry, clock: TestClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 3:
            Journal(config.journal_dir).close(run_of_web)

    monkeypatch.setattr(waiting, "sleep", sleep)
    code, out, err = run("idle", "--wait", "60")
    assert (code, out, len(sleeps)) == (0, "nothing is under way\n", 3)
    (line,) = err.splitlines()
    assert "waiting for what is under way: web: run " in line


def test_it_waits_for_so_long_only(run: Run, run_of_web: Entry, clock: TestClock) -> None:
    begun_s = waiting.now_s()
    code, out, _ = run("idle", "--wait", "30")
    assert (code, len(out.splitlines())) == (1, 1)
    assert 30 <= waiting.now_s() - begun_s < 32
