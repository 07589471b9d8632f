"""No guest stands still for long because of us: the guard lets it go at a deadline.

Looks once a second at the open moments of one owner whose guests may stand still, in a thread of
its own, and takes no lock to let one go: whoever holds it may hang. What is left is done under the
lock, if it can be had: the administrator's post-thaw, and the journal.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zvmsnap import log
from zvmsnap.config import Config
from zvmsnap.errors import DomainGone, LockTimeout, ZvmsnapError
from zvmsnap.journal import Entry, Journal, Open, Process, still_clock_s
from zvmsnap.locks import lock

if TYPE_CHECKING:
    from zvmsnap.hypervisor import Guest, Hypervisor

_LOOK_EVERY_S = 0.5
# The guard's own imports and connection must not come when the deadline does.
_CONNECT_AGAIN_S = 5.0


@contextmanager
def kept(config: Config, owner: Process) -> Iterator[None]:
    """Keep the deadline of this owner's guests, until the block ends."""
    over = threading.Event()
    keeper = _Keeper(config, owner, over)
    thread = threading.Thread(target=keeper.run, name="deadline", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Keeper:
    def __init__(self, config: Config, owner: Process, over: threading.Event) -> None:
        self._config = config
        self._owner = owner
        self._over = over
        self._journal = Journal(config.journal_dir)
        # When a guest was first seen standing still whose hook died before it could write it down.
        self._seen_s: dict[str, float] = {}

    def run(self) -> None:
        """Look, until it is over; whatever goes wrong, look again."""
        while not self._over.wait(_LOOK_EVERY_S):
            try:
                if self._concerned():
                    self._keep()
            except (ZvmsnapError, OSError) as error:
                log.plain().error("guard: the deadline is not kept now: %s", error)
                time.sleep(_CONNECT_AGAIN_S)

    def _keep(self) -> None:
        """Look through one connection; one that broke, as with libvirt itself, stays broken."""
        from zvmsnap.hypervisor import Hypervisor

        with Hypervisor(self._config.uri) as hypervisor:
            while (entries := self._concerned()) and not self._over.wait(_LOOK_EVERY_S):
                seen = [self._look(hypervisor, entry) for entry in entries]
                if not all(seen):
                    return

    def _concerned(self) -> list[Entry]:
        return [
            entry
            for entry in self._journal.entries()
            if entry.owner == self._owner and entry.may_stand_still
        ]

    def _look(self, hypervisor: Hypervisor, entry: Entry) -> bool:
        """False if it could not be seen, or not be let go."""
        about = log.about(entry.domain, ",".join(entry.targets))
        try:
            guest = hypervisor.guest(entry.uuid)
            since_s = entry.still_since_s or self._seen_still_since(guest, entry)
            if not since_s or still_clock_s() - since_s < self._config.limits.still_max_s:
                return True
            from zvmsnap import still

            if was := still.release(guest, entry):
                about.error(
                    "%s for %.0f s: let go, as nobody did. Its point is of level crash",
                    was,
                    still_clock_s() - since_s,
                )
                self._finish(guest, entry, about)
            return True
        except DomainGone:
            return True
        except (ZvmsnapError, OSError) as error:
            about.error("guard: not let go yet: %s", error)
            return False

    def _seen_still_since(self, guest: Guest, entry: Entry) -> float:
        if not entry.paused or not guest.pause():
            self._seen_s.pop(entry.capture, None)
            return 0.0
        return self._seen_s.setdefault(entry.capture, still_clock_s())

    def _finish(self, guest: Guest, seen: Entry, about: log.Logger) -> None:
        from zvmsnap import still

        try:
            with lock(self._config.locks_dir, seen.uuid, "let go", timeout_s=0):
                entry = self._journal.read(seen.uuid)
                if entry and entry.capture == seen.capture:
                    still.let_go(self._config, guest, Open(self._journal, entry), about)
        except LockTimeout:
            return
