"""Looks whether the images of a guest are its own, with all that they name.

For a definition that was made elsewhere, whose datasets come from there, too: an image may be a
symlink, or a device, and name any file of the host as its backing file.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from zvmsnap.common import safe_files
from zvmsnap.common.errors import WrongDisk
from zvmsnap.inventory import qcow2
from zvmsnap.inventory.reader import resources_of
from zvmsnap.inventory.resource import Kind, Resource
from zvmsnap.zfs import volume

_CHAIN_MAX = 200
# A backing file of another format may name any file of the host in its turn.
_BACKING_FORMATS = ("raw", "qcow2")
_FIRMWARE = ("os/nvram", "os/varstore", "devices/tpm/backend/source")
_TEMPLATE = "@template"


@dataclass(frozen=True)
class OwnImages:
    """Where the images of a guest may be: below mountpoints of its datasets, or on its volumes.

    `elsewhere` are images in other places that it may have as well; None: whatever is in other
    places was judged by its path already. `seen_in` says in which directory the content of a
    mountpoint is seen now, if it is not there yet.
    """

    mountpoints: Sequence[Path]
    volumes: Collection[str]
    elsewhere: Collection[str] | None = None
    seen_in: Mapping[Path, Path] = field(default_factory=dict)

    def check(self, xml: str) -> None:
        """Raises WrongDisk for an image, or firmware, that is none of these.

        What is missing is none of this.
        """
        raw = set(_raw_disks(xml))
        for each in resources_of(xml):
            if each.element.startswith("devices/disk/"):
                is_top = each.element.startswith("devices/disk/source")
                self._check_image(each, is_raw=is_top and each.target in raw)
            elif each.element.startswith(_FIRMWARE) and not each.element.endswith(_TEMPLATE):
                self._check_firmware(each)

    def _check_image(self, image: Resource, *, is_raw: bool) -> None:
        if self._is_elsewhere(image):
            return
        if image.kind is Kind.FILE:
            self._check_file(Path(image.place), is_raw=is_raw)
        elif image.kind is Kind.BLOCK and not is_raw:
            _check_volume(image.place)

    def _check_firmware(self, firmware: Resource) -> None:
        path = Path(firmware.place)
        if not self._has(path):
            return
        if firmware.kind is Kind.DIRECTORY:
            # A file in it is neither read nor written to by a symlink: see tpm_state.
            with _told(path), self._opened(path):
                return
        self._check_file(path, is_raw=True)

    def _check_file(self, path: Path, *, is_raw: bool) -> None:
        for _ in range(_CHAIN_MAX):
            named: tuple[str, ...] = ()
            is_on_raw = False
            with _told(path), self._opened(path.parent) as directory:
                descriptor = safe_files.open_file(path.name, directory)
                named, is_on_raw = _named_in(descriptor, path, is_raw=is_raw)
            if not named:
                return
            if len(named) > 1:
                raise WrongDisk(f"{path}: names {' and '.join(named)}: that is too much to follow")
            path, is_raw = _beside(path, named[0]), is_on_raw
        raise WrongDisk(f"{path}: is below more than {_CHAIN_MAX} images")

    @contextmanager
    def _opened(self, directory: Path) -> Iterator[int]:
        """A directory below one of the mountpoints."""
        for top, inside in self.seen_in.items():
            if directory.is_relative_to(top):
                with safe_files.opened(directory.relative_to(top), inside) as descriptor:
                    yield descriptor
                return
        with safe_files.opened_within(directory, self.mountpoints) as descriptor:
            yield descriptor

    def _has(self, path: Path) -> bool:
        return any(path.is_relative_to(top) for top in self.mountpoints)

    def _is_elsewhere(self, image: Resource) -> bool:
        """Is it in no place of the guest's own? Raises WrongDisk if it must not be."""
        if image.kind is Kind.BLOCK:
            is_own = volume.whole_of(image.place, self.volumes) is not None
        else:
            is_own = self._has(Path(image.place))
        if is_own or self.elsewhere is None or image.place in self.elsewhere:
            return not is_own
        raise WrongDisk(f"{image.called}: {image.place} is no image of the guest's own")


def _raw_disks(xml: str) -> Iterator[str]:
    """The targets of disks in which QEMU does not look for names of other images."""
    for disk in ET.fromstring(xml).findall("devices/disk"):
        driver, target = disk.find("driver"), disk.find("target")
        if target is not None and (driver is None or driver.get("type", "raw") == "raw"):
            yield target.get("dev", "")


@contextmanager
def _told(path: str | Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        return
    except OSError as error:
        raise WrongDisk(f"{path}: is none of the guest's own: {error.strerror}") from error


def _beside(path: Path, name: str) -> Path:
    # QEMU takes what has a colon before the first slash for a protocol: "nbd://host".
    if ":" in name.partition("/")[0]:
        raise WrongDisk(f"{path}: is on {name}, which is no file")
    return Path(os.path.normpath(path.parent / name))


def _check_volume(path: str) -> None:
    named: tuple[str, ...] = ()
    with _told(path):
        named, _ = _named_in(safe_files.open_file(os.path.realpath(path), block=True), path)
    if named:
        raise WrongDisk(f"{path}: is on {', '.join(named)}, which may be any file of the host")


def _named_in(
    descriptor: int, path: str | Path, *, is_raw: bool = False
) -> tuple[tuple[str, ...], bool]:
    """What an image names, and whether its backing file is raw; nothing, if the image itself is."""
    with os.fdopen(descriptor, "rb") as image:
        head = b"" if is_raw else image.read(qcow2.HEAD_BYTES)
    try:
        named, backing_format = qcow2.named_in(head), qcow2.backing_format(head)
    except ValueError as error:
        raise WrongDisk(f"{path}: {error}") from error
    if backing_format not in (None, *_BACKING_FORMATS):
        called = f"of format {backing_format}" if backing_format else "of no format that it says"
        raise WrongDisk(f"{path}: is on {named[0]}, {called}, which may name any file of the host")
    return named, backing_format == "raw"
