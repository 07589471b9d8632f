"""Processes: which one is meant, does it live, does it hang, what has it open; running programs."""

from __future__ import annotations

import math
import os
import select
import selectors
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, CompletedProcess, Popen, TimeoutExpired
from typing import IO

import msgspec

from zvmsnap.common.errors import GivenUp

INIT = 1
_PROC = Path("/proc")

# A task that sleeps for so long in the kernel, and cannot be interrupted, hangs. More than a disk
# that spins up needs. Whoever waits for a suspended pool wakes once a minute (OpenZFS' deadman).
HANG_S = 45.0
HANGS = f"hangs in the kernel: given up after {HANG_S:g} s; is a pool suspended? zpool status -x"
_WAKES_OF_A_HANGING_TASK = 1
_LOOK_EVERY_S = 1.0
_AT_ONCE_BYTES = 1 << 16
_KILLED_WITHIN_S = 5
_END_BYTES = 4096

# What is asked meanwhile, by thread: see `asked_meanwhile`.
_meanwhile = threading.local()

# What a program may print, which is kept in memory: more than a million snapshots in a listing.
# The program may be on a machine of somebody else.
OUTPUT_MAX_BYTES = 512 << 20


class Process(msgspec.Struct, frozen=True):
    """A process that cannot be mistaken for a later one of the same number."""

    pid: int
    started: int  # clock ticks after boot, field 22 of /proc/PID/stat
    boot: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this number now; `started` is 0 if there is none."""
        return cls(pid, _started(pid), Path("/proc/sys/kernel/random/boot_id").read_text().strip())

    @classmethod
    def none(cls) -> Process:
        """No process: never alive."""
        return cls(0, 0, "")

    def is_alive(self) -> bool:
        """Does this very process still run?"""
        return self.started != 0 and Process.of(self.pid) == self


class HangWatch:
    """Notices that a task hangs in the kernel; `task` is its directory in /proc.

    So does whoever touches a suspended pool: without limit, and no signal ends it. Work that is
    only slow wakes again and again. Look every second or so.
    """

    def __init__(self, task: Path) -> None:
        self._task = task
        self._asleep_since_s: float | None = None
        self._wakes = 0

    def hangs(self) -> bool:
        """Has it slept for HANG_S, as far as has been looked?"""
        state, wakes = self._look()
        now_s = uptime_s()
        if state != "D":
            self._asleep_since_s = None
        elif self._asleep_since_s is None or wakes - self._wakes > _WAKES_OF_A_HANGING_TASK:
            self._asleep_since_s, self._wakes = now_s, wakes
        return self._asleep_since_s is not None and now_s - self._asleep_since_s >= HANG_S

    def _look(self) -> tuple[str, int]:
        """Its state, and how often it has slept; no state if it has ended."""
        try:
            fields = _fields(self._task / "status")
        except OSError:
            return "", 0
        return fields[b"State"][:1].decode(), int(fields[b"voluntary_ctxt_switches"])


@contextmanager
def asked_meanwhile(check: Callable[[], None]) -> Iterator[None]:
    """Call `check` each second in which this thread waits for a program, as long as this lasts.

    What it raises ends the program, and is raised by whoever has run it.
    """
    before = getattr(_meanwhile, "checks", ())
    _meanwhile.checks = (*before, check)
    try:
        yield
    finally:
        _meanwhile.checks = before


def run_program(
    words: Sequence[str],
    given: bytes = b"",
    into: IO[bytes] | None = None,
    limit_s: float = math.inf,
    output_max_bytes: int = OUTPUT_MAX_BYTES,
) -> CompletedProcess[bytes]:
    """Run a program and wait for it, `given` on its standard input; it may print into a file.

    Raises OSError; GivenUp if it takes longer than `limit_s`, prints more than it may, or hangs in
    the kernel: it is killed, but nobody can wait for the end of such a process.
    """
    process = Popen(words, stdin=PIPE, stdout=into or PIPE, stderr=PIPE)
    try:
        return _Exchange(process, given, limit_s, output_max_bytes).done()
    except BaseException:
        _abandon(process)
        raise


def run_session(
    words: Sequence[str | Path], environment: Mapping[str, str], limit_s: float, given: bytes = b""
) -> tuple[int, bytes]:
    """Run a program of the administrator in a session of its own: its status, and its last output.

    It is killed, with all that it has started, when it has had its time. Raises OSError, and
    GivenUp.
    """
    import tempfile  # few hooks need it, and it loads much

    # Files, not pipes: a daemon that the program starts may keep its output open.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as stdin:
        stdin.write(given)
        stdin.seek(0)
        process = Popen(
            words,
            env=environment,
            stdin=stdin,
            stdout=output,
            stderr=STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit_s)
        except TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            with suppress(TimeoutExpired):  # it may hang in the kernel
                process.wait(_KILLED_WITHIN_S)
            raise GivenUp(f"takes longer than {limit_s:g} s") from None
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - _END_BYTES))
        return status, output.read()


def run_until(
    words: Sequence[str], is_complete: Callable[[bytes], bool], limit_s: float
) -> CompletedProcess[bytes]:
    """Run a program until all that it has printed is complete, or until it ends.

    If it is complete, the program is killed at once, with all that it has started, and counts as
    ended well. Raises as run_program does.
    """
    process = Popen(words, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, process_group=0)
    try:
        return _Exchange(process, b"", limit_s, OUTPUT_MAX_BYTES).done(is_complete)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        _abandon(process)


class _Exchange:
    """What a program is given, and what it prints, for as long as it is waited for."""

    def __init__(self, process: Popen[bytes], given: bytes, limit_s: float, max_bytes: int) -> None:
        self._process = process
        self._unsent = memoryview(given)
        self._limit_s, self._ends_s = limit_s, uptime_s() + limit_s
        self._max_bytes = max_bytes
        self._output, self._errors = bytearray(), bytearray()
        self._watches: dict[Path, HangWatch] = {}
        self._open = selectors.PollSelector()
        if process.stdin:
            self._open.register(process.stdin, selectors.EVENT_WRITE, (process.stdin, None))
        for pipe, printed in ((process.stdout, self._output), (process.stderr, self._errors)):
            if pipe:
                self._open.register(pipe, selectors.EVENT_READ, (pipe, printed))

    def done(self, is_complete: Callable[[bytes], bool] | None = None) -> CompletedProcess[bytes]:
        """All of it when it has ended, or has printed what is complete. Raises GivenUp."""
        while not self._has_ended(is_complete):
            self._check_patience()
        code, words = self._process.returncode or 0, self._process.args
        return CompletedProcess(words, code, bytes(self._output), bytes(self._errors))

    def _has_ended(self, is_complete: Callable[[bytes], bool] | None) -> bool:
        """Has it, or is it complete, within a moment?"""
        until_s = min(uptime_s() + _LOOK_EVERY_S, self._ends_s)
        while self._open.get_map():
            for key, _ in self._open.select(max(0, until_s - uptime_s())):
                pipe, printed = key.data
                if self._is_last(key.fd, printed):
                    self._open.unregister(pipe)
                    pipe.close()
            if len(self._output) + len(self._errors) > self._max_bytes:
                why = f"prints without end: given up after {self._max_bytes >> 20} MiB"
                raise GivenUp(f"{_named(self._process)} {why}")
            if is_complete and is_complete(bytes(self._output)):
                return True
            if uptime_s() >= until_s:
                return False
        with suppress(TimeoutExpired):
            self._process.wait(max(0, until_s - uptime_s()))
        return self._process.returncode is not None

    def _is_last(self, pipe: int, printed: bytearray | None) -> bool:
        """Read, or send, what can be now; was that all?"""
        if printed is not None:
            some = os.read(pipe, _AT_ONCE_BYTES)
            printed += some
            return not some
        with suppress(BrokenPipeError):
            self._unsent = self._unsent[os.write(pipe, self._unsent[: select.PIPE_BUF]) :]
            return not self._unsent
        return True

    def _check_patience(self) -> None:
        """Raises GivenUp if it hangs in the kernel, or has had its time."""
        for task in Path(f"/proc/{self._process.pid}/task").glob("*"):
            self._watches.setdefault(task, HangWatch(task))
        if any(watch.hangs() for watch in self._watches.values()):
            raise GivenUp(f"{_named(self._process)} {HANGS}")
        for check in getattr(_meanwhile, "checks", ()):
            check()
        if uptime_s() >= self._ends_s:
            why = f"no answer: given up after {self._limit_s:g} s"
            raise GivenUp(f"{_named(self._process)}: {why}")


def _named(process: Popen[bytes]) -> str:
    assert isinstance(process.args, Sequence)
    return " ".join(map(str, process.args[:2]))


def _abandon(process: Popen[bytes]) -> None:
    process.kill()
    with suppress(TimeoutExpired):
        process.wait(_LOOK_EVERY_S)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            pipe.close()


def uptime_s() -> float:
    """Seconds since boot: the same for all processes, whatever clocks are set to."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def is_stopped(pid: int) -> bool:
    """Is that process stopped, by a signal or a debugger?"""
    return _stat(pid)[:1] in ([b"T"], [b"t"])


def parent_of(pid: int) -> int:
    """The parent of that process; init if there is no such process, or it cannot be read."""
    try:
        fields = _stat(pid)
    except OSError:
        return INIT
    return int(fields[1]) if fields else INIT


def _started(pid: int) -> int:
    """When a process that still runs was started; 0 if there is none, or it waits to be reaped."""
    fields = _stat(pid)
    if not fields or _is_zombie(fields):
        return 0
    return int(fields[19])


def _is_zombie(fields: list[bytes]) -> bool:
    # The first thread of a process may have ended before the others, which live on.
    return fields[0] in (b"Z", b"X") and int(fields[17]) <= 1


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third on; none if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The command's name may hold any byte but NUL, so fields count from the last parenthesis on.
    return stat.rpartition(b")")[2].split()


# -- what a process has open
#
# To ask a file system for an open file may take for ever, if it is on a server that is down. So
# only what may be the file that is looked for is asked for:
#
# | looked for | what may be it                                                         |
# |------------|------------------------------------------------------------------------|
# | a device   | what is open below /dev                                                |
# | a file     | what has its inode number; its name, before Linux 5.14, which does not |
# |            | tell the number                                                        |


def _fields(path: Path) -> dict[bytes, bytes]:
    """A file of /proc with a name and a value in each line. Raises OSError."""
    lines = (line.partition(b":") for line in path.read_bytes().split(b"\n"))
    return {name: value.strip() for name, _, value in lines}


class OpenFile:
    """One descriptor of a process, and the path that the kernel has for it."""

    def __init__(self, process: Path, number: str, leads_to: str) -> None:
        self.leads_to = leads_to
        self._descriptor = process / "fd" / number
        self._fdinfo = process / "fdinfo" / number

    @property
    def is_writable(self) -> bool:
        """Is it open for writing?"""
        return int(self._info.get(b"flags", b"0"), 8) & os.O_ACCMODE != os.O_RDONLY

    @property
    def device(self) -> int | None:
        """The number of the block device that it is; None if it is none."""
        status = self._status() if self.leads_to.startswith("/dev/") else None
        return status.st_rdev if status and stat.S_ISBLK(status.st_mode) else None

    def is_same(self, path: Path | str, wanted: os.stat_result) -> bool:
        """Is it the file, or device, to which `path` leads, of which `wanted` is the status?"""
        if stat.S_ISBLK(wanted.st_mode):
            return self.device == wanted.st_rdev
        status = self._status() if self._may_be(path, wanted.st_ino) else None
        return status is not None and os.path.samestat(status, wanted)

    def _may_be(self, path: Path | str, inode: int) -> bool:
        if known := self._info.get(b"ino"):
            return int(known) == inode
        # The path may begin otherwise where the process sees other mounts.
        return os.path.basename(self.leads_to) == os.path.basename(os.path.realpath(path))

    def _status(self) -> os.stat_result | None:
        try:
            return os.stat(self._descriptor)
        except OSError:
            return None  # it was closed meanwhile

    @cached_property
    def _info(self) -> dict[bytes, bytes]:
        try:
            return _fields(self._fdinfo)
        except OSError:
            return {}


def open_files(process: Path) -> list[OpenFile]:
    """All that a process has open, by its directory in /proc; nothing if that may not be seen."""
    opened = []
    with suppress(OSError):  # the process has ended, or is another user's
        for number in os.listdir(process / "fd"):
            with suppress(OSError):  # it was closed meanwhile
                opened.append(OpenFile(process, number, os.readlink(process / "fd" / number)))
    return opened


def writers_of(path: Path) -> set[int]:
    """The processes that have this file, or device, open for writing now.

    Of a guest's disks they tell which one QEMU really writes to, whatever libvirt's definition
    says: it opens the images below an overlay for reading only.
    """
    try:
        wanted = os.stat(path)
    except OSError:
        return set()
    return {
        int(process.name)
        for process in _PROC.glob("[0-9]*")
        if any(each.is_writable and each.is_same(path, wanted) for each in open_files(process))
    }
