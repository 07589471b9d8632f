"""Tell what the lab does now and how long it takes, on stderr."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

HEARTBEAT_S = 30.0
_started = time.monotonic()
_QUIET = "ZVMSNAP_LAB_QUIET"


def say(text: str) -> None:
    """Print one line with the seconds since this process started."""
    if not os.environ.get(_QUIET):
        print(f"lab {time.monotonic() - _started:6.1f} s  {text}", file=sys.stderr, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Say that something begins, that it still runs, and how long it took."""
    begun = time.monotonic()
    on_terminal = sys.stderr.isatty() and not os.environ.get(_QUIET)
    over = threading.Event()

    def tick() -> None:
        while not over.wait(1.0 if on_terminal else HEARTBEAT_S):
            line = f"{text} ... {time.monotonic() - begun:.0f} s"
            if on_terminal:
                sys.stderr.write(f"\r\033[K{line}")
                sys.stderr.flush()
            else:
                say(line)

    if not on_terminal:
        say(f"{text} ...")
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    outcome = "failed after"
    try:
        yield
        outcome = "took"
    finally:
        over.set()
        ticker.join()
        if on_terminal:
            sys.stderr.write("\r\033[K")
        say(f"{text}: {outcome} {time.monotonic() - begun:.1f} s")
