"""Which pages were seen: ranges that grow together, as QEMU sends its RAM in order at first."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from zvmsnap.common.errors import NotUnderstood

# QEMU sends RAM from its first to its last page, so there is one range a block. This many take
# some MiB; a stream in no order at all is not QEMU's.
_RANGES_MAX = 1 << 15


class Ranges:
    """Sets of numbers, as ranges from begin to before end, ascending and apart."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []

    def add(self, begin: int, end: int) -> None:
        """Raises NotUnderstood if there are too many ranges."""
        if self._ends and self._ends[-1] == begin:
            self._ends[-1] = end
            return
        first = bisect_left(self._ends, begin)
        last = bisect_right(self._begins, end)
        if first < last:
            begin = min(begin, self._begins[first])
            end = max(end, self._ends[last - 1])
        self._begins[first:last] = [begin]
        self._ends[first:last] = [end]
        if len(self._begins) > _RANGES_MAX:
            raise NotUnderstood("RAM was sent in no order")

    def touches(self, begin: int, end: int) -> bool:
        """Is any number from `begin` to before `end` in?"""
        at = bisect_right(self._ends, begin)
        return at < len(self._begins) and self._begins[at] < end

    def has_all(self, begin: int, end: int) -> bool:
        """Are all numbers from `begin` to before `end` in?"""
        at = bisect_right(self._ends, begin)
        return begin >= end or (
            at < len(self._begins) and self._begins[at] <= begin and end <= self._ends[at]
        )

    def gaps(self, end: int) -> list[tuple[int, int]]:
        """What is not in, from 0 to before `end`."""
        begins = [0, *self._ends]
        return [
            each for each in zip(begins, [*self._begins, end], strict=True) if each[0] < each[1]
        ]
