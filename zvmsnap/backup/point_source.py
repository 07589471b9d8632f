"""The disks of a restore point, made readable: by the snapshots of their datasets, nothing else.

| dataset                  | read in                                                               |
|--------------------------|-----------------------------------------------------------------------|
| filesystem, mounted      | `.zfs/snapshot`                                                       |
| filesystem, not mounted  | a clone of the snapshot, below /var/lib/zvmsnap/clones                |
| volume                   | a clone of the snapshot, without devices of its partitions            |

Clones are read-only, bear a mark, and go when the work is done; after a crash `zvmsnap recover`
destroys them. The guest's owner may have written anything into an image. So what its header names
counts as it was in the snapshot; outside of the point's datasets only what the guest's definition
names, too, is read.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from zvmsnap.archive import images
from zvmsnap.archive.images import Image
from zvmsnap.archive.manifest import Origin
from zvmsnap.backup.work import PROPERTY, WorkWriter
from zvmsnap.clone import own_places
from zvmsnap.clone.destroy import destroy_dataset
from zvmsnap.clone.own_places import OwnPlaces
from zvmsnap.common.errors import BackupImpossible
from zvmsnap.points import locate
from zvmsnap.points.definition import definition_of
from zvmsnap.points.liveness import Liveness, guids_of
from zvmsnap.points.manifest import Disk
from zvmsnap.points.next_start import mountpoints_of
from zvmsnap.points.point import RestorePoint
from zvmsnap.virt import domain_xml
from zvmsnap.zfs import dataset_swap, mounts, volume, zfs
from zvmsnap.zfs.types import Dataset, Snapshot

_GETVERSION = 0x8008_7601  # FS_IOC_GETVERSION, linux/fs.h
_LONG = struct.Struct("=q")


@dataclass(frozen=True)
class SourceDisk:
    """A disk as a snapshot has it: where it is read, and which content that is."""

    image: Image
    origin: Origin
    snapshot: Snapshot
    path: str  # where its file is seen; "" if its image is not raw, or it is a part of a volume


@contextmanager
def opened(
    point: RestorePoint, targets: frozenset[str], writer: WorkWriter
) -> Iterator[dict[str, SourceDisk]]:
    """Those disks of a point that have these targets, as long as this lasts.

    Raises SnapshotMissing, BackupImpossible, QemuImgFailed and ZfsFailed.
    """
    liveness = Liveness.by(zfs.all_snapshots(guids_of([point.manifest])))
    snapshots = locate.snapshots_of(point, liveness)
    wanted = {disk.dataset for disk in point.manifest.disks if disk.target in targets}
    view = _View({name: each for name, each in snapshots.items() if name in wanted}, writer)
    try:
        view.make()
        yield view.disks(point, targets)
    finally:
        view.remove()


class _View:
    """Where the snapshots of some datasets can be read."""

    def __init__(self, snapshots: Mapping[str, Snapshot], writer: WorkWriter) -> None:
        self._snapshots = snapshots
        self._writer = writer
        self._folders: dict[str, Path] = {}
        self._devices: dict[str, str] = {}

    def make(self) -> None:
        known = zfs.datasets(sorted({each.dataset for each in self._snapshots.values()}))
        table = mounts.read_table()
        clones = {}
        for number, (name, snapshot) in enumerate(sorted(self._snapshots.items())):
            dataset = known[snapshot.dataset]
            if dataset.locked:
                raise BackupImpossible(
                    f"{dataset.name}: its key is not loaded: zfs load-key {dataset.name}"
                )
            seen = mounts.snapshot_directory(snapshot, table)
            if seen and dataset.type == "filesystem":
                self._folders[name] = seen
            else:
                clones[name] = self._clone_name(snapshot, number)
        self._writer.note(datasets=tuple(clones.values()))
        for name, clone in clones.items():
            self._clone(name, clone, known[self._snapshots[name].dataset])

    def _clone_name(self, snapshot: Snapshot, number: int) -> str:
        parent = snapshot.dataset.rpartition("/")[0] or snapshot.dataset
        return f"{parent}/zvmsnap-backup-{self._writer.work.id[:12]}-{number}"

    def _clone(self, name: str, clone: str, dataset: Dataset) -> None:
        own = {PROPERTY: self._writer.work.id, "zvmsnap:mode": "off", "readonly": "on"}
        if dataset.type == "filesystem":
            folder = own_places.CLONES / clone
            own |= {"mountpoint": str(folder), "canmount": "on"}
            zfs.clone(self._snapshots[name].full_name, clone, own)
            self._folders[name] = folder
            return
        zfs.clone(self._snapshots[name].full_name, clone, own | {"volmode": "dev"})
        volume.wait_device(clone, dataset_swap.DEVICE_TIMEOUT_S)
        self._devices[name] = volume.device_of(clone)

    def remove(self) -> None:
        remove_datasets(self._writer)

    def disks(self, point: RestorePoint, targets: frozenset[str]) -> dict[str, SourceDisk]:
        mountpoints = {
            PurePath(place): self._folders[dataset]
            for dataset, place in self._mountpoints(point)
            if dataset in self._folders
        }
        places = OwnPlaces(mountpoints, {}, None, mounts.read_table())
        named = _named(point)

        def place(path: str) -> str:
            return self._place(path, places, named)

        return {
            disk.target: self._disk(disk, place)
            for disk in point.manifest.disks
            if disk.target in targets
        }

    def _mountpoints(self, point: RestorePoint) -> Iterator[tuple[str, str]]:
        """Where the datasets were mounted when the point was made, and where they are now."""
        yield from mountpoints_of(point.manifest)
        table = mounts.read_table()
        for name, snapshot in self._snapshots.items():
            if now := mounts.mountpoint_of(snapshot.dataset, table):
                yield name, now

    def _disk(self, disk: Disk, place: Callable[[str], str]) -> SourceDisk:
        snapshot = self._snapshots[disk.dataset]
        if not disk.path:
            device = self._devices[disk.dataset]
            image = images.raw_device(device, disk.partition)
            origin = Origin(disk.dataset_guid, snapshot.guid)
            return SourceDisk(image, origin, snapshot, "" if disk.partition else device)
        path = self._inside(self._folders[disk.dataset], disk.path)
        image = images.image_file(path, disk.format, place)
        origin = Origin(disk.dataset_guid, snapshot.guid, *_which_file(path))
        return SourceDisk(image, origin, snapshot, path if disk.format == images.RAW else "")

    def _inside(self, folder: Path, path: str) -> str:
        """A file of the snapshot, at the end of links that do not lead out of it."""
        real = os.path.realpath(folder / path)
        if not PurePath(real).is_relative_to(os.path.realpath(folder)):
            raise BackupImpossible(f"{folder / path}: is a symlink that leads out of its snapshot")
        if not os.path.isfile(real):
            raise BackupImpossible(f"{folder / path}: is not in the snapshot, or is no file")
        return real

    def _place(self, path: str, places: OwnPlaces, named: frozenset[str]) -> str:
        """Where a file is read that the header of an image names."""
        if ":" in path.partition("/")[0]:
            raise BackupImpossible(f"{path}: an image names that, which is no path: not read")
        folders = {*self._folders.values()}
        own = path if any(PurePath(path).is_relative_to(each) for each in folders) else None
        own = own or places.of(path)
        if own is not None:
            folder = next(each for each in folders if PurePath(own).is_relative_to(each))
            return self._inside(folder, str(PurePath(own).relative_to(folder)))
        if os.path.realpath(path) not in named:
            raise BackupImpossible(
                f"{path}: an image names it, but the guest's definition does not, and it is in no "
                "dataset of the point: not read"
            )
        return path


def remove_datasets(writer: WorkWriter) -> None:
    """Destroy those datasets of a work that bear its mark. Raises ZfsFailed."""
    if not writer.work.datasets:
        return
    marks = zfs.marked(PROPERTY)
    for name in reversed(writer.work.datasets):
        if marks.get(name) == writer.work.id:
            destroy_dataset(name, with_snapshots=True)
    for name in writer.work.datasets:
        with suppress(OSError):
            (own_places.CLONES / name).rmdir()
    writer.note(datasets=())


def _named(point: RestorePoint) -> frozenset[str]:
    """The images that the definitions of a point name below its disks."""
    return frozenset(
        os.path.realpath(path)
        for live in (True, False)
        for disk in domain_xml.parse(definition_of(point, live=live)).disks
        for path in disk.chain
        if path.startswith("/")
    )


def _which_file(path: str) -> tuple[int, int]:
    """Its number, and by what it is told from an earlier one of that: 0 if it cannot be told."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        number = os.fstat(descriptor).st_ino
        answer = fcntl.ioctl(descriptor, _GETVERSION, bytes(_LONG.size))
        return number, int.from_bytes(answer[:4], "little")
    except OSError:
        return number, 0
    finally:
        os.close(descriptor)
