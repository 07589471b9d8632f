import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.common.errors import ImageUnloadable
from zvmsnap.virt import save_image
from zvmsnap.virt.save_image import Header

COMPLETE, PARTIAL = b"LibvirtQemudSave", b"LibvirtQemudPart"
XML = b"<domain/>\0"
FORMATS = {0: "raw", 1: "gzip", 2: "bzip2", 3: "xz", 4: "lzop", 5: "zstd"}


def image(
    magic: bytes = COMPLETE,
    kind: int = 0,
    running: int = 1,
    payload: bytes = b"QEVM...",
    xml_bytes: int | None = None,
    cookie_offset: int = 0,
    data: bytes = XML,
) -> bytes:
    data_bytes = len(data) if xml_bytes is None else xml_bytes
    words = (2, data_bytes, running, kind, cookie_offset, *range(14))
    return magic + struct.pack("=19I", *words) + data + payload


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("running", [0, 1])
def test_loadable(tmp_path: Path, kind: int, running: int) -> None:
    path = tmp_path / "memory.img"
    payload = b"QEVM\0\0\0\3" if kind == 0 else b"\x28\xb5\x2f\xfd"
    path.write_bytes(image(kind=kind, running=running, payload=payload))
    assert save_image.read_header(path) == Header(FORMATS[kind], bool(running), len(XML))


UNLOADABLE = [
    pytest.param(b"", "is only 0 bytes long", id="empty"),
    pytest.param(image()[:91], "is only 91 bytes long", id="cut within the header"),
    pytest.param(image()[:92], "no QEMU stream", id="only a header"),
    pytest.param(image(payload=b""), "no QEMU stream", id="cut after the XML"),
    pytest.param(image(payload=b"QEV"), "no QEMU stream", id="cut in the stream's magic"),
    pytest.param(image(payload=b"\0\0\0\0"), "no QEMU stream", id="raw, but another stream"),
    pytest.param(image(kind=5, payload=b""), "no QEMU stream", id="compressed nothing"),
    pytest.param(image(xml_bytes=1000), "no QEMU stream", id="wrong length of its XML"),
    pytest.param(image(xml_bytes=2**32 - 1), "a header that contradicts", id="XML of 4 GiB"),
    pytest.param(
        image(cookie_offset=len(XML) + 1), "a header that contradicts", id="cookie in the RAM"
    ),
    pytest.param(image(PARTIAL), "is incomplete: the dump was interrupted", id="partial"),
    pytest.param(image(b"LibvirtQemudOdd!"), "is no RAM image of libvirt", id="other magic"),
    pytest.param(b"QFI\xfb" + bytes(200), "is no RAM image of libvirt", id="qcow2"),
    pytest.param(image(kind=6), 'set snapshot_image_format = "raw"', id="sparse"),
    pytest.param(image(kind=7), "has the unknown format 7", id="format of the future"),
    pytest.param(image(kind=2**32 - 1), "has the unknown format 4294967295", id="no format"),
]


@pytest.mark.parametrize(("content", "says"), UNLOADABLE)
def test_unloadable(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "memory.img"
    path.write_bytes(content)
    with pytest.raises(ImageUnloadable) as caught:
        save_image.read_header(path)
    assert str(caught.value).startswith(f"{path} ")
    assert says in str(caught.value)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saveimage") / "memory.img"


@given(st.one_of(st.binary(), st.binary().map(lambda tail: COMPLETE + tail)))
def test_any_bytes_are_judged(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    try:
        header = save_image.read_header(scratch)
    except ImageUnloadable as error:
        assert str(scratch) in str(error)
    else:
        assert content.startswith(COMPLETE)
        assert header.format in FORMATS.values()
        assert len(content) > 92 + header.xml_bytes


@given(st.integers(0, len(image()) - 4))
def test_an_image_cut_short_is_never_loadable(scratch: Path, length: int) -> None:
    scratch.write_bytes(image(payload=b"QEVM")[:length])
    with pytest.raises(ImageUnloadable):
        save_image.read_header(scratch)


@pytest.mark.parametrize(
    ("data", "cookie_offset"),
    [
        pytest.param(b"", 0, id="nothing"),
        pytest.param(b"<domain/>", 0, id="no end"),
        pytest.param(b"<domain/>\0", 5, id="a cookie in the midst of it"),
        pytest.param(b"<d\xff/>\0", 0, id="no UTF-8"),
    ],
)
def test_no_xml(tmp_path: Path, data: bytes, cookie_offset: int) -> None:
    path = tmp_path / "memory.img"
    path.write_bytes(image(data=data, cookie_offset=cookie_offset))
    with pytest.raises(ImageUnloadable, match=f"^{path} holds no definition"):
        save_image.xml_of(path)


TEXTS = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=300)
COOKIES = st.none() | st.binary(max_size=100).map(lambda cookie: cookie.replace(b"\0", b"c"))


@given(TEXTS, TEXTS, COOKIES, st.integers(0, 400), st.sampled_from(list(FORMATS)))
def test_a_new_head(
    scratch: Path, old: str, new: str, cookie: bytes | None, room_bytes: int, kind: int
) -> None:
    xml = old.encode() + b"\0"
    rest = b"" if cookie is None else cookie + b"\0"
    data = xml + rest + bytes(room_bytes)
    offset = 0 if cookie is None else len(xml)
    scratch.write_bytes(image(data=data, cookie_offset=offset, kind=kind, payload=b"QEVM and RAM"))
    assert save_image.xml_of(scratch) == old

    with scratch.open("rb") as file:
        head = save_image.read_head(file, "it")
        payload = head.opening + file.read()
    changed = head.with_xml(new)
    scratch.write_bytes(changed + payload)

    assert payload == b"QEVM and RAM"
    assert save_image.xml_of(scratch) == new
    needed_bytes = len(new.encode()) + 1 + len(rest)
    assert len(changed) == 92 + max(needed_bytes, len(data))
    magic, version, data_bytes, running, stored_kind, at, *unused = struct.unpack(
        "=16s19I", changed[:92]
    )
    assert (magic, version, running, stored_kind) == (COMPLETE, 2, 1, kind)
    assert (data_bytes, unused) == (len(changed) - 92, list(range(14)))
    if cookie is None:
        assert at == 0
    else:
        assert changed[92 + at :].partition(b"\0")[0] == cookie
    assert not changed[92 + needed_bytes :].strip(b"\0")
