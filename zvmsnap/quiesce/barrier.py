"""The freeze barrier: guests of one run wait for each other before any of them is held.

A dump of RAM may take minutes, a freeze may last seconds. So each guest passes these stages, and
enters one only when no other guest is in an earlier one:

| stage      | what the guest does in it                                          |
|------------|--------------------------------------------------------------------|
| RUNNING    | all that can be done while it runs: files, RAM dumped on overlays  |
| PAUSE      | its RAM is dumped, and after that it is paused                     |
| PRE_FREEZE | the administrator's program runs                                   |
| FREEZE     | its file systems are frozen                                        |
| DONE       | nobody waits for it                                                |
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum

from zvmsnap.common import waiting
from zvmsnap.common.errors import Cancelled

_POLL_S = 0.2


class Stage(IntEnum):
    """How far a guest is."""

    RUNNING = 0
    PAUSE = 1
    PRE_FREEZE = 2
    FREEZE = 3
    DONE = 4


class FreezeBarrier:
    """Where the guests of one run wait for each other. Guests are named by UUID.

    `dumps`: how many guests may have their RAM dumped at once.
    """

    def __init__(self, guests: Iterable[str], dumps: int = 1) -> None:
        self._stages = dict.fromkeys(guests, Stage.RUNNING)
        self._changed = threading.Condition()
        self._dumps = dumps
        self._dumping: set[str] = set()
        self._paused: set[str] = set()

    def enter(self, guest: str, stage: Stage, cancelled: threading.Event) -> None:
        """Wait until no guest is in an earlier stage. No guest goes back. Raises Cancelled."""
        with self._changed:
            self._stages[guest] = max(stage, self._stages[guest])
            self._changed.notify_all()
            while min(self._stages.values()) < stage:
                if cancelled.is_set():
                    raise Cancelled("interrupted while other guests were dumped")
                waiting.wait(self._changed, _POLL_S)

    def stays_paused(self, guest: str) -> None:
        """Its RAM is dumped, and it is paused until all other guests of the run are captured."""
        with self._changed:
            self._paused.add(guest)

    def is_too_late_to_dump(self, guest: str) -> bool:
        """Would others be held while this guest is dumped?

        It has passed the stage of dumps; or its dump failed in it, and others are paused by now.
        """
        with self._changed:
            has_passed = len(self._stages) > 1 and self._stages[guest] > Stage.PAUSE
            return has_passed or bool(self._paused - {guest})

    def finish(self, guest: str) -> None:
        """Let nobody wait for that guest any more, whatever its thread does or hangs in."""
        with self._changed:
            self._stages[guest] = Stage.DONE
            self._dumping.discard(guest)
            self._changed.notify_all()

    @contextmanager
    def dump(self, guest: str, cancelled: threading.Event) -> Iterator[None]:
        """Dump the RAM of a guest when not too many are dumped already. Raises Cancelled."""
        with self._changed:
            while len(self._dumping) >= self._dumps:
                if cancelled.is_set():
                    raise Cancelled("interrupted while other guests were dumped")
                waiting.wait(self._changed, _POLL_S)
            self._dumping.add(guest)
        try:
            yield
        finally:
            with self._changed:
                self._dumping.discard(guest)
                self._changed.notify_all()
