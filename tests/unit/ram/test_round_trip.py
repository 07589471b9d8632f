"""An image taken apart and put together again is the same image: page for page, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.ram.page_files import apart, loaded, opened, together
from tests.unit.ram.streams import PAGE_BYTES, Image, head, load, page
from zvmsnap.common.errors import ImageUnloadable
from zvmsnap.ram.check import check
from zvmsnap.ram.page_image import PAGES, REST, read_rest


def in_order() -> bytes:
    """A stream as it is put together: each page once, in one section."""
    image = Image({"pc.ram": 300 * PAGE_BYTES, "vga": 3 * PAGE_BYTES})
    image.begin()
    for number in range(300):
        image.page("pc.ram", number, page(number) if 7 < number < 290 and number % 9 else None)
    for number in range(3):
        image.page("vga", number, page(1000))
    image.end()
    image.switchover()
    image.begin(3)
    image.end()
    return image.image()


def test_pages_lie_at_their_places(tmp_path: Path) -> None:
    taken = apart(in_order(), tmp_path)
    pages = (tmp_path / PAGES).read_bytes()
    assert pages[8 * PAGE_BYTES : 9 * PAGE_BYTES] == page(8)
    assert pages[9 * PAGE_BYTES : 10 * PAGE_BYTES] == bytes(PAGE_BYTES)
    assert pages[2 << 20 :][: 3 * PAGE_BYTES] == page(1000) * 3
    assert (taken.pages_bytes, len(pages)) == (3 << 20, 3 << 20)


def test_a_stream_in_order_comes_back_byte_for_byte(tmp_path: Path) -> None:
    taken = apart(in_order(), tmp_path)
    assert together(tmp_path, taken) == in_order()


def test_another_head(tmp_path: Path) -> None:
    taken = apart(in_order(), tmp_path)
    other = head("<domain>another</domain>" * 100)
    assert together(tmp_path, taken, other) == other + in_order()[len(head()) :]


def test_the_definition_is_in_the_rest(tmp_path: Path) -> None:
    apart(in_order(), tmp_path)
    with opened(tmp_path) as image:
        assert read_rest(image).head("it").xml == "<domain/>"


def test_a_damaged_head_is_said_to_be_in_the_rest(tmp_path: Path) -> None:
    apart(in_order(), tmp_path)
    data = bytearray((tmp_path / REST).read_bytes())
    data[data.index(b"LibvirtQemudSave")] ^= 1
    (tmp_path / REST).write_bytes(data)
    with opened(tmp_path) as image, pytest.raises(ImageUnloadable, match=f"^{REST} of the point"):
        read_rest(image).head(image.name)


def test_the_last_of_two_pages_counts(tmp_path: Path) -> None:
    image = Image({"pc.ram": 16 * PAGE_BYTES})
    image.begin()
    for number in range(16):
        image.page("pc.ram", number, page(number))
    image.end()
    image.begin(3)
    image.page("pc.ram", 3, page(99))
    image.page("pc.ram", 9, None)
    for number in (12, 13, 14, 15):
        image.page("pc.ram", number, None)
    image.end()
    taken = apart(image.image(), tmp_path)
    content = [page(number) for number in range(12)] + [bytes(PAGE_BYTES)] * 4
    content[3], content[9] = page(99), bytes(PAGE_BYTES)
    assert (tmp_path / PAGES).read_bytes()[: 16 * PAGE_BYTES] == b"".join(content)
    assert taken.records == 3
    assert loaded(tmp_path, taken) == load(image.image())


@pytest.mark.parametrize("name", [PAGES, REST])
def test_a_flipped_bit_is_seen(tmp_path: Path, name: str) -> None:
    taken = apart(in_order(), tmp_path)
    with opened(tmp_path) as image:
        assert check(image, taken.digests).was_running
    data = bytearray((tmp_path / name).read_bytes())
    for at in (0, len(data) // 2, len(data) - 1):
        data[at] ^= 1
        (tmp_path / name).write_bytes(data)
        with opened(tmp_path) as image, pytest.raises(ImageUnloadable, match=name):
            check(image, taken.digests)
        with pytest.raises(ImageUnloadable, match=name):
            together(tmp_path, taken)
        data[at] ^= 1


def test_a_byte_behind_the_end_of_a_block_is_seen(tmp_path: Path) -> None:
    """Where no page is: what lies there is read for the digest, and never sent."""
    image = Image()
    image.all_pages()
    taken = apart(image.image(), tmp_path)
    with (tmp_path / PAGES).open("r+b") as pages:
        pages.seek(-1, 2)
        pages.write(b"x")
    with pytest.raises(ImageUnloadable, match=f"{PAGES} of the point does not match"):
        together(tmp_path, taken)
