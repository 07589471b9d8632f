"""Runs a hook in a child process, so that whoever waits for the hook waits for its result alone.

A thread that hangs in the kernel, for instance in a file of a suspended pool, keeps its process
from ending, and sanoid would wait for that end for ever. So the child writes its exit code into a
pipe when all is done that can be done, and the parent ends with it. A command that only reads is
run so, too: an operator waits for it. The parent also ends

* when the child dies without a result;
* when the child's main thread hangs in the kernel;
* when its own parent dies. The child then sees its parent die (common/signals).

Who reads to its end what the hook prints (cron, zrepl, ssh) would wait for the child's end, too. So
the child prints into pipes, and the parent passes that on.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

from zvmsnap.common import log
from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK
from zvmsnap.common.process import HANGS, HangWatch
from zvmsnap.common.signals import STOP_SIGNALS, stop_blocked

_LOOK_EVERY_S = 0.2
_ENDS_WITHIN_S = 0.5
_STDOUT, _STDERR, _FIRST_INHERITED = 1, 2, 3
_AT_ONCE_BYTES = 1 << 16

# The process that has called the hook, as the child must know it.
_caller: int | None = None


def caller_pid() -> int:
    """The process that has called the hook."""
    return os.getppid() if _caller is None else _caller


def run(work: Callable[[], int]) -> int:
    """Do the work in a child; returns its exit code as soon as that is known."""
    caller = os.getppid()
    reading, writing = os.pipe()
    printed = _Printed()
    with stop_blocked():
        child = os.fork()
        if child:
            for number in STOP_SIGNALS:
                signal.signal(number, lambda number, _frame: _forward(child, number))
    if not child:
        printed.redirect()
        _work(work, caller, writing)
    os.close(writing)
    printed.begin()
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text("zvmsnap-wait")
    return _result(child, caller, reading, printed)


class _Printed:
    """What the child prints: a pipe for each pipe or socket that this process prints to.

    A file or a terminal is the child's own: nobody waits for the end of that.
    """

    def __init__(self) -> None:
        pipes: dict[tuple[int, int], tuple[int, int]] = {}  # by device and inode
        self._pipes: dict[int, tuple[int, int]] = {}  # by the stream that is copied to
        self._copied: dict[int, int] = {}
        for stream in (_STDOUT, _STDERR):
            with contextlib.suppress(OSError):
                status = os.fstat(stream)
                if stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode):
                    # One for both, if they are the same: lines stay in order.
                    file = status.st_dev, status.st_ino
                    self._pipes[stream] = pipes[file] = pipes.get(file) or os.pipe()

    def redirect(self) -> None:
        """In the child: print into the pipes."""
        for stream, (_, writing) in self._pipes.items():
            is_journal = stream == _STDERR and log.leads_to_journal(stream)
            os.dup2(writing, stream)
            if is_journal:
                log.also_leads_to_journal(stream)

    def begin(self) -> None:
        """In the parent: only read from the pipes."""
        for reading, writing in set(self._pipes.values()):
            os.set_blocking(reading, False)
            os.close(writing)
        self._copied = {reading: stream for stream, (reading, _) in self._pipes.items()}

    @property
    def readable(self) -> list[int]:
        """What to wait for."""
        return list(self._copied)

    def copy(self) -> None:
        """Pass on all that has been printed by now."""
        for reading, stream in list(self._copied.items()):
            try:
                while some := os.read(reading, _AT_ONCE_BYTES):
                    _write(stream, some)
            except BlockingIOError:
                continue
            except OSError:
                pass  # nobody reads it any more; nor can the child print any more
            os.close(reading)
            del self._copied[reading]


def _write(stream: int, some: bytes) -> None:
    while some:
        select.select([], [stream], [])  # whoever made it may want no process to wait in a write
        some = some[os.write(stream, some) :]


def _work(work: Callable[[], int], caller: int, writing: int) -> None:
    """The child: never returns."""
    global _caller
    _caller = caller
    _close_inherited(but=writing)
    code = EXIT_FAILED
    try:
        code = _exit_code(work)
        sys.stdout.flush()
    finally:
        os.write(writing, bytes([code]))
        os._exit(code)


def _exit_code(work: Callable[[], int]) -> int:
    try:
        return work()
    except SystemExit as ended:
        if isinstance(ended.code, int):
            return ended.code
        return EXIT_FAILED if ended.code else EXIT_OK


def _close_inherited(but: int) -> None:
    """Close what the caller has open: its locks, before all, if this process never ends."""
    os.closerange(_FIRST_INHERITED, but)
    os.closerange(but + 1, os.sysconf("SC_OPEN_MAX"))


def _forward(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def _result(child: int, caller: int, reading: int, printed: _Printed) -> int:
    watch = HangWatch(Path(f"/proc/{child}/task/{child}"))
    is_told = False
    while reading not in select.select([reading, *printed.readable], [], [], _LOOK_EVERY_S)[0]:
        printed.copy()
        if not is_told and os.getppid() != caller:
            # The child sees its parent die; a copy of that passes on what it says of it.
            if not printed.readable or os.fork():
                return EXIT_FAILED
            is_told = True
        if watch.hangs():
            log.tell(HANGS)
            return EXIT_FAILED
    code = os.read(reading, 1)
    printed.copy()
    if not is_told:
        _reap(child)
    return code[0] if code else EXIT_FAILED


def _reap(child: int) -> None:
    """Let the child end before this process does, unless that takes long."""
    deadline_s = time.monotonic() + _ENDS_WITHIN_S
    while time.monotonic() < deadline_s:
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.002)
