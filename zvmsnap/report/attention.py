"""What needs attention, the worst first.

Most of it is what `zvmsnap monitor` tells: nothing is judged twice. A report also sees all points,
and so it adds:

| what                                                           | how bad |
|----------------------------------------------------------------|---------|
| a point cannot be read, be it the newest or not                | act     |
| the host makes RAM images that cannot be loaded                | act     |
| something is to be known before relying on the newest point    | look    |
| no point was started for 30 days, or never                     | look    |
| points have no snapshot any more                               | look    |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from zvmsnap.report.facts import GuestFacts, HostFacts, Verified
from zvmsnap.watch import finding as watched
from zvmsnap.watch.finding import Kind

_STARTED_WITHIN = timedelta(days=30)


class Severity(StrEnum):
    """How bad it is, worst first."""

    ACT = "act"
    UNKNOWN = "unknown"
    LOOK = "look"


_SEVERITIES = {
    watched.Severity.CRITICAL: Severity.ACT,
    watched.Severity.UNKNOWN: Severity.UNKNOWN,
    watched.Severity.WARNING: Severity.LOOK,
}
# What is next, where the words of `monitor`, which are for a pager, do not say it.
_TO_DO = {
    Kind.AGE: "does sanoid run? systemctl status sanoid.timer sanoid.service",
    Kind.VERIFY: "zvmsnap verify --boot",
    Kind.OFFSITE: "zvmsnap send, and zvmsnap status",
    Kind.ROOM: "keep RAM for a shorter time: zfs set zvmsnap:keep-memory=24 DATASET",
}


@dataclass(frozen=True)
class Finding:
    """Something that needs attention: of which guests, if of any, and what to do."""

    severity: Severity
    what: str
    guests: tuple[str, ...] = ()
    to_do: str = ""


def findings(host: HostFacts) -> list[Finding]:
    """All that needs attention. What is the same of several guests is one finding."""
    found = _together([*_of_monitor(host), *_of_points(host)])
    return sorted(found, key=lambda finding: list(Severity).index(finding.severity))


def _together(found: Iterable[Finding]) -> Iterator[Finding]:
    guests: dict[Finding, tuple[str, ...]] = {}
    for each in found:
        alone = Finding(each.severity, each.what, to_do=each.to_do)
        guests[alone] = guests.get(alone, ()) + each.guests
    for alone, names in guests.items():
        yield Finding(alone.severity, alone.what, names, alone.to_do)


def _of_monitor(host: HostFacts) -> Iterator[Finding]:
    for each in host.found:
        named = (each.guest,) if each.guest else ()
        yield Finding(_SEVERITIES[each.severity], each.text, named, _TO_DO.get(each.kind, ""))


def _of_points(host: HostFacts) -> Iterator[Finding]:
    told = {each.text for each in host.found}
    for why in host.damaged:
        if why not in told:
            yield Finding(Severity.ACT, f"a point cannot be read: {why}")
    for problem in host.problems:
        yield Finding(Severity.ACT, problem)
    for guest in host.guests:
        if guest.newest and guest.newest.warning:
            what = f"to know before relying on its newest point: {guest.newest.warning}"
            yield Finding(Severity.LOOK, what, (guest.name,))
    yield from _of_all(
        host.guests,
        lambda guest: bool(guest.points) and not _started_lately(guest, host.now),
        f"no point was started within {_STARTED_WITHIN.days} days, to prove that it lives",
        "zvmsnap verify --boot",
    )
    yield from _of_all(
        host.guests, _has_orphans, "points without any snapshot", "zvmsnap prune removes them"
    )


def _of_all(
    guests: Sequence[GuestFacts], has: Callable[[GuestFacts], bool], what: str, to_do: str
) -> Iterator[Finding]:
    if names := tuple(guest.name for guest in guests if has(guest)):
        yield Finding(Severity.LOOK, what, names, to_do)


def _has_orphans(guest: GuestFacts) -> bool:
    return any(not point.has_snapshots for point in guest.points)


def _started_lately(guest: GuestFacts, now: datetime) -> bool:
    since = now - _STARTED_WITHIN
    return any(
        point.verified is Verified.STARTED and point.verified_at and point.verified_at > since
        for point in guest.points
    )
