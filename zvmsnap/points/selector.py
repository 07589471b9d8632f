"""Which point is meant by `DOMAIN@WHICH`. Pure.

| WHICH                                         | the point                               |
|-----------------------------------------------|-----------------------------------------|
| the name of a point's own directory           | that one                                |
| a moment, or a snapshot name of one           | the one that answers to it              |
| the same, of several points                   | none: its own name must be said         |
| `latest`                                      | the one taken last                      |
| an ISO time, local unless it names an offset  | the last one taken until that is over   |
| anything else                                 | none                                    |

The first row that fits decides. A time counts up to the end of what it says, a date to that of its
day, 03:00 to that of its minute: what sanoid is told to take at 03:00 is taken a second or two
later, and has 03:00:00 in its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import date, datetime, timedelta

from zvmsnap.common.errors import PointNotFound
from zvmsnap.points.point import RestorePoint

LATEST = "latest"

# Behind the date: the minute and second of a time, as far as it has them, and their fraction.
_TIME_OF_DAY = re.compile(r"\D\d\d(:?\d\d)?(:?\d\d)?([.,]\d+)?(?:Z|[+-][\d:.]+)?\Z")
_FINEST = timedelta(microseconds=1)
_SPANS = (timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1), _FINEST)


def choose(points: Sequence[RestorePoint], text: str) -> RestorePoint:
    """The point of `points` that `text` means. Raises PointNotFound with what there is."""
    domain, _, which = text.rpartition("@")
    if not domain or not which:
        raise PointNotFound(
            f"{text!r} is no point: say DOMAIN@SNAPNAME, as `zvmsnap list` shows, "
            f"DOMAIN@{LATEST} or DOMAIN@TIME"
        )
    own = sorted((point for point in points if point.manifest.domain == domain), key=_order)
    if not own:
        guests = ", ".join(sorted({point.manifest.domain for point in points}))
        raise PointNotFound(
            f"{text}: {domain} has no point; guests with points: {guests or 'none'}"
        )
    found = _named(own, text, which)
    if found:
        return found
    if which == LATEST:
        return own[-1]
    end = _end(which)
    if end is None:
        raise PointNotFound(
            f"{text}: there is no such point; the last of {len(own)} is {own[-1].name}, "
            f"`zvmsnap list {domain}` shows all"
        )
    before = [point for point in own if point.created < end]
    if not before:
        first = own[0]
        raise PointNotFound(
            f"{text}: there is no point of then or before; the first is {first.name}, "
            f"taken {first.created.astimezone(end.tzinfo).isoformat(timespec='seconds')}"
        )
    return before[-1]


def _named(points: Sequence[RestorePoint], text: str, name: str) -> RestorePoint | None:
    found = [point for point in points if point.answers_to(name)]
    # A directory's own name is unique, where two points share a snapshot name.
    exact = [point for point in found if point.directory.name == name] or found
    if len(exact) > 1:
        names = ", ".join(point.name for point in exact)
        raise PointNotFound(f"{text}: answers to several points; say one of {names}")
    return exact[0] if exact else None


def _order(point: RestorePoint) -> tuple[datetime, str]:
    return point.created, point.directory.name


def _end(text: str) -> datetime | None:
    """The instant at which a time is over; None if it is no time."""
    # Local time cannot be told of the first and last days of the calendar.
    with suppress(ValueError, OverflowError):
        begin = datetime.fromisoformat(text)
        if _is_date(text):
            # Of the calendar, not of the clock: not all days have 24 hours.
            return (begin + timedelta(days=1)).astimezone()
        said = _TIME_OF_DAY.search(text)
        span = _SPANS[sum(map(bool, said.groups()))] if said else _FINEST
        return begin.astimezone(begin.tzinfo) + span
    return None


def _is_date(text: str) -> bool:
    with suppress(ValueError):
        return bool(date.fromisoformat(text))
    return False
