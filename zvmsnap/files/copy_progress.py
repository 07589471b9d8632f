"""How far a copy is: one line that changes on a terminal, else lines of the log."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from zvmsnap.common import foreign, log
from zvmsnap.common.waiting import in_background, now_s, wait
from zvmsnap.files.copy_out import Copied

_SHOWN_EVERY_S = 0.5
_LOGGED_EVERY_S = 60.0


@contextmanager
def shown(path: str) -> Iterator[Copied]:
    """Show how far the copy of that path is, while it is made; yields what is to be counted."""
    copied = Copied()
    on_terminal = sys.stderr.isatty()
    begun_s = now_s()

    def show(ended: threading.Event) -> None:
        while not wait(ended, _SHOWN_EVERY_S if on_terminal else _LOGGED_EVERY_S):
            line = foreign.printable(said(path, copied, now_s() - begun_s))
            if on_terminal:
                print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
            else:
                log.plain().info("%s", line)

    try:
        with in_background("progress", show):
            yield copied
    finally:
        if on_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def said(path: str, copied: Copied, since_s: float) -> str:
    """The line after so many seconds."""
    mib = copied.read_bytes / (1 << 20)
    return f"{path}: {copied.files} files, {mib:.0f} MiB, {mib / max(since_s, 1):.1f} MiB/s"
