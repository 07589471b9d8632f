import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.images import make_base, make_overlay, write
from zvmsnap.disks import staging, unused_overlay
from zvmsnap.disks.unused_overlay import Content, content_of


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """One that its guest has written to."""
    base = make_base(tmp_path / "tank" / "vda.raw")
    overlay = make_overlay(tmp_path / "staging" / "capture" / "vda.zvmsnap.qcow2", base)
    write(overlay, 7)
    return overlay


def cut(length_bytes: int) -> Callable[[Path], None]:
    return lambda overlay: os.truncate(overlay, length_bytes)


def replace(content: bytes) -> Callable[[Path], object]:
    return lambda overlay: overlay.write_bytes(content)


def lose_table(overlay: Path) -> None:
    with overlay.open("r+b") as file:
        file.seek(3 << 16)
        file.write(bytes(8))


def as_made(overlay: Path) -> None:
    overlay.unlink()
    make_overlay(overlay, overlay.parent.parent.parent / "tank" / "vda.raw")


def fifo(overlay: Path) -> None:
    overlay.unlink()
    os.mkfifo(overlay)


@pytest.mark.parametrize(
    ("deface", "content"),
    [
        pytest.param(lambda _: None, Content.WRITES, id="written"),
        pytest.param(as_made, Content.NOTHING, id="as it was made"),
        pytest.param(cut(0), Content.NOTHING, id="0 bytes"),
        pytest.param(cut(3), Content.NOTHING, id="part of the magic"),
        pytest.param(cut(100), Content.NOTHING, id="part of the header"),
        pytest.param(cut(511), Content.NOTHING, id="no cluster"),
        # qemu-img's map says of all these that they hold nothing.
        pytest.param(cut(1 << 16), Content.UNKNOWN, id="the header alone"),
        pytest.param(cut(2 << 16), Content.UNKNOWN, id="no refcounts"),
        pytest.param(cut(200_000), Content.UNKNOWN, id="part of the first table"),
        pytest.param(lose_table, Content.UNKNOWN, id="first table lost, data there"),
        pytest.param(replace(bytes(5 << 20)), Content.NOTHING, id="zeros"),
        pytest.param(replace(bytes(5 << 20) + b"\1"), Content.UNKNOWN, id="zeros, but one"),
        pytest.param(replace(b"garbage " * 99), Content.UNKNOWN, id="garbage"),
        pytest.param(fifo, Content.UNKNOWN, id="no file"),
    ],
)
def test_content(overlay: Path, deface: Callable[[Path], object], content: Content) -> None:
    deface(overlay)
    assert content_of(overlay) is content


def test_a_long_file_of_zeros_is_not_read_through(overlay: Path) -> None:
    with overlay.open("wb") as file:
        file.truncate(1 << 40)
    assert content_of(overlay) is Content.UNKNOWN


def test_two_that_are_moved_aside_have_two_names(overlay: Path) -> None:
    staging_dir = overlay.parent.parent
    kept = []
    for byte in (1, 2):
        overlay.write_bytes(bytes([byte]) * 1000)
        kept.append(unused_overlay.clear(overlay, "", merged=False))
    assert staging.moved_aside(staging_dir) == kept
    assert [path.read_bytes()[0] for path in kept if path] == [1, 2]
    assert staging.staging_dirs(staging_dir) == []


def test_one_that_was_merged_goes_whatever_it_is(overlay: Path) -> None:
    assert unused_overlay.clear(overlay, "", merged=True) is None
    assert not overlay.exists()


@pytest.mark.parametrize("content", [b"", b"x" * 999])
def test_what_a_person_is_told(overlay: Path, content: bytes) -> None:
    overlay.write_bytes(content)
    with overlay.open("r+b"):
        assert "has it open" in unused_overlay.why_kept(overlay)
    if content:
        assert "it is damaged or no overlay" in unused_overlay.why_kept(overlay)
