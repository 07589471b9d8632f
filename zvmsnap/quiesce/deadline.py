"""No guest is held for longer than max_freeze_s: the watchdog resumes or thaws it.

A thread of the watchdog looks twice a second at the open entries of one owner whose guests may be
held. It takes no lock to resume or thaw a guest, as whoever has the lock may hang. What remains is
done under the lock, if it is free: the administrator's post-thaw, and the entry.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from zvmsnap.common import log
from zvmsnap.common.errors import DomainGone
from zvmsnap.common.process import Process, uptime_s
from zvmsnap.common.waiting import in_background, wait
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter, Journal

# Imported where they are used: most watchdogs never hold a guest, and need no libvirt.
if TYPE_CHECKING:
    from zvmsnap.virt.guest import Guest
    from zvmsnap.virt.host import Host

_POLL_S = 0.5


@contextmanager
def enforce_deadline(config: Config, owner: Process) -> Iterator[None]:
    """Enforce the deadline for this owner's guests, until the block ends."""
    with in_background("deadline", lambda ended: DeadlineEnforcer(config, owner, ended).run()):
        yield


class _Guests:
    """The guests that are looked at, each through a connection of its own while `opened` lasts."""

    def __init__(self, host: Host, opened: ExitStack) -> None:
        self._host = host
        self._opened = opened
        self._known: dict[str, Guest] = {}

    def of(self, entry: Entry) -> Guest:
        """The guest of an entry. Raises DomainGone."""
        guest = self._host.guest(entry.uuid)
        if entry.capture not in self._known:
            self._known[entry.capture] = self._opened.enter_context(guest.apart())
        return self._known[entry.capture]


class DeadlineEnforcer:
    """The thread of the deadline, and those that it starts for each guest."""

    def __init__(self, config: Config, owner: Process, ended: threading.Event) -> None:
        self._config = config
        self._owner = owner
        self._ended = ended
        self._journal = Journal(config.journal_dir)
        # By capture: when a guest was first seen paused whose hook died before it could note it.
        self._first_seen_s: dict[str, float] = {}
        # Captures whose guest a thread looks at just now.
        self._under_check: set[str] = set()
        self._messages: set[str] = set()

    def run(self) -> None:
        """Look until `ended` is set; whatever goes wrong, look again."""
        while not wait(self._ended, _POLL_S):
            try:
                if self._concerned():
                    self._check_while_connected()
            except Exception as error:  # threads may run out, too
                self._error_once(
                    log.about("guests", "deadline"), f"the deadline is not enforced now: {error}"
                )

    def _check_while_connected(self) -> None:
        """Check each guest in a thread, as the agent of one may keep its thread waiting."""
        from zvmsnap.virt.host import Host

        lost = threading.Event()
        with Host.connect(self._config.uri) as host, ExitStack() as opened:
            guests = _Guests(host, opened)
            while (entries := self._concerned()) and not lost.is_set():
                for entry in entries:
                    if entry.capture not in self._under_check:
                        self._start_check(guests, entry, lost)
                if wait(self._ended, _POLL_S):
                    return

    def _start_check(self, guests: _Guests, entry: Entry, lost: threading.Event) -> None:
        arguments = (guests, entry, lost)
        thread = threading.Thread(target=self._check, args=arguments, daemon=True)
        self._under_check.add(entry.capture)
        try:
            thread.start()
        except RuntimeError:
            self._under_check.discard(entry.capture)
            raise

    def _concerned(self) -> list[Entry]:
        return [
            entry
            for entry in self._journal.entries()
            if entry.owner == self._owner and (entry.may_hold_guest or entry.holds_guest)
        ]

    def _check(self, guests: _Guests, entry: Entry, lost: threading.Event) -> None:
        about = log.about(entry.domain, entry.subject)
        try:
            self._release_if_overdue(guests.of(entry), entry, about)
        except DomainGone:
            self._finish(None, entry, about)
        except Exception as error:
            self._error_once(about, f"not resumed or thawed yet: {log.one_line(error)}")
            lost.set()  # libvirt may have been restarted
        finally:
            self._under_check.discard(entry.capture)

    def _error_once(self, about: log.Logger, message: str) -> None:
        """Log it once, though it is tried again and again."""
        if message not in self._messages:
            self._messages.add(message)
            about.error("watchdog: %s", message)

    def _release_if_overdue(self, guest: Guest, entry: Entry, about: log.Logger) -> None:
        since_s = entry.held_since_s or self.paused_since_s(guest, entry)
        if not since_s or uptime_s() - since_s < self._config.limits.max_freeze_s:
            return
        from zvmsnap.quiesce import thaw

        if was := thaw.resume_or_thaw_unlocked(guest, entry):
            about.error(
                "was %s for %.0f s: %s at the deadline. No point of it will be of that level",
                was,
                uptime_s() - since_s,
                "resumed" if was == "paused" else "thawed",
            )
        if was or (entry.held_since_s and not thaw.is_busy(guest)):
            try:
                self._finish(guest, entry, about)
            except OSError as error:  # a full journal; the next look tries again
                self._error_once(about, f"goes on, but that cannot be noted yet: {error}")

    def paused_since_s(self, guest: Guest, entry: Entry) -> float:
        """Since when the guest has been seen paused without a break; 0.0 if it runs."""
        if not entry.paused or not guest.pause_reason():
            self._first_seen_s.pop(entry.capture, None)
            return 0.0
        return self._first_seen_s.setdefault(entry.capture, uptime_s())

    def _finish(self, guest: Guest | None, checked: Entry, about: log.Logger) -> None:
        from zvmsnap.quiesce import thaw

        with self._journal.if_free(self._config.locks_dir, checked, "deadline") as entry:
            if entry and guest:
                thaw.resume_or_thaw(self._config, guest, EntryWriter(self._journal, entry), about)
            elif entry:
                thaw.note_guest_gone(self._config, EntryWriter(self._journal, entry), about)
