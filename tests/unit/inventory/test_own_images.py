import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.inventory.test_qcow2 import image
from zvmsnap.common.errors import WrongDisk
from zvmsnap.inventory.own_images import OwnImages

Check = Callable[[], None]


def definition(path: Path, image_format: str = "qcow2", *, more: str = "") -> str:
    return (
        f"<domain><devices><disk type='file'><driver type='{image_format}'/>"
        f"<source file='{path}'/>{more}<target dev='vda'/></disk></devices></domain>"
    )


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """The mountpoint of the guest's dataset, beside a file of the host."""
    (tmp_path / "shadow").write_bytes(b"secrets")
    top = tmp_path / "top"
    top.mkdir()
    return top


def check(top: Path, image_format: str = "qcow2", *, more: str = "") -> None:
    OwnImages([top], ["/dev/zvol/tank/web"], []).check(
        definition(top / "vda", image_format, more=more)
    )


def test_images_of_its_own(top: Path) -> None:
    (top / "vda").write_bytes(image(b"base"))
    (top / "base").write_bytes(image(bytes(top / "deeper")))
    (top / "deeper").write_bytes(b"raw")
    check(top)


def test_what_the_guest_wrote_into_a_raw_backing_file_names_nothing(top: Path) -> None:
    (top / "vda").write_bytes(image(b"base", backing_format=b"raw"))
    (top / "base").write_bytes(image(b"/etc/shadow"))
    check(top)
    (top / "base").write_bytes(image(b"/etc/shadow")[:30])
    check(top)


def test_a_backing_file_of_another_format_is_refused_with_the_reason(top: Path) -> None:
    of_format(b"vmdk")(top)
    with pytest.raises(WrongDisk, match="is on base, of format vmdk, which may name"):
        check(top)
    of_format(b"")(top)
    with pytest.raises(WrongDisk, match="is on base, of no format that it says, which may name"):
        check(top)


def test_what_the_guest_wrote_into_a_raw_image_names_nothing(top: Path) -> None:
    """QEMU does not look for it either."""
    (top / "vda").write_bytes(image(b"/etc/shadow"))
    check(top, "raw")
    with pytest.raises(WrongDisk):
        check(top, "qcow2")


def test_an_image_that_is_missing_is_none_of_this(top: Path) -> None:
    check(top)


def link(top: Path) -> None:
    (top / "vda").symlink_to(top.parent / "shadow")


def link_inside(top: Path) -> None:
    (top / "other").write_bytes(b"")
    (top / "vda").symlink_to("other")


def fifo(top: Path) -> None:
    os.mkfifo(top / "vda")


def backing(name: bytes) -> Callable[[Path], None]:
    def make(top: Path) -> None:
        (top / "vda").write_bytes(image(name))

    make.__name__ = name.decode()
    return make


def data_file(top: Path) -> None:
    (top / "vda").write_bytes(image(data_file=b"/etc/shadow"))


def deeper(top: Path) -> None:
    (top / "vda").write_bytes(image(b"base"))
    (top / "base").write_bytes(image(b"../shadow"))


def linked_base(top: Path) -> None:
    (top / "vda").write_bytes(image(b"base"))
    (top / "base").symlink_to(top.parent / "shadow")


def of_format(said: bytes) -> Callable[[Path], None]:
    def make(top: Path) -> None:
        (top / "vda").write_bytes(image(b"base", backing_format=said))
        (top / "base").write_bytes(b'# Disk DescriptorFile\nRW 8 FLAT "/etc/shadow" 0\n')

    make.__name__ = f"of format {said.decode()}"
    return make


def circle(top: Path) -> None:
    (top / "vda").write_bytes(image(b"vda"))


def torn(top: Path) -> None:
    (top / "vda").write_bytes(image(b"base")[:30])


@pytest.mark.parametrize(
    "make",
    [
        *map(of_format, (b"", b"vmdk")),
        *(link, link_inside, fifo, data_file, deeper, linked_base, circle, torn),
        *map(backing, (b"/etc/shadow", b"../shadow", b"nbd://h/x", b'json:{"driver":"nbd"}', b"/")),
    ],
)
def test_leads_out(top: Path, make: Callable[[Path], None]) -> None:
    make(top)
    with pytest.raises(WrongDisk) as raised:
        check(top)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices")
def test_a_device_that_came_with_the_dataset(top: Path) -> None:
    os.mknod(top / "vda", 0o600 | 0o060000, os.makedev(7, 0))
    with pytest.raises(WrongDisk, match="is no regular file"):
        check(top, "raw")


def test_an_image_that_the_definition_names_below_it(top: Path) -> None:
    (top / "vda").write_bytes(b"")
    (top / "base").symlink_to(top.parent / "shadow")
    below = (
        f"<backingStore type='file'><format type='raw'/><source file='{top}/base'/></backingStore>"
    )
    with pytest.raises(WrongDisk, match="base"):
        check(top, more=below)


VOLUME = (
    "<domain>{more}<devices><disk type='block'><source dev='{path}'/><target dev='vda'/></disk>"
    "</devices></domain>"
)


@pytest.mark.parametrize("path", ["/dev/zvol/tank/web", "/dev/zvol/tank/web-part2", "/dev/known"])
def test_volumes_of_its_own(path: str) -> None:
    own = OwnImages([], ["/dev/zvol/tank/web"], ["/dev/known"])
    own.check(VOLUME.format(path=path, more=""))


@pytest.mark.parametrize("name", ["web-part1", "my-parts", "-partner/web"])
def test_volumes_with_part_in_their_name(name: str) -> None:
    device = f"/dev/zvol/tank/{name}"
    for path in (device, f"{device}-part2"):
        OwnImages([], [device], []).check(VOLUME.format(path=path, more=""))


@pytest.mark.parametrize("tail", ["-parts", "-partner/web", "-part1/web", "-part"])
def test_what_only_looks_like_a_partition(tail: str) -> None:
    xml = VOLUME.format(path=f"/dev/zvol/tank/web{tail}", more="")
    with pytest.raises(WrongDisk, match="no image of the guest's own"):
        OwnImages([], ["/dev/zvol/tank/web"], []).check(xml)


def test_another_volume() -> None:
    xml = VOLUME.format(path="/dev/zvol/tank/db", more="")
    with pytest.raises(WrongDisk, match="no image of the guest's own"):
        OwnImages([], ["/dev/zvol/tank/web"], []).check(xml)
    # The plan has judged it.
    OwnImages([], ["/dev/zvol/tank/web"]).check(xml)


@pytest.mark.parametrize(
    "variables",
    ["<nvram template='/x'>{}/vars</nvram>", "<varstore path='{}/vars' template='/x'/>"],
)
def test_firmware_in_the_dataset_leads_nowhere(top: Path, variables: str) -> None:
    xml = f"<domain><os>{variables.format(top)}</os></domain>"
    own = OwnImages([top], [])
    own.check(xml)
    (top / "vars").write_bytes(b"")
    own.check(xml)
    (top / "vars").unlink()
    (top / "vars").symlink_to(top.parent / "shadow")
    with pytest.raises(WrongDisk, match="vars is a symlink"):
        own.check(xml)


def test_a_tpm_in_the_dataset_leads_nowhere(top: Path) -> None:
    source = f"<source type='dir' path='{top}/tpm'/>"
    tpm = f"<tpm><backend type='emulator'>{source}</backend></tpm>"
    xml = f"<domain><devices>{tpm}</devices></domain>"
    own = OwnImages([top], [])
    own.check(xml)
    (top / "tpm").symlink_to(top.parent)
    with pytest.raises(WrongDisk, match="tpm is a symlink"):
        own.check(xml)
