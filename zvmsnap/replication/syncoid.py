"""Runs syncoid, which sends one dataset: resumable, compressed, and as our users know it.

Its options, always:

    --no-sync-snap            its own snapshots would bypass the hooks
    --no-rollback             what somebody has changed at the destination is reported, not undone
    --no-privilege-elevation  the user at the destination has `zfs allow`, and no sudo
    --recvoptions             not mounted, read-only: nobody writes where the next stream goes
"""

from __future__ import annotations

import codecs
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass

from zvmsnap.common import foreign
from zvmsnap.common.errors import SyncoidFailed
from zvmsnap.common.ssh import SSH_OPTIONS

_OLDEST = (2, 1)
_OLDEST_WITH_HOLD = (2, 2)
_OLDEST_WITH_PV_OPTIONS = (2, 2)
_SAID_MAX = 64 << 10  # bytes of its output in which the reason is looked for
_VERSION = re.compile(r"version (\d+)\.(\d+)")

# Lines of its output that are not the reason of a failure.
_NOT_THE_REASON = re.compile(r"CRITICAL ERROR: (?!Target)|mbuffer: |INFO|NEWEST SNAPSHOT|WARN|\s*$")


@dataclass(frozen=True)
class SyncoidOptions:
    """What may be chosen. `bwlimit` as mbuffer reads it: bytes per second, with k, M or G."""

    raw: bool = False
    bwlimit: str = ""
    create_bookmark: bool = False
    use_hold: bool = False


def check(options: SyncoidOptions) -> None:
    """Check that syncoid is installed, and new enough for these options. Raises SyncoidFailed."""
    version = _version()
    if version is None or version < _OLDEST:
        text = ".".join(map(str, version)) if version else "unknown"
        raise SyncoidFailed(f"syncoid is {text}, and must be 2.1 or newer: upgrade sanoid")
    if options.use_hold and version < _OLDEST_WITH_HOLD:
        raise SyncoidFailed("use_hold needs syncoid 2.2 or newer: upgrade sanoid")
    if options.bwlimit and not shutil.which("mbuffer"):
        raise SyncoidFailed("bwlimit needs mbuffer, which is not installed: apt install mbuffer")


def _version() -> tuple[int, int] | None:
    try:
        done = subprocess.run(
            ["syncoid", "--version"], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except OSError as error:
        raise SyncoidFailed(
            f"syncoid cannot be run ({error.strerror}): it comes with sanoid; is that installed?"
        ) from error
    match = _VERSION.search(done.stdout.decode(errors="replace"))
    return (int(match[1]), int(match[2])) if match else None


def command(source: str, target: str, options: SyncoidOptions, *, readonly: bool) -> list[str]:
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


def run(source: str, target: str, options: SyncoidOptions, *, readonly: bool) -> None:
    """Send one dataset, going on where an interrupted run has stopped.

    Raises SyncoidFailed with the reason that syncoid gives.
    """
    words = command(source, target, options, readonly=readonly)
    on_terminal = sys.stderr.isatty()
    if not on_terminal:
        words.insert(1, "--quiet")
    elif (_version() or _OLDEST) >= _OLDEST_WITH_PV_OPTIONS:
        # pv shows its progress on a terminal alone, and not in a pipe, unless it is told to.
        words.insert(1, "--pv-options=-p -t -e -r -b -f")
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        said = _follow(process, on_terminal=on_terminal)
        process.wait()
    except BaseException:
        # The whole pipeline; zfs receive keeps what has arrived.
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    if process.returncode:
        raise SyncoidFailed(f"{source} to {target}: {_reason(said)}")


def _follow(process: subprocess.Popen[bytes], *, on_terminal: bool) -> bytes:
    """The end of what it says, shown meanwhile: of the other machine, too, so made printable."""
    assert isinstance(process.stdout, io.BufferedReader)
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    said = b""
    with process.stdout as output:
        while some := output.read1():
            said = (said + some)[-_SAID_MAX:]
            if on_terminal:
                parts = re.split(r"([\r\n])", decoder.decode(some))
                shown = (part if part in "\r\n" else foreign.printable(part) for part in parts)
                sys.stderr.write("".join(shown))
                sys.stderr.flush()
    return said


def _reason(said: bytes) -> str:
    lines = map(foreign.line, re.split(b"[\r\n]", said))
    reasons = [line for line in lines if not _NOT_THE_REASON.match(line)]
    return reasons[-1] if reasons else "syncoid failed, and does not say why"
