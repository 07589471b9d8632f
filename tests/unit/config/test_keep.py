from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.common.errors import KeepInvalid
from zvmsnap.config.keep import Keep, parse_keep

H = timedelta(hours=1)


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("all", Keep()),
        ("1", Keep(1)),
        ("24", Keep(24)),
        ("36h", Keep(age=36 * H)),
        ("14d", Keep(age=14 * 24 * H)),
        ("999999d", Keep(age=timedelta(days=999999))),
    ],
)
def test_values(text: str, keep: Keep) -> None:
    assert parse_keep(text) == keep
    assert str(keep) == text
    assert keep.has_end is (text != "all")


WRONG = ("", "0", "0h", "-1", "+1", "1.5", "24 ", " 24", "24H", "2w", "ALL", "none", "36h,24", "٣")
ODD = ("1000000", "9999999d", "24\n", "x\x1b[2J", "1e3", "h", "all24")


@pytest.mark.parametrize("text", [*WRONG, *ODD])
def test_what_is_none(text: str) -> None:
    with pytest.raises(KeepInvalid, match="as in 24, an age as in 36h or 14d, or all") as refused:
        parse_keep(text)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("text", "newer", "hours", "holds"),
    [
        ("all", 10_000, 10_000, True),
        ("1", 0, 10_000, True),
        ("1", 1, 0, False),
        ("24", 23, 10_000, True),
        ("24", 24, 0, False),
        ("36h", 10_000, 36, True),
        ("36h", 0, 37, False),
        ("2d", 5, 48, True),
        ("2d", 5, -3, True),
    ],
)
def test_what_is_kept(text: str, newer: int, hours: int, holds: bool) -> None:
    assert parse_keep(text).holds(newer, hours * H) is holds


@given(st.text())
def test_any_text_is_a_value_or_refused(text: str) -> None:
    try:
        assert parse_keep(text).has_end is (text != "all")
    except KeepInvalid as error:
        assert "\n" not in str(error)
