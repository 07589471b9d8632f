"""Whose RAM goes before its point: zvmsnap:keep-memory. Pure.

The values that count for a point are those of its datasets, for the types of its snapshots. A point
has the types that its snapshots were taken as, and those by which they were renamed since.

| a dataset, and a type                   | the value             | a number counts                |
|-----------------------------------------|-----------------------|--------------------------------|
| has `zvmsnap:keep-memory:TYPE`          | that                  | images of that type            |
| has not, but `zvmsnap:keep-memory`      | that                  | images of all types without a  |
|                                         |                       | value of their own             |
| has neither                             | that of config.toml   | the same                       |
| has a value that is none                | `all`                 |                                |
| is not known: its pool is away, or it   | `all`                 |                                |
| was destroyed                           |                       |                                |

The RAM stays if any of these values keeps it, so the longest counts:

| the point                                                                  | its RAM           |
|----------------------------------------------------------------------------|-------------------|
| is the newest of its guest that has RAM                                    | stays, always     |
| a restore, a clone or a fetch works on it                                  | stays for now     |
| a value is `all`                                                           | stays             |
| a value is a number, and fewer of the images that it counts are newer      | stays at any age  |
| a value is an age, and the point is not older                              | stays             |
| none of these                                                              | goes              |

A number counts what has RAM: that no RAM was captured for weeks removes none. Which image is newer
ZFS says (points/point). Only an age is by the clock, which may be or have been wrong:

| the clock said of a point  | for its age, it was taken                                           |
|----------------------------|---------------------------------------------------------------------|
| what is not later than now | then; but no earlier than any older image says that is not of later |
|                            | than now                                                            |
| what is later than now     | with the next image that is newer; if there is none, now            |

So a clock that was set back, or had run ahead, removes nothing too early. While it runs ahead, all
RAM is old but the newest; by the same clock sanoid prunes the snapshots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from zvmsnap.common.errors import KeepInvalid
from zvmsnap.config.keep import Keep, parse_keep
from zvmsnap.config.properties import KEEP_MEMORY, KEEP_MEMORY_OF
from zvmsnap.points.point import RestorePoint, in_order

REMOVED = "RAM removed by keep-memory"


@dataclass(frozen=True)
class Rule:
    """A value, and the type whose images it counts; "": those that have no value of their own."""

    keep: Keep
    type: str = ""

    def __str__(self) -> str:
        return f"{self.keep} {self.type}".rstrip()


RulesOf = Callable[[RestorePoint], Iterable[Rule]]


def rules(values: Mapping[str, str], types: Iterable[str], default: Keep) -> Iterator[Rule]:
    """Those of a dataset, whose properties have these values, for these types of snapshots."""
    for each in types:
        own, general = values.get(KEEP_MEMORY_OF[each]), values.get(KEEP_MEMORY)
        if own is not None:
            yield Rule(_keep(own), each)
        else:
            yield Rule(default if general is None else _keep(general))


def _keep(text: str) -> Keep:
    try:
        return parse_keep(text)
    except KeepInvalid:
        return Keep()


@dataclass(frozen=True)
class Standing:
    """Where the RAM of a point stands: `newer` images of its guest, by the type of the rule.

    Without rules nothing is known of what is asked for.
    """

    point: RestorePoint
    rules: frozenset[Rule]
    newer: Mapping[str, int]
    age: timedelta
    is_newest: bool

    @property
    def is_kept(self) -> bool:
        """Does it stay, by the table?"""
        return self.is_newest or not self.rules or any(map(self._holds, self.rules))

    def _holds(self, rule: Rule) -> bool:
        return rule.keep.holds(self.newer[rule.type], self.age)

    @property
    def until(self) -> str:
        """Until when it stays, in words."""
        if not self.rules:
            return "as long as the point: what its datasets ask for is not known"
        holding = sorted({rule for rule in self.rules if self._holds(rule)}, key=str)
        if any(not rule.keep.has_end for rule in holding):
            return "as long as the point"
        if holding:
            return ", and ".join(self._end(rule) for rule in holding)
        return "until a newer point has RAM" if self.is_newest else "until the next point, or prune"

    def _end(self, rule: Rule) -> str:
        if rule.keep.points:
            more = rule.keep.points - self.newer[rule.type]
            what = f"{rule.type} points" if rule.type else "points"
            return f"until {more} more {what} have RAM ({rule})"
        left = rule.keep.age - self.age
        return f"for {left.days} d {left.seconds // 3600} h more ({rule})"


def standings(points: Iterable[RestorePoint], rules_of: RulesOf, now: datetime) -> list[Standing]:
    """Of the points of one guest those with RAM, the newest first."""
    # Sorted first: of several pools, the sequence of the points may decide.
    by_clock = sorted(points, key=lambda point: (point.created, str(point.directory)))
    ordered = in_order(point for point in by_clock if point.manifest.memory)
    newer: Counter[str] = Counter()
    newest_first: list[Standing] = []
    for point, taken in zip(reversed(ordered), reversed(_times(ordered, now)), strict=True):
        own = frozenset(rules_of(point))
        types = {rule.type for rule in own}
        counted = {each: newer[each] for each in types}
        newest_first.append(Standing(point, own, counted, now - taken, is_newest=not newest_first))
        newer.update(types)
    return newest_first


def _times(ordered: Sequence[RestorePoint], now: datetime) -> list[datetime]:
    """When the points were taken, as the table says."""
    times: list[datetime | None] = []
    latest: datetime | None = None
    for point in ordered:
        if point.created > now:
            times.append(None)
            continue
        latest = max(latest or point.created, point.created)
        times.append(latest)
    following, taken = now, []
    for time in reversed(times):
        following = following if time is None else time
        taken.append(following)
    return taken[::-1]


def going(points: Iterable[RestorePoint], rules_of: RulesOf, now: datetime) -> list[RestorePoint]:
    """Of the points of one guest those whose RAM goes, the oldest first."""
    return [each.point for each in reversed(standings(points, rules_of, now)) if not each.is_kept]
