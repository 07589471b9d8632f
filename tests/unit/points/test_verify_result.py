from collections.abc import Callable
from pathlib import Path

import pytest

from zvmsnap.points import verify_result
from zvmsnap.points.manifest import Manifest
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.verify_result import BOOTED, READ, VerifyResult

SAYS = b'{"schema":2,"checked":"2026-11-20T03:00Z",'
TIME, LATER = "2026-11-20T03:00:00+00:00", "2026-11-20T03:00:01+00:00"


@pytest.fixture
def point(tmp_path: Path, manifest: Callable[..., Manifest]) -> RestorePoint:
    return RestorePoint(tmp_path, manifest())


def said(*, booted: bool = False, why: str = "", at: str = TIME) -> VerifyResult:
    return VerifyResult(checked=at, booted=booted, why=why, output="\x1b[2J\0")


@pytest.mark.parametrize(
    ("read", "booted", "counts"),
    [
        (said(), None, "read"),
        (said(why="caf\xe9\n"), None, "read"),
        (None, said(booted=True), "booted"),
        (said(), said(booted=True), "booted"),
        (said(why="x", at=LATER), said(booted=True), "read"),
        (said(why="x"), said(booted=True, at=LATER), "booted"),
        (said(), said(booted=True, why="x"), "booted"),
        (said(why="x"), said(booted=True, why="x"), "booted"),
    ],
)
def test_what_counts(
    point: RestorePoint, read: VerifyResult | None, booted: VerifyResult | None, counts: str
) -> None:
    assert verify_result.read(point) is None
    for each in (booted, said(why="before"), read):
        if each:
            verify_result.keep(point, each)
    if read is None:
        (point.directory / READ).unlink()
    expected = {"read": read, "booted": booted}[counts]
    assert expected
    assert verify_result.read(point) == expected
    assert expected.good is (expected.why == "")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"schema":2,"checked":', id="cut short"),
        pytest.param(b'{"schema":2}', id="says nothing"),
        pytest.param(b'{"schema":2,"checked":"yesterday"}', id="no time"),
        pytest.param(b'{"schema":2,"checked":"2026-11-20T03:00"}', id="no offset"),
        pytest.param(b"[]", id="a list"),
        pytest.param(SAYS.replace(b"2", b"3", 1) + b'"why":""}', id="another schema"),
        pytest.param(b'{"schema":2,"checked":5}', id="a number"),
        pytest.param(SAYS + b'"why":null}', id="null"),
        pytest.param(SAYS + b'"booted":"yes"}', id="no truth"),
        pytest.param(SAYS + b'"to_running_s":"1"}', id="no seconds"),
        pytest.param(SAYS + b'"to_running_s":' + b"9" * 5000 + b"}", id="no end"),
        pytest.param(b'{"schema":2,"checked":"\xff"}', id="no text"),
        pytest.param(SAYS + b'"invented":' + b"[" * 100_000, id="bottomless"),
    ],
)
@pytest.mark.parametrize("name", [READ, BOOTED])
def test_what_is_no_verdict(point: RestorePoint, content: bytes, name: str) -> None:
    (point.directory / name).write_bytes(content)
    assert verify_result.read(point) is None


def test_what_is_no_file(point: RestorePoint) -> None:
    (point.directory / READ).mkdir()
    assert verify_result.read(point) is None
