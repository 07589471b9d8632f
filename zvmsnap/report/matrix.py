"""The matrix of guests and days: what was reached, proven and sent on each.

The last days have a column each; what is older has one for each month, as so many points are kept.
Letters say the level, signs what was proven; colour only repeats it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from zvmsnap.config.level import RANK, ConsistencyLevel
from zvmsnap.report.facts import GuestFacts, HostFacts, PointFacts, Verified
from zvmsnap.report.markup import Markup, element

DAYS = 31
_MONTHS_MAX = 12
_MEANING = {
    ConsistencyLevel.MEMORY: "disks and RAM",
    ConsistencyLevel.PAUSED: "disks and RAM, paused for the snapshot",
    ConsistencyLevel.QUIESCED: "clean file systems",
    ConsistencyLevel.CRASH: "disks as after a power cut",
    ConsistencyLevel.OFFLINE: "the guest was off",
}
_LOST = "r"
_SIGNS = {Verified.STARTED: "✓", Verified.FAILED: "✗", Verified.READ: "○", Verified.NEVER: ""}
_PROOFS = {
    Verified.STARTED: "started ✓",
    Verified.FAILED: "FAILED ✗",
    Verified.READ: "files read ○",
    Verified.NEVER: "",
}
_OFFSITE = "▲"
_GAP = element("td", "", class_="gap")
_GAP_ABOVE = element("th", "", class_="gap")
_ROWS_SEEN = 20


@dataclass(frozen=True)
class Column:
    """The days from `begin` until before `end`; a month, if it is not one day."""

    begin: date
    end: date

    @property
    def is_day(self) -> bool:
        """Is it one day?"""
        return self.end - self.begin == timedelta(days=1)


def columns(points: Iterable[PointFacts], today: date) -> list[Column]:
    """The columns from the oldest to today: months as far as there are points."""
    first = today - timedelta(days=DAYS - 1)
    days = [Column(day, day + timedelta(days=1)) for day in _each_day(first, today)]
    oldest = min((point.created.date() for point in points), default=today)
    months: list[Column] = []
    end = first
    while oldest < end and len(months) < _MONTHS_MAX:
        # The first one may be a part of a month: it ends where the days begin.
        begin = (end - timedelta(days=1)).replace(day=1)
        months.append(Column(begin, end))
        end = begin
    return [*months[::-1], *days]


def _each_day(first: date, last: date) -> Iterable[date]:
    return (first + timedelta(days=n) for n in range((last - first).days + 1))


@dataclass(frozen=True)
class Cell:
    """What a guest has of a column: how many points of each level, and the best of each proof."""

    levels: Counter[ConsistencyLevel]
    lost_memory: int
    verified: Verified
    is_offsite: bool

    @property
    def count(self) -> int:
        """How many points."""
        return self.levels.total()

    @property
    def level(self) -> ConsistencyLevel:
        """The best level."""
        return min(self.levels, key=RANK.index)

    @property
    def has_lost_memory(self) -> bool:
        """Was one taken with RAM, and has none it any more?"""
        return bool(self.lost_memory) and not self.level.has_memory


# What is told of several points: that one failed, before that another was started.
_TOLD = (Verified.FAILED, Verified.STARTED, Verified.READ, Verified.NEVER)


def cells(guest: GuestFacts, wanted: Sequence[Column]) -> list[Cell | None]:
    """A cell for each column; None where the guest has no point."""
    by_day: dict[date, int] = {}
    for number, column in enumerate(wanted):
        for day in _each_day(column.begin, column.end - timedelta(days=1)):
            by_day[day] = number
    found: list[list[PointFacts]] = [[] for _ in wanted]
    for point in guest.points:
        # A clock that was wrong: what is of the future is of today, what is too old has no place.
        place = by_day.get(min(point.created.date(), wanted[-1].begin))
        if place is not None:
            found[place].append(point)
    return [_counted(points) if points else None for points in found]


def _counted(points: Sequence[PointFacts]) -> Cell:
    return Cell(
        Counter(point.level for point in points),
        sum(point.lost_memory for point in points),
        min((point.verified for point in points), key=_TOLD.index),
        any(point.is_offsite for point in points),
    )


def matrix_part(host: HostFacts, anchors: Mapping[str, str]) -> Markup:
    """The matrix of all guests, with its legend."""
    today = host.now.date()
    wanted = columns((point for guest in host.guests for point in guest.points), today)
    rows = []
    for guest in host.guests:
        link = element("a", guest.name, href=f"#{anchors[guest.name]}", title=guest.name)
        own = (
            _cell(cell, column) for cell, column in zip(cells(guest, wanted), wanted, strict=True)
        )
        divided = _divided(own, wanted, _GAP)
        rows.append(element("tr", element("th", link, scope="row"), *divided))
    headings = element(
        "tr", element("th", ""), *_divided(map(_heading, wanted), wanted, _GAP_ABOVE)
    )
    # Who has scrolled down a long table wants them below, too.
    below = element("tfoot", headings, aria_hidden="true") if len(rows) > _ROWS_SEEN else Markup()
    table = element(
        "table", element("thead", headings), element("tbody", *rows), below, class_="matrix"
    )
    return element(
        "section",
        element("h2", "Guests and days"),
        element(
            "p",
            "The best point of each day; of older ones, of each month. Today is on the right.",
            class_="soft",
        ),
        element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Matrix"),
        _legend(),
        class_="whole",
    )


def _divided(parts: Iterable[Markup], wanted: Sequence[Column], gap: Markup) -> Iterator[Markup]:
    """The parts of a row, with a gap between months and days."""
    for part, column, before in zip(parts, wanted, [None, *wanted], strict=False):
        if before and before.is_day != column.is_day:
            yield gap
        yield part


def _heading(column: Column) -> Markup:
    if not column.is_day:
        return element("th", column.begin.strftime("%b %y"), class_="month", scope="col")
    day = column.begin
    # The month at its first day, and where the days begin, as there is no room for more.
    month = element("small", day.strftime("%b ")) if day.day == 1 else ""
    is_monday = day.weekday() == 0
    return element(
        "th",
        month,
        str(day.day),
        class_="week" if is_monday else None,
        scope="col",
        title=day.strftime("%A, %-d %B %Y"),
    )


def _cell(cell: Cell | None, column: Column) -> Markup:
    if cell is None:
        return element("td", "")
    letter = _LOST if cell.has_lost_memory else cell.level.value[0].upper()
    style = "lost" if cell.has_lost_memory else str(cell.level)
    failed = " failed" if cell.verified is Verified.FAILED else ""
    signs = f"{_SIGNS[cell.verified]}{_OFFSITE if cell.is_offsite else ''}"
    return element(
        "td",
        letter,
        element("i", signs) if signs else "",
        class_=style + failed,
        title=_said(cell, column),
    )


def _said(cell: Cell, column: Column) -> str:
    levels = ", ".join(f"{cell.levels[level]} {level}" for level in RANK if cell.levels[level])
    removed = f"RAM removed from {cell.lost_memory}" if cell.lost_memory else ""
    offsite = f"offsite {_OFFSITE}" if cell.is_offsite else ""
    when = column.begin.strftime("%-d %b" if column.is_day else "%b %Y")
    return "; ".join(filter(None, (f"{when}: {levels}", removed, _PROOFS[cell.verified], offsite)))


def _legend() -> Markup:
    def entries() -> Iterator[tuple[str, str, str]]:
        for level in RANK:
            yield str(level), level.value[0].upper(), f"{level}: {_MEANING[level]}"
        yield "lost", _LOST, "taken with RAM, which was removed"
        yield "", "✓", "a point was started"
        yield "", "○", "files were read"
        yield "", "✗", "verification failed"
        yield "", _OFFSITE, "offsite"

    items = (
        element("li", element("b", sign, class_=style or None), said)
        for style, sign, said in entries()
    )
    return element("ul", *items, class_="legend")
