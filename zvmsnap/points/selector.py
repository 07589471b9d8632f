"""Which point is meant by `DOMAIN@WHICH`. Pure.

| WHICH                                         | the point                               |
|-----------------------------------------------|-----------------------------------------|
| the name of a point's own directory           | that one                                |
| a run, or a snapshot name of one              | the one that answers to it              |
| the same, of several points                   | none: say the name of its own directory |
| `latest`                                      | the last one, by ZFS                    |
| an ISO time, local unless it has an offset    | the last one created until it is over,  |
|                                               | as the clock was when it was taken      |
| anything else                                 | none                                    |

The first row that fits decides. A time counts to its end: a date to the end of the day, 03:00 to
the end of the minute. What sanoid takes for 03:00 is taken a second or two later, and has 03:00:00
in its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import date, datetime, timedelta

from zvmsnap.common.errors import PointNotFound
from zvmsnap.points.point import RestorePoint, in_order

LATEST = "latest"

# After the date: the minute, second and fraction of a time, as far as it has them.
_TIME_OF_DAY = re.compile(r"\D\d\d(:?\d\d)?(:?\d\d)?([.,]\d+)?(?:Z|[+-][\d:.]+)?\Z")
_FINEST = timedelta(microseconds=1)
_SPANS = (timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1), _FINEST)


def choose(points: Sequence[RestorePoint], text: str) -> RestorePoint:
    """The point of `points` that `text` means. Raises PointNotFound, which names points."""
    domain, _, which = text.rpartition("@")
    if not domain or not which:
        raise PointNotFound(
            f"{text!r} is no point: say DOMAIN@SNAPNAME, as `zvmsnap list` shows, "
            f"DOMAIN@{LATEST} or DOMAIN@TIME"
        )
    own = in_order(point for point in points if point.manifest.domain == domain)
    if not own:
        guests = ", ".join(sorted({point.manifest.domain for point in points}))
        raise PointNotFound(
            f"{text}: {domain} has no point; guests with points: {guests or 'none'}"
        )
    named = _named(own, text, which)
    if named:
        return named
    if which == LATEST:
        return own[-1]
    end = _end(which)
    if end is None:
        raise PointNotFound(
            f"{text}: no such point; the last of {len(own)} is {own[-1].name}, "
            f"`zvmsnap list {domain}` shows all"
        )
    before = [point for point in own if point.created < end]
    if not before:
        first = min(own, key=_created)
        raise PointNotFound(
            f"{text}: no point is as old as that; the first is {first.name}, "
            f"taken {first.created.astimezone(end.tzinfo).isoformat(timespec='seconds')}"
        )
    return max(before, key=_created)


def _named(points: Sequence[RestorePoint], text: str, name: str) -> RestorePoint | None:
    answering = [point for point in points if point.answers_to(name)]
    # The name of a directory is unique; a snapshot name may be of two points.
    exact = [point for point in answering if point.directory.name == name] or answering
    if len(exact) > 1:
        names = ", ".join(point.name for point in exact)
        raise PointNotFound(f"{text}: answers to several points; say one of {names}")
    return exact[0] if exact else None


def _created(point: RestorePoint) -> tuple[datetime, str]:
    return point.created, point.directory.name


def _end(text: str) -> datetime | None:
    """When a time is over; None if it is no time."""
    # The first and last days of the calendar have no local time.
    with suppress(ValueError, OverflowError):
        start = datetime.fromisoformat(text)
        if _is_date(text):
            # By the calendar, not the clock: not all days have 24 hours.
            return (start + timedelta(days=1)).astimezone()
        time_of_day = _TIME_OF_DAY.search(text)
        span = _SPANS[sum(map(bool, time_of_day.groups()))] if time_of_day else _FINEST
        return start.astimezone(start.tzinfo) + span
    return None


def _is_date(text: str) -> bool:
    with suppress(ValueError):
        return bool(date.fromisoformat(text))
    return False
