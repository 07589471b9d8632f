"""Commands in the lab: of its agent, if it has one; else over one ssh connection, kept open."""

import errno
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit import command
from labkit.agent import Agent
from labkit.errors import CommandError, LabError, NoSuchFile
from labkit.image import Image

CONNECT_TIMEOUT_S = 5
START_TIMEOUT_S = 120.0
SSH_FAILED = 255
# A QEMU that ends closes its connections a moment before it is gone.
END_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Completed:
    """What a command in the lab printed and returned."""

    command: str
    stdout: str
    stderr: str
    returncode: int

    def __str__(self) -> str:
        """All of it, for a failed test."""
        return (f"$ {self.command}\n[returned {self.returncode}]\n--- stdout\n{self.stdout}"
                f"\n--- stderr\n{self.stderr}")


class Shell:
    """The way into one lab. ssh runs in the instance's directory, as a socket's path is short."""

    def __init__(self, directory: Path, image: Image, port: int, agent: Agent | None,
                 why_dead: Callable[[], LabError | None]) -> None:
        """Connect to nothing yet. `why_dead` says why the lab is no more, if it is no more."""
        self._directory = directory
        self._agent = agent
        self._why_dead = why_dead
        self._options = [
            "-F", "none", "-i", str(image.ssh_key), "-p", str(port),
            "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
            "-o", f"UserKnownHostsFile={image.known_hosts}", "-o", "HostKeyAlias=lab",
            "-o", "StrictHostKeyChecking=yes", "-o", "UpdateHostKeys=no",
            "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}", "-o", "ControlPath=ssh",
        ]

    def argv(self, *words: str) -> list[str]:
        """The ssh command line that reaches the lab from the instance's directory."""
        return ["ssh", *self._options, "root@127.0.0.1", *words]

    def connect(self, timeout_s: float) -> None:
        """Wait until the lab answers."""
        if self._agent is None:
            self._connect(timeout_s)
        else:
            self._agent.wait(timeout_s, self._raise_if_dead)

    def _connect(self, timeout_s: float) -> None:
        """Wait until ssh answers, and keep the connection open for commands to come."""
        deadline = time.monotonic() + timeout_s
        log = self._directory / "ssh.log"
        while True:
            with log.open("wb") as said:
                # -f returns once logged in; the rest of it must not hold our own pipes.
                done = subprocess.run(
                    ["ssh", "-MNf", *self._options, "-o", "ControlPersist=yes", "root@127.0.0.1"],
                    cwd=self._directory, check=False, stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=said)
            if done.returncode == 0:
                return
            self._raise_if_dead()
            if time.monotonic() > deadline:
                raise LabError(f"ssh does not answer after {timeout_s:.0f} s: {command.tail(log)}\n"
                               f"{command.tail(self._directory / 'console.log')}")
            time.sleep(0.2)

    def disconnect(self) -> None:
        """Close the connection, if there is one."""
        if not self._connected:
            return
        subprocess.run(self.argv("-O", "exit"), cwd=self._directory, check=False,
                       stdin=subprocess.DEVNULL, capture_output=True, timeout=30)

    @property
    def _connected(self) -> bool:
        return (self._directory / "ssh").exists()

    def run(self, text: str, *, check: bool = True, timeout_s: float = 120.0,
            stdin: str | bytes | None = None, env: Mapping[str, str] | None = None) -> Completed:
        """Run a shell command."""
        done = self.run_bytes(text, timeout_s=timeout_s, stdin=stdin, env=env)
        completed = Completed(text, done.stdout.decode(errors="replace"),
                              done.stderr.decode(errors="replace"), done.returncode)
        if check and completed.returncode != 0:
            raise CommandError(str(completed))
        return completed

    def run_bytes(self, text: str, *, timeout_s: float = 120.0, stdin: str | bytes | None = None,
                  env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run a shell command, unchecked, and return the bytes it printed."""
        words = [f"export {name}={shlex.quote(value)};" for name, value in (env or {}).items()]
        content = stdin.encode() if isinstance(stdin, str) else stdin
        whole = " ".join([*words, text])
        if self._agent is not None:
            question = {"do": "run", "text": whole, "fed": content is not None}
            told, said = self._ask(question, content or b"", timeout_s, text)
            return subprocess.CompletedProcess(
                whole, told["status"], said[: told["stdout"]], said[told["stdout"] :])
        argv = self.argv(whole)
        try:
            if content is None:
                done = subprocess.run(argv, cwd=self._directory, check=False, timeout=timeout_s,
                                      stdin=subprocess.DEVNULL, capture_output=True)
            else:
                done = subprocess.run(argv, cwd=self._directory, check=False, timeout=timeout_s,
                                      input=content, capture_output=True)
        except subprocess.TimeoutExpired as exc:
            self._raise_if_dead()
            raise CommandError(
                f"$ {text}\n[no end after {timeout_s:.0f} s]\n--- stdout\n"
                f"{(exc.stdout or b'').decode(errors='replace')}\n--- stderr\n"
                f"{(exc.stderr or b'').decode(errors='replace')}") from exc
        if done.returncode == SSH_FAILED:
            self._raise_if_dead(END_TIMEOUT_S)
        return done

    def read(self, path: str) -> bytes:
        """A file of the lab."""
        if self._agent is None:
            missing = 44
            done = self.run_bytes(f"test -e {shlex.quote(path)} || exit {missing}; "
                                  f"cat {shlex.quote(path)}")
            if done.returncode == missing:
                raise NoSuchFile(path)
            if done.returncode != 0:
                raise CommandError(done.stderr.decode(errors="replace"))
            return done.stdout
        return self._ask({"do": "read", "path": path}, b"", 120.0, f"read {path}")[1]

    def write(self, path: str, content: bytes, mode: int) -> None:
        """Write a file, and the directories above it."""
        if self._agent is None:
            self.run(f"install -D -m {mode:o} /dev/stdin {shlex.quote(path)}", stdin=content)
        else:
            self._ask({"do": "write", "path": path, "mode": mode}, content, 120.0, f"write {path}")

    def _ask(self, question: dict[str, Any], content: bytes, timeout_s: float, what: str,
             ) -> tuple[dict[str, Any], bytes]:
        assert self._agent is not None
        try:
            told, said = self._agent.ask(question, content, timeout_s)
        except TimeoutError as exc:
            self._raise_if_dead()
            raise CommandError(f"$ {what}\n[no end after {timeout_s:.0f} s]") from exc
        except OSError as exc:
            self._raise_if_dead(END_TIMEOUT_S)
            raise LabError(f"$ {what}\nthe lab's agent does not answer: {exc}") from exc
        if "error" in told:
            missing = told["errno"] in (errno.ENOENT, errno.ENOTDIR)
            raise (NoSuchFile if missing else CommandError)(f"$ {what}\n{told['error']}")
        return told, said

    def _raise_if_dead(self, wait_s: float = 0.0) -> None:
        deadline = time.monotonic() + wait_s
        while (error := self._why_dead()) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if error is not None:
            raise error from None

    def start(self, text: str) -> subprocess.Popen[str]:
        """Start a shell command and leave it running."""
        if not self._connected:
            self._connect(START_TIMEOUT_S)
        return subprocess.Popen(self.argv(text), cwd=self._directory, stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def rsync(self, sources: Sequence[str], target: str) -> None:
        """Copy files of the host into the lab; they then belong to root."""
        ssh = shlex.join(["ssh", *self._options])
        done = subprocess.run(
            ["rsync", "-rlptR", "--delete", "--exclude=__pycache__", "-e", ssh, *sources,
             f"root@127.0.0.1:{target}"],
            cwd=self._directory, check=False, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=120)
        if done.returncode != 0:
            raise LabError(f"rsync failed: {done.stderr}")
