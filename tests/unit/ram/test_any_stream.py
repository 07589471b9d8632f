"""Whatever a stream is, it comes back page for page and byte for byte, or is not understood."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.ram.page_files import apart, loaded
from tests.unit.ram.streams import PAGE_BYTES, Image, head, load, page
from zvmsnap.common.errors import NotUnderstood

NAMES = ("pc.ram", "0000:00:02.0/vga.vram", "/rom@etc/acpi/tables")
SEEDS = st.none() | st.integers(0, 5)


@st.composite
def images(draw: st.DrawFn) -> Image:
    """All pages of some blocks, sent in runs and sections of any order, some of them twice."""
    pages = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    blocks = dict(zip(NAMES, (count * PAGE_BYTES for count in pages), strict=False))
    image = Image(blocks, footers=draw(st.booleans()), section=draw(st.integers(0, 1 << 31)))
    places = [(name, at) for name in blocks for at in range(blocks[name] // PAGE_BYTES)]
    again = draw(st.lists(st.sampled_from(places), max_size=12))
    in_order = draw(st.booleans())
    first = places if in_order else draw(st.permutations(places))
    image.begin(2)
    for name, at in first + again:
        seed = draw(SEEDS)
        image.page(name, at, None if seed is None else page(seed))
        if draw(st.integers(0, 15)) == 0:
            image.end()
            image.begin(2)
    image.end()
    if draw(st.booleans()):
        image.switchover()
    image.begin(3)
    for name, at in draw(st.lists(st.sampled_from(places), max_size=3)):
        image.page(name, at, page(6))
    image.end()
    return image


@contextmanager
def few_mib() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def comes_back_or_is_not_understood(image: bytes) -> bool:
    """Does it come back? Whatever does must be what QEMU would have loaded."""
    with tempfile.TemporaryDirectory() as directory, few_mib():
        try:
            taken = apart(image, Path(directory))
        except NotUnderstood:
            return False
        assert loaded(Path(directory), taken) == load(image)
        return True


@given(images())
def test_every_stream_comes_back(image: Image) -> None:
    assert comes_back_or_is_not_understood(image.image())


@given(images(), st.data())
def test_every_damage_is_harmless(image: Image, data: st.DataObject) -> None:
    """Cut off, or some bytes replaced: most of that is not understood, or is in a page."""
    content = bytearray(image.image(devices=b"\x04devices"))
    first = data.draw(st.integers(0, len(content) - 1))
    count = data.draw(st.integers(0, 9))
    content[first : first + count] = data.draw(st.binary(max_size=9))
    end = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    comes_back_or_is_not_understood(bytes(content[:end]))


def test_cut_off_at_every_byte() -> None:
    image = Image({"a": 2 * PAGE_BYTES, "b": PAGE_BYTES})
    image.begin(3)
    image.page("a", 0, page(1))
    image.page("a", 1, None)
    image.page("b", 0, None)
    image.end()
    content = image.image(devices=b"\x04d")
    understood = [end for end in range(len(content)) if _is_understood(content, end)]
    assert understood == [len(content) - 1]


def _is_understood(content: bytes, end: int) -> bool:
    # A page is cut off in few places only: each byte of it is like the others.
    in_page = len(head()) + 100 < end < len(head()) + PAGE_BYTES
    if in_page and end % 512:
        return False
    return comes_back_or_is_not_understood(content[:end])
