"""What is wrong, as a monitoring system hears of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class Severity(IntEnum):
    """How bad it is; the numbers are the exit codes of Nagios' plugins."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3

    @property
    def rank(self) -> int:
        """What is not known may be anything: it counts for more than a warning."""
        return _RANKS[self]


_RANKS = {Severity.OK: 0, Severity.WARNING: 1, Severity.UNKNOWN: 2, Severity.CRITICAL: 3}


class Kind(StrEnum):
    """What it is about."""

    POINT = "point"  # a guest that ought to have points has none
    AGE = "age"  # its newest is too old
    LEVEL = "level"  # its newest is of less than the demanded level
    DAMAGED = "damaged"  # its newest cannot be read
    OVERLAY = "overlay"  # it is on overlays, or held, for too long
    MERGE = "merge"  # somebody else's job keeps it on its overlays
    INTERRUPTED = "interrupted"  # a run, a restore, a clone or a fetch waits for somebody to end it
    WAITING = "waiting"  # points wait in staging for the vault
    VERIFY = "verify"  # a point did not live, or none was verified for long
    OFFSITE = "offsite"  # a send failed, or its newest point there is too old
    ROOM = "room"  # vault or staging run full
    VAULT = "vault"
    JOURNAL = "journal"
    LIBVIRT = "libvirt"
    ZFS = "zfs"
    CONFIG = "config"
    METRICS = "metrics"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; `guest` is "" if it is of the whole host."""

    severity: Severity
    kind: Kind
    text: str
    guest: str = ""

    def __str__(self) -> str:
        return f"{self.guest}: {self.text}" if self.guest else self.text


def worst(findings: list[Finding]) -> Severity:
    """What all of them come to."""
    severities = (finding.severity for finding in findings)
    return max(severities, key=lambda severity: severity.rank, default=Severity.OK)


def by_rank(findings: list[Finding]) -> list[Finding]:
    """The worst first."""
    return sorted(findings, key=lambda each: (-each.severity.rank, each.kind, each.guest))
