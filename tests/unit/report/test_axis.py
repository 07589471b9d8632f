from datetime import UTC, datetime, timedelta
from itertools import pairwise

from zvmsnap.report.axis import WIDTH, Axis

NOW = datetime(2026, 11, 26, 9, 20, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def of(*ages: timedelta) -> Axis:
    return Axis.of((NOW - age for age in ages), NOW)


def test_three_zones_that_join() -> None:
    axis = of(HOUR, 5 * DAY, 200 * DAY)
    begins = [NOW - zone.begin for zone in axis.zones]
    assert begins == [200 * DAY, 31 * DAY, 2 * DAY]
    assert axis.zones[0].left == 0 and axis.zones[-1].right == WIDTH
    for left, right in zip(axis.zones, axis.zones[1:], strict=False):
        assert (left.end, left.right) == (right.begin, right.left)


def test_zones_only_as_far_as_there_are_points() -> None:
    assert [NOW - zone.begin for zone in of(5 * HOUR).zones] == [5 * HOUR]
    assert [NOW - zone.begin for zone in of(HOUR, 9 * DAY).zones] == [9 * DAY, 2 * DAY]
    assert [NOW - zone.begin for zone in of().zones] == [HOUR]


def test_a_zone_with_more_points_is_wider() -> None:
    crowded = of(*(n * HOUR for n in range(40)), 40 * DAY)
    widths = [zone.right - zone.left for zone in crowded.zones]
    assert widths[2] > 2 * widths[0] > 0


def test_places_go_from_the_oldest_to_now() -> None:
    ages = [400 * DAY, 100 * DAY, 20 * DAY, 3 * DAY, 2 * DAY, DAY, HOUR, timedelta()]
    places = [of(*ages).x(NOW - age) for age in ages]
    assert places[0] == 0 and places[-1] == WIDTH
    assert places == sorted(places) and len(set(places)) == len(places)


def test_clocks_that_were_wrong() -> None:
    """One in 1970 does not stretch the axis, one of 2031 stands at its end."""
    axis = Axis.of([datetime(1970, 1, 1, tzinfo=UTC), NOW - DAY, NOW + 1800 * DAY], NOW)
    assert NOW - axis.zones[0].begin == 3 * 366 * DAY
    assert axis.x(datetime(1970, 1, 1, tzinfo=UTC)) == 0
    assert axis.x(NOW + 1800 * DAY) == WIDTH


def test_ticks_are_round_and_do_not_touch() -> None:
    for ages in ([HOUR], [3 * HOUR, 40 * HOUR], [DAY, 30 * DAY], [HOUR, 20 * DAY, 700 * DAY]):
        ticks = of(*ages).ticks
        for left, right in pairwise(ticks):
            assert right.x - left.x >= 34, (ages, ticks)
        majors = [tick.x for tick in ticks if tick.is_major]
        for near, far in pairwise(majors):
            assert far - near >= 34, (ages, ticks)
        assert all(0 < tick.x < WIDTH - 30 for tick in ticks)
    labels = [tick.label for tick in of(HOUR, 20 * DAY, 200 * DAY).ticks]
    assert "Aug" in labels and any(label.endswith(" Nov") for label in labels)
    assert any(label.startswith(("Tue ", "Wed ", "Thu ")) for label in labels)


def test_the_ticks_of_days_stand_at_midnight() -> None:
    axis = of(DAY, 25 * DAY)
    ticks = {tick.label: tick.x for tick in axis.ticks}
    label, x = next((label, x) for label, x in ticks.items() if label.endswith(" Nov"))
    day = datetime(2026, 11, int(label.split()[0]), tzinfo=UTC)
    assert round(x) == axis.x(day)
