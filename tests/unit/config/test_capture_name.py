"""Names of captures."""

from __future__ import annotations

import pytest

from zvmsnap.config import capture_name

UUID = "aaaaaaaa-0000-4000-8000-000000000001"


def test_fresh() -> None:
    name = capture_name.fresh(UUID)
    assert capture_name.is_capture(name)
    assert capture_name.uuid_of(name) == UUID
    assert capture_name.fresh(UUID) != name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        UUID,
        f"{UUID}.0000000",
        f"{UUID}.0000000g",
        f"{UUID}.00000001\n",
        f"{UUID}.00000001/..",
        f"../{UUID}.00000001",
        f"{UUID.upper()}.00000001",
    ],
)
def test_what_is_no_capture(name: str) -> None:
    assert not capture_name.is_capture(name)
