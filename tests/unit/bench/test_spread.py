"""Statistics of repeats."""

from __future__ import annotations

from bench.spread import Spread, median, ratio, shown, spread


def test_least_middle_and_most() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(1.0, 2.0, 3.0)
    assert spread([1.0, 2.0]) == Spread(1.0, 1.5, 2.0)
    assert spread([]) is None and median([]) is None


def test_is_shown_with_its_spread_or_alone() -> None:
    assert str(spread([1.234, 1.0, 12.345])) == "1.23 (1.00 to 12.3)"
    assert str(spread([0.5])) == "0.50"
    assert shown(123.4) == "123"


def test_a_ratio_is_of_medians() -> None:
    assert ratio([2.0, 100.0, 3.0], [1.5]) == 2.0
    assert ratio([], [1.0]) is None
    assert ratio([1.0], []) is None
    assert ratio([1.0], [0.0]) is None
