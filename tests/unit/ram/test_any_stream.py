"""Whatever a stream is, it comes back page for page and byte for byte, or is not understood."""

from __future__ import annotations

import os
import struct
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.ram.page_files import apart, loaded
from tests.unit.ram.streams import PAGE_BYTES, Image, head, load, page
from zvmsnap.common.errors import NotUnderstood
from zvmsnap.ram import take_apart

# As QEMU 7.2 and 10.0 name them: RAM in one piece, by NUMA cells, DIMMs; flash; of devices; ROMs.
NAMES = (
    "pc.ram",
    "ram-node0",
    "/objects/ram-node1",
    "/objects/memdimm0",
    "system.flash0",
    "pc.bios",
    "0000:00:02.0/vga.vram",
    "0000:00:01.0:00.0/virtio-net-pci.rom",
    "/rom@etc/acpi/tables",
    "a" * 255,
)
MACHINES = (b"pc-i440fx-7.2", b"pc-q35-10.0", b"pc-q35-rhel9.6.0")
PAGE_BITS = b"\x05\x1econfiguration/target-page-bits" + struct.pack(">II", 1, 12)
UUID = b"\x05\x12configuration/uuid" + struct.pack(">I", 1) + bytes(16)
# What a page has: zeros that are sent as such, or as a page; or a pattern.
ZEROS_AS_PAGE = -1
SEEDS = st.none() | st.integers(ZEROS_AS_PAGE, 5)


def content(seed: int | None) -> bytes | None:
    if seed is None:
        return None
    return bytes(PAGE_BYTES) if seed == ZEROS_AS_PAGE else page(seed)


@st.composite
def images(draw: st.DrawFn) -> Image:
    """All pages of some blocks, sent in runs and sections of any order, some of them twice."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    # One of no length is possible, but not the last one: QEMU itself could not load that.
    blocks = {name: draw(st.integers(0, 40)) * PAGE_BYTES for name in names}
    blocks[names[-1]] += PAGE_BYTES
    image = Image(
        blocks,
        machine=draw(st.sampled_from(MACHINES)),
        configuration=b"".join(each for each in (PAGE_BITS, UUID) if draw(st.booleans())),
        footers=draw(st.booleans()),
        section=draw(st.integers(0, 1 << 31)),
    )
    places = [(name, at) for name in names for at in range(blocks[name] // PAGE_BYTES)]
    again = draw(st.lists(st.sampled_from(places), max_size=12))
    in_order = draw(st.booleans())
    first = places if in_order else draw(st.permutations(places))
    image.begin(2)
    for name, at in first + again:
        image.page(name, at, content(draw(SEEDS)))
        if draw(st.integers(0, 15)) == 0:
            image.end()
            image.begin(2)
            if draw(st.booleans()):
                image.last = ""  # the next page names its block, though it may be the same
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
            assert [each.name for each in Path(directory).iterdir()] == ["memory"]
            return False
        assert loaded(Path(directory), taken) == load(image)
        return True


@given(images())
def test_every_stream_comes_back(image: Image) -> None:
    assert comes_back_or_is_not_understood(image.image())


@settings(max_examples=30)
@given(images(), images())
def test_whatever_the_base_was_of(old: Image, new: Image) -> None:
    """Of another guest, or of this one with other blocks: a file system that clones, by copying."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        apart(old.image(), directory / "old")
        alone = apart(new.image(), directory / "alone")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(take_apart, "clone", copied)
            taken = apart(new.image(), directory / "new", directory / "old")
        assert taken.digests == alone.digests
        assert loaded(directory / "new", taken) == load(new.image())


def copied(source: int, target: int) -> bool:
    os.write(target, os.pread(source, 1 << 30, 0))
    os.lseek(target, 0, os.SEEK_SET)
    return True


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
