"""How far the work on a RAM image is: on a terminal, in the log, and in no hook."""

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.images import RAM
from tests.unit.ram.page_files import apart, together
from zvmsnap.bulk import progress

_far = threading.Event()


@pytest.fixture(autouse=True)
def _wanted() -> Iterator[None]:
    progress.want()
    _far.clear()
    yield
    progress.want(False)


def ticking(monkeypatch: pytest.MonkeyPatch, count: int) -> tuple[list[float], threading.Event]:
    """Show so many times how far the work is; how long was waited for each, and the end of it."""
    waited: list[float] = []
    over = threading.Event()

    def wait(ended: threading.Event, timeout_s: float) -> bool:
        assert _far.wait(60)
        waited.append(timeout_s)
        if len(waited) <= count:
            return False
        over.set()
        return ended.wait()

    monkeypatch.setattr(progress, "wait", wait)
    return waited, over


def work(over: threading.Event) -> None:
    with progress.shown("taken apart", 300 << 20) as shown:
        shown.done_bytes = 100 << 20
        _far.set()
        assert over.wait(60)


def test_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    waited, over = ticking(monkeypatch, 2)
    work(over)
    line = "\rRAM image taken apart:  33 % of 300 MiB\x1b[K"
    assert capsys.readouterr().err == f"{line}{line}\r\x1b[K"
    assert waited == [0.5] * 3


def test_in_the_log(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "zvmsnap")
    waited, over = ticking(monkeypatch, 1)
    work(over)
    assert caplog.messages == ["RAM image taken apart:  33 % of 300 MiB"]
    assert "\r" not in capsys.readouterr().err
    assert waited == [60] * 2


def test_the_line_goes_after_a_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _far.set()
    with pytest.raises(OSError, match="full"), progress.shown("taken apart", 0):
        raise OSError("full")
    assert capsys.readouterr().err.endswith("\r\x1b[K")


def test_nothing_in_a_hook(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress.want(False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "in_background", pytest.fail)
    with progress.shown("taken apart", 1):
        pass
    assert capsys.readouterr().err == ""


def test_an_image_comes_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[progress.Progress] = []

    class Kept(progress.Progress):
        def __init__(self, what: str, total_bytes: int, subject: str) -> None:
            super().__init__(what, total_bytes, subject)
            seen.append(self)

    monkeypatch.setattr(progress, "Progress", Kept)
    together(tmp_path, apart(RAM, tmp_path))
    assert [each.what for each in seen] == ["taken apart", "read back", "put together"]
    assert all(0 <= each.done_bytes <= each.total_bytes == 1 << 20 for each in seen)
    assert seen[0].done_bytes == 256 << 10
