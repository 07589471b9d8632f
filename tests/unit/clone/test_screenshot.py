import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.clone.screenshot import png_of


def decoded(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and pixels of a PNG of rows without filter; every checksum is right."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        body = png[at + 4 : at + 8 + length]
        assert struct.unpack_from(">I", png, at + 8 + length) == (zlib.crc32(body),)
        chunks.append((body[:4], body[4:]))
        at += 12 + length
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    assert rest == [8, 2, 0, 0, 0]
    rows = zlib.decompress(chunks[1][1])
    assert len(rows) == height * (1 + 3 * width)
    pixels = b""
    for begin in range(0, len(rows), 1 + 3 * width):
        assert rows[begin] == 0
        pixels += rows[begin + 1 : begin + 1 + 3 * width]
    return width, height, pixels


SPACE = st.one_of(st.sampled_from([b" ", b"\t", b"\n", b"\r\n"]), st.just(b"# 9 9 255\n"))
GAP = st.lists(SPACE, min_size=1, max_size=4).map(b"".join)


@given(
    data=st.data(), width=st.integers(1, 20), height=st.integers(1, 20), gaps=st.tuples(*[GAP] * 3)
)
def test_the_same_picture(
    data: st.DataObject, width: int, height: int, gaps: tuple[bytes, bytes, bytes]
) -> None:
    size = 3 * width * height
    # What begins like white space or a comment is a pixel.
    pixels = data.draw(st.sampled_from([b"", b"\n", b"# x\n"])) + data.draw(
        st.binary(min_size=size, max_size=size)
    )
    first, second, third = gaps
    header = b"P6%b%d%b%d%b255\n" % (first, width, second, height, third)
    assert decoded(png_of(header + pixels[:size])) == (width, height, pixels[:size])


PIXELS = bytes(range(12))


@pytest.mark.parametrize(
    ("ppm", "says"),
    [
        pytest.param(b"", "is no binary portable pixmap", id="nothing"),
        pytest.param(b"\x89PN", "is no binary portable pixmap", id="PNG cut in its signature"),
        pytest.param(b"P3 2 2 255 " + PIXELS, "is no binary portable pixmap", id="plain pixmap"),
        pytest.param(b"P5 2 2 255 " + PIXELS, "is no binary portable pixmap", id="greymap"),
        pytest.param(b"P6 2 2", "is no binary portable pixmap", id="cut in the header"),
        pytest.param(b"P6 -2 2 255 " + PIXELS, "is no binary portable pixmap", id="negative"),
        pytest.param(b"P62 2 255 " + PIXELS, "is no binary portable pixmap", id="no gap"),
        pytest.param(b"P6 2 2 65535 " + PIXELS * 2, "has a maxval of 65535, not 255", id="16 bits"),
        pytest.param(b"P6 2 2 255 " + PIXELS[:-1], "has 11 bytes of pixels", id="cut"),
        pytest.param(b"P6 2 2 255 " + PIXELS + b"x", "has 13 bytes of pixels", id="too much"),
        pytest.param(b"P6 0 2 255 ", "has 0 bytes of pixels, which are not 0 x 2", id="no width"),
        pytest.param(b"P6 2 0 255 ", "has 0 bytes of pixels, which are not 2 x 0", id="no height"),
        pytest.param(b"P6 999999999 999999999 255 ", "has 0 bytes of pixels", id="a lie"),
        pytest.param(b"P6 " + b"9" * 9999 + b" 2 255 ", "is no binary", id="a longer lie"),
    ],
)
def test_anything_else_is_refused(ppm: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        png_of(ppm)


def test_what_is_png_stays_as_it_is() -> None:
    picture = png_of(b"P6 2 2 255 " + PIXELS)
    assert png_of(picture) == picture


@given(st.binary().map(lambda tail: b"P6 " + tail))
def test_any_bytes_are_refused_or_shown(ppm: bytes) -> None:
    try:
        width, height, pixels = decoded(png_of(ppm))
    except ValueError:
        return
    assert width * height * 3 == len(pixels)
