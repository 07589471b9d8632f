"""What needs attention, the worst first.

| what                                                               | how bad |
|--------------------------------------------------------------------|---------|
| a point cannot be read; work was interrupted, and nobody goes on   | act     |
| the host makes RAM images that cannot be loaded                    | act     |
| no new point for much longer than there usually is one             | act     |
| of the points that were verified, the newest one failed            | act     |
| the last send failed                                               | act     |
| less than 5 % of the vault is free; less than 15 %                 | act; look |
| the newest point is of a lower level than was wanted               | look    |
| something is to be known before relying on the newest point        | look    |
| no point was started for 30 days, or never                         | look    |
| a destination has had no new point for 7 days                      | look    |
| a guest was never sent, though others are                          | look    |
| a guest has no point                                               | look    |
| points have no snapshot any more                                   | look    |

How often there usually is a point, the newest ones say; so nothing has to be set for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from statistics import median

from zvmsnap.report.facts import GuestFacts, HostFacts, PointFacts, Room, Verified, amount, length

_STARTED_WITHIN = timedelta(days=30)
_USUAL_AMONG = 9  # the newest points say how often there is one
_USUAL_AT_LEAST = 4
_LATE_AFTER = 2.5  # times what is usual
_LATE_MARGIN = timedelta(minutes=15)
_FEW_POINTS_LATE = timedelta(days=7)
_FREE_ACT, _FREE_LOOK = 0.05, 0.15


class Severity(StrEnum):
    """How bad it is, worst first."""

    ACT = "act"
    LOOK = "look"


@dataclass(frozen=True)
class Finding:
    """Something that needs attention: of which guests, if of any, and what to do."""

    severity: Severity
    what: str
    guests: tuple[str, ...] = ()
    to_do: str = ""


def findings(host: HostFacts) -> list[Finding]:
    """All that needs attention, by the table above."""
    found = [
        *_of_host(host),
        *(finding for guest in host.guests for finding in _of_guest(guest, host.now)),
        *_of_several(host),
    ]
    return sorted(found, key=lambda finding: list(Severity).index(finding.severity))


def _of_host(host: HostFacts) -> Iterator[Finding]:
    for why in host.damaged:
        yield Finding(
            Severity.ACT, f"A point cannot be read: {why}", to_do="restore the file, or remove it"
        )
    for what in host.interrupted:
        yield Finding(Severity.ACT, what)
    for problem in host.problems:
        yield Finding(Severity.ACT, problem)
    if host.vault:
        yield from _of_vault(host.vault)


def _of_vault(room: Room) -> Iterator[Finding]:
    share = room.free_bytes / max(1, room.total_bytes)
    if share < _FREE_LOOK:
        yield Finding(
            Severity.ACT if share < _FREE_ACT else Severity.LOOK,
            f"{room.path}: only {share:.0%} free, {amount(room.free_bytes)} of "
            f"{amount(room.total_bytes)}",
            to_do="keep RAM for a shorter time: zfs set zvmsnap:keep-memory",
        )


def _of_guest(guest: GuestFacts, now: datetime) -> Iterator[Finding]:
    if guest.newest is None:
        return
    own = (guest.name,)
    if guest.is_defined is not False and (late := _late(guest.points, now)):
        yield Finding(Severity.ACT, late, own, "look at sanoid: systemctl status sanoid.service")
    verified = [point for point in guest.points if point.verified is not Verified.NEVER]
    if verified and verified[-1].verified is Verified.FAILED:
        point = verified[-1]
        yield Finding(
            Severity.ACT,
            f"its point {point.run} did not stand the verification: {point.verified_why}",
            own,
            f"try another one: zvmsnap verify --boot {guest.name}",
        )
    for sent in guest.sent:
        if sent.error:
            what = f"the last send to {sent.destination} failed: {sent.error}"
            yield Finding(Severity.ACT, what, own, "send again: zvmsnap send")
    newest = guest.newest
    if newest.is_lowered:
        what = f"its newest point is only of level {newest.level}: {newest.note}"
        yield Finding(Severity.LOOK, what, own)
    elif newest.note:
        yield Finding(Severity.LOOK, f"to know of its newest point: {newest.note}", own)


def _late(points: Sequence[PointFacts], now: datetime) -> str:
    """Why a new point should be there; "" if not."""
    age = now - points[-1].created
    old = f"its newest point is {length(age)} old"
    recent = [point.created for point in points[-_USUAL_AMONG:]]
    if len(recent) < _USUAL_AT_LEAST:
        return old if age > _FEW_POINTS_LATE else ""
    gaps = (after - before for before, after in pairwise(recent))
    usual = timedelta(seconds=median(gap.total_seconds() for gap in gaps))
    if age <= _LATE_AFTER * usual + _LATE_MARGIN:
        return ""
    return f"{old}, and there usually is one every {length(usual)}"


def _of_several(host: HostFacts) -> Iterator[Finding]:
    """What many guests may have in common: one finding for all of them."""
    with_points = [guest for guest in host.guests if guest.points]
    without = _names(host.guests, lambda guest: not guest.points)
    if without:
        yield Finding(Severity.LOOK, "no point", without, "take one: zvmsnap take")
    if unproven := _names(with_points, lambda guest: not _started_lately(guest, host.now)):
        yield Finding(
            Severity.LOOK,
            f"no point was started within {_STARTED_WITHIN.days} days, to prove that it lives",
            unproven,
            "zvmsnap verify --boot",
        )
    for destination in host.silent:
        what = f"{destination} has had no new point for more than 7 days"
        yield Finding(Severity.LOOK, what, to_do="zvmsnap status says more")
    if host.destinations and (unsent := _names(with_points, lambda guest: not guest.sent)):
        yield Finding(Severity.LOOK, "never sent anywhere", unsent, "zvmsnap send")
    if empty := _names(host.guests, _has_orphans):
        what = "points without any snapshot"
        yield Finding(Severity.LOOK, what, empty, "zvmsnap prune removes them")


def _names(guests: Sequence[GuestFacts], has: Callable[[GuestFacts], bool]) -> tuple[str, ...]:
    return tuple(guest.name for guest in guests if has(guest))


def _has_orphans(guest: GuestFacts) -> bool:
    return any(not point.has_snapshots for point in guest.points)


def _started_lately(guest: GuestFacts, now: datetime) -> bool:
    since = now - _STARTED_WITHIN
    return any(
        point.verified is Verified.STARTED and point.verified_at and point.verified_at > since
        for point in guest.points
    )
