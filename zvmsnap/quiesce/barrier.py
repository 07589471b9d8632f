"""The freeze barrier: guests of one run wait for each other before any of them is held.

A dump of RAM may take minutes, a freeze may last seconds. So each guest passes these stages, and
enters one only when no other guest is in an earlier one:

| stage      | what the guest does in it                                          |
|------------|--------------------------------------------------------------------|
| RUNNING    | all that can be done while it runs: files, RAM dumped on overlays  |
| CHOICE     | it may be refused to be paused; if so, it is dumped on overlays    |
| PAUSE      | its RAM is dumped, and after that it is paused (quiesce/together)  |
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
    CHOICE = 1
    PAUSE = 2
    PRE_FREEZE = 3
    FREEZE = 4
    DONE = 5


class FreezeBarrier:
    """Where the guests of one run wait for each other. Guests are named by UUID.

    `dumps`: how many guests may have their RAM dumped on overlays at once.
    """

    def __init__(self, guests: Iterable[str], dumps: int = 1) -> None:
        self._stages = dict.fromkeys(guests, Stage.RUNNING)
        self._changed = threading.Condition()
        self._dumps = dumps
        self._dumping: set[str] = set()

    def enter(self, guest: str, stage: Stage, cancelled: threading.Event) -> None:
        """Wait until no guest is in an earlier stage. No guest goes back. Raises Cancelled."""
        with self._changed:
            self._stages[guest] = max(stage, self._stages[guest])
            self._changed.notify_all()
            while min(self._stages.values()) < stage:
                if cancelled.is_set():
                    raise Cancelled("interrupted while other guests were dumped")
                waiting.wait(self._changed, _POLL_S)

    def __len__(self) -> int:
        """How many guests the run has."""
        return len(self._stages)

    def has_passed_dumps(self, guest: str) -> bool:
        """Has it passed the stage of dumps, so that others may be held while it is dumped?"""
        with self._changed:
            return len(self._stages) > 1 and self._stages[guest] > Stage.PAUSE

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
