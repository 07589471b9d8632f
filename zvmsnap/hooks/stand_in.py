"""Runs a hook in a child process, so that whoever waits for the hook waits for its result alone.

A thread that hangs in the kernel, for instance in a file of a suspended pool, keeps its process
from ending, and sanoid would wait for that end for ever. So the child writes its exit code into a
pipe when all is done that can be done, and the parent ends with it. A command that only reads is
run so, too: an operator waits for it. The parent also ends

* when the child dies without a result;
* when the child's main thread hangs in the kernel;
* when its own parent dies. The child then sees its parent die (common/signals).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK
from zvmsnap.common.process import HANG_S, HangWatch
from zvmsnap.common.signals import STOP_SIGNALS, stop_blocked

_LOOK_EVERY_S = 0.2
_ENDS_WITHIN_S = 0.5
_FIRST_INHERITED = 3

# The process that has called the hook, as the child must know it.
_caller: int | None = None


def caller_pid() -> int:
    """The process that has called the hook."""
    return os.getppid() if _caller is None else _caller


def run(work: Callable[[], int]) -> int:
    """Do the work in a child; returns its exit code as soon as that is known."""
    caller = os.getppid()
    reading, writing = os.pipe()
    with stop_blocked():
        child = os.fork()
        if child:
            for number in STOP_SIGNALS:
                signal.signal(number, lambda number, _frame: _forward(child, number))
    if not child:
        os.close(reading)
        _work(work, caller, writing)
    os.close(writing)
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text("zvmsnap-wait")
    return _result(child, caller, reading)


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


def _result(child: int, caller: int, reading: int) -> int:
    watch = HangWatch(Path(f"/proc/{child}/task/{child}"))
    while not select.select([reading], [], [], _LOOK_EVERY_S)[0]:
        if os.getppid() != caller:
            return EXIT_FAILED  # nobody waits for it
        if watch.hangs():
            sys.stderr.write(
                f"zvmsnap: error: hangs in the kernel: given up after {HANG_S:g} s; is a pool "
                "suspended? zpool status -x\n"
            )
            return EXIT_FAILED
    code = os.read(reading, 1)
    _reap(child)
    return code[0] if code else EXIT_FAILED


def _reap(child: int) -> None:
    """Let the child end before this process does, unless that takes long."""
    deadline_s = time.monotonic() + _ENDS_WITHIN_S
    while time.monotonic() < deadline_s:
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.002)
