"""How the RAM image of a point is stored: as pages, or as libvirt wrote it; after any death."""

import errno
import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import zstandard

from tests.fakes.fixtures import UUID
from tests.fakes.images import libvirt_image
from zvmsnap.common import log
from zvmsnap.disks import staging
from zvmsnap.finalize import store as store_module
from zvmsnap.finalize.store import RamStore
from zvmsnap.points import memory_image, vault
from zvmsnap.points.manifest import Manifest, Memory
from zvmsnap.points.point import RestorePoint
from zvmsnap.ram.take_apart import take_apart

Build = Callable[..., Manifest]

# Nothing that QEMU would write.
CONTENT = b"LibvirtQemudSave" + bytes(range(256)) * 5000
PAGED = libvirt_image("<domain/>", b"all that is in its RAM")
ODD = PAGED.replace(b"pc-q35", b"s390-q")
STOWED: Mapping[int | None, tuple[str, str]] = {
    None: ("memory.img", "none"),
    1: ("memory.img.zst", "zstd"),
    19: ("memory.img.zst", "zstd"),
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "staged.img"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    return vault.incoming(tmp_path / "vault", "web", "c1")


def stow(
    image: Path, incoming: Path, level: int | None = None, kind: str = "raw", *, pages: bool = True
) -> Memory:
    ram = RamStore(incoming, "web", UUID, pages, level, log.about("web", "tank/web"))
    return ram.store(image, kind)


def plain_of(directory: Path, memory: Memory) -> bytes:
    stored = (directory / memory.file).read_bytes()
    assert hashlib.sha256(stored).hexdigest() == memory.sha256
    assert len(stored) == memory.stored_bytes
    if memory.compression == "none":
        return stored
    return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(stored)).read()


def exported(directory: Path, memory: Memory) -> bytes:
    target = directory.parent.parent.parent / "exported.img"
    target.unlink(missing_ok=True)
    memory_image.export(directory / memory.file, memory, target)
    return target.read_bytes()


def no_links(source: Path, target: Path, *, link: Callable[..., None] = os.link, **_: bool) -> None:
    if source.name == "staged.img":
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    link(source, target)


@pytest.fixture
def two_file_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Staging and vault are on two file systems."""
    monkeypatch.setattr(os, "link", no_links)


# -- as libvirt wrote it


@pytest.mark.parametrize("level", STOWED)
def test_stowed_on_the_same_file_system(image: Path, incoming: Path, level: int | None) -> None:
    memory = stow(image, incoming, level)
    assert (memory.file, memory.compression) == STOWED[level]
    assert (memory.format, memory.image_bytes) == ("raw", len(CONTENT))
    assert plain_of(incoming, memory) == CONTENT
    assert os.path.samefile(image, incoming / memory.file) is (level is None)
    assert image.read_bytes() == CONTENT


@pytest.mark.parametrize("level", STOWED)
@pytest.mark.usefixtures("two_file_systems")
def test_stowed_across_file_systems(image: Path, incoming: Path, level: int | None) -> None:
    memory = stow(image, incoming, level)
    assert (memory.file, memory.compression) == STOWED[level]
    assert (memory.image_bytes, plain_of(incoming, memory)) == (len(CONTENT), CONTENT)
    assert image.exists()
    assert (incoming / memory.file).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("level", STOWED)
@pytest.mark.usefixtures("two_file_systems")
def test_stowing_interrupted_and_repeated(
    image: Path, incoming: Path, level: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def power_cut(directory: Path) -> None:
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "sync_dir", power_cut)
        with pytest.raises(OSError, match="power cut"):
            stow(image, incoming, level)
    half = incoming / STOWED[level][0]
    half.write_bytes(half.read_bytes()[:100] + b"garbage" * len(CONTENT))
    assert plain_of(incoming, stow(image, incoming, level)) == CONTENT


@pytest.mark.parametrize("pages", [True, False])
def test_moved_by_an_older_version(image: Path, incoming: Path, pages: bool) -> None:
    image.rename(incoming / "memory.img")
    for level in STOWED:
        memory = stow(image, incoming, level, pages=pages)
        assert (memory.file, memory.why_plain) == (
            "memory.img",
            "a run of an older version had moved it into the vault",
        )
        assert plain_of(incoming, memory) == CONTENT


@pytest.mark.parametrize("left", [None, "memory.pages", "memory.img.zst"])
def test_no_image_at_all(image: Path, incoming: Path, left: str | None) -> None:
    image.unlink()
    if left:
        (incoming / left).write_bytes(b"half")
    with pytest.raises(FileNotFoundError):
        stow(image, incoming)


@pytest.mark.parametrize("level", [None, 1])
@pytest.mark.parametrize("pages", [True, False])
@pytest.mark.parametrize("links", [True, False])
def test_no_symlink_is_written_through(
    tmp_path: Path,
    image: Path,
    incoming: Path,
    level: int | None,
    pages: bool,
    links: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("memory.img", "memory.img.zst", "memory.pages", "memory.rest"):
        (incoming / name).symlink_to(victim)
    memory = stow(image, incoming, level, pages=pages)
    assert plain_of(incoming, memory) == CONTENT
    assert victim.read_text() == "precious"
    assert os.listdir(incoming) == [memory.file]


# -- as pages


def test_pages(image: Path, incoming: Path) -> None:
    image.write_bytes(PAGED)
    memory = stow(image, incoming, 3)
    assert (memory.files, memory.compression) == (("memory.pages", "memory.rest"), "none")
    assert (memory.image_bytes, memory.why_plain) == (len(PAGED), "")
    rest_bytes = (incoming / "memory.rest").stat().st_size
    assert memory.stored_bytes == (16 << 10) + rest_bytes
    assert sorted(os.listdir(incoming)) == ["memory.pages", "memory.rest"]
    assert {path.stat().st_mode & 0o777 for path in incoming.iterdir()} == {0o600}
    assert image.read_bytes() == PAGED
    assert exported(incoming, memory) == PAGED


@pytest.mark.parametrize(
    ("pages", "kind", "why"),
    [
        pytest.param(False, "raw", "image.pages is false", id="not wanted"),
        pytest.param(True, "zstd", "libvirt has compressed it: zstd", id="compressed by libvirt"),
        pytest.param(False, "gzip", "image.pages is false", id="neither"),
    ],
)
def test_no_pages(image: Path, incoming: Path, pages: bool, kind: str, why: str) -> None:
    image.write_bytes(PAGED)
    memory = stow(image, incoming, None, kind, pages=pages)
    assert (memory.file, memory.format, memory.why_plain) == ("memory.img", kind, why)
    assert plain_of(incoming, memory) == PAGED


@pytest.mark.parametrize("level", STOWED)
def test_pages_that_are_not_understood(
    image: Path, incoming: Path, level: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    image.write_bytes(ODD)
    with caplog.at_level(logging.INFO, "zvmsnap"):
        memory = stow(image, incoming, level)
    assert (memory.file, memory.compression) == STOWED[level]
    assert memory.why_plain == "its machine type 's390-q-10.0' is none of pc-*"
    assert (
        f"web (tank/web): its RAM is stored as libvirt wrote it: {memory.why_plain}" in caplog.text
    )
    assert plain_of(incoming, memory) == ODD
    assert os.listdir(incoming) == [memory.file]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "[Errno 28] No space left on device"),
        (OSError(errno.EIO, "Input/output error"), "[Errno 5] Input/output error"),
        (ValueError("a fault\nof ours"), "ValueError at test_store.py:"),
    ],
)
@pytest.mark.parametrize("level", [None, 3])
def test_whatever_is_wrong_with_its_pages_the_image_is_stored(
    image: Path,
    incoming: Path,
    level: int | None,
    error: Exception,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(store_module, "take_apart", fail)
    image.write_bytes(PAGED)
    memory = stow(image, incoming, level)
    assert memory.why_plain.startswith(why)
    assert "\n" not in memory.why_plain
    assert plain_of(incoming, memory) == PAGED


@pytest.mark.parametrize("with_staging", [True, False])
def test_pages_take_no_room_from_overlays(
    image: Path, incoming: Path, with_staging: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_stat = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        status = real_stat(path, **options)
        elsewhere = path == image and not with_staging
        return os.stat_result([*status[:2], status.st_dev + elsewhere, *status[3:10]])

    monkeypatch.setattr(Path, "stat", stat)
    image.write_bytes(PAGED)
    own = log.about("web", "tank/web")
    ram = RamStore(incoming, "web", UUID, True, None, own, spare_bytes=256 << 20)
    for free_bytes, is_paged in ((256 << 20, not with_staging), (257 << 20, True)):
        monkeypatch.setattr(staging, "free_bytes", lambda _directory, free=free_bytes: free)
        memory = ram.store(image, "raw")
        assert memory.is_paged is is_paged
        assert memory.why_plain.startswith("" if is_paged else "the file system of staging and")


class PowerCut(BaseException):
    """The process is gone, at once."""


@contextmanager
def dying_at(number: int, patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Die before the act of that number: an act changes a directory, or makes a file durable."""
    acts: list[str] = []

    def watched(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def act(*arguments: object, **options: object) -> object:
            acts.append(name)
            if len(acts) > number:
                raise PowerCut
            return real(*arguments, **options)

        return act

    with patch.context() as each:
        for name in ("open", "unlink", "link", "rename", "fsync", "pwrite", "ftruncate"):
            each.setattr(os, name, watched(name, getattr(os, name)))
        yield acts


@pytest.mark.parametrize("content", [PAGED, ODD], ids=["pages", "not understood"])
@pytest.mark.parametrize("level", [None, 3])
@pytest.mark.parametrize("links", [True, False])
def test_death_at_any_instant(
    image: Path,
    incoming: Path,
    content: bytes,
    level: int | None,
    links: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    image.write_bytes(content)
    with dying_at(10_000, monkeypatch) as acts:
        whole = stow(image, incoming, level)
    assert len(acts) > 5
    for number in range(len(acts)):
        with dying_at(number, monkeypatch), pytest.raises(PowerCut):
            stow(image, incoming, level)
        assert image.read_bytes() == content
        assert stow(image, incoming, level) == whole
        assert sorted(os.listdir(incoming)) == sorted(whole.files)
        assert exported(incoming, whole) == content


# -- the base of a page image


def put(vault_dir: Path, manifest: Manifest, ram: bytes, *, pages: bool = True) -> RestorePoint:
    """A point with that RAM, published."""
    directory = vault.incoming(vault_dir, manifest.domain, manifest.capture)
    (directory / "domain.xml").write_text("<domain/>")
    dump = directory / "dump"
    dump.write_bytes(libvirt_image("<domain/>", ram))
    memory = stow(dump, directory, pages=pages)
    dump.unlink()
    return vault.publish(directory, msgspec.structs.replace(manifest, memory=memory))


def base_of(incoming: Path, uuid: str = UUID) -> str | None:
    ram = RamStore(incoming, "web", uuid, True, None, log.about("web", "tank/web"))
    with ram._base() as base:
        return None if base is None else os.readlink(f"/proc/self/fd/{base}")


def test_the_base_is_the_guests_newest_page_image(
    tmp_path: Path, incoming: Path, manifest: Build
) -> None:
    vault_dir = tmp_path / "vault"
    assert base_of(incoming) is None
    other = "c0ffee00-0000-4000-8000-000000000009"
    put(vault_dir, manifest(run="of another", uuid=other, capture=f"{other}.00000001"), b"x")
    assert base_of(incoming) is None
    for number in (1, 2, 3):
        own = manifest(run=f"r{number}", capture=f"{UUID}.0000000{number}")
        put(vault_dir, own, b"x", pages=number < 3)
    assert base_of(incoming) == str(vault_dir / "web" / "r2" / "memory.pages")
    assert base_of(incoming, other) == str(vault_dir / "web" / "of another" / "memory.pages")


def test_the_base_of_a_guest_that_was_renamed(
    tmp_path: Path, incoming: Path, manifest: Build
) -> None:
    """It has its uuid still, and its points the name that it had."""
    vault_dir = tmp_path / "vault"
    other = "c0ffee00-0000-4000-8000-000000000009"
    for number in (1, 2):
        was = manifest(domain="old", run=f"r{number}", capture=f"{UUID}.0000000{number}")
        put(vault_dir, was, b"x")
    successor = manifest(domain="old", run="r3", uuid=other, capture=f"{other}.00000001")
    put(vault_dir, successor, b"x")
    (vault_dir / "linked").symlink_to(vault_dir / "old")
    assert base_of(incoming) == str(vault_dir / "old" / "r2" / "memory.pages")
    put(vault_dir, manifest(run="r4", capture=f"{UUID}.00000004"), b"x")
    assert base_of(incoming) == str(vault_dir / "web" / "r4" / "memory.pages")


@pytest.mark.parametrize("damage", ["gone", "symlink", "pipe", "empty", "garbage"])
def test_a_base_that_is_damaged(
    tmp_path: Path, image: Path, incoming: Path, manifest: Build, damage: str
) -> None:
    pages = put(tmp_path / "vault", manifest(), b"older").directory / "memory.pages"
    content = pages.read_bytes()
    if damage in ("empty", "garbage"):
        pages.write_bytes(b"" if damage == "empty" else os.urandom(len(content)))
    else:
        pages.rename(tmp_path / "elsewhere")
    if damage == "symlink":
        pages.symlink_to(tmp_path / "elsewhere")
    if damage == "pipe":
        os.mkfifo(pages)
    image.write_bytes(PAGED)
    memory = stow(image, incoming)
    assert memory.is_paged
    assert exported(incoming, memory) == PAGED


def test_a_base_that_cannot_be_read(
    tmp_path: Path,
    image: Path,
    incoming: Path,
    manifest: Build,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = take_apart

    def fail(image: Path, pages: Path, rest: Path, *, base: int | None = None) -> object:
        if base is not None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(image, pages, rest)

    put(tmp_path / "vault", manifest(), b"older")
    monkeypatch.setattr(store_module, "take_apart", fail)
    image.write_bytes(PAGED)
    with caplog.at_level(logging.WARNING):
        memory = stow(image, incoming)
    assert memory.is_paged and memory.why_plain == ""
    assert "nothing is shared with the last RAM image: [Errno 5]" in caplog.text
    assert exported(incoming, memory) == PAGED
