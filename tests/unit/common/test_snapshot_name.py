import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.common import snapshot_name

T = "autosnap_2026-11-20_03:00:00"
HOURLY, DST_HOURLY = f"{T}_hourly", f"{T}dst_hourly"
TYPES = ("yearly", "monthly", "weekly", "daily", "hourly", "frequently")


@pytest.mark.parametrize(
    ("name", "run", "kind", "spellings"),
    [
        pytest.param(HOURLY, T, "hourly", (HOURLY, DST_HOURLY), id="hourly"),
        pytest.param(DST_HOURLY, T, "hourly", (DST_HOURLY,), id="renamed"),
        pytest.param(
            f"{T}_y_daily", f"{T}_y", "daily", (f"{T}_y_daily", f"{T}_ydst_daily"), id="2.0.1"
        ),
        pytest.param("by hand", "by hand", "by hand", ("by hand",), id="no type"),
        pytest.param("x_hourly2", "x_hourly2", "x_hourly2", ("x_hourly2",), id="no such type"),
        pytest.param("_hourly", "_hourly", "_hourly", ("_hourly",), id="nothing but a type"),
        pytest.param("dst_daily", "dst", "daily", ("dst_daily", "dstdst_daily"), id="only dst"),
        pytest.param(
            "a_daily_daily",
            "a_daily",
            "daily",
            ("a_daily_daily", "a_dailydst_daily"),
            id="type twice",
        ),
    ],
)
def test_run_type_and_spellings(name: str, run: str, kind: str, spellings: tuple[str, ...]) -> None:
    assert snapshot_name.run_of(name) == run
    assert snapshot_name.type_of(name) == kind
    assert snapshot_name.spellings(name) == spellings


STEMS = st.text("abdst_0123456789:- ", min_size=1).filter(lambda stem: not stem.endswith("dst"))


@given(STEMS, st.lists(st.sampled_from(TYPES), min_size=1, unique=True), st.booleans())
def test_names_taken_together_share_their_run(stem: str, types: list[str], dst: bool) -> None:
    names = [f"{stem}{'dst' if dst else ''}_{kind}" for kind in types]
    assert {snapshot_name.run_of(name) for name in names} == {stem}
    assert [snapshot_name.type_of(name) for name in names] == types


@given(st.text())
def test_spellings_are_of_one_run_and_type(name: str) -> None:
    spellings = snapshot_name.spellings(name)
    assert spellings[0] == name
    assert {snapshot_name.run_of(spelling) for spelling in spellings} == {
        snapshot_name.run_of(name)
    }
    assert {snapshot_name.type_of(spelling) for spelling in spellings} == {
        snapshot_name.type_of(name)
    }
