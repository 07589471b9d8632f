"""Guests of one moment wait for each other before they stand still.

A dump of RAM may take minutes, a freeze may last seconds. So each guest passes these stages, and
enters one only when no other guest is in an earlier one:

| stage  |                                                                          |
|--------|--------------------------------------------------------------------------|
| WORK   | all that it can do while it runs: files, RAM dumped under overlays       |
| PAUSE  | RAM is dumped, and then it stands still                                  |
| SCRIPT | the administrator's pre-freeze                                           |
| FREEZE | its file systems are frozen                                              |
| DONE   | nobody waits for it                                                      |
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum

from zvmsnap.common.errors import Cancelled

_AT_ONCE = 16
_LOOK_AGAIN_S = 0.2


class Stage(IntEnum):
    """How far a guest is."""

    WORK = 0
    PAUSE = 1
    SCRIPT = 2
    FREEZE = 3
    DONE = 4


class FreezeBarrier:
    """Where the guests of one moment wait."""

    def __init__(self, names: Iterable[str]) -> None:
        self._stages = dict.fromkeys(names, Stage.WORK)
        self._changed = threading.Condition()
        self._places = threading.Semaphore(_AT_ONCE)

    def enter(self, name: str, stage: Stage, cancelled: threading.Event) -> None:
        """Wait until nobody is in an earlier stage. Nobody goes back. Raises Cancelled."""
        with self._changed:
            self._stages[name] = max(stage, self._stages[name])
            self._changed.notify_all()
            while min(self._stages.values()) < stage:
                if cancelled.is_set():
                    raise Cancelled("interrupted while other guests were dumped")
                self._changed.wait(_LOOK_AGAIN_S)

    def keeps_from_dumping(self, name: str) -> bool:
        """Has it come so far that others may stand still, and would do so while it is dumped?"""
        with self._changed:
            return len(self._stages) > 1 and self._stages[name] > Stage.PAUSE

    def leave(self, name: str) -> None:
        """Nobody has to wait for that guest any more."""
        with self._changed:
            self._stages[name] = Stage.DONE
            self._changed.notify_all()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Work that loads the host: so much of it at once, and no more."""
        with self._places:
            yield
