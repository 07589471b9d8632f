"""Processes: which one is meant, does it live, does it hang, what has it open; running programs."""

from __future__ import annotations

import math
import os
import select
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
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
_OUTPUT_MAX_BYTES = 512 << 20


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
) -> subprocess.CompletedProcess[bytes]:
    """Run a program and wait for it, `given` on its standard input; it may print into a file.

    Raises OSError; GivenUp if it takes longer than `limit_s`, prints without end, or hangs in the
    kernel: it is killed, but nobody can wait for the end of such a process.
    """
    deadline_s = uptime_s() + limit_s
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=into or subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    watches: dict[Path, HangWatch] = {}
    unsent: bytes | None = given
    try:
        while True:
            try:
                wait_s = min(_LOOK_EVERY_S, max(0, deadline_s - uptime_s()))
                output, errors = process.communicate(unsent, wait_s)
                return subprocess.CompletedProcess(words, process.returncode, output or b"", errors)
            except subprocess.TimeoutExpired as so_far:
                unsent = None  # communicate() goes on with it
                if len(so_far.stdout or b"") + len(so_far.stderr or b"") > _OUTPUT_MAX_BYTES:
                    raise GivenUp(
                        f"{_named(process)} prints without end: given up after "
                        f"{_OUTPUT_MAX_BYTES >> 20} MiB"
                    ) from None
                _check_patience(process, watches, deadline_s, limit_s)
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
        process = subprocess.Popen(
            words,
            env=environment,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # it may hang in the kernel
                process.wait(_KILLED_WITHIN_S)
            raise GivenUp(f"takes longer than {limit_s:g} s") from None
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - _END_BYTES))
        return status, output.read()


def run_until(
    words: Sequence[str], is_complete: Callable[[bytes], bool], limit_s: float
) -> subprocess.CompletedProcess[bytes]:
    """Run a program until all that it has printed is complete, or until it ends.

    If it is complete, the program is killed at once, with all that it has started, and counts as
    ended well. Raises as run_program does.
    """
    import tempfile  # few hooks need it, and it loads much

    deadline_s = uptime_s() + limit_s
    watches: dict[Path, HangWatch] = {}
    output = b""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            process_group=0,
        )
        assert process.stdout
        has_ended = False
        try:
            while not has_ended and not is_complete(output):
                wait_s = min(_LOOK_EVERY_S, max(0, deadline_s - uptime_s()))
                if select.select([process.stdout], [], [], wait_s)[0]:
                    some = os.read(process.stdout.fileno(), _AT_ONCE_BYTES)
                    output, has_ended = output + some, not some
                else:
                    _check_patience(process, watches, deadline_s, limit_s)
            code = process.wait(max(0, deadline_s - uptime_s())) if has_ended else 0
        except subprocess.TimeoutExpired:
            raise _no_answer(process, limit_s) from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
            _abandon(process)
        errors.seek(0)
        return subprocess.CompletedProcess(words, code, output, errors.read())


def _check_patience(
    process: subprocess.Popen[bytes],
    watches: dict[Path, HangWatch],
    deadline_s: float,
    limit_s: float,
) -> None:
    """Raises GivenUp if the process hangs in the kernel, or has had its time."""
    if _any_task_hangs(process.pid, watches):
        raise GivenUp(f"{_named(process)} {HANGS}") from None
    for check in getattr(_meanwhile, "checks", ()):
        check()
    if uptime_s() >= deadline_s:
        raise _no_answer(process, limit_s) from None


def _no_answer(process: subprocess.Popen[bytes], limit_s: float) -> GivenUp:
    return GivenUp(f"{_named(process)}: no answer: given up after {limit_s:g} s")


def _named(process: subprocess.Popen[bytes]) -> str:
    assert isinstance(process.args, Sequence)
    return " ".join(map(str, process.args[:2]))


def _any_task_hangs(pid: int, watches: dict[Path, HangWatch]) -> bool:
    for task in Path(f"/proc/{pid}/task").glob("*"):
        watches.setdefault(task, HangWatch(task))
    return any(watch.hangs() for watch in watches.values())


def _abandon(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with suppress(subprocess.TimeoutExpired):
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
