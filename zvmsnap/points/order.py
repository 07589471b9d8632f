"""The order in which the points of a guest were taken. Pure.

Within a pool by createtxg, which only grows: a clock may have stood in 2031 for a day. Between
points that have no pool in common the clock decides; a time that is later than that of a point
taken after it in the same pool was wrong, and counts as that one.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from zvmsnap.points.point import RestorePoint

_Pool = int | str  # its guid; its name, where a point does not say the guid


def in_order(points: Iterable[RestorePoint]) -> list[RestorePoint]:
    """The points of one guest, the oldest first."""
    histories = _histories(points)
    if len(histories) == 1:
        return histories[0]
    timed = (_timed(history) for history in histories)
    return [point for _, point in heapq.merge(*timed, key=lambda each: each[0])]


def is_by_clock(points: Iterable[RestorePoint]) -> bool:
    """Are the points of this guest in several pools, so that only the clock can order them?"""
    return len(_histories(points)) > 1


def _histories(points: Iterable[RestorePoint]) -> list[list[RestorePoint]]:
    """The points by pools, each list in order. One of several pools is in the largest list."""
    remaining = [(_txgs(point), point) for point in points]
    histories = []
    while remaining:
        counts = Counter(pool for txgs, _ in remaining for pool in txgs)
        pool = counts.most_common(1)[0][0]
        own = [(txgs[pool], *_clock(point), point) for txgs, point in remaining if pool in txgs]
        histories.append([each[-1] for each in sorted(own, key=lambda each: each[:-1])])
        remaining = [each for each in remaining if pool not in each[0]]
    return histories


def _txgs(point: RestorePoint) -> dict[_Pool, int]:
    """The newest transaction group of its snapshots in each of its pools."""
    txgs: dict[_Pool, int] = {}
    for ref in point.manifest.snapshots:
        pool = ref.pool_guid or ref.pool
        txgs[pool] = max(ref.createtxg, txgs.get(pool, 0))
    return txgs


def _clock(point: RestorePoint) -> tuple[datetime, str]:
    return point.created, point.directory.name


def _timed(history: Sequence[RestorePoint]) -> list[tuple[datetime, RestorePoint]]:
    """Each with its time, or the earliest of those taken after it."""
    timed: list[tuple[datetime, RestorePoint]] = []
    for point in reversed(history):
        earliest = min(point.created, timed[-1][0]) if timed else point.created
        timed.append((earliest, point))
    return timed[::-1]
