import errno
import hashlib
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import zstandard

from tests.fakes.guest import UUID
from tests.fakes.images import libvirt_image, ram_in
from zvmsnap.bulk.sharing import OnDisk
from zvmsnap.common import log
from zvmsnap.common.errors import ImageUnloadable
from zvmsnap.finalize.store import RamStore
from zvmsnap.points import memory_image
from zvmsnap.points.manifest import Memory
from zvmsnap.points.memory_image import RamUsage
from zvmsnap.virt import save_image

OLD, SHORT = "<domain><name>web</name></domain>", "<domain/>"
LONG = f"<domain><name>{'web2' * 2000}</name></domain>"
COOKIE = b"<cookie/>\0"
ROOM_BYTES = 1000
# More than one chunk, and not of whole pages.
RAM = b"QEVM" + bytes(range(256)) * 20_000 + b"end"


def image(payload: bytes = RAM, magic: bytes = b"LibvirtQemudSave") -> bytes:
    xml = OLD.encode() + b"\0"
    data = xml + COOKIE + bytes(ROOM_BYTES)
    return magic + struct.pack("=19I", 2, len(data), 1, 0, len(xml), *[0] * 14) + data + payload


Stow = Callable[..., tuple[Path, Memory]]


@pytest.fixture
def stow(tmp_path: Path) -> Stow:
    """Brings an image into a point, as a capture does."""

    def bring(compression: str, content: bytes | None = None) -> tuple[Path, Memory]:
        dump = tmp_path / "dump"
        dump.write_bytes(image() if content is None else content)
        point = tmp_path / "point"
        point.mkdir()
        level = 1 if compression == "zstd" else None
        own = log.about("web", "tank/web")
        paged = compression == "pages"
        memory = RamStore(point, "web", UUID, paged, level, own).store(dump, "raw")
        assert memory.compression == compression or memory.is_paged
        return point / memory.file, memory

    return bring


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "memory.img"


def assert_nothing_left(target: Path) -> None:
    assert list(target.parent.iterdir()) == []


def payload(path: Path) -> bytes:
    with path.open("rb") as file:
        return save_image.read_head(file, str(path)).opening + file.read()


BOTH = pytest.mark.parametrize("compression", ["none", "zstd"])


@BOTH
def test_whole(stow: Stow, compression: str) -> None:
    stored, memory = stow(compression)
    assert memory_image.check(stored, memory) == save_image.Header(
        "raw", True, len(image()) - 92 - len(RAM)
    )
    assert memory_image.xml_of(stored, memory) == OLD


def test_plain_and_unchanged_is_loaded_where_it_lies(stow: Stow, target: Path) -> None:
    stored, memory = stow("none")
    assert memory_image.materialize(stored, memory, target, xml=None) == stored
    assert_nothing_left(target)


def test_unpacked(stow: Stow, target: Path) -> None:
    stored, memory = stow("zstd")
    assert memory_image.materialize(stored, memory, target, xml=None) == target
    assert target.read_bytes() == image()
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("xml", [SHORT, LONG], ids=["fits", "head grows"])
@pytest.mark.parametrize("shares", [True, False], ids=["in the kernel", "through us"])
@BOTH
def test_with_another_definition(
    stow: Stow,
    target: Path,
    compression: str,
    shares: bool,
    xml: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: int) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    if not shares:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    stored, memory = stow(compression)
    before = stored.read_bytes()
    assert memory_image.materialize(stored, memory, target, xml=xml) == target
    assert save_image.xml_of(target) == xml
    assert payload(target) == RAM
    assert (target.stat().st_size == len(image())) == (xml == SHORT)
    assert target.stat().st_mode & 0o777 == 0o600
    assert stored.read_bytes() == before


def test_a_copy_goes_on_where_the_kernel_stopped(
    stow: Stow, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.copy_file_range
    calls: list[int] = []

    def once(source: int, to: int, count: int, start: int, place: int) -> int:
        calls.append(start)
        if len(calls) > 1:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(source, to, 5000, start, place)

    monkeypatch.setattr(os, "copy_file_range", once)
    stored, memory = stow("none")
    memory_image.materialize(stored, memory, target, xml=LONG)
    assert calls == [len(image()) - len(RAM), len(image()) - len(RAM) + 5000]
    assert payload(target) == RAM


def test_a_full_file_system_leaves_nothing(
    stow: Stow, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    stored, memory = stow("none")
    with pytest.raises(OSError, match="No space left"):
        memory_image.materialize(stored, memory, target, xml=SHORT)
    assert_nothing_left(target)


@BOTH
@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_what_lies_at_the_target_stays(
    stow: Stow, target: Path, compression: str, kind: str
) -> None:
    other = target.with_name("other")
    other.write_bytes(b"precious")
    if kind == "file":
        target.write_bytes(b"precious")
    else:
        target.symlink_to(other)
    stored, memory = stow(compression)
    with pytest.raises(FileExistsError):
        memory_image.materialize(stored, memory, target, xml=SHORT)
    assert target.read_bytes() == other.read_bytes() == b"precious"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def unlinked(path: Path) -> Path:
    path.unlink()
    return path


DAMAGE = [
    pytest.param(lambda path: path.unlink(), "cannot be opened", id="gone"),
    pytest.param(lambda path: os.truncate(path, 500), "is 500 bytes long", id="cut"),
    pytest.param(lambda path: path.write_bytes(b""), "is 0 bytes long", id="empty"),
    pytest.param(
        lambda path: path.symlink_to(path.rename(path.with_name("moved"))),
        "cannot be opened",
        id="symlink",
    ),
    pytest.param(
        lambda path: os.mkfifo(unlinked(path)),
        "cannot be opened: memory.* is no reg",
        id="named pipe",
    ),
    pytest.param(
        lambda path: unlinked(path).mkdir(),
        "cannot be opened: memory.* is no reg",
        id="directory",
    ),
]


@BOTH
@pytest.mark.parametrize(("damage", "says"), DAMAGE)
def test_damaged(
    stow: Stow, target: Path, compression: str, damage: Callable[[Path], object], says: str
) -> None:
    stored, memory = stow(compression)
    damage(stored)
    for use in (
        lambda: memory_image.check(stored, memory),
        lambda: memory_image.xml_of(stored, memory),
        lambda: memory_image.materialize(stored, memory, target, xml=None),
        lambda: memory_image.materialize(stored, memory, target, xml=SHORT),
    ):
        with pytest.raises(ImageUnloadable, match=f"^{stored} {says}"):
            use()
    assert_nothing_left(target)


@BOTH
def test_a_flipped_bit_is_found(stow: Stow, compression: str) -> None:
    stored, memory = stow(compression)
    for at in range(0, memory.stored_bytes, memory.stored_bytes // 20):
        flip(stored, at)
        with pytest.raises(ImageUnloadable, match=f"^{stored} does not match its checksum"):
            memory_image.check(stored, memory)
        flip(stored, at)
    memory_image.check(stored, memory)


def test_a_flipped_bit_is_found_while_unpacking(stow: Stow, target: Path) -> None:
    stored, memory = stow("zstd")
    for at in range(0, memory.stored_bytes, memory.stored_bytes // 50):
        flip(stored, at)
        with pytest.raises(ImageUnloadable, match=f"^{stored} "):
            memory_image.materialize(stored, memory, target, xml=SHORT)
        assert_nothing_left(target)
        flip(stored, at)
    memory_image.materialize(stored, memory, target, xml=SHORT)


def resealed(stored: Path, memory: Memory, content: bytes) -> Memory:
    """The manifest of other content: whoever damages the one can damage the other too."""
    stored.write_bytes(content)
    return msgspec.structs.replace(
        memory, stored_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )


PACK = zstandard.ZstdCompressor().compress

SEALED = [
    pytest.param("none", b"", "is only 0 bytes long", id="empty"),
    pytest.param("none", image(magic=b"LibvirtQemudPart"), "is incomplete", id="partial"),
    pytest.param("none", PACK(image()), "is only|is no RAM image", id="packed, said plain"),
    pytest.param("zstd", image(), "cannot be unpacked: it is damaged", id="plain, said packed"),
    pytest.param("zstd", b"", "is only 0 bytes long", id="packed nothing"),
    pytest.param("zstd", PACK(b"QFI\xfb" * 99), "is no RAM image", id="packed something else"),
    pytest.param("zstd", PACK(image(b"RAM")), "has no QEMU stream", id="packed without QEMU"),
    pytest.param("lzma", image(), "is compressed by 'lzma'", id="compressed otherwise"),
]


@pytest.mark.parametrize(("compression", "content", "says"), SEALED)
def test_unloadable_though_as_the_manifest_says(
    stow: Stow, target: Path, compression: str, content: bytes, says: str
) -> None:
    stored, memory = stow("none")
    memory = msgspec.structs.replace(resealed(stored, memory, content), compression=compression)
    with pytest.raises(ImageUnloadable, match=f"^{stored} ({says})"):
        memory_image.check(stored, memory)
    with pytest.raises(ImageUnloadable, match=f"^{stored} ({says})"):
        memory_image.materialize(stored, memory, target, xml=SHORT)
    assert_nothing_left(target)


@pytest.mark.parametrize("content", [image() + b"x", image()[:-1], image(b"QEVM" * (8 << 20))])
def test_unpacks_to_another_length(stow: Stow, target: Path, content: bytes) -> None:
    stored, memory = stow("zstd")
    memory = resealed(stored, memory, PACK(content))
    with pytest.raises(ImageUnloadable, match=f"^{stored} does not unpack to the length"):
        memory_image.materialize(stored, memory, target, xml=None)
    assert_nothing_left(target)


def test_bytes_behind_the_packed_image_are_damage(stow: Stow, target: Path) -> None:
    stored, memory = stow("zstd")
    stored.write_bytes(stored.read_bytes() + b"x")
    longer = msgspec.structs.replace(memory, stored_bytes=memory.stored_bytes + 1)
    with pytest.raises(ImageUnloadable, match="it is damaged"):
        memory_image.materialize(stored, longer, target, xml=None)
    assert_nothing_left(target)


@BOTH
def test_checked_while_other_work_goes_on(stow: Stow, compression: str) -> None:
    stored, memory = stow(compression)
    with memory_image.checking(stored, memory, whole=True) as checked:
        assert memory_image.header_of(stored, memory) == checked() == checked()
    flip(stored, memory.stored_bytes - 1)
    with (
        memory_image.checking(stored, memory, whole=False) as checked,
        pytest.raises(ImageUnloadable, match=f"^{stored} does not match its checksum"),
    ):
        checked()


def test_a_check_that_nobody_waits_for_ends(stow: Stow, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 GiB would be read for an hour."""
    stored, memory = stow("none")
    endless = threading.Event()

    def read(_file: object, _size: int) -> bytes:
        endless.set()
        return b"x"

    monkeypatch.setattr(memory_image._Stored, "read", read)
    with memory_image.checking(stored, memory, whole=True) as checked:
        assert endless.wait(60)
    with pytest.raises(ImageUnloadable, match="does not match its checksum"):
        checked()


# -- page images

OWN_RAM = bytes(range(1, 250)) * 500
PAGED = libvirt_image(OLD, OWN_RAM)


def test_a_whole_page_image(stow: Stow, target: Path) -> None:
    stored, memory = stow("pages", PAGED)
    assert memory.is_paged and not memory.is_loadable
    header = save_image.Header("raw", True, len(OLD) + 1)
    assert memory_image.check(stored, memory) == header
    assert memory_image.xml_of(stored, memory) == OLD
    assert memory_image.materialize(stored, memory, target, xml=None) == target
    assert target.read_bytes() == PAGED
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("xml", [SHORT, LONG], ids=["fits", "head grows"])
def test_a_page_image_with_another_definition(stow: Stow, target: Path, xml: str) -> None:
    stored, memory = stow("pages", PAGED)
    before = [stored.with_name(name).read_bytes() for name in memory.files]
    memory_image.materialize(stored, memory, target, xml=xml)
    assert save_image.xml_of(target) == xml
    assert ram_in(payload(target)) == OWN_RAM
    assert [stored.with_name(name).read_bytes() for name in memory.files] == before


@pytest.mark.parametrize("name", ["memory.pages", "memory.rest"])
def test_a_flipped_bit_of_a_page_image_is_found(stow: Stow, target: Path, name: str) -> None:
    stored, memory = stow("pages", PAGED)
    file = stored.with_name(name)
    length = file.stat().st_size
    for at in (*range(0, length, length // 40), length - 1):
        flip(file, at)
        with pytest.raises(ImageUnloadable, match=f"{name} .*damaged"):
            memory_image.check(stored, memory)
        with pytest.raises(ImageUnloadable):
            memory_image.materialize(stored, memory, target, xml=SHORT)
        with pytest.raises(ImageUnloadable, match=f"{name} .*damaged"):
            memory_image.export(stored, memory, target)
        assert_nothing_left(target)
        flip(file, at)
    memory_image.check(stored, memory)


PAGE_DAMAGE = [*DAMAGE[0:1], *DAMAGE[3:]]


@pytest.mark.parametrize("name", ["memory.pages", "memory.rest"])
@pytest.mark.parametrize(("damage", "says"), PAGE_DAMAGE)
def test_a_damaged_page_image(
    stow: Stow, target: Path, name: str, damage: Callable[[Path], object], says: str
) -> None:
    stored, memory = stow("pages", PAGED)
    file = stored.with_name(name)
    damage(file)
    for use in (
        lambda: memory_image.check(stored, memory),
        lambda: memory_image.xml_of(stored, memory),
        lambda: memory_image.checksums(stored, memory),
        lambda: memory_image.materialize(stored, memory, target, xml=None),
        lambda: memory_image.export(stored, memory, target),
    ):
        with pytest.raises(ImageUnloadable, match=f"^{file} {says}"):
            use()
    assert_nothing_left(target)


@pytest.mark.parametrize("name", ["memory.pages", "memory.rest"])
@pytest.mark.parametrize("length", [0, 500, 1 << 21])
def test_a_page_image_of_another_length(stow: Stow, target: Path, name: str, length: int) -> None:
    stored, memory = stow("pages", PAGED)
    os.truncate(stored.with_name(name), length)
    for use in (
        lambda: memory_image.check(stored, memory),
        lambda: memory_image.materialize(stored, memory, target, xml=None),
    ):
        with pytest.raises(ImageUnloadable, match=r"it is damaged$"):
            use()
    assert_nothing_left(target)


@pytest.mark.parametrize("stored_as", ["none", "zstd", "pages"])
def test_checksums_are_those_of_sha256sum(stow: Stow, stored_as: str) -> None:
    stored, memory = stow(stored_as, PAGED)
    sums = memory_image.checksums(stored, memory)
    contents = {name: stored.with_name(name).read_bytes() for name in memory.files}
    assert sums == {name: hashlib.sha256(each).hexdigest() for name, each in contents.items()}


def test_checksums_are_not_told_of_damaged_pages(stow: Stow) -> None:
    stored, memory = stow("pages", PAGED)
    flip(stored, 5000)
    with pytest.raises(ImageUnloadable, match=r"^memory\.pages of .* does not match its checksum"):
        memory_image.checksums(stored, memory)


# -- exported


ANY = pytest.mark.parametrize("stored_as", ["none", "zstd", "pages"])


@ANY
def test_exported(stow: Stow, target: Path, stored_as: str) -> None:
    stored, memory = stow(stored_as, PAGED)
    memory_image.export(stored, memory, target)
    assert target.read_bytes() == PAGED
    assert target.stat().st_mode & 0o777 == 0o600
    assert target.stat().st_nlink == 1
    assert os.listdir(target.parent) == ["memory.img"]


@ANY
@pytest.mark.parametrize("kind", ["file", "symlink", "directory", "appears meanwhile"])
@pytest.mark.parametrize("links", [True, False])
def test_nothing_is_exported_over(
    stow: Stow,
    target: Path,
    stored_as: str,
    kind: str,
    links: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def link(source: Path, to: Path, **_: object) -> None:
        if kind == "appears meanwhile":
            to.write_bytes(b"precious")
        if links or source.name == "dump":
            real_link(source, to)
        raise OSError(errno.EPERM, "no hard links")

    stored, memory = stow(stored_as, PAGED)
    real_link = os.link
    monkeypatch.setattr(os, "link", link)
    if kind == "file":
        target.write_bytes(b"precious")
    elif kind == "symlink":
        target.symlink_to(target.with_name("nowhere"))
    elif kind == "directory":
        target.mkdir()
    with pytest.raises(OSError, match=r"exists|no hard links"):
        memory_image.export(stored, memory, target)
    assert os.listdir(target.parent) == ["memory.img"]
    assert not target.is_file() or target.read_bytes() == b"precious"


def test_exported_where_files_have_one_name(
    stow: Stow, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    stored, memory = stow("pages", PAGED)
    monkeypatch.setattr(os, "link", refuse)
    memory_image.export(stored, memory, target)
    assert os.listdir(target.parent) == ["memory.img"]
    assert target.read_bytes() == PAGED


def test_a_damaged_plain_image_is_not_exported(stow: Stow, target: Path) -> None:
    stored, memory = stow("none")
    flip(stored, len(image()) - 5)
    with pytest.raises(ImageUnloadable, match="does not match its checksum"):
        memory_image.export(stored, memory, target)
    assert_nothing_left(target)


@ANY
@pytest.mark.parametrize("with_xml", [True, False])
def test_each_image_is_checked_once(
    stow: Stow, target: Path, stored_as: str, with_xml: bool
) -> None:
    """Before it is made loadable, or meanwhile; by whom, the check beforehand knows."""
    stored, memory = stow(stored_as, PAGED)
    flip(stored, stored.stat().st_size // 2)
    with pytest.raises(ImageUnloadable, match="damaged"):
        memory_image.check_before(stored, memory)
        memory_image.materialize(stored, memory, target, xml=OLD if with_xml else None)
    assert_nothing_left(target)


def test_pages_are_not_read_beforehand(stow: Stow, target: Path) -> None:
    stored, memory = stow("pages", PAGED)
    rest = stored.with_name(memory.rest_file)
    with stored.open("r+b") as pages:
        pages.write(b"?")
    assert memory_image.check_before(stored, memory) == memory_image.header_of(stored, memory)
    flip(rest, rest.stat().st_size - 1)
    with pytest.raises(ImageUnloadable, match=r"^memory\.rest of .* does not match its checksum"):
        memory_image.check_before(stored, memory)


# -- what it takes


@ANY
def test_what_it_takes(stow: Stow, stored_as: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, memory = stow(stored_as, PAGED)
    files = [stored.with_name(name) for name in memory.files]
    taken = sum(file.stat().st_blocks * 512 for file in files)
    monkeypatch.setattr(memory_image, "on_disk", lambda _file: OnDisk(3, 5))
    count = len(files)
    assert memory_image.usage(stored, memory) == RamUsage(taken, 3 * count, 5 * count)
    assert memory_image.usage(stored, memory, shares=False) == RamUsage(taken, None, None)
    monkeypatch.setattr(memory_image, "on_disk", lambda _file: None)
    assert memory_image.usage(stored, memory) == RamUsage(taken, None, None)
    files[-1].unlink()
    assert memory_image.usage(stored, memory) is None
