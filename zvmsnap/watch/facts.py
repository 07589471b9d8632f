"""All that is known of a host at one time, before anything of it is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zvmsnap.journal.entry import Entry
from zvmsnap.points.manifest import Manifest
from zvmsnap.points.verify_result import VerifyResult
from zvmsnap.replication.send_status import SendStatus
from zvmsnap.watch.finding import Finding


@dataclass(frozen=True)
class GuestFacts:
    """A guest of libvirt. `datasets` are those of its disks; None: they are not known.

    `overlays` are those of zvmsnap that its disks are on. `is_clone`: zvmsnap has made it of a
    point.
    """

    name: str
    uuid: str
    datasets: frozenset[str] | None = None
    overlays: tuple[str, ...] = ()
    memory_bytes: int = 0
    is_clone: bool = False


@dataclass(frozen=True)
class PointFacts:
    """The points of a guest: how many, the newest, and the last that was verified.

    `damaged` says why the newest cannot be read, "" if it can.
    """

    domain: str
    count: int = 0
    newest: Manifest | None = None
    directory: Path = Path()
    damaged: str = ""
    verified: VerifyResult | None = None
    verified_name: str = ""


@dataclass(frozen=True)
class Room:
    """A file system of ours: what is free, of how much."""

    directory: Path
    free_bytes: int
    size_bytes: int

    @property
    def free_percent(self) -> float:
        """Of 100; an empty file system of no size has nothing free."""
        return 100 * self.free_bytes / self.size_bytes if self.size_bytes else 0.0


@dataclass(frozen=True)
class Work:
    """What the journal says is open. `interrupted` has commands and files that wait for a person.

    `idle_s`: how long nobody has worked on an entry, by its capture.
    """

    entries: tuple[Entry, ...] = ()
    idle_s: Mapping[str, float] = field(default_factory=dict)
    waiting: Mapping[str, int] = field(default_factory=dict)
    interrupted: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Facts:
    """What was found out; None where nobody has answered, which `unknown` tells.

    `points` are by UUID, `properties` by dataset: those of zvmsnap, and `creation` in seconds.
    """

    now_s: float
    guests: tuple[GuestFacts, ...] | None = ()
    points: Mapping[str, PointFacts] | None = field(default_factory=dict)
    properties: Mapping[str, Mapping[str, str]] | None = field(default_factory=dict)
    work: Work | None = Work()
    sent: tuple[SendStatus, ...] | None = ()
    rooms: Mapping[str, Room] = field(default_factory=dict)
    unknown: tuple[Finding, ...] = ()
