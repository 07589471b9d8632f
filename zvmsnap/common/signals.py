"""What signals do to a hook or command: finish first, be cancelled, or go at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from zvmsnap.common import log
from zvmsnap.common.errors import Cancelled

_PR_SET_PDEATHSIG = 1
_INIT = 1


def finish_before_dying() -> None:
    """Only note signals that ask to stop: whoever merges or removes finishes first."""

    def note(number: int, _frame: FrameType | None) -> None:
        log.plain().warning("%s: finishing first", signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, note)


def cancelled_by_signal() -> threading.Event:
    """An event that is set by a signal that asks to stop."""
    cancelled = threading.Event()

    def cancel(number: int, _frame: FrameType | None) -> None:
        log.plain().warning("%s: undoing or finishing first", signal.Signals(number).name)
        cancelled.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, cancel)
    return cancelled


def cancel_at_once() -> None:
    """Raise Cancelled at once on a signal: for work that may be interrupted anywhere."""

    def cancel(number: int, _frame: FrameType | None) -> None:
        raise Cancelled(f"{signal.Signals(number).name}: interrupted; the next run goes on with it")

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, cancel)


def cancelled_with_parent(parent: int) -> threading.Event:
    """An event that is set by a signal that asks to stop, or when sanoid dies.

    sanoid's own script_timeout kills sanoid and not the hook, which would go on to put guests on
    overlays for a post that never comes. Raises Cancelled if sanoid is dead already.
    """
    cancelled = threading.Event()

    def cancel(number: int, _frame: FrameType | None) -> None:
        dead = os.getppid() != parent
        cause = "sanoid died (script_timeout?)" if dead else signal.Signals(number).name
        log.plain().error("%s: putting every guest back", cause)
        cancelled.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, cancel)
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # It may have died before this request reached the kernel.
    if os.getppid() != parent or parent == _INIT:
        raise Cancelled("sanoid is dead already; nothing was touched")
    return cancelled
