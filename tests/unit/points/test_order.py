"""In which order the points of a guest were taken."""

from collections.abc import Callable
from datetime import datetime
from itertools import permutations
from pathlib import Path

import pytest

from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint, in_order, is_by_clock

Build = Callable[..., Manifest]
Taken = tuple[str, dict[str, int]]  # month, and the transaction group in each pool


def point(manifest: Build, name: str, taken: Taken) -> RestorePoint:
    month, txgs = taken
    refs = tuple(
        SnapshotRef(f"{pool.rstrip('0123456789')}/web", "h", txg, txg, pool_guid=_guid(pool))
        for pool, txg in txgs.items()
    )
    built = manifest(created=f"{month}-01T03:00:00+00:00", snapshots=refs)
    return RestorePoint(Path("/v/web") / name, built)


def _guid(pool: str) -> int:
    """The number behind its name, 0 if the point does not say it."""
    return int(pool.lstrip("abcdefghijklmnopqrstuvwxyz") or 0)


ORDERS = [
    pytest.param({}, False, id="none"),
    pytest.param({"a": ("2026-11", {"tank7": 5})}, False, id="one"),
    pytest.param(
        {
            "a": ("2026-10", {"tank7": 4}),
            "b": ("2031-01", {"tank7": 5}),
            "c": ("2026-11", {"tank7": 6}),
        },
        False,
        id="the clock stood in 2031",
    ),
    pytest.param(
        {
            "a": ("2026-10", {"tank7": 4}),
            "b": ("1970-01", {"tank7": 5}),
            "c": ("2026-11", {"tank7": 6}),
        },
        False,
        id="the clock had lost its battery",
    ),
    pytest.param(
        {"a": ("2031-01", {"tank": 5}), "b": ("2026-11", {"tank": 6})}, False, id="without guids"
    ),
    pytest.param(
        {"a": ("2031-01", {"tank7": 5}), "b": ("2026-11", {"pond7": 6})},
        False,
        id="the pool got another name",
    ),
    pytest.param(
        {
            "a": ("2031-01", {"tank7": 5}),
            "b": ("2026-11", {"tank7": 6, "cheap8": 1}),
            "c": ("2026-12", {"tank7": 7}),
        },
        False,
        id="one has a disk in another pool, too",
    ),
    pytest.param(
        {"a": ("2026-10", {"tank7": 900}), "b": ("2026-11", {"tank8": 6})},
        True,
        id="the pool was made anew",
    ),
    pytest.param(
        {
            "a": ("2026-09", {"tank7": 4}),
            "b": ("2031-01", {"tank7": 5}),
            "c": ("2026-10", {"tank7": 6}),
            "d": ("2026-11", {"cheap8": 1}),
        },
        True,
        id="a clock that one pool proves wrong does not count between pools",
    ),
]


@pytest.mark.parametrize(("taken", "by_clock"), ORDERS)
def test_order(manifest: Build, taken: dict[str, Taken], by_clock: bool) -> None:
    points = [point(manifest, name, each) for name, each in taken.items()]
    for shuffled in permutations(points):
        assert in_order(shuffled) == points
        assert is_by_clock(shuffled) is by_clock


def test_of_one_transaction_group_the_clock_decides(manifest: Build) -> None:
    points = [point(manifest, "a", (month, {"tank7": 5})) for month in ("2026-11", "2026-12")]
    assert [each.created for each in in_order(reversed(points))] == [
        datetime.fromisoformat(f"2026-{month}-01T03:00:00+00:00") for month in (11, 12)
    ]
