"""Starts the watchdog: the process outside sanoid that releases guests, whatever died."""

from __future__ import annotations

import math
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zvmsnap.common import log
from zvmsnap.common.errors import NotHeld
from zvmsnap.common.lockfile import is_held
from zvmsnap.common.process import Process
from zvmsnap.common.waiting import wait_until
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry

_START_TIMEOUT_S = 30
_FOLLOW_TIMEOUT_S = 10
_POLL_S = 0.05
_STDERR = 2
_PACKAGE_PARENT = Path(__file__).resolve().parent.parent.parent


def start_watchdog(owner: Process, post_within_s: float = math.inf) -> None:
    """Start the watchdog of this owner's run; a second one exits at once. Never raises.

    `post_within_s`: see hooks/callers.
    """
    command = [sys.executable, "-m", "zvmsnap", "watchdog", *_words(owner), f"{post_within_s:g}"]
    systemd_run = shutil.which("systemd-run") if Path("/run/systemd/system").is_dir() else None
    try:
        if systemd_run:
            subprocess.run(
                [systemd_run, *_unit_options(owner), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # "already exists", for the second dataset of one run
                timeout=_START_TIMEOUT_S,
                check=False,
            )
        else:
            with _stderr(owner) as stderr:
                subprocess.Popen(
                    command,
                    cwd=_PACKAGE_PARENT,
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    start_new_session=True,
                )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.plain().warning(
            "no watchdog for this run, only the next hook would recover its guests: %s", error
        )


@contextmanager
def _stderr(owner: Process) -> Iterator[int | None]:
    """Where a watchdog without systemd prints; None: where this process does.

    A pipe that this process prints to has a reader no longer than the hook runs (hooks/stand_in),
    or one that waits for its end. The reader of the owner's waits for the end of that anyway.
    """
    descriptor = None
    with suppress(OSError):  # it is no pipe, or nobody reads it
        path = f"/proc/{owner.pid}/fd/{_STDERR}"
        if stat.S_ISFIFO(os.fstat(_STDERR).st_mode) and stat.S_ISFIFO(os.stat(path).st_mode):
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            os.set_blocking(descriptor, True)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def require_watchdog(config: Config, owner: Process, post_within_s: float) -> None:
    """Return when the watchdog of this owner runs. Raises NotHeld if it does not start."""
    if not _runs(config, owner):
        start_watchdog(owner, post_within_s)
    if not _runs_soon(config, owner):
        raise NotHeld("no watchdog runs that would release the guest if this process dies")


def warn_without_watchdog(config: Config, owner: Process) -> None:
    """Tell if the watchdog that was started does not run, as of a configuration it cannot read."""
    if not _runs_soon(config, owner):
        log.plain().warning(
            "the watchdog of this run has not started: if sanoid dies, only the next hook or "
            "`zvmsnap recover` brings its guests back. Why: journalctl -u zvmsnap-%s",
            unit_name(owner),
        )


def wait_until_followed(config: Config, entry: Entry, cancelled: threading.Event) -> None:
    """Wait until the watchdog follows an entry of level `paused`, if it is to be followed.

    By then it has loaded all that it needs, and is connected to libvirt: a guest of which little
    RAM is to be dumped would stand still for that. Without it the guest waits for post.
    """
    if entry.newest_txg_before is None:
        wait_until(
            lambda: cancelled.is_set() or is_held(config.locks_dir, follower(entry)),
            _FOLLOW_TIMEOUT_S,
            _POLL_S,
        )


def follower(entry: Entry) -> str:
    """The lock that the watchdog holds while it follows that entry (quiesce/let_go).

    No other entry has it: a watchdog that hangs, of a run before, must not seem to follow this one.
    """
    return f"follow-{entry.capture}"


def _runs(config: Config, owner: Process) -> bool:
    return is_held(config.locks_dir, unit_name(owner))


def _runs_soon(config: Config, owner: Process) -> bool:
    return wait_until(lambda: _runs(config, owner), _START_TIMEOUT_S, _POLL_S)


def unit_name(owner: Process) -> str:
    """The watchdog of that process: the name of its lock, and of its unit behind `zvmsnap-`."""
    return f"watchdog-{owner.pid}-{owner.started}"


def _environment() -> dict[str, str]:
    """The watchdog's own: it runs in another directory, so a relative path would lead elsewhere."""
    environment = dict(os.environ)
    if path := environment.get("ZVMSNAP_CONFIG"):
        environment["ZVMSNAP_CONFIG"] = os.path.abspath(path)
    return environment


def _words(owner: Process) -> list[str]:
    return [str(owner.pid), str(owner.started), owner.boot]


def _unit_options(owner: Process) -> list[str]:
    config_path = _environment().get("ZVMSNAP_CONFIG")
    return [
        "--quiet",
        "--collect",
        "--no-block",
        # Whoever kills all processes of zvmsnap kills this one too, while guests may be held.
        "--property=Restart=on-abnormal",
        f"--unit=zvmsnap-{unit_name(owner)}",
        f"--description=zvmsnap watchdog of sanoid (pid {owner.pid})",
        f"--working-directory={_PACKAGE_PARENT}",
        *([f"--setenv=ZVMSNAP_CONFIG={config_path}"] if config_path else []),
    ]
