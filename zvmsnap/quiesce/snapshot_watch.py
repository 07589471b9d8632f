"""Paused guests go on the instant that ZFS has their snapshots: a thread of the watchdog.

It looks for entries of level `paused`, and starts a thread for each, which follows it
(quiesce/let_go). One that hangs, as in ZFS or in libvirt, keeps no other from its work, nor the
deadline.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from zvmsnap.common import log
from zvmsnap.common.process import Process
from zvmsnap.common.waiting import in_background, wait
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal

_LOOK_EVERY_S = 0.25


@contextmanager
def watch_snapshots(config: Config, owner: Process) -> Iterator[None]:
    """Let this owner's paused guests go on when their snapshots exist, until the block ends."""
    with in_background("snapshots", lambda ended: SnapshotWatch(config, owner, ended).run()):
        yield


class SnapshotWatch:
    """The thread that looks for entries, and those that it starts for each."""

    def __init__(self, config: Config, owner: Process, ended: threading.Event) -> None:
        self._config = config
        self._owner = owner
        self._ended = ended
        self._journal = Journal(config.journal_dir)
        # Captures that were followed, or are. Whatever goes wrong with one is left to post.
        self._known: set[str] = set()
        self._under_way: set[str] = set()
        self._error = ""

    def run(self) -> None:
        """Look until `ended` is set; whatever goes wrong, look again."""
        while not wait(self._ended, _LOOK_EVERY_S):
            try:
                for entry in self._journal.entries():
                    if self._concerns(entry):
                        self._start(entry)
            except Exception as error:  # threads may run out, too
                if self._error != str(error):
                    self._error = str(error)
                    log.failure(log.plain(), error, "watchdog: paused guests wait for post")

    def _concerns(self, entry: Entry) -> bool:
        return (
            entry.owner == self._owner
            and entry.level is ConsistencyLevel.PAUSED
            and entry.may_hold_guest
            and entry.newest_txg_before is None
            and entry.has_snapshots
            and entry.capture not in self._known
        )

    def _start(self, entry: Entry) -> None:
        threading.Thread(target=self._follow, args=(entry,), daemon=True).start()
        self._known.add(entry.capture)

    def _follow(self, entry: Entry) -> None:
        about = log.about(entry.domain, entry.subject)
        self._under_way.add(entry.capture)
        try:
            # Only now, as most watchdogs never see a paused guest, and need no libvirt. Its RAM is
            # not dumped before it is followed, so nothing is loaded while it stands still.
            from zvmsnap.quiesce import let_go

            if let_go.follow(self._config, entry, self._ended, lambda: len(self._under_way)):
                about.debug("resumed: ZFS has its snapshots")
        except Exception as error:
            log.failure(about, error, "watchdog: it waits for post")
        finally:
            self._under_way.discard(entry.capture)
