"""The disks of a restore point, made readable: by the snapshots of their datasets, nothing else.

| dataset                  | read in                                                               |
|--------------------------|-----------------------------------------------------------------------|
| filesystem, mounted      | `.zfs/snapshot`                                                       |
| filesystem, not mounted  | a clone of the snapshot, below /var/lib/zvmsnap/clones                |
| volume                   | a clone of the snapshot, without devices of its partitions            |
| its key is not loaded    | nothing: its disks cannot be read                                     |

The devices of a volume's snapshots would do, but `snapdev` may hide them. Clones are read-only, and
bear the mark of their work: see `temporary.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zvmsnap.archive import images
from zvmsnap.archive.images import Image
from zvmsnap.clone import own_places
from zvmsnap.common import snapshot_name
from zvmsnap.common.errors import DiskUnreadable
from zvmsnap.config import properties
from zvmsnap.config.settings import Config
from zvmsnap.point_disks import temporary
from zvmsnap.point_disks.places import Places, Seen
from zvmsnap.points import locate
from zvmsnap.points.liveness import Liveness, guids_of
from zvmsnap.points.manifest import Disk
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs import dataset_swap, mounts, volume, zfs
from zvmsnap.zfs.types import Snapshot

_OF_CLONES = {properties.MODE: "off", "readonly": "on"}
_OF_VOLUMES = {"volmode": "dev", "snapdev": "hidden"}
_OF_FILESYSTEMS = {"canmount": "on", "setuid": "off", "devices": "off", "exec": "off"}

Note = Callable[[tuple[str, ...]], None]


@dataclass(frozen=True)
class SourceDisk:
    """A disk as a snapshot has it.

    `path` is where its topmost image is seen: a file, or a device. `is_plain`: the disk is what is
    there, byte by byte.
    """

    image: Image
    snapshot: Snapshot
    path: str
    is_plain: bool


class PointDisks:
    """The disks of a point whose snapshots are seen."""

    def __init__(self, seen: Seen, places: Places) -> None:
        self._seen = seen
        self._places = places

    def disk(self, disk: Disk) -> SourceDisk:
        """How one of them is read. Raises DiskUnreadable and QemuImgFailed."""
        if why := self._seen.unseen.get(disk.dataset):
            raise DiskUnreadable(why)
        snapshot = self._seen.snapshots[disk.dataset]
        if disk.path:
            path = self._places.file(disk.dataset, disk.path)
        else:
            path = volume.device_of(self._seen.volumes[disk.dataset])
        if disk.partition:
            return SourceDisk(self._partition(disk, path), snapshot, path, is_plain=False)
        image = images.image_file(path, disk.format, self._places.backing, self._places.data_file)
        return SourceDisk(image, snapshot, path, is_plain=disk.format == images.RAW)

    def _partition(self, disk: Disk, device: str) -> Image:
        if disk.format != images.RAW:
            raise DiskUnreadable(f"{disk.target}: {disk.format} on a partition is not read")
        return images.raw_device(device, disk.partition)


@contextmanager
def opened(config: Config, point: RestorePoint, key: str, note: Note) -> Iterator[PointDisks]:
    """Let the disks of a point be read, as long as this lasts, for the work `key`.

    `note` writes into its journal which datasets are made for it, before they are. Raises
    SnapshotMissing, DiskUnreadable and ZfsFailed.
    """
    liveness = Liveness.by(zfs.all_snapshots(guids_of([point.manifest])))
    of_disks = {disk.dataset for disk in point.manifest.disks}
    snapshots = {
        dataset: snapshot
        for dataset, snapshot in locate.snapshots_of(point, liveness).items()
        if dataset in of_disks
    }
    plan = _planned(snapshots, key)
    names = tuple(plan.clones.values())
    if why := snapshot_name.too_long(names):
        raise DiskUnreadable(why)
    note(names)
    try:
        seen = _made(plan, key)
        yield PointDisks(seen, Places(config, point, seen, mounts.read_table()))
    finally:
        temporary.remove(names, key)
        note(())


@dataclass(frozen=True)
class _Plan:
    """By the dataset of the point: what is seen without a clone, and the names of clones."""

    snapshots: dict[str, Snapshot]
    folders: dict[str, Path]
    clones: dict[str, str]
    volumes: frozenset[str]
    unseen: dict[str, str]


def _planned(snapshots: dict[str, Snapshot], key: str) -> _Plan:
    known = zfs.datasets(sorted({each.dataset for each in snapshots.values()}))
    table = mounts.read_table()
    plan = _Plan(
        snapshots,
        folders={},
        clones={},
        volumes=frozenset(
            name for name, each in snapshots.items() if known[each.dataset].type == "volume"
        ),
        unseen={},
    )
    for number, (name, snapshot) in enumerate(sorted(snapshots.items())):
        current = snapshot.dataset
        if known[current].locked:
            plan.unseen[name] = f"{current}: its key is not loaded: zfs load-key {current}"
        elif name not in plan.volumes and (folder := mounts.snapshot_directory(snapshot, table)):
            plan.folders[name] = folder
        else:
            parent = current.rpartition("/")[0] or current
            plan.clones[name] = f"{parent}/zvmsnap-temporary-{key[:12]}-{number}"
    return plan


def _made(plan: _Plan, key: str) -> Seen:
    folders = dict(plan.folders)
    volumes = {}
    for name, clone in plan.clones.items():
        own = _OF_CLONES | {temporary.PROPERTY: key}
        if name in plan.volumes:
            own |= _OF_VOLUMES
            volumes[name] = clone
        else:
            folders[name] = own_places.CLONES / clone
            own |= _OF_FILESYSTEMS | {"mountpoint": str(folders[name])}
        zfs.clone(plan.snapshots[name].full_name, clone, own)
    for clone in volumes.values():
        volume.wait_device(clone, dataset_swap.DEVICE_TIMEOUT_S)
    return Seen(plan.snapshots, folders, volumes, plan.unseen)
