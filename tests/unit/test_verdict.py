from collections.abc import Callable
from pathlib import Path

import pytest

from zvmsnap import verdict
from zvmsnap.point import Manifest, Point
from zvmsnap.verdict import VERDICT, Verdict


@pytest.fixture
def point(tmp_path: Path, manifest: Callable[..., Manifest]) -> Point:
    return Point(tmp_path, manifest())


@pytest.mark.parametrize(
    ("kept", "good"),
    [
        (Verdict(checked="2026-11-20T03:00:00+00:00"), True),
        (Verdict(checked="t", booted=True, alive="its CPU works", to_running_s=1.5), True),
        (Verdict(checked="t", why="caf\xe9\n", output="\x1b[2J\0"), False),
    ],
)
def test_kept_and_read_again(point: Point, kept: Verdict, good: bool) -> None:
    assert verdict.read(point) is None
    verdict.keep(point, Verdict(checked="before"))
    verdict.keep(point, kept)
    assert verdict.read(point) == kept
    assert kept.good is good
    assert [path.name for path in point.directory.iterdir()] == [VERDICT]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"checked":', id="cut short"),
        pytest.param(b"{}", id="says nothing"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'{"checked":5}', id="a number"),
        pytest.param(b'{"checked":"t","why":null}', id="null"),
        pytest.param(b'{"checked":"t","booted":"yes"}', id="no truth"),
        pytest.param(b'{"checked":"t","to_running_s":"1"}', id="no time"),
        pytest.param(b'{"checked":"t","to_running_s":' + b"9" * 5000 + b"}", id="no end"),
        pytest.param(b'{"checked":"\xff"}', id="no text"),
        pytest.param(b'{"checked":"t","invented":' + b"[" * 100_000, id="bottomless"),
    ],
)
def test_what_is_no_verdict(point: Point, content: bytes) -> None:
    (point.directory / VERDICT).write_bytes(content)
    assert verdict.read(point) is None


def test_what_is_no_file(point: Point) -> None:
    (point.directory / VERDICT).mkdir()
    assert verdict.read(point) is None
