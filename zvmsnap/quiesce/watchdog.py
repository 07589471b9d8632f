"""Starts the watchdog: the process outside sanoid that releases guests, whatever died."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from zvmsnap.common import log
from zvmsnap.common.errors import NotHeld
from zvmsnap.common.lockfile import is_held
from zvmsnap.common.process import Process
from zvmsnap.config.settings import Config

_STARTING_LIMIT_S = 30
_STARTING_POLL_S = 0.05
_PACKAGE_PARENT = Path(__file__).resolve().parent.parent.parent


def start_watchdog(owner: Process, post_within_s: float = math.inf) -> None:
    """Start the guard of this run of sanoid; a second one ends at once. Never raises.

    `post_within_s` as in callers.
    """
    command = [sys.executable, "-m", "zvmsnap", "watchdog", *_words(owner), f"{post_within_s:g}"]
    systemd_run = shutil.which("systemd-run") if Path("/run/systemd/system").is_dir() else None
    try:
        if systemd_run:
            subprocess.run(
                [systemd_run, *_unit(owner), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # "already exists", for the second dataset of one run
                timeout=_STARTING_LIMIT_S,
                check=False,
            )
        else:
            subprocess.Popen(
                command,
                cwd=_PACKAGE_PARENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.plain().warning("no guard for this moment, the next hook would recover: %s", error)


def require_watchdog(config: Config, owner: Process, post_within_s: float) -> None:
    """Return when the guard watches. Raises NotHeld if it does not come."""
    deadline_s = time.monotonic() + _STARTING_LIMIT_S
    if not is_held(config.locks_dir, unit_name(owner)):
        start_watchdog(owner, post_within_s)
    while not is_held(config.locks_dir, unit_name(owner)):
        if time.monotonic() > deadline_s:
            raise NotHeld("no guard is there that would let it go again, whatever happens to us")
        time.sleep(_STARTING_POLL_S)


def unit_name(owner: Process) -> str:
    """The systemd unit of the watchdog for that process."""
    return f"watchdog-{owner.pid}-{owner.started}"


def _words(owner: Process) -> list[str]:
    return [str(owner.pid), str(owner.started), owner.boot]


def _unit(owner: Process) -> list[str]:
    named = os.environ.get("ZVMSNAP_CONFIG")
    return [
        "--quiet",
        "--collect",
        "--no-block",
        # Who kills all that is ours kills this too: guests may stand still.
        "--property=Restart=on-abnormal",
        f"--unit=zvmsnap-{unit_name(owner)}",
        f"--description=zvmsnap watchdog of sanoid (pid {owner.pid})",
        f"--working-directory={_PACKAGE_PARENT}",
        *([f"--setenv=ZVMSNAP_CONFIG={named}"] if named else []),
    ]
