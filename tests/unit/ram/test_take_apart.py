"""What is not understood, what a base may be, and what a crash has left."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.ram.page_files import apart, loaded
from tests.unit.ram.streams import CONTINUE, EOS, PAGE, PAGE_BYTES, ZERO, Image, head, load, page
from zvmsnap.common.errors import NotUnderstood
from zvmsnap.ram import record_file, take_apart
from zvmsnap.ram.page_image import PAGES, RECORD_BYTES, REST

CAPABILITIES = b"\x05\x1aconfiguration/capabilities" + struct.pack(">II", 1, 1) + b"\x0amapped-ram"
PAGE_BITS = b"\x05\x1econfiguration/target-page-bits" + struct.pack(">I", 1)
UUID = b"\x05\x12configuration/uuid" + struct.pack(">I", 1) + bytes(16)


def whole(image: Image) -> bytes:
    image.all_pages()
    return image.image()


def with_word(word: int, behind: bytes = b"") -> bytes:
    image = Image()
    image.begin()
    image.word(word)
    image.written += behind
    image.end()
    return whole(image)


def with_section(kind: int, number: int = 2, data: bytes = b"") -> bytes:
    image = Image()
    image.written += struct.pack(">BI", kind, number) + data
    return whole(image)


def before_ram(data: bytes) -> bytes:
    image = Image()
    section = image.written.index(b"\x01\0\0\0\x02\x03ram")
    image.written[section:section] = data
    return whole(image)


def listed(data: bytes) -> bytes:
    """With more in the list of RAM blocks, as some capabilities of QEMU have it."""
    image = Image()
    end = image.written.index(struct.pack(">QB", EOS, 0x7E))
    image.written[end:end] = data
    return whole(image)


def missing_page() -> bytes:
    """As pages that virtio-mem has not plugged, or that a guest has hinted to be free."""
    image = Image()
    image.begin(3)
    for number in (0, 1, 2, 3, 4, 6, 7):
        image.page("pc.ram", number, page(number))
    image.end()
    return image.image()


NOT_UNDERSTOOD: dict[str, tuple[bytes, str]] = {
    "no image": (b"nothing", "no RAM image"),
    "gzip": (head(kind=1) + b"QEVM" + bytes(99), "compressed it: gzip"),
    "sparse": (head(kind=6) + b"QEVM" + bytes(99), "sparse"),
    "unfinished": (head().replace(b"Save", b"Part", 1), "incomplete"),
    "old version": (whole(Image()).replace(b"QEVM\0\0\0\3", b"QEVM\0\0\0\2"), "version 3"),
    "no configuration": (head() + b"QEVM\0\0\0\3\1" + bytes(99), "which machine"),
    "machine too long": (head() + b"QEVM\0\0\0\3\7\xff\xff\xff\xff", "too long"),
    "architecture": (whole(Image(machine=b"virt-9.2")), "'virt-9.2' is none of pc-"),
    "microvm": (whole(Image(machine=b"microvm")), "'microvm' is none of pc-"),
    "mapped-ram": (whole(Image(configuration=CAPABILITIES)), "configuration/capabilities"),
    "virtio-mem": (before_ram(b"\x04\0\0\0\x07\x0avirtio-mem"), "type 4 before RAM"),
    "postcopy": (before_ram(b"\x08\0\x03\0\x10" + bytes(16)), "type 8 before RAM"),
    "huge pages, postcopy": (listed(struct.pack(">Q", 2 << 20)), "followed by what is not known"),
    "ignore-shared": (listed(struct.pack(">Q", 0)), "followed by what is not known"),
    "RDMA": (listed(struct.pack(">Q", 0x80)), "followed by what is not known"),
    "device in rounds": (with_section(1, 3, b"\x04vfio" + bytes(8)), "type 1, in RAM"),
    "large pages": (whole(Image(configuration=PAGE_BITS + struct.pack(">I", 16))), "4096"),
    "absurd pages": (whole(Image(configuration=PAGE_BITS + b"\xff" * 4)), "4096"),
    "two of RAM": (whole(Image(instance=1)), "not RAM"),
    "contradicting": (Image({"a": 2048, "b": 2048}).image(), "contradicts itself"),
    "named twice": (whole(Image()).replace(b"\x06pc.ram", b"\x00", 1), "contradicts itself"),
    "absurd length": (Image({"a": 1 << 62, "b": 0}).image(), "contradicts itself"),
    "more RAM than file": (Image({"a": 1 << 42}).image(), "too short for all its RAM"),
    "command": (with_section(8, 1 << 16), "a command among RAM"),
    "two switchovers": (with_section(8, 0xB0000, b"\x08\x00\x0b\x00\x00"), "type 8"),
    "on after switchover": (with_section(8, 0xB0000, b"\x02"), "type 2"),
    "another section": (with_section(2, 3), "another section than RAM"),
    "another last section": (with_section(3, 3), "another section than RAM"),
    "device": (with_section(4), "type 4"),
    "xbzrle": (with_word(0x40 | CONTINUE), "flags 0x60"),
    "compressed page": (with_word(0x100), "flags 0x100"),
    "multifd": (with_word(0x200), "flags 0x200"),
    "hook": (with_word(0x80), "flags 0x80"),
    "two flags": (with_word(PAGE | ZERO), "flags 0xa"),
    "no flags": (with_word(0), "flags 0x0"),
    "EOS with an address": (with_word(4096 | EOS), "flags 0x10"),
    "no block yet": (with_word(ZERO | CONTINUE, b"\0"), "outside of its blocks"),
    "unknown block": (with_word(ZERO, b"\3abc\0"), "block 'abc'"),
    "outside": (with_word(8 * PAGE_BYTES | ZERO, b"\6pc.ram\0"), "outside of its blocks"),
    "not zero": (with_word(ZERO, b"\6pc.ram\1"), "other than zero"),
    "not all": (missing_page(), "not all of the block pc.ram was sent"),
    "no devices": (whole(Image()).rsplit(b"\x04state", 1)[0], "not the state of devices"),
}


@pytest.mark.parametrize(("image", "why"), NOT_UNDERSTOOD.values(), ids=NOT_UNDERSTOOD)
def test_what_is_not_understood(tmp_path: Path, image: bytes, why: str) -> None:
    with pytest.raises(NotUnderstood, match=why):
        apart(image, tmp_path)
    assert os.listdir(tmp_path) == ["memory"]
    assert (tmp_path / "memory").read_bytes() == image


@pytest.mark.parametrize(
    "image",
    [
        Image(footers=False),
        Image(configuration=UUID),
        Image(configuration=PAGE_BITS + struct.pack(">I", 12)),
        Image({"pc.ram": 64 * PAGE_BYTES, "none": 0, "/rom@etc/acpi/tables": 32 * PAGE_BYTES}),
    ],
)
def test_what_is_understood(tmp_path: Path, image: Image) -> None:
    taken = apart(whole(image), tmp_path)
    assert loaded(tmp_path, taken) == load(image.image())


# -- a base

Base = Callable[[bytearray], None]


def older(content: bytearray) -> None:
    """Some pages differ."""
    content[5 * PAGE_BYTES] ^= 1
    content[40 * PAGE_BYTES :][: 4 * PAGE_BYTES] = page(77) * 4


def longer(content: bytearray) -> None:
    content += b"x" * (3 << 20)


def shorter(content: bytearray) -> None:
    del content[99 * 1024 :]


def garbage(content: bytearray) -> None:
    content[:] = b"\xaa" * len(content)


def empty(content: bytearray) -> None:
    content.clear()


@pytest.fixture
def cloning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any file system clones, by copying."""

    def clone(source: int, target: int) -> bool:
        os.write(target, os.pread(source, 1 << 30, 0))
        os.lseek(target, 0, os.SEEK_SET)
        return True

    monkeypatch.setattr(take_apart, "clone", clone)


def two_blocks(seed: int = 0) -> bytes:
    """97 and 3 pages: not whole records, with zeros, and pages that are sent twice."""
    image = Image({"pc.ram": 97 * PAGE_BYTES, "vga": 3 * PAGE_BYTES})
    image.begin()
    for number in range(97):
        image.page("pc.ram", number, None if 20 < number < 60 else page(seed + number))
    image.end()
    image.begin(3)
    for number in range(3):
        image.page("vga", number, page(seed + 200))
    for number, data in ((3, None), (21, page(5)), (90, page(9)), (30, page(8)), (30, None)):
        image.page("pc.ram", number, data)
    image.end()
    return image.image()


@pytest.mark.usefixtures("cloning")
@pytest.mark.parametrize("change", [older, longer, shorter, garbage, empty])
def test_whatever_the_base_is_the_image_is_the_same(tmp_path: Path, change: Base) -> None:
    without = apart(two_blocks(), tmp_path / "base")
    wanted = (tmp_path / "base" / PAGES).read_bytes()
    content = bytearray(wanted)
    change(content)
    (tmp_path / "base" / PAGES).write_bytes(content)
    taken = apart(two_blocks(), tmp_path / "new", tmp_path / "base")
    assert (tmp_path / "new" / PAGES).read_bytes() == wanted
    assert taken.digests == without.digests
    assert loaded(tmp_path / "new", taken) == load(two_blocks())


@pytest.mark.usefixtures("cloning")
def test_only_what_differs_is_written(tmp_path: Path) -> None:
    image = Image({"pc.ram": 400 * PAGE_BYTES})
    image.all_pages()
    assert apart(image.image(), tmp_path / "base").records_written == 100
    other = Image({"pc.ram": 400 * PAGE_BYTES})
    other.begin(3)
    for number in range(400):
        other.page("pc.ram", number, page(1000 if number in (17, 18, 399) else number))
    other.end()
    taken = apart(other.image(), tmp_path / "new", tmp_path / "base")
    assert (taken.records, taken.records_written) == (100, 2)


@pytest.mark.usefixtures("cloning")
def test_a_base_that_the_disk_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apart(two_blocks(), tmp_path / "base")

    class Disk:
        """Reads nothing that was not written by this image."""

        def __init__(self) -> None:
            self.written: set[int] = set()

        def pread(self, file: int, count: int, place: int) -> bytes:
            if place not in self.written:
                raise OSError(5, "Input/output error")
            return os.pread(file, count, place)

        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

    disk = Disk()

    def write_at(file: int, data: bytes, place: int) -> None:
        disk.written |= set(range(place, place + len(data), RECORD_BYTES))
        os.pwrite(file, data, place)

    def punch(file: int, place: int, count: int) -> None:
        write_at(file, bytes(count), place)

    monkeypatch.setattr(record_file, "os", disk)
    monkeypatch.setattr(record_file, "punch", punch)
    monkeypatch.setattr(record_file, "write_at", write_at)
    taken = apart(two_blocks(50), tmp_path / "new", tmp_path / "base")
    assert loaded(tmp_path / "new", taken) == load(two_blocks(50))


def test_without_cloning_it_is_a_sparse_file(tmp_path: Path) -> None:
    apart(two_blocks(), tmp_path / "base")
    taken = apart(two_blocks(), tmp_path / "new", tmp_path / "base")
    assert loaded(tmp_path / "new", taken) == load(two_blocks())
    assert os.stat(tmp_path / "new" / PAGES).st_blocks * 512 < taken.pages_bytes


# -- before the original goes


def test_what_the_disk_has_made_of_it_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = record_file.RecordFile.finish

    def forgetful(self: record_file.RecordFile) -> None:
        finish(self)
        os.pwrite(self._file, b"?", 11 * PAGE_BYTES)

    monkeypatch.setattr(record_file.RecordFile, "finish", forgetful)
    with pytest.raises(NotUnderstood, match="read back other than they were sent"):
        apart(two_blocks(), tmp_path)
    assert os.listdir(tmp_path) == ["memory"]


def test_what_the_disk_has_made_of_a_page_that_is_sent_again_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_record = record_file.RecordFile._load

    def forgetful(self: record_file.RecordFile, place: int) -> None:
        if place == 88 * PAGE_BYTES:
            os.pwrite(self._file, b"?", place)
        load_record(self, place)

    monkeypatch.setattr(record_file.RecordFile, "_load", forgetful)
    with pytest.raises(NotUnderstood, match="read back other than they were sent"):
        apart(two_blocks(), tmp_path)


def test_what_a_crash_has_left_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / PAGES).write_bytes(b"half" * 100_000)
    (tmp_path / REST).symlink_to("/etc/passwd")
    taken = apart(two_blocks(), tmp_path)
    assert loaded(tmp_path, taken) == load(two_blocks())
    assert not (tmp_path / REST).is_symlink()
    assert os.stat(tmp_path / PAGES).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("claimed", [1 << 20, 63 << 20])
def test_no_length_that_is_claimed_fills_memory(tmp_path: Path, claimed: int) -> None:
    xml_bytes = bytearray(head() + b"QEVM")
    xml_bytes[20:24] = struct.pack("=I", claimed)
    many = Image({f"block{number}": 1 << 20 for number in range(4096)})
    tracemalloc.start()
    try:
        for image in (bytes(xml_bytes), many.image(), Image({"a": 1 << 43}).image()):
            with pytest.raises(NotUnderstood):
                apart(image, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
