import re
from datetime import timedelta
from xml.etree import ElementTree

from tests.fakes.report_facts import NOW, host, point
from zvmsnap.report.axis import Axis
from zvmsnap.report.facts import GuestFacts
from zvmsnap.report.room import room_part

DAY = timedelta(days=1)
GIB = 1 << 30


def test_no_ram_no_room() -> None:
    known = host([GuestFacts("web", [point(DAY)])])
    assert room_part(known, Axis.of([], NOW)) == ""


def test_the_curve_and_the_largest_guests() -> None:
    web = GuestFacts(
        "web", [point(20 * DAY, memory_bytes=3 * GIB), point(DAY / 2, memory_bytes=GIB)]
    )
    db = GuestFacts("db", [point(3 * DAY, memory_bytes=6 * GIB)])
    known = host([web, db, GuestFacts("none", [point(DAY)])])
    axis = Axis.of((each.created for guest in known.guests for each in guest.points), NOW)
    tree = ElementTree.fromstring(room_part(known, axis))
    area = next(each for each in tree.iter("path") if each.attrib["class"] == "area")
    steps = [(int(x), int(y)) for x, y in re.findall(r"H(\d+)V(\d+)", area.attrib["d"])]
    ages = (20 * DAY, 3 * DAY, DAY / 2)
    assert [x for x, _ in steps[:3]] == [axis.x(NOW - age) for age in ages]
    # 3, 9 and 10 of 10 GiB, downwards from 110 to 6.
    assert [y for _, y in steps] == [79, 16, 6, 110]
    text = "".join(tree.itertext())
    assert "10 GiB" in text
    assert "last day 1.0 GiB, of the last 7 days 7.0 GiB, of the last 31 days 10 GiB." in text
    assert [each.text for each in tree.iter("dt")] == ["db", "web"]
    assert [each.attrib["width"] for each in tree.iter("rect")] == ["100.0%", "66.7%"]
