"""Sends one snapshot as it differs from a bookmark.

syncoid does so only if both sides have no snapshot in common; of an older one it would send what
the destination has already.

    zfs send -i DATASET#BOOKMARK SNAPSHOT | mbuffer | ssh HOST zfs receive -s TARGET

What has arrived when it is interrupted stays there, and syncoid goes on with it.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from typing import IO

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.common.ssh import RemoteHost, reason


def send_since_bookmark(
    bookmark: str, snapshot: str, target: str, remote: RemoteHost, *, raw: bool, bwlimit: str
) -> None:
    """Send it, to be received not mounted and read-only. `bwlimit` as mbuffer reads it.

    Raises ZfsFailed.
    """
    send = ["zfs", "send", *(["-w"] if raw else []), "-i", bookmark, snapshot]
    receive = ["zfs", "receive", "-s", "-u", "-o", "readonly=on", target]
    limit = [["mbuffer", "-q", "-s", "128k", "-m", "16M", "-R", bwlimit]] if bwlimit else []
    there = [*remote.ssh(), remote.host, shlex.join(receive)] if remote.host else receive
    _pipe([send, *limit, there], f"{remote.where}{target}")


def _pipe(commands: Sequence[Sequence[str]], target: str) -> None:
    """Run a pipeline. Raises ZfsFailed with what each command says that failed, the last first."""
    running: list[subprocess.Popen[bytes]] = []
    output: IO[bytes] | None = None
    try:
        for command in commands:
            process = subprocess.Popen(
                command,
                stdin=output or subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            if output:
                output.close()
            output = process.stdout
            running.append(process)
        said = [process.communicate()[1] for process in reversed(running)]
    except OSError as error:
        _stop(running)
        raise ZfsFailed(f"{commands[len(running)][0]} cannot be run: {error.strerror}") from error
    except BaseException:
        _stop(running)
        raise
    ended = list(zip(reversed(running), said, strict=True))
    if any(process.returncode for process in running):
        # Who was only in the pipe of the one that failed has nothing to say.
        reasons = [reason(stderr) for process, stderr in ended if process.returncode and stderr]
        raise ZfsFailed(f"{target}: {'; '.join(reasons) or 'the stream broke off'}")


def _stop(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
    for process in running:
        process.wait()
