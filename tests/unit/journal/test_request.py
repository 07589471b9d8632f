import pytest

from zvmsnap.journal.request import HookCall, Role

T = "autosnap_2026-11-20_03:00:00"
HOURLY, DAILY, MONTHLY = f"{T}_hourly", f"{T}_daily", f"{T}_monthly"
DST_HOURLY = f"{T}dst_hourly"


@pytest.mark.parametrize(
    ("names", "types"),
    [
        pytest.param((HOURLY,), ("hourly",), id="one"),
        pytest.param((MONTHLY, DAILY, HOURLY), ("monthly", "daily", "hourly"), id="several"),
        pytest.param((HOURLY, DST_HOURLY), ("hourly",), id="renamed after the fact"),
        pytest.param(("by hand",), ("manual",), id="of no type"),
        pytest.param(("before_manual", "x", HOURLY), ("manual", "hourly"), id="mixed"),
    ],
)
def test_types_of_a_call(names: tuple[str, ...], types: tuple[str, ...]) -> None:
    assert HookCall(Role.PRE, ("tank",), names).types == types
