"""The time axis of all charts: what is recent has more room than what is old.

Points are dense where they are new, as hourly ones are kept for days and monthly ones for years. So
the axis has three zones, each with a linear scale of its own: the last two days, the days before
them up to 31, and all that is older. How wide a zone is depends on how many points it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

WIDTH = 1000  # units from the oldest point to now

_RECENT = timedelta(days=2)
_MONTH = timedelta(days=31)
# A clock may have stood in 1970 for a day: what is older than this is drawn at the edge.
_OLDEST = timedelta(days=3 * 366)
_LEAST_SHARE = 0.18
_NARROW = 4  # times less room than on a wide screen, for major ticks alone
_NOW_ROOM = 30


@dataclass(frozen=True)
class Zone:
    """A part of the axis, with a linear scale: from `begin` to `end`, from x `left` to `right`."""

    begin: datetime
    end: datetime
    left: float
    right: float

    def x(self, time: datetime) -> float:
        """Where a time of this zone is."""
        return self.left + (self.right - self.left) * (
            (time - self.begin) / (self.end - self.begin)
        )


@dataclass(frozen=True)
class Tick:
    """A time that is named below the axis; where there is little room, only major ones are."""

    x: float
    label: str
    is_major: bool


@dataclass(frozen=True)
class Axis:
    """Zones from the oldest to the newest, one behind the other."""

    zones: Sequence[Zone]

    @classmethod
    def of(cls, times: Iterable[datetime], now: datetime) -> Axis:
        """The axis for points of these times."""
        ages = [min(max(now - time, timedelta()), _OLDEST) for time in times]
        oldest = max(ages, default=timedelta())
        limits = [age for age in (_MONTH, _RECENT) if age < oldest]
        begins = [max(oldest, timedelta(hours=1)), *limits]
        ends = [*limits, timedelta()]
        counts = [
            sum(end <= age < begin for age in ages) for begin, end in zip(begins, ends, strict=True)
        ]
        spare, all_points = 1 - _LEAST_SHARE * len(counts), sum(counts) or 1
        zones, left = [], 0.0
        for begin, end, count in zip(begins, ends, counts, strict=True):
            right = left + WIDTH * (_LEAST_SHARE + spare * count / all_points)
            zones.append(Zone(now - begin, now - end, left, right))
            left = right
        zones[-1] = Zone(zones[-1].begin, now, zones[-1].left, WIDTH)
        return cls(tuple(zones))

    def x(self, time: datetime) -> int:
        """Where a time is, in whole units; what is beyond an end of the axis is at that end."""
        time_s = time.timestamp()
        for end_s, begin_s, left, per_s in self._scales:
            if time_s < end_s:
                return max(0, round(left + (time_s - begin_s) * per_s))
        return WIDTH

    @cached_property
    def _scales(self) -> list[tuple[float, float, float, float]]:
        """The zones in numbers, as a page asks for each of 40 000 points."""
        spans = [(zone, zone.begin.timestamp(), zone.end.timestamp()) for zone in self.zones]
        return [
            (end_s, begin_s, zone.left, (zone.right - zone.left) / (end_s - begin_s))
            for zone, begin_s, end_s in spans
        ]

    @cached_property
    def ticks(self) -> tuple[Tick, ...]:
        """The times to be named, from the left to the right."""
        return tuple(tick for zone in self.zones for tick in _ticks(zone))


def _ticks(zone: Zone) -> Iterator[Tick]:
    """Round times of a zone, none so near to another, or to an end, that labels would touch."""
    step, label, room = _scale(zone)
    times = [time for time in _round_times(zone, step) if zone.begin < time < zone.end]
    places = [zone.x(time) for time in times]
    every = 1
    while len(places) > 1 and (places[-1] - places[0]) / (len(places) - 1) * every < room:
        every += 1
    # Counted from the newest one: so it does not depend on how old the oldest point is.
    chosen = list(zip(times, places, strict=True))[::-1][::every]
    # At the right end of the axis stands "now".
    now_room = _NOW_ROOM if zone.right == WIDTH else 0
    majors = [x for _, x in chosen if x <= zone.right - _NARROW * (room / 2 + now_room)]
    for time, x in chosen[::-1]:
        if zone.left + room / 2 <= x <= zone.right - room / 2 - now_room:
            yield Tick(x, time.strftime(label), is_major=x in majors[::_NARROW])


def _scale(zone: Zone) -> tuple[timedelta, str, float]:
    """The steps of the labels of a zone, how they are written, and the room that each needs."""
    span = zone.end - zone.begin
    if span <= timedelta(hours=8):
        return timedelta(hours=1), "%H:%M", 44
    if span <= _RECENT:
        return timedelta(hours=6), "%a %H:%M", 74
    return (timedelta(days=1), "%-d %b", 52) if span <= 3 * _MONTH else (_MONTH, "%b", 34)


def _round_times(zone: Zone, step: timedelta) -> Iterator[datetime]:
    """Hours, days or beginnings of months, from before a zone until behind it."""
    time = zone.begin.replace(hour=0, minute=0, second=0, microsecond=0)
    while time < zone.end:
        yield time
        # The first of the next month, if that is the step.
        time = (time.replace(day=1) + _MONTH).replace(day=1) if step == _MONTH else time + step
