import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.choose import choose
from zvmsnap.errors import PointNotFound
from zvmsnap.point import Manifest, Point, Tie

THREE, FOUR = "autosnap_2026-11-20_03:00:00", "autosnap_2026-11-20_04:00:00"


@pytest.fixture(autouse=True)
def _local_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-05:30")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture(scope="module")
def points(manifest: Callable[..., Manifest]) -> list[Point]:
    """Not in order: of web at 3, at 4 and, with the same snapshot name, at 4:30; of mail at 5."""

    def made(name: str, domain: str, moment: str, taken: str, *snapshots: str) -> Point:
        ties = tuple(Tie("tank/web", snapshot, 1, 1) for snapshot in snapshots)
        return Point(
            Path("/v", domain, name),
            manifest(domain=domain, moment=moment, taken=taken, snapshots=ties),
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
        pytest.param(f"web@{THREE}", f"web@{THREE}", id="moment"),
        pytest.param(f"web@{THREE}_hourly", f"web@{THREE}", id="snapshot"),
        pytest.param(f"web@{FOUR}", f"web@{FOUR}", id="moment of two, directory of one"),
        pytest.param(f"web@{FOUR}.2", f"web@{FOUR}.2", id="directory"),
        pytest.param(f"web@{FOUR}_daily", f"web@{FOUR}", id="snapshot of one of the two"),
        pytest.param("web@latest", f"web@{FOUR}.2", id="latest, by time and not by text"),
        pytest.param("mail@latest", "mail@latest", id="a name before latest"),
        pytest.param("web@2026-11-21", f"web@{THREE}", id="a name before a time"),
        pytest.param("a@b@latest", "a@b@m", id="a guest with an @"),
        pytest.param("web@2026-11-20T03:00Z", f"web@{THREE}", id="at that time"),
        pytest.param("web@2026-11-20T03:59:59.999Z", f"web@{THREE}", id="just before the next"),
        pytest.param("web@2026-11-20T04:00:00+00:00", f"web@{FOUR}", id="an offset of 0"),
        pytest.param("web@2026-11-20T05:30+01:30", f"web@{FOUR}", id="another offset"),
        pytest.param("web@2026-11-20T09:30", f"web@{FOUR}", id="local time"),
        pytest.param("web@2026-11-20 09:29", f"web@{THREE}", id="local time, with a space"),
        pytest.param("web@2026-11-22", f"web@{FOUR}.2", id="a date"),
    ],
)
def test_choose(points: list[Point], text: str, name: str) -> None:
    assert choose(points, text).name == name


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
            f"no point of then or before; the first is web@{THREE}, taken "
            "2026-11-20T08:30:00+05:30",
            id="before the first",
        ),
        pytest.param("web@2026-11-20", "no point of then or before", id="a date means 00:00"),
        pytest.param("web@0001-01-01", "no such point", id="a day that local time has not"),
        pytest.param("web@2026-13-01", "no such point", id="no time"),
    ],
)
def test_what_is_not_there(points: list[Point], text: str, says: str) -> None:
    with pytest.raises(PointNotFound) as caught:
        choose(points, text)
    assert says in str(caught.value)


def test_no_points_at_all() -> None:
    with pytest.raises(PointNotFound, match="guests with points: none"):
        choose([], "web@latest")


@given(which=st.one_of(st.text(), st.datetimes().map(str), st.datetimes().map(lambda t: t.date())))
def test_any_text_is_a_point_or_none(points: list[Point], which: object) -> None:
    with suppress(PointNotFound):
        assert choose(points, f"web@{which}").manifest.domain == "web"
