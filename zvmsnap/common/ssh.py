"""Programs on the machine of a destination: over ssh, or directly if it is this one.

ssh never asks anything (BatchMode), and gives up on a connection that is cut. The remote command
passes through a shell, so every word is quoted; on this machine no shell is used.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess

from zvmsnap.common import foreign
from zvmsnap.common.errors import DestinationUnreachable, GivenUp, RemoteFailed
from zvmsnap.common.process import OUTPUT_MAX_BYTES, run_program, uptime_s
from zvmsnap.common.safe_files import private_dir

_SSH_FAILED = 255

# rsync(1), "exit values": ssh's own, or, if rsync saw the broken pipe before that, socket I/O,
# protocol stream, timeout.
_RSYNC_CUT = (_SSH_FAILED, 10, 12, 30)
SSH_OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=20",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=4",
)

# One connection for all commands of a run; syncoid has its own.
_PERSIST_S = 15

_SAID_MAX = 64 << 10  # bytes of its errors that are looked at


class RemoteHost:
    """Runs programs on `host` ("" is this one); ssh keeps its sockets in `sockets`.

    All programs of `process` and `run` together have `limit_s`, and each may print so much.
    """

    def __init__(
        self,
        host: str,
        sockets: Path = Path("/run"),
        limit_s: float = math.inf,
        output_max_bytes: int = OUTPUT_MAX_BYTES,
    ) -> None:
        self.host = host
        self._sockets = sockets
        self._limit_s = limit_s
        self._output_max_bytes = output_max_bytes
        self._ends_s = uptime_s() + limit_s

    def process(self, words: Sequence[str], given: bytes = b"") -> CompletedProcess[bytes]:
        """Run a program and wait for it, `given` on its standard input.

        Raises DestinationUnreachable, also if the time is over, RemoteFailed if the program does
        not exist, and GivenUp if it hangs in the kernel, or prints more than it may.
        """
        command = [*self.ssh(), self.host, shlex.join(words)] if self.host else list(words)
        try:
            left_s = max(0.0, self._ends_s - uptime_s())
            done = run_program(
                command, given, limit_s=left_s, output_max_bytes=self._output_max_bytes
            )
        except OSError as error:
            raise RemoteFailed(f"{command[0]} cannot be run: {error.strerror}") from error
        except GivenUp as error:
            if not self.host:
                raise
            if uptime_s() < self._ends_s:
                raise GivenUp(f"{self.where}{' '.join(words[:2])}: {error}") from error
            why = f"no answer within {self._limit_s:g} s"
            raise DestinationUnreachable(f"{self.host}: {why}") from error
        if self.host and done.returncode == _SSH_FAILED:
            raise DestinationUnreachable(f"{self.host}: {reason(done.stderr)}")
        return done

    def run(self, *words: str, given: bytes = b"") -> str:
        """The output of a program.

        Raises DestinationUnreachable, and RemoteFailed with the last line of its errors.
        """
        done = self.process(words, given)
        if done.returncode:
            raise RemoteFailed(f"{self.where}{words[0]} failed: {reason(done.stderr)}")
        return done.stdout.decode(errors="surrogateescape")

    def rsync(self, *words: str) -> str:
        """Copy with rsync; no shell reads its `HOST:PATH`.

        Raises DestinationUnreachable and RemoteFailed.
        """
        through = ["-e", shlex.join(self.ssh())] if self.host else []
        try:
            done = run_program(["rsync", "-s", *through, *words])
        except OSError as error:
            why = f"rsync cannot be run ({error.strerror}): apt install rsync"
            raise RemoteFailed(why) from error
        if self.host and done.returncode in _RSYNC_CUT:
            raise DestinationUnreachable(f"{self.host}: {_first(done.stderr)}")
        if done.returncode:
            raise RemoteFailed(f"{self.where}rsync failed: {_first(done.stderr)}")
        return done.stdout.decode(errors="surrogateescape")

    @property
    def where(self) -> str:
        """`HOST: `, for messages; nothing for this machine."""
        return f"{self.host}: " if self.host else ""

    def ssh(self) -> list[str]:
        """The command line of ssh, up to the host."""
        shared = (
            "ControlMaster=auto",
            f"ControlPath={private_dir(self._sockets)}/ssh-%C",
            f"ControlPersist={_PERSIST_S}",
        )
        return ["ssh", *(word for option in (*SSH_OPTIONS, *shared) for word in ("-o", option))]


HERE = RemoteHost("")


def reason(stderr: bytes) -> str:
    """The last line, without the frames of ssh's warnings."""
    lines = [foreign.line(line.strip(b" @\r")) for line in stderr[-_SAID_MAX:].split(b"\n")]
    return next((line for line in reversed(lines) if line), "no reason given")


def _first(stderr: bytes) -> str:
    """The first line: rsync tells the cause first, and the consequence last."""
    lines = map(foreign.line, stderr[:_SAID_MAX].split(b"\n"))
    return next(filter(None, lines), "no reason given")
