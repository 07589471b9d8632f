import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.guest import UUID, FakeGuest
from tests.fakes.images import make_base, make_overlay, write
from zvmsnap.common.errors import LibvirtFailed, OverlayHeld
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


CAPTURE = f"{UUID}.00000001"


@pytest.fixture
def web(tmp_path: Path) -> FakeGuest:
    (tmp_path / CAPTURE).mkdir()
    return FakeGuest("web", UUID, vda=make_base(tmp_path / "vda.raw"))


def opened(web: FakeGuest, directory: Path, base: str = "", target: str = "vda") -> Path:
    overlay = directory / CAPTURE / f"{target}.zvmsnap.qcow2"
    overlay.touch()
    assert web.qemu
    web.qemu.nodes.open(overlay, base)
    return overlay


@pytest.mark.parametrize("base", ["", "/dev/zvol/tank/web"])
def test_qemu_closes_what_no_disk_uses(web: FakeGuest, tmp_path: Path, base: str) -> None:
    both = [opened(web, tmp_path, base, target) for target in ("vda", "vdb")]
    assert unused_overlay.close_in_qemu(web) == list(map(str, both))
    assert web.qemu and web.qemu.nodes.paths == []
    assert unused_overlay.close_in_qemu(web) == []


@pytest.mark.parametrize("to", ["", "kept.vda.zvmsnap.qcow2.1"])
def test_qemu_closes_what_was_moved_or_removed(web: FakeGuest, tmp_path: Path, to: str) -> None:
    overlay = opened(web, tmp_path)
    if to:
        overlay.rename(tmp_path / to)
    else:
        overlay.unlink()
    assert len(unused_overlay.close_in_qemu(web)) == 1
    assert web.qemu and web.qemu.nodes.paths == []


def test_qemu_is_not_asked_for_what_a_disk_uses(web: FakeGuest, tmp_path: Path) -> None:
    overlay = web.on_overlay("vda", tmp_path / CAPTURE / "vda.zvmsnap.qcow2")
    assert web.qemu
    web.qemu.nodes.open(overlay, web.below[str(overlay)])
    assert unused_overlay.close_in_qemu(web) == web.asked == []
    # Somebody else's overlay is on it, and in its name QEMU has that of ours, too.
    theirs = web.on_overlay("vda", tmp_path / "theirs.qcow2", overlay)
    web.qemu.nodes.open(theirs, str(overlay))
    assert unused_overlay.close_in_qemu(web) == web.asked == []


def test_qemu_refuses_what_it_uses_though_libvirt_does_not_know(
    web: FakeGuest, tmp_path: Path
) -> None:
    """libvirtd was killed between QEMU's switch and its note of that: QEMU writes to it."""
    overlay = opened(web, tmp_path, web.live["vda"])
    opened(web, tmp_path, target="vdb")
    assert web.qemu
    web.qemu.nodes.in_use = {"libvirt-1-format"}
    with pytest.raises(OverlayHeld, match=r"-format is in use.*shut down and started again"):
        unused_overlay.close_in_qemu(web)
    assert web.qemu.nodes.paths == [str(overlay)]


def test_qemu_that_cannot_be_asked(web: FakeGuest, tmp_path: Path) -> None:
    opened(web, tmp_path)

    def fail() -> None:
        raise LibvirtFailed("web: QEMU's query-named-block-nodes: no answer")

    web.at["ask_qemu"] = fail
    with pytest.raises(OverlayHeld, match="no answer"):
        unused_overlay.close_in_qemu(web)


def test_guest_that_ends_meanwhile_has_nothing_open(web: FakeGuest, tmp_path: Path) -> None:
    opened(web, tmp_path)
    web.at["ask_qemu"] = web.shut_off
    unused_overlay.close_in_qemu(web)
    assert unused_overlay.close_in_qemu(web) == []


@pytest.mark.parametrize("content", [b"", b"x" * 999])
def test_what_a_person_is_told(overlay: Path, content: bytes) -> None:
    overlay.write_bytes(content)
    with overlay.open("r+b"):
        assert "has it open" in unused_overlay.why_kept(overlay)
    if content:
        assert "it is damaged or no overlay" in unused_overlay.why_kept(overlay)
