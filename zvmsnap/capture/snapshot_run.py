"""What all guests of one snapshot run share."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from zvmsnap.common import log
from zvmsnap.common.process import Process
from zvmsnap.config.mode import ModeSet
from zvmsnap.config.settings import Config
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.request import HookCall
from zvmsnap.journal.round import Round
from zvmsnap.notify import event, notices
from zvmsnap.notify.event import Kind
from zvmsnap.quiesce.barrier import FreezeBarrier
from zvmsnap.quiesce.together import DumpsTogether
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs import mounts


@dataclass(frozen=True)
class CaptureRequest:
    """What a caller asks for: guests with disks on `covered`, when `snapshotted` is snapshotted.

    `modes_for` says which levels are wanted of a guest with disks on such datasets; it raises
    ModeInvalid. When `owner` dies, the run ends. While it lives it calls post within
    `post_within_s` (see hooks/callers). `cancelled`: undo everything. `guids`: those of
    datasets. `may_be_late`: snapshots are taken even of a guest that is in another run.
    `own_round`: what the hooks of one sanoid note for each other.

    `backup`: the directory of backups that a guest is captured for; no snapshot is taken, and no
    point is made. `on_overlays`: it goes on on overlays at every level.
    """

    call: HookCall
    owner: Process
    covered: frozenset[str]
    snapshotted: frozenset[str]
    modes_for: Callable[[Iterable[str]], ModeSet]
    cancelled: threading.Event
    post_within_s: float = math.inf
    guids: Mapping[str, int] = field(default_factory=dict)
    may_be_late: bool = False
    own_round: Round | None = None
    backup: str = ""
    on_overlays: bool = False


@dataclass(frozen=True)
class SnapshotRun:
    """A request that is being carried out, on this host."""

    config: Config
    host: Host
    journal: Journal
    request: CaptureRequest
    mounts: list[mounts.Mount]

    def about(self, guest: Guest) -> log.Logger:
        """The logger for lines about a guest."""
        return log.about(guest.name, self.request.backup or ",".join(self.request.call.datasets))

    def tell(self, guest: Guest, kind: Kind, cause: str | BaseException, **fields: str) -> None:
        """Let the administrator's programs hear of a failure, when no guest waits any more."""
        about = {
            "guest": guest.name,
            "uuid": guest.uuid,
            "dataset": ",".join(self.request.call.datasets),
        }
        notices.note(self.config, event.of(kind, cause, **about, **fields))


@dataclass(frozen=True)
class PreexistingSnapshots:
    """Which snapshots existed before the run, and so do not belong to it.

    Guids of snapshots that bear the announced names; where none are announced, the txg of each
    dataset's newest snapshot.
    """

    guids: tuple[int, ...]
    newest_txg_before: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Shared:
    """What the guests of one run share while they are captured in parallel.

    `reserve(uuid, image_bytes)` reserves staging space for a guest, whose RAM image may become so
    large; it raises NoSpace. `together`: those that stand still until all are captured.
    """

    preexisting: PreexistingSnapshots
    reserve: Callable[[str, int], None]
    barrier: FreezeBarrier
    together: DumpsTogether

    def is_too_late_to_dump(self, guest: str) -> bool:
        """Would others be held while this guest, by its UUID, is dumped?"""
        is_too_late = self.together.is_too_late_to_dump(guest)
        return is_too_late or self.barrier.has_passed_dumps(guest)

    def finish(self, guest: str) -> None:
        """Let nobody wait for that guest any more, whatever its thread does or hangs in."""
        self.barrier.finish(guest)
        self.together.leave(guest)
