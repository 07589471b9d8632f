"""`zvmsnap report`: one page of a host with two points, of which one was started."""

from __future__ import annotations

import base64
import re

import back
import pytest
import readme
import scenario
from back import zvmsnap
from scenario import WEB

from labkit.api import Lab

FILE = "/root/zvmsnap.html"
PUBLIC = "/var/www/html/zvmsnap.html"


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    scenario.taken(lab_session)
    return lab_session


@pytest.mark.whole
def test_a_page_of_two_points(lab: Lab) -> None:
    scenario.pass_hours(lab, 1)
    scenario.take(lab)
    older, newer = scenario.points(lab, "web")
    zvmsnap(lab, "verify", f"web@{older.manifest['run']}")
    zvmsnap(lab, "verify", "--boot", "web@latest")
    for command in (*readme.commands("Make the page"), *readme.commands("Who may read it")):
        lab.run(command, timeout_s=scenario.ROUND_LIMIT_S)
    page = lab.get(FILE).decode()
    assert lab.run(f"stat -c '%a %U' {FILE} {PUBLIC}").stdout == "600 root\n400 www-data\n"
    assert lab.get(PUBLIC).decode() == page

    # Both points: in the table of days, in the timeline, and in numbers.
    assert "Restore points of " in page and "<h3>web</h3>" in page
    # An hour may have passed midnight.
    cell = r'<td class="memory" title="[^:]*: (\d) memory; [^"]*">M<i>(.)</i></td>'
    days = re.findall(cell, page)
    assert sum(int(count) for count, _ in days) == 2 and days[-1][1] == "✓"
    lanes = dict(re.findall(r'<path class="mark (\w+)" d="([^"]+)">', page))
    assert set(lanes) == {"memory", "read", "started"}
    assert lanes["memory"].count("M") == 2
    rows = re.findall(r'<th scope="row" title="([^"]*)">', page)
    assert rows == [newer.manifest["run"], older.manifest["run"]]
    paused = [float(pause) for pause in re.findall(r"<td>memory</td><td>([\d.]+) s</td>", page)]
    told = [each.manifest["timing"]["pause_s"] for each in (newer, older)]
    # In hundredths of a second, and in seconds from ten on.
    assert paused == [pytest.approx(each, abs=0.006 if each < 10 else 0.6) for each in told]
    # The screen that was kept of the one that was started.
    (picture,) = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]+)">', page)
    assert base64.b64decode(picture) == lab.get(f"{newer.directory}/verify.png")
    assert "no point was started" not in page and "<script" not in page

    # A report changes nothing.
    scenario.assert_on_base(lab, "web", WEB.disks)
    back.assert_nothing_left(lab)
