import base64
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.report_facts import console
from zvmsnap.points.manifest import Manifest
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.verify_result import VerifyResult
from zvmsnap.report import screens
from zvmsnap.report.facts import Screen
from zvmsnap.report.screens import data_uri, screens_of, why_no_picture, within_limit

PNG = console(5)
STARTED = VerifyResult(
    checked="2026-11-26T03:00:00+00:00", booted=True, alive="its agent answers", to_running_s=3.25
)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def png(*chunks: bytes, width: int = 1, height: int = 1) -> bytes:
    header = chunk(b"IHDR", struct.pack(">II5B", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks)


DATA = chunk(b"IDAT", zlib.compress(b"\0\0\0\0"))
END = chunk(b"IEND", b"")


def test_a_picture() -> None:
    assert why_no_picture(PNG) == ""
    assert why_no_picture(png(DATA, END)) == ""
    prefix = "data:image/png;base64,"
    assert base64.b64decode(data_uri(PNG).removeprefix(prefix)) == PNG


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is no PNG"),
        (b"<svg onload=alert(1)>", "is no PNG"),
        (b"\x89PNG\r\n\x1a\n", "is not complete"),
        (png(), "is not complete"),
        (png(DATA), "is not complete"),
        (png(END), "is not complete"),
        (png(DATA, END) + b"<script>", "has something behind its end"),
        (png(DATA, END)[:-1], "is cut off"),
        (png(DATA, END)[:-9], "is cut off"),
        (png(chunk(b"IDAS", b""), END), "has a part 'IDAS', which is not expected"),
        (png(DATA[:-1] + b"\0", END), "is damaged"),
        (
            png(chunk(b"tEXt", b"x\0<script>"), DATA, END),
            "has a part 'tEXt', which is not expected",
        ),
        (png(chunk(b"acTL", b"\0" * 8), DATA, END), "has a part 'acTL', which is not expected"),
        (png(DATA, END, width=60_000), "is 60000 x 1"),
        (png(DATA, END, height=0), "is 1 x 0"),
        (png(chunk(b"IHDR", b"\0" * 13), DATA, END), "is 0 x 0"),
        (b"\x89PNG\r\n\x1a\n" + DATA + END, "does not begin as a PNG does"),
    ],
)
def test_no_picture(data: bytes, why: str) -> None:
    assert why_no_picture(data) == why


@pytest.fixture
def point(tmp_path: Path, manifest: Callable[..., Manifest]) -> Callable[..., Any]:
    """A point with that screen."""

    def build(run: str, screen: bytes | None = PNG) -> RestorePoint:
        directory = tmp_path / "vault" / "web" / run
        directory.mkdir(parents=True)
        if screen is not None:
            (directory / "verify.png").write_bytes(screen)
        return RestorePoint(directory, manifest())

    return build


def test_the_newest_are_shown(point: Callable[..., RestorePoint]) -> None:
    started = [(point(run), STARTED) for run in ("a", "b", "c", "d")]
    assert screens_of(started) == [
        Screen(run, "started after 3.2 s: its agent answers", PNG) for run in ("d", "c", "b")
    ]


def test_what_is_not_shown_and_why(point: Callable[..., RestorePoint]) -> None:
    large = png(chunk(b"IDAT", os.urandom(screens.LARGEST_BYTES)), END)
    pipe, link = point("pipe", None), point("link", None)
    os.mkfifo(pipe.directory / "verify.png")
    (link.directory / "verify.png").symlink_to("/etc/passwd")
    shown = [
        screens_of([(each, STARTED)])
        for each in (
            point("none", None),
            point("large", large),
            point("odd", b"GIF89a"),
            pipe,
            link,
        )
    ]
    assert shown[0] == []
    assert [each[0].why_not for each in shown[1:]] == [
        "96 KiB are too large for this page",
        "is no PNG",
        "[Errno 22] verify.png is no regular file",
        "[Errno 40] verify.png is a symlink; not followed",
    ]
    assert all(each[0].png == b"" for each in shown[1:])


def test_the_newest_of_each_guest_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screens, "ALL_BYTES", 2 * len(PNG) + 1)
    first, second, third = (Screen(run, "", PNG) for run in "abc")
    full = Screen("b", "", why_not="the page is full")
    assert within_limit([[first, second], [third], []]) == [[first, full], [third], []]
