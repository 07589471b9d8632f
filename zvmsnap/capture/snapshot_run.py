"""What all guests of one snapshot run share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from zvmsnap.common import log
from zvmsnap.common.process import Process
from zvmsnap.config.mode import ModeSet
from zvmsnap.config.settings import Config
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.request import HookCall
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs import mounts


@dataclass(frozen=True)
class SnapshotRun:
    """What all guests of one call of pre share."""

    config: Config
    host: Host
    journal: Journal
    call: HookCall
    owner: Process
    covered: frozenset[str]
    mounts: list[mounts.Mount]
    cancelled: threading.Event
    modes_for: Callable[[Iterable[str]], ModeSet]
    post_within_s: float

    def about(self, guest: Guest) -> log.Logger:
        """Where to say something of a guest."""
        return log.about(guest.name, ",".join(self.call.datasets))


@dataclass(frozen=True)
class PreexistingSnapshots:
    """What was there before, and so is not of this moment.

    Guids of snapshots that bear the announced names; where none are announced, the txg of each
    dataset's newest snapshot.
    """

    guids: tuple[int, ...]
    newest_txg_before: Mapping[str, int] | None = None
