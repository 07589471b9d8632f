"""Tables in Markdown, and what stands in their fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bench.results import Result
from bench.spread import ratio, shown, spread

Found = Mapping[str, Result]
Lines = list[str]

NONE = "-"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    """A table; no lines if it has no rows."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    if not body:
        return ["Not measured."]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *body]


def figures(result: Result, way: str, measure: str, against: str = "") -> str:
    """Median, and least and largest; with `against`, how many times that way's."""
    found = spread(result.of(way, measure))
    if found is None:
        return NONE
    times = ratio(result.of(way, measure), result.of(against, measure)) if against else None
    return str(found) if times is None else f"{found}, {times:.2f} times"


def of_first(result: Result, way: str, first: str, measure: str) -> str:
    """As `figures`, and which share of that way's it is."""
    share = ratio(result.of(way, measure), result.of(first, measure))
    said = figures(result, way, measure)
    return said if share is None else f"{said}, {100 * share:.1f} %"


def where(result: Result) -> str:
    """Its cell's words."""
    return ", ".join(result.cell.split(":")[1:])


def times(result: Result, way: str, against: str, measure: str) -> str:
    """How many times another way's it is."""
    found = ratio(result.of(way, measure), result.of(against, measure))
    return NONE if found is None else f"{found:.2f}"


def largest(result: Result, way: str) -> str:
    """Its peak memory, of all repeats."""
    peaks = result.of(way, "peak_mib")
    return shown(max(peaks)) if peaks else NONE
