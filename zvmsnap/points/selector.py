"""Which point is meant by `DOMAIN@WHICH`. Pure.

| WHICH                                         | the point                               |
|-----------------------------------------------|-----------------------------------------|
| the name of a point's own directory           | that one                                |
| a run, or a snapshot name of one              | the one that answers to it              |
| the same, of several points                   | none: say the name of its own directory |
| `latest`                                      | the last one, by ZFS                    |
| an ISO time, local unless it has an offset    | the last one created until it is over,  |
|                                               | as the clock was when it was taken      |
| `yesterday`, `today`                          | the same, of that day here              |
| `-90m`, `-3h`, `-2d`                          | the last one created until so long ago  |
| anything else                                 | none                                    |

The first row that fits decides. A time counts to its end: a date to the end of the day, 03:00 to
the end of the minute. What sanoid takes for 03:00 is taken a second or two later, and has 03:00:00
in its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta

from zvmsnap.common.errors import PointNotFound
from zvmsnap.points.point import RestorePoint, in_order

LATEST = "latest"

# After the date: the minute, second and fraction of a time, as far as it has them.
_TIME_OF_DAY = re.compile(r"\D\d\d(:?\d\d)?(:?\d\d)?([.,]\d+)?(?:Z|[+-][\d:.]+)?\Z")
_AGO = re.compile(r"-([1-9][0-9]{0,5})([mhd])\Z")
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_DAYS_AGO = {"today": 0, "yesterday": 1}
_FINEST = timedelta(microseconds=1)
_SPANS = (timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1), _FINEST)


def choose(points: Sequence[RestorePoint], text: str, now: datetime | None = None) -> RestorePoint:
    """The point of `points` that `text` means. Raises PointNotFound, which names points.

    `now` is the time of day, in any zone.
    """
    domain, _, which = text.rpartition("@")
    if not domain or not which:
        raise PointNotFound(
            f"{text!r} is no point: say DOMAIN@SNAPNAME, as `zvmsnap list` shows, "
            f"DOMAIN@{LATEST} or DOMAIN@TIME (2026-11-20T03:00, yesterday, -3h)"
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
    end = _end(which, now or datetime.now(UTC))
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


def said(point: RestorePoint, text: str) -> str:
    """What was chosen, if a time has said which; "" if the point was named."""
    which = text.rpartition("@")[2]
    if which == LATEST or point.answers_to(which):
        return ""
    taken = point.created.astimezone().isoformat(sep=" ", timespec="seconds")
    return f"{text} is {point.name}, taken {taken}, of level {point.manifest.level}"


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


def _end(text: str, now: datetime) -> datetime | None:
    """When a time is over; None if it is no time."""
    # The first and last days of the calendar have no local time.
    with suppress(ValueError, OverflowError):
        if text in _DAYS_AGO:
            text = (now.astimezone().date() - timedelta(days=_DAYS_AGO[text])).isoformat()
        if ago := _AGO.match(text):
            return (now - int(ago[1]) * _UNITS[ago[2]]).astimezone() + _FINEST
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
