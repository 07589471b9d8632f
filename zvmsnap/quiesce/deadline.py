"""No guest stands still for long because of us: the guard lets it go at a deadline.

Looks twice a second at the open moments of one owner whose guests may stand still, in a thread of
its own, and takes no lock to let one go: whoever holds it may hang. What is left is done under the
lock, if it can be had: the administrator's post-thaw, and the journal.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zvmsnap.common import log
from zvmsnap.common.errors import DomainGone
from zvmsnap.common.process import Process, uptime_s
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter, Journal

if TYPE_CHECKING:
    from zvmsnap.virt.guest import Guest
    from zvmsnap.virt.host import Host

_LOOK_EVERY_S = 0.5


@contextmanager
def enforce_deadline(config: Config, owner: Process) -> Iterator[None]:
    """Keep the deadline of this owner's guests, until the block ends."""
    over = threading.Event()
    keeper = _DeadlineKeeper(config, owner, over)
    thread = threading.Thread(target=keeper.run, name="deadline", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _DeadlineKeeper:
    def __init__(self, config: Config, owner: Process, over: threading.Event) -> None:
        self._config = config
        self._owner = owner
        self._over = over
        self._journal = Journal(config.journal_dir)
        # When a guest was first seen standing still whose hook died before it could write it down.
        self._seen_s: dict[str, float] = {}
        self._looked_at: set[str] = set()
        self._said: set[str] = set()

    def run(self) -> None:
        """Look, until it is over; whatever goes wrong, look again."""
        while not self._over.wait(_LOOK_EVERY_S):
            try:
                if self._concerned():
                    self._look_while_connected()
            except Exception as error:  # threads may run out, too
                self._say(log.about("guests", "deadline"), f"the deadline is not kept now: {error}")

    def _look_while_connected(self) -> None:
        """At all guests at once, as the agent of one may keep its thread waiting."""
        from zvmsnap.virt.host import Host

        lost = threading.Event()
        with Host(self._config.uri) as hypervisor:
            while (entries := self._concerned()) and not lost.is_set():
                for entry in entries:
                    if entry.capture not in self._looked_at:
                        arguments = (hypervisor, entry, lost)
                        thread = threading.Thread(target=self._look, args=arguments, daemon=True)
                        self._looked_at.add(entry.capture)
                        try:
                            thread.start()
                        except RuntimeError:
                            self._looked_at.discard(entry.capture)
                            raise
                if self._over.wait(_LOOK_EVERY_S):
                    return

    def _concerned(self) -> list[Entry]:
        return [
            entry
            for entry in self._journal.entries()
            if entry.owner == self._owner and (entry.may_hold_guest or entry.holds_guest)
        ]

    def _look(self, hypervisor: Host, entry: Entry, lost: threading.Event) -> None:
        about = log.about(entry.domain, ",".join(entry.request_datasets))
        try:
            self._let_go_in_time(hypervisor.guest(entry.uuid), entry, about)
        except DomainGone:
            self._finish(None, entry, about)
        except Exception as error:
            self._say(about, f"not let go yet: {error}")
            lost.set()  # libvirt may have been restarted
        finally:
            self._looked_at.discard(entry.capture)

    def _say(self, about: log.Logger, what: str) -> None:
        """Once; it is tried again and again."""
        if what not in self._said:
            self._said.add(what)
            about.error("guard: %s", what)

    def _let_go_in_time(self, guest: Guest, entry: Entry, about: log.Logger) -> None:
        since_s = entry.held_since_s or self._seen_still_since(guest, entry)
        if not since_s or uptime_s() - since_s < self._config.limits.max_freeze_s:
            return
        from zvmsnap.quiesce import thaw

        if was := thaw.release(guest, entry):
            about.error(
                "%s for %.0f s: let go, as nobody did. No point of it will be of that level",
                was,
                uptime_s() - since_s,
            )
        if was or (entry.held_since_s and not thaw.is_busy(guest)):
            self._finish(guest, entry, about)

    def _seen_still_since(self, guest: Guest, entry: Entry) -> float:
        if not entry.paused or not guest.pause():
            self._seen_s.pop(entry.capture, None)
            return 0.0
        return self._seen_s.setdefault(entry.capture, uptime_s())

    def _finish(self, guest: Guest | None, seen: Entry, about: log.Logger) -> None:
        from zvmsnap.quiesce import thaw

        with self._journal.if_free(self._config.locks_dir, seen, "let go") as entry:
            if entry and guest:
                thaw.release_guest(self._config, guest, EntryWriter(self._journal, entry), about)
            elif entry:
                thaw.note_guest_gone(self._config, EntryWriter(self._journal, entry), about)
