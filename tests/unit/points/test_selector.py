import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.common.errors import PointNotFound
from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.selector import choose, said

THREE, FOUR = "autosnap_2026-11-20_03:00:00", "autosnap_2026-11-20_04:00:00"


@pytest.fixture(autouse=True)
def _local_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-05:30")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture(scope="module")
def points(manifest: Callable[..., Manifest]) -> list[RestorePoint]:
    """Not in order: of web at 3, at 4 and, with the same snapshot name, at 4:30; of mail at 5."""

    def made(name: str, domain: str, run: str, created: str, *snapshots: str) -> RestorePoint:
        refs = tuple(SnapshotRef("tank/web", snapshot, 1, 1) for snapshot in snapshots)
        return RestorePoint(
            Path("/v", domain, name),
            manifest(domain=domain, run=run, created=created, snapshots=refs),
        )

    return [
        made(FOUR, "web", FOUR, "2026-11-20T04:00:00+00:00", f"{FOUR}_hourly", f"{FOUR}_daily"),
        made(f"{FOUR}.2", "web", FOUR, "2026-11-20T06:30:00+02:00", f"{FOUR}_hourly"),
        made(THREE, "web", THREE, "2026-11-20T03:00:00+00:00", f"{THREE}_hourly", "2026-11-21"),
        made("latest", "mail", "latest", "2026-11-20T05:00:00+00:00", "latest_hourly"),
        made("m", "mail", "m", "2026-11-20T05:01:00+00:00", "m_hourly"),
        made("m", "a@b", "m", "2026-11-20T05:01:00+00:00", "m_hourly"),
    ]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        pytest.param(f"web@{THREE}", f"web@{THREE}", id="run"),
        pytest.param(f"web@{THREE}_hourly", f"web@{THREE}", id="snapshot"),
        pytest.param(f"web@{FOUR}", f"web@{FOUR}", id="run of two, directory of one"),
        pytest.param(f"web@{FOUR}.2", f"web@{FOUR}.2", id="directory"),
        pytest.param(f"web@{FOUR}_daily", f"web@{FOUR}", id="snapshot of one of the two"),
        pytest.param("web@latest", f"web@{FOUR}.2", id="latest, by time and not by text"),
        pytest.param("mail@latest", "mail@latest", id="a name before latest"),
        pytest.param("web@2026-11-21", f"web@{THREE}", id="a name before a time"),
        pytest.param("a@b@latest", "a@b@m", id="a guest with an @"),
        pytest.param("web@2026-11-20T03:00Z", f"web@{THREE}", id="at that time"),
        pytest.param("web@2026-11-20T03:59Z", f"web@{THREE}", id="a minute before the next"),
        pytest.param("web@2026-11-20T03Z", f"web@{THREE}", id="an hour"),
        pytest.param("web@20261120T0400Z", f"web@{FOUR}", id="without separators"),
        pytest.param("web@2026-11-20T03:59:59.999Z", f"web@{THREE}", id="just before the next"),
        pytest.param("web@2026-11-20T04:00:00+00:00", f"web@{FOUR}", id="an offset of 0"),
        pytest.param("web@2026-11-20T05:30+01:30", f"web@{FOUR}", id="another offset"),
        pytest.param("web@2026-11-20T09:30", f"web@{FOUR}", id="local time"),
        pytest.param("web@2026-11-20 09:29", f"web@{THREE}", id="local time, with a space"),
        pytest.param("web@2026-11-22", f"web@{FOUR}.2", id="a date"),
        pytest.param("web@2026-11-20", f"web@{FOUR}.2", id="the date itself"),
        pytest.param("web@20261120", f"web@{FOUR}.2", id="the date without separators"),
    ],
)
def test_choose(points: list[RestorePoint], text: str, name: str) -> None:
    assert choose(points, text).name == name


# In XXX: ten past midnight of the 21st.
NOW = datetime(2026, 11, 20, 18, 40, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("web@today", f"web@{FOUR}.2"),
        ("web@yesterday", f"web@{FOUR}.2"),
        ("web@-14h", f"web@{FOUR}.2"),
        ("web@-15h", f"web@{THREE}"),
        ("web@-880m", f"web@{FOUR}"),  # at that very instant
        ("web@-881m", f"web@{THREE}"),
    ],
)
def test_times_as_they_are_said(points: list[RestorePoint], text: str, name: str) -> None:
    assert choose(points, text, NOW).name == name


def test_a_day_here_is_no_day_of_utc(points: list[RestorePoint]) -> None:
    early = datetime(2026, 11, 21, 18, 29, tzinfo=UTC)  # a minute before midnight of the 21st
    assert choose(points, "web@yesterday", early).name == f"web@{FOUR}.2"
    with pytest.raises(PointNotFound, match=r"no point is as old as that; the first is web@"):
        choose(points, "web@yesterday", datetime(2026, 11, 20, 18, 29, tzinfo=UTC))


@pytest.mark.parametrize("which", ["-3", "-0h", "-3w", "3h", "tomorrow", "-3h ", "-9999999h"])
def test_what_is_no_time(points: list[RestorePoint], which: str) -> None:
    with pytest.raises(PointNotFound, match="no such point"):
        choose(points, f"web@{which}", NOW)


def test_what_was_chosen_is_said(points: list[RestorePoint]) -> None:
    point = choose(points, "web@-15h", NOW)
    assert said(point, "web@-15h") == (
        f"web@-15h is web@{THREE}, taken 2026-11-20 08:30:00+05:30, of level memory"
    )
    assert said(point, f"web@{THREE}_hourly") == said(point, "web@latest") == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("web", "'web' is no point: say DOMAIN@SNAPNAME", id="no @"),
        pytest.param("web@", "'web@' is no point", id="no name"),
        pytest.param("@latest", "'@latest' is no point", id="no guest"),
        pytest.param("", "'' is no point", id="empty"),
        pytest.param("db@latest", "db has no point; guests with points: a@b, mail, web", id="db"),
        pytest.param("web@x", f"no such point; the last of 3 is web@{FOUR}.2", id="no name of it"),
        pytest.param(
            f"web@{FOUR}_hourly",
            f"answers to several points; say one of web@{FOUR}, web@{FOUR}.2",
            id="of two",
        ),
        pytest.param(
            "web@2026-11-20T08:29",
            f"no point is as old as that; the first is web@{THREE}, taken "
            "2026-11-20T08:30:00+05:30",
            id="before the first",
        ),
        pytest.param("web@2026-11-19", "no point is as old as that", id="the day before"),
        pytest.param("web@0001-01-01T00:00", "no such point", id="not in local time"),
        pytest.param("web@9999-12-31", "no such point", id="the end of the calendar"),
        pytest.param("web@2026-13-01", "no such point", id="no time"),
    ],
)
def test_what_is_not_there(points: list[RestorePoint], text: str, says: str) -> None:
    with pytest.raises(PointNotFound) as caught:
        choose(points, text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("which", "last"),
    [
        pytest.param("2026-11-20T03:00", "03:00:59.999", id="a minute"),
        pytest.param("2026-11-20 03:00", "03:00:59.999", id="with a space"),
        pytest.param("2026-11-20T03:00+05:30", "03:00:59.999", id="with an offset"),
        pytest.param("20261120T0300", "03:00:59.999", id="without separators"),
        pytest.param("20261120T0300+0530", "03:00:59.999", id="and an offset"),
        pytest.param("2026-11-20T03:00:00", "03:00:00.900", id="a second"),
        pytest.param("2026-11-20T030000", "03:00:00.900", id="in another form"),
        pytest.param("2026-11-20T03:00:02", "03:00:02.345", id="sanoid's delay"),
        pytest.param("2026-11-20T03:00:02.344", "03:00:00.900", id="just before it"),
        pytest.param("2026-11-20T03:00:02.345", "03:00:02.345", id="the very instant"),
        pytest.param("2026-11-20T03:00:02.345+05:30", "03:00:02.345", id="with an offset, too"),
        pytest.param("2026-11-20T03", "03:59:59.999", id="an hour"),
        pytest.param("2026-11-20T03+05:30", "03:59:59.999", id="an hour with an offset"),
        pytest.param("2026-11-20", "23:59:59.999", id="a day"),
        pytest.param("2026-W47-5", "23:59:59.999", id="a day of a week"),
        pytest.param("2026-W47-5T03:00", "03:00:59.999", id="a minute of it"),
    ],
)
def test_a_time_counts_to_its_end(manifest: Callable[..., Manifest], which: str, last: str) -> None:
    """Of points whose clock shows these times, the last one that is meant."""
    clock = ["03:00:00.900", "03:00:02.345", "03:00:59.999", "03:01:00.000", "03:59:59.999"]
    clock += ["04:00:00.000", "23:59:59.999"]
    taken = [*(f"2026-11-20T{time}+05:30" for time in clock), "2026-11-21T00:00:00.000+05:30"]
    known = [RestorePoint(Path("/v/web", when), manifest(created=when, run="m")) for when in taken]
    assert choose(known, f"web@{which}").name == f"web@2026-11-20T{last}+05:30"


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25)])
def test_days_of_another_length(
    manifest: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch, day: str, hours: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        begin = datetime.fromisoformat(day).astimezone(UTC)
        known = []
        for name, hour in (("last", hours), ("next", hours + 1)):
            created = (begin + timedelta(hours=hour, seconds=-1)).isoformat()
            known.append(RestorePoint(Path("/v/web", name), manifest(created=created, run="m")))
        assert choose(known, f"web@{day}").name == "web@last"


def test_no_points_at_all() -> None:
    with pytest.raises(PointNotFound, match="guests with points: none"):
        choose([], "web@latest")


@given(which=st.one_of(st.text(), st.datetimes().map(str), st.datetimes().map(lambda t: t.date())))
def test_any_text_is_a_point_or_none(points: list[RestorePoint], which: object) -> None:
    with suppress(PointNotFound):
        assert choose(points, f"web@{which}").manifest.domain == "web"


def test_a_clock_that_stood_in_2031_makes_no_point_the_latest(
    manifest: Callable[..., Manifest],
) -> None:
    """By createtxg: the clock decides what a time means, and nothing else."""
    points = [
        RestorePoint(
            Path("/v/web", name),
            manifest(
                run=name, created=created, snapshots=(SnapshotRef("tank/web", name, txg, txg),)
            ),
        )
        for txg, (name, created) in enumerate(
            [
                ("before", "2026-11-20T03:00:00+00:00"),
                ("then", "2031-06-01T00:00:00+00:00"),
                ("now", "2026-11-20T04:00:00+00:00"),
            ]
        )
    ]
    assert choose(points, "web@latest").name == "web@now"
    assert choose(points, "web@2026-11-21").name == "web@now"
    assert choose(points, "web@2031-06-01").name == "web@then"
    assert choose(points, "web@2026-11-20T09:00").name == "web@before"
