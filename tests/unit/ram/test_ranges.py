"""Ranges are sets of numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.common.errors import NotUnderstood
from zvmsnap.ram.ranges import Ranges

PAIRS = st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda pair: (pair[0], sum(pair)))


@given(st.lists(PAIRS), PAIRS)
def test_they_are_what_a_set_is(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    ranges = Ranges()
    numbers: set[int] = set()
    for begin, end in added:
        ranges.add(begin, end)
        numbers |= set(range(begin, end))
    wanted = set(range(*asked))
    assert ranges.touches(*asked) == bool(wanted & numbers)
    assert ranges.has_all(*asked) == (wanted <= numbers)
    missing = {number for gap in ranges.gaps(60) for number in range(*gap)}
    assert missing == set(range(60)) - numbers


def test_no_order_at_all_is_not_understood() -> None:
    ranges = Ranges()
    with pytest.raises(NotUnderstood, match="in no order"):
        for number in range(1 << 20):
            ranges.add(2 * number, 2 * number + 1)
