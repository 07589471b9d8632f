"""The disks of the definition for the next start, and where the point has their images.

The definition that the RAM belongs to, and the one for the next start, are two: disks may be
attached to one alone, detached from it, or be on other images (`virsh attach-disk --config`). The
manifest's disks are those of the first. Of the second:

| its image                                                     | is in the point            |
|---------------------------------------------------------------|----------------------------|
| is that of a disk of the first one, whatever their targets    | as that disk               |
| is a volume, or a partition, of the point                     | as that one                |
| was below the mountpoint of a dataset of the point            | there, if the file exists  |
| any other                                                     | not                        |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath

import msgspec

from zvmsnap.inventory.beyond import is_in
from zvmsnap.inventory.resource import Resource
from zvmsnap.points.definition import definition_of, own_firmware
from zvmsnap.points.manifest import Disk, Manifest
from zvmsnap.points.point import RestorePoint
from zvmsnap.virt import domain_xml
from zvmsnap.zfs import volume


@dataclass(frozen=True)
class NextStart:
    """The writable disks: `disks` of the point's datasets, as in a manifest, and those `outside`.

    A file of `disks` may be missing in the snapshot.
    """

    disks: tuple[Disk, ...]
    outside: tuple[domain_xml.Disk, ...]

    def is_like(self, manifest: Manifest) -> bool:
        """Are the disks those of the definition that the RAM belongs to?"""
        return not self.outside and {_place(each) for each in self.disks} == {
            _place(each) for each in manifest.disks
        }


def next_start(point: RestorePoint) -> NextStart:
    """Read the definition for the next start. Raises RestoreImpossible."""
    known = _known_images(point)
    mountpoints = dict(_by_mountpoint(point.manifest))
    disks, outside = [], []
    for disk in domain_xml.parse(definition_of(point)).disks:
        if not disk.writable:
            continue
        image = known.get(_image_of(disk)) or _below(disk, mountpoints)
        if image is None:
            outside.append(disk)
            continue
        named = {name: getattr(disk, name) for name in ("target", "type", "format", "source")}
        disks.append(msgspec.structs.replace(image, **named))
    return NextStart(tuple(disks), tuple(outside))


def _known_images(point: RestorePoint) -> dict[object, Disk]:
    """The manifest's disks, by what definitions may call their images."""
    by_target = {disk.target: disk for disk in point.manifest.disks}
    volumes = {
        volume.device_of(disk.dataset, disk.partition): disk
        for disk in point.manifest.disks
        if not disk.path
    }
    return volumes | {
        _image_of(disk): by_target[disk.target]
        for disk in domain_xml.parse(definition_of(point, live=True)).disks
        if disk.target in by_target
    }


def _image_of(disk: domain_xml.Disk) -> object:
    # A disk of a kind that has no path is the same only as itself.
    return disk.volume or disk.source or (disk.type, disk.target)


def owner_by(manifest: Manifest) -> Callable[[Resource], bool]:
    """Says of an image, or of firmware, whether it is in the point or libvirt's for its guest.

    As far as the manifest tells: where the datasets are not mounted yet, or will be others.
    """
    is_firmware = own_firmware(manifest.domain, manifest.uuid)
    directories = [directory for directory, _ in _by_mountpoint(manifest)]
    devices = {
        path
        for disk in manifest.disks
        if not disk.path
        for path in (disk.source, volume.device_of(disk.dataset, disk.partition))
    }

    return is_in(directories, devices, is_firmware)


def mountpoints_of(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """The datasets of the point, and where they were mounted, as paths of files in them tell."""
    disks = ((disk.dataset, disk.source, disk.path) for disk in manifest.disks)
    others = (
        (each.dataset, each.place, each.path) for each in manifest.other_state if not each.why
    )
    for dataset, path, inside in (*disks, *others):
        mountpoint = path.removesuffix(f"/{inside}")
        if inside and mountpoint != path:
            yield dataset, mountpoint or "/"


def _by_mountpoint(manifest: Manifest) -> Iterator[tuple[PurePath, Disk]]:
    """Where datasets of the point were mounted, as the path of a disk in each tells."""
    for disk in manifest.disks:
        mountpoint = disk.source.removesuffix(f"/{disk.path}")
        if disk.path and mountpoint != disk.source:
            yield PurePath(mountpoint or "/"), disk


def _below(disk: domain_xml.Disk, mountpoints: Mapping[PurePath, Disk]) -> Disk | None:
    path = PurePath(os.path.normpath(disk.source)) if disk.type == "file" else PurePath()
    for directory in path.parents:
        if beside := mountpoints.get(directory):
            return msgspec.structs.replace(beside, path=str(path.relative_to(directory)))
    return None


def _place(disk: Disk) -> Disk:
    return msgspec.structs.replace(disk, source="")
