"""How far work on a RAM image, or a disk, is: a line that changes on a terminal, or log lines.

For whoever has given a command, and waits for it. A hook shows nothing. Where several processes
show theirs, each is told to do so by lines.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from zvmsnap.common import log
from zvmsnap.common.foreign import printable
from zvmsnap.common.waiting import in_background, wait

_SHOWN_EVERY_S = 0.5
_LINES_EVERY_S = 10.0
_LOGGED_EVERY_S = 60.0
# The variable that tells a process that it is not alone on its terminal.
BY_LINES = "ZVMSNAP_PROGRESS_LINES"

_is_wanted = False


@dataclass
class Progress:
    """Whoever does the work says in `done_bytes` how far it is."""

    what: str
    total_bytes: int
    subject: str = "RAM image"
    done_bytes: int = 0

    def __str__(self) -> str:
        percent = min(100, 100 * self.done_bytes // max(1, self.total_bytes))
        return f"{self.subject} {self.what}: {percent:3} % of {self.total_bytes >> 20} MiB"


def want(wanted: bool = True) -> None:
    """Show it from now on, or no more, whatever this process does."""
    global _is_wanted
    _is_wanted = wanted


def is_wanted() -> bool:
    """Does anybody want to see it?"""
    return _is_wanted


@contextmanager
def shown(what: str, total_bytes: int, subject: str = "RAM image") -> Iterator[Progress]:
    """Show the progress of the work inside, if that is wanted: the subject is `what` by it."""
    progress = Progress(what, total_bytes, subject)
    with told(lambda: str(progress)):
        yield progress


@contextmanager
def told(line: Callable[[], str]) -> Iterator[None]:
    """Show this line again and again, as long as the work inside takes, if that is wanted."""
    if not _is_wanted:
        yield
        return
    is_seen = sys.stderr.isatty()
    on_terminal = is_seen and BY_LINES not in os.environ
    every_s = _SHOWN_EVERY_S if on_terminal else _LINES_EVERY_S if is_seen else _LOGGED_EVERY_S

    def show(ended: threading.Event) -> None:
        while not wait(ended, every_s):
            if on_terminal:
                print(f"\r{printable(line())}\x1b[K", end="", file=sys.stderr, flush=True)
            else:
                log.plain().info("%s", line())

    try:
        with in_background("progress", show):
            yield
    finally:
        if on_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
