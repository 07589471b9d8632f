"""The seam to syncoid, which sends datasets: resumable, compressed, and as our users know it.

What it is told, always:

    --no-sync-snap            its own snapshots would bypass the hooks
    --no-rollback             what somebody has done on the other side is told, not undone
    --no-privilege-elevation  the user there has `zfs allow`, and no sudo
    --recvoptions             not mounted, read-only: nobody writes where the next stream goes
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass

from zvmsnap.common.errors import SyncoidFailed
from zvmsnap.common.ssh import SSH_OPTIONS

_OLDEST = (2, 1)
_VERSION = re.compile(r"version (\d+)\.(\d+)")

# What it says around the reason, and not the reason itself.
_FRAME = re.compile(r"CRITICAL ERROR: (?!Target)|mbuffer: |INFO|NEWEST SNAPSHOT|WARN|\s*$")


@dataclass(frozen=True)
class Options:
    """What may be chosen. `bwlimit` as mbuffer reads it: bytes per second, with k, M or G."""

    raw: bool = False
    bwlimit: str = ""
    create_bookmark: bool = False
    use_hold: bool = False


def check(options: Options) -> None:
    """Is there a syncoid that can do it? Raises SyncoidFailed."""
    try:
        said = subprocess.run(
            ["syncoid", "--version"], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except OSError as error:
        raise SyncoidFailed(
            f"syncoid cannot be run ({error.strerror}): it comes with sanoid; is that installed?"
        ) from error
    found = _VERSION.search(said.stdout.decode(errors="replace"))
    if not found or (int(found[1]), int(found[2])) < _OLDEST:
        version = f"{found[1]}.{found[2]}" if found else "unknown"
        raise SyncoidFailed(f"syncoid is {version}, and must be 2.1 or newer: upgrade sanoid")
    if options.use_hold and (int(found[1]), int(found[2])) < (2, 2):
        raise SyncoidFailed("use_hold needs syncoid 2.2 or newer: upgrade sanoid")
    if options.bwlimit and not shutil.which("mbuffer"):
        raise SyncoidFailed("bwlimit needs mbuffer, which is not there: apt install mbuffer")


def command(source: str, target: str, options: Options, *, readonly: bool) -> list[str]:
    """The command line that sends one dataset, and none below it. Pure."""
    words = ["syncoid", "--no-sync-snap", "--no-rollback", "--no-privilege-elevation"]
    words += [f"--sshoption={option}" for option in SSH_OPTIONS]
    words.append("--recvoptions=u o readonly=on" if readonly else "--recvoptions=u")
    if options.raw:
        words.append("--sendoptions=w")
    if options.bwlimit:
        words.append(f"--source-bwlimit={options.bwlimit}")
    if options.create_bookmark:
        words.append("--create-bookmark")
    if options.use_hold:
        words.append("--use-hold")
    return [*words, source, target]


def run(source: str, target: str, options: Options, *, readonly: bool) -> None:
    """Send one dataset, going on where an interrupted run has left it.

    Raises SyncoidFailed with its reason.
    """
    words = command(source, target, options, readonly=readonly)
    on_terminal = sys.stderr.isatty()
    if not on_terminal:
        words.insert(1, "--quiet")
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=None if on_terminal else subprocess.PIPE,
        stderr=None if on_terminal else subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate()
    except BaseException:
        # Its pipeline too; zfs receive keeps what has arrived.
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    if process.returncode:
        raise SyncoidFailed(f"{source} to {target}: {_reason(said)}")


def _reason(said: bytes | None) -> str:
    lines = (said or b"").decode(errors="replace").replace("\r", "\n").splitlines()
    telling = [line.strip() for line in lines if not _FRAME.match(line)]
    return telling[-1] if telling else "syncoid failed, and said why above"
