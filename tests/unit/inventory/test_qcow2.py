import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.inventory import qcow2


def extension(kind: int, text: bytes) -> bytes:
    return struct.pack(">II", kind, len(text)) + text.ljust((len(text) + 7) // 8 * 8, b"\0")


def image(
    backing: bytes = b"",
    data_file: bytes = b"",
    *,
    version: int = 3,
    backing_format: bytes = b"qcow2",
    twice: bool = False,
) -> bytes:
    """The head of an image."""
    extensions = b""
    if backing and backing_format:
        extensions += extension(0xE2792ACA, backing_format) * (2 if twice else 1)
    if data_file:
        extensions += extension(0x44415441, data_file) * (2 if twice else 1)
    extensions += bytes(8)
    length = 104 if version == 3 else 72
    at = length + len(extensions) if backing else 0
    head = struct.pack(">4sIQI", b"QFI\xfb", version, at, len(backing)).ljust(72, b"\0")
    if version == 3:
        features = struct.pack(">Q", 4 if data_file else 0)
        head += features + bytes(20) + struct.pack(">I", length)
    return head + extensions + backing


@pytest.mark.parametrize("version", [2, 3])
def test_a_backing_file(version: int) -> None:
    assert qcow2.named_in(image(b"/a/b", version=version)) == ("/a/b",)
    assert qcow2.named_in(image(version=version)) == ()


def test_a_data_file() -> None:
    assert qcow2.named_in(image(data_file=b"/a/data")) == ("/a/data",)
    assert qcow2.named_in(image(b"/a/b", b"/a/data")) == ("/a/b", "/a/data")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("said", ["", "raw", "qcow2", "vmdk"])
def test_the_format_of_a_backing_file(version: int, said: str) -> None:
    head = image(b"/a/b", version=version, backing_format=said.encode())
    assert qcow2.backing_format(head) == said
    assert qcow2.backing_format(image(version=version)) is None
    assert qcow2.backing_format(b"\0" * 512) is None


def test_what_is_said_twice_cannot_be_told() -> None:
    """QEMU takes the last."""
    with pytest.raises(ValueError, match="twice"):
        qcow2.backing_format(image(b"/a/b", twice=True))
    with pytest.raises(ValueError, match="twice"):
        qcow2.named_in(image(data_file=b"/a/data", twice=True))


def test_another_kind_of_image() -> None:
    assert qcow2.named_in(b"") == qcow2.named_in(b"\0" * 512) == ()


def test_what_cannot_be_told_is_not_taken_for_nothing() -> None:
    for head in (
        image(b"/a/b")[:40],
        image(b"/a/b")[:-1],
        image(b"\xff\xfe"),
        image(data_file=b"/a")[:-20],
    ):
        with pytest.raises(ValueError, match="cannot be read"):
            qcow2.named_in(head)
    whole = bytearray(image())
    whole[79] = 4
    with pytest.raises(ValueError, match="does not say where its data file is"):
        qcow2.named_in(bytes(whole))


@given(st.binary(max_size=300))
def test_any_bytes(tail: bytes) -> None:
    try:
        qcow2.named_in(b"QFI\xfb" + tail)
    except ValueError as error:
        assert str(error)
