"""The page in a real browser: headless Chromium, where there is one.

The picture of the documents is made so:
`python -m tests.unit.report.test_in_browser docs/report.png`.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.report_facts import example
from tests.unit.report.test_page import HOSTILE, evil
from zvmsnap.report.page import page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), "")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium: apt install chromium")

LIGHT, DARK = "--blink-settings=preferredColorScheme=1", "--blink-settings=preferredColorScheme=0"
Browse = Callable[..., str]


def chromium(html: str, directory: Path, *options: str) -> tuple[str, str]:
    """Open a page; returns what it printed, and what it logged."""
    file = directory / "page.html"
    file.write_text(html)
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--enable-logging=stderr", f"--user-data-dir={directory}/profile", *options),
        file.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout, done.stderr


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Opens a page, of which the browser must not complain; returns what it printed."""

    def run(html: str, *options: str) -> str:
        printed, logged = chromium(html, tmp_path, *options)
        assert [line for line in logged.splitlines() if ":CONSOLE" in line] == []
        return printed

    return run


def title_of(dom: str) -> str:
    found = re.search("<title>(.*?)</title>", dom)
    assert found
    return found[1]


# What anybody has put into a page, and how wide it is laid out.
SCRIPT = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
MEASURE = "<script>document.title=document.documentElement.scrollWidth</script>"


def without_policy(html: str) -> str:
    changed, count = re.subn('<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert count == 1
    return changed


def test_no_script_runs_even_if_there_were_one(tmp_path: Path) -> None:
    html = page(example()).replace("</main>", f"{SCRIPT}</main>")
    dom, logged = chromium(html, tmp_path, "--dump-dom")
    assert title_of(dom) == "2 to act on: hv1.example.org"
    assert "Content Security Policy" in logged
    dom, _ = chromium(without_policy(html), tmp_path, "--dump-dom")
    assert title_of(dom) == "owned"  # so the test can fail


def test_hostile_text_is_text(browse: Browse) -> None:
    dom = browse(page(evil("".join(HOSTILE[:-1]))), "--dump-dom")
    assert "<script" not in dom and '<img src="x"' not in dom
    assert dom.count("<section") == 4
    assert "alert(1)" in title_of(dom)


@pytest.mark.parametrize("width", [500, 1280])
def test_it_is_as_wide_as_its_window(browse: Browse, width: int) -> None:
    html = without_policy(page(example())).replace("</body>", f"{MEASURE}</body>")
    assert int(title_of(browse(html, "--dump-dom", f"--window-size={width},900"))) == width


def background(picture: Path) -> tuple[int, ...]:
    """The first pixel of a PNG of 8 bits: no filter changes it, as nothing is before it."""
    data = picture.read_bytes()
    packed, at = b"", 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += 12 + length
    return tuple(zlib.decompress(packed)[1:4])


def test_light_and_dark(browse: Browse, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    seen = []
    for scheme in (LIGHT, DARK):
        browse(page(example()), scheme, f"--screenshot={picture}", "--window-size=900,400")
        seen.append(background(picture))
    assert seen == [(0xF6, 0xF7, 0xF9), (0x10, 0x14, 0x1B)]


def test_on_paper(browse: Browse, tmp_path: Path) -> None:
    paper = tmp_path / "page.pdf"
    browse(page(example()), f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    data = paper.read_bytes()
    assert data.startswith(b"%PDF-")
    pages = len(re.findall(rb"/Type\s*/Page\b", data))
    assert 4 <= pages <= 12
    # A4, across.
    boxes = re.findall(rb"/MediaBox\s*\[0 0 ([\d.]+) ([\d.]+)\]", data)
    assert boxes and all(float(width) > float(height) for width, height in boxes)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made_in:
        shot = Path(sys.argv[1]).absolute()
        chromium(
            page(example()), Path(made_in), LIGHT, f"--screenshot={shot}", "--window-size=1180,1340"
        )
