"""What a hook or command does when it is asked to stop: finish, undo, or end at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from zvmsnap.common import log
from zvmsnap.common.errors import Cancelled
from zvmsnap.common.process import INIT

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_PR_SET_PDEATHSIG = 1

# The signal that came while something was finished first. Whoever goes on after that follows it.
_asked: int | None = None


def finish_before_dying() -> None:
    """Ignore requests to stop, but log them: for what merges or removes."""
    _handle_stop(lambda name: log.plain().warning("%s: finishing first", name))


def cancelled_by_signal() -> threading.Event:
    """An event that is set when this process is asked to stop, or was while it finished first."""
    cancelled = threading.Event()

    def cancel(name: str) -> None:
        log.plain().warning("%s: undoing or finishing first", name)
        cancelled.set()

    _handle_stop(cancel)
    if _asked is not None:
        cancelled.set()
    return cancelled


def cancel_at_once() -> None:
    """Raise Cancelled as soon as this process is asked to stop: for what may end anywhere.

    At once if it was asked while it finished something first.
    """
    global _asked

    def cancel(number: int, _frame: object) -> None:
        raise Cancelled(f"{signal.Signals(number).name}: interrupted; the next run goes on with it")

    for number in STOP_SIGNALS:
        signal.signal(number, cancel)
    if _asked is not None:
        asked, _asked = _asked, None
        cancel(asked, None)


def cancelled_with_parent(parent: int) -> threading.Event:
    """An event that is set when this process is asked to stop, or when its parent dies.

    sanoid's script_timeout kills sanoid but not the hook. Without this the hook would leave guests
    on overlays for a post that never comes. Raises Cancelled if the parent is dead already.
    """
    cancelled = threading.Event()

    def cancel(name: str) -> None:
        if cancelled.is_set():
            return
        dead = os.getppid() != parent
        cause = "sanoid died (script_timeout?)" if dead else name
        log.plain().error("%s: putting every guest back", cause)
        cancelled.set()

    _handle_stop(cancel)
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # The parent may have died before the kernel knew that this process wants to be told.
    if os.getppid() != parent or parent == INIT:
        raise Cancelled("sanoid is dead already; nothing was touched")
    return cancelled


def _handle_stop(handle: Callable[[str], None]) -> None:
    """Call `handle` with the name of each signal that asks this process to stop.

    In a thread that waits for the number which Python's own handler, in C, writes into a pipe.
    One in Python would interrupt the main thread anywhere, also where that holds the lock of the
    very event that is to be set; and would not run at all while it waits for a lock, if the signal
    comes an instant before it begins to.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_tell_stops, args=(reading, handle), daemon=True).start()
    for number in STOP_SIGNALS:
        signal.signal(number, _note)
    replaced = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    if replaced >= 0:
        os.close(replaced)


def _note(number: int, _frame: object) -> None:
    """The thread follows it. Python calls this before it lets another handler take its place."""
    global _asked
    _asked = number


def _tell_stops(reading: int, handle: Callable[[str], None]) -> None:
    with open(reading, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if number[0] in STOP_SIGNALS:
                handle(signal.Signals(number[0]).name)


@contextlib.contextmanager
def stop_blocked() -> Iterator[None]:
    """Requests to stop wait until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
