"""What a report tells: plain facts about guests, their points and the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from functools import cached_property

import msgspec

from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.watch.facts import Room
from zvmsnap.watch.finding import Finding

TABLED = 12  # so many of the newest points of a guest are told one by one


class Verified(Enum):
    """How verifying a point has ended."""

    NEVER = auto()
    READ = auto()
    STARTED = auto()
    FAILED = auto()


class PointFacts(msgspec.Struct, frozen=True, gc=False):
    """A point. `created` is local time; `memory_bytes` is its RAM as stored, 0 without RAM.

    `lost_memory`: it was taken with RAM, which was removed since. `destinations` have it, as the
    last send to each has seen. `note` says what to know before relying on it, "" if nothing, and
    `warning` the same, unless it is only why its level is not a better one; only the newest points
    of a guest have these.
    """

    run: str
    created: datetime
    level: ConsistencyLevel
    lost_memory: bool = False
    pause_s: float = 0.0
    memory_bytes: int = 0
    verified: Verified = Verified.NEVER
    verified_at: datetime | None = None
    verified_why: str = ""
    destinations: tuple[str, ...] = ()
    has_snapshots: bool = True
    note: str = ""
    warning: str = ""

    @property
    def is_offsite(self) -> bool:
        """Has any destination this point?"""
        return bool(self.destinations)


@dataclass(frozen=True)
class Screen:
    """A screen of a guest that was started from a point: a small PNG, or why it is not shown."""

    run: str
    caption: str
    png: bytes = b""
    why_not: str = ""


@dataclass(frozen=True)
class Sent:
    """The last send of a guest: where to, the newest point there (None: none), what went wrong."""

    destination: str
    newest: datetime | None
    error: str


@dataclass(frozen=True)
class GuestFacts:
    """A guest, with its points in the sequence in which they were taken.

    `is_defined` says whether libvirt has a guest of that name; None if it was not asked.
    """

    name: str
    points: Sequence[PointFacts] = ()
    sent: Sequence[Sent] = ()
    screens: Sequence[Screen] = ()
    is_defined: bool | None = None

    @property
    def newest(self) -> PointFacts | None:
        """The point that was taken last."""
        return self.points[-1] if self.points else None

    @cached_property
    def memory_bytes(self) -> int:
        """All RAM of its points, as stored."""
        return sum(point.memory_bytes for point in self.points)


@dataclass(frozen=True)
class HostFacts:
    """All that a report tells; `now` is local time.

    `found` is what `zvmsnap monitor` finds wrong, `damaged` says of each point that cannot be read
    why, `problems` what else is wrong with the host.
    """

    name: str
    version: str
    now: datetime
    guests: Sequence[GuestFacts]
    vault: Room | None = None
    destinations: Sequence[str] = ()
    found: Sequence[Finding] = ()
    damaged: Sequence[str] = ()
    problems: Sequence[str] = ()

    @cached_property
    def points_count(self) -> int:
        """How many points all guests have."""
        return sum(len(guest.points) for guest in self.guests)

    @cached_property
    def memory_bytes(self) -> int:
        """All RAM of all points, as stored."""
        return sum(guest.memory_bytes for guest in self.guests)


def amount(count_bytes: int) -> str:
    """As `512 MiB`, `1.5 TiB`."""
    value = float(count_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"


def length(time: timedelta) -> str:
    """As `5 min`, `3 h`, `12 days`."""
    seconds = time.total_seconds()
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.0f} days"
