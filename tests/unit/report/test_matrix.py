from datetime import date, timedelta
from xml.etree import ElementTree

from tests.fakes.report_facts import NOW, OFFSITE, host, point
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.report.facts import GuestFacts, PointFacts, Verified
from zvmsnap.report.matrix import DAYS, cells, columns, matrix_part

TODAY = NOW.date()
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def rows(*guests: GuestFacts) -> list[list[ElementTree.Element]]:
    anchors = {guest.name: f"g{number}" for number, guest in enumerate(guests)}
    tree = ElementTree.fromstring(matrix_part(host(guests), anchors))
    return [list(row) for row in tree.findall(".//tbody/tr")]


def shown(*points: PointFacts) -> ElementTree.Element:
    """The last cell of a guest: that of today."""
    return rows(GuestFacts("web", points))[0][-1]


def test_columns_are_months_and_days() -> None:
    found = columns([point(100 * DAY)], TODAY)
    days = [column for column in found if column.is_day]
    assert len(days) == DAYS and days[-1].begin == TODAY
    assert days[0].begin == date(2026, 10, 27)
    months = found[: len(found) - DAYS]
    assert [column.begin for column in months] == [
        date(2026, 8, 1), date(2026, 9, 1), date(2026, 10, 1)
    ]  # fmt: skip
    assert months[-1].end == days[0].begin


def test_no_month_without_points_and_at_most_a_year() -> None:
    assert len(columns([point(3 * DAY)], TODAY)) == DAYS
    assert len(columns([point(3000 * DAY)], TODAY)) == DAYS + 12


def test_points_are_counted_on_their_days() -> None:
    own = [point(40 * DAY), point(2 * DAY), point(2 * DAY + HOUR), point(HOUR)]
    wanted = columns(own, TODAY)
    counts = {
        column.begin: cell.count
        for cell, column in zip(cells(GuestFacts("web", own), wanted), wanted, strict=True)
        if cell
    }
    assert counts == {date(2026, 10, 1): 1, date(2026, 11, 24): 2, TODAY: 1}


def test_clocks_that_were_wrong() -> None:
    own = [point(4000 * DAY), point(-900 * DAY)]
    wanted = columns(own, TODAY)
    found = cells(GuestFacts("web", own), wanted)
    assert [cell.count for cell in found if cell] == [1] and found[-1]


def test_a_cell_tells_the_best_level_and_what_was_proven() -> None:
    cell = shown(
        point(3 * HOUR, level=ConsistencyLevel.CRASH),
        point(2 * HOUR, verified=Verified.STARTED, destinations=(OFFSITE,)),
        point(HOUR, level=ConsistencyLevel.QUIESCED, verified=Verified.READ),
    )
    assert "".join(cell.itertext()) == "M✓▲"
    assert cell.attrib == {
        "class": "memory",
        "title": "26 Nov: 1 memory, 1 quiesced, 1 crash; started ✓; offsite ▲",
    }


def test_that_one_failed_is_told_before_all() -> None:
    cell = shown(point(2 * HOUR, verified=Verified.FAILED), point(HOUR, verified=Verified.STARTED))
    assert "".join(cell.itertext()) == "M✗"
    assert cell.attrib["class"] == "memory failed"


def test_ram_that_was_removed_is_no_crash_level() -> None:
    cell = shown(point(HOUR, level=ConsistencyLevel.CRASH, lost_memory=True))
    assert cell.text == "r" and cell.attrib["class"] == "lost"
    assert cell.attrib["title"] == "26 Nov: 1 crash; RAM removed from 1"


def test_days_without_points_are_empty() -> None:
    (row,) = rows(GuestFacts("web", [point(3 * DAY)]))
    assert ["".join(cell.itertext()) for cell in row[-5:]] == ["", "M", "", "", ""]


def test_each_guest_leads_to_its_part() -> None:
    first, second = rows(GuestFacts("db", [point(DAY)]), GuestFacts("<web>", [point(DAY)]))
    link = second[0].find("a")
    assert link is not None
    assert (link.text, link.attrib["href"]) == ("<web>", "#g1")
    assert first[0].tag == "th" and first[0].attrib["scope"] == "row"
