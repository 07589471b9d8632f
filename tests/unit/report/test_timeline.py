import re
from datetime import timedelta
from xml.etree import ElementTree

from tests.fakes.report_facts import NOW, OFFSITE, point
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.report.axis import WIDTH, Axis
from zvmsnap.report.facts import GuestFacts, PointFacts, Verified
from zvmsnap.report.timeline import timeline

HOUR = timedelta(hours=1)
GIB = 1 << 30


def drawn(points: list[PointFacts], destinations: tuple[str, ...] = ()) -> ElementTree.Element:
    axis = Axis.of((each.created for each in points), NOW)
    return ElementTree.fromstring(timeline(GuestFacts("web", points), axis, destinations))


def paths(tree: ElementTree.Element) -> dict[str, str]:
    return {each.attrib["class"]: each.attrib["d"] for each in tree.iter("path")}


def labels(tree: ElementTree.Element) -> list[str]:
    return ["".join(each.itertext()) for each in tree.iter("span")]


def test_bars_are_as_high_as_what_they_tell() -> None:
    tree = drawn(
        [
            point(10 * HOUR, pause_s=0.5, memory_bytes=GIB),
            point(5 * HOUR, pause_s=2.0, memory_bytes=4 * GIB),
            point(HOUR, pause_s=0.001, memory_bytes=0),
        ]
    )
    heights = [int(n) for n in re.findall(r"v-(\d+)", paths(tree)["pause"])]
    assert heights[1] == 4 * heights[0] - 2 or heights == [10, 38, 1]
    assert heights[2] == 1
    assert len(re.findall("v-", paths(tree)["ram"])) == 2
    assert labels(tree)[:2] == ["pausedup to 2.00 s", "RAM keptup to 4.0 GiB"]


def test_only_lanes_and_charts_with_something_in_them() -> None:
    tree = drawn([point(HOUR, level=ConsistencyLevel.CRASH)])
    assert labels(tree) == ["crash"]
    assert [style for style in paths(tree) if style.startswith("mark")] == ["mark crash"]


def test_each_level_and_proof_has_a_lane() -> None:
    tree = drawn(
        [
            point(4 * HOUR, level=ConsistencyLevel.QUIESCED, verified=Verified.READ),
            point(3 * HOUR, verified=Verified.STARTED, destinations=(OFFSITE,)),
            point(2 * HOUR, verified=Verified.FAILED),
            point(HOUR, level=ConsistencyLevel.OFFLINE),
        ],
        (OFFSITE,),
    )
    lanes = ["memory", "quiesced", "offline", "files read ○", "started ✓", "FAILED ✗", "offsite ▲"]
    assert labels(tree) == lanes
    ends = [
        each.attrib["d"].split()[1] for each in tree.iter("path") if "mark" in each.attrib["class"]
    ]
    rows = [int(re.match(r"\d+", end)[0]) for end in ends]  # type: ignore[index]
    assert len(set(rows)) == 7 and rows == sorted(rows)


def test_ram_that_was_removed_has_a_lane_of_its_own() -> None:
    tree = drawn([point(HOUR, level=ConsistencyLevel.CRASH, lost_memory=True)])
    assert labels(tree) == ["RAM removed"]


def test_marks_that_nobody_could_tell_apart_are_one() -> None:
    crowd = [point(timedelta(minutes=n)) for n in range(2000, 0, -1)]
    marks = paths(drawn(crowd))["mark memory"]
    assert marks.count("M") == 1
    # From the oldest, at 0, until a minute ago.
    assert re.fullmatch(rf"M0 \d+h(99\d|{WIDTH})", marks)


def test_400_points_take_little_room() -> None:
    points = [
        point(timedelta(hours=3 * n), pause_s=0.1 + n % 7, memory_bytes=GIB + n)
        for n in range(400, 0, -1)
    ]
    axis = Axis.of((each.created for each in points), NOW)
    assert len(timeline(GuestFacts("web", points), axis, (OFFSITE,))) < 20_000


def test_who_cannot_see_it_is_told() -> None:
    tree = drawn([point(2 * HOUR, pause_s=0.25, verified=Verified.STARTED, memory_bytes=GIB)])
    picture = next(each for each in tree.iter("svg") if each.attrib.get("role") == "img")
    assert picture.attrib["aria-label"] == (
        "Timeline of web: 1 points (1 memory), 1 of them started; paused for 0.25 s at most; "
        "1.0 GiB of RAM"
    )
