"""The datasets of a clone, and the paths of its disks in them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from zvmsnap.clone import own_places
from zvmsnap.clone.destroy import CLONE_PROPERTY
from zvmsnap.disks import location
from zvmsnap.journal.operation import CloneOperation, Source
from zvmsnap.points.manifest import Disk, Manifest
from zvmsnap.zfs import branches, dataset_swap, mounts, volume, zfs


def make(operation: CloneOperation) -> None:
    """Clone the snapshots, mark the clones, and let their files be reached. Raises ZfsFailed."""
    properties = branches.cloned_properties([_dataset(origin) for _, origin in operation.datasets])
    for name, origin in operation.datasets:
        own = properties[_dataset(origin)] | {CLONE_PROPERTY: operation.domain}
        zfs.clone(origin, name, own)
    table = mounts.read_table()
    unseen = [name for name, _ in operation.datasets if not mounts.mountpoint_of(name, table)]
    for name, dataset in branches.below(unseen).items():
        if dataset.type == "filesystem" and not _mountpoint(name).startswith("/"):
            # Inherited "none" or "legacy": its disks could not be reached.
            zfs.set_property(name, "mountpoint", str(own_places.CLONES / name))


def _mountpoint(dataset: str) -> str:
    return zfs.properties(dataset, ("mountpoint",))["mountpoint"]


def destroy(operation: CloneOperation) -> None:
    """Destroy those that bear the clone's mark, with all snapshots of them. Raises ZfsFailed."""
    marks = zfs.marked(CLONE_PROPERTY)
    for name, _ in reversed(operation.datasets):
        if marks.get(name) == operation.domain:
            branches.destroy_released(name, with_snapshots=True)


def sources(disks: Iterable[Disk], clones: Mapping[str, str]) -> dict[str, Source]:
    """The images of the clone, by target; a disk whose file is not in the snapshot has none.

    `clones` are the clone's datasets, by those of the disks. Files become root's, and volumes get
    their devices. Raises ZfsFailed and OSError.
    """
    table = mounts.read_table()
    images: dict[str, Source] = {}
    for disk in disks:
        own = disk.location_in(clones[disk.dataset])
        if not own.path:
            volume.wait_device(own.dataset, dataset_swap.DEVICE_TIMEOUT_S)
            if own.partition:
                volume.wait_partition(own.dataset, own.partition, dataset_swap.DEVICE_TIMEOUT_S)
            images[disk.target] = ("block", location.current_path(own, table), disk.format)
            continue
        path = os.path.realpath(location.current_path(own, table))
        place = location.locate_path(path, table)
        # A symlink may lead to an image of the original.
        if place and place.dataset == own.dataset and os.path.isfile(path):
            location.give_back(place, table)
            images[disk.target] = ("file", path, disk.format)
    return images


def planned_sources(disks: Iterable[Disk], clones: Mapping[str, str]) -> dict[str, Source]:
    """As `sources`, of datasets that do not exist yet: files are as if below CLONES."""
    images: dict[str, Source] = {}
    for disk in disks:
        own = disk.location_in(clones[disk.dataset])
        path = volume.device_of(own.dataset, own.partition)
        if own.path:
            path = str(own_places.CLONES / own.dataset / own.path)
        images[disk.target] = ("file" if own.path else "block", path, disk.format)
    return images


def by_originals(manifest: Manifest, operation: CloneOperation) -> dict[str, tuple[str, str]]:
    """The clone's datasets, and those that these are clones of, by those of the point's disks."""
    pairs = ((name, _dataset(origin)) for name, origin in operation.datasets)
    return dict(zip(sorted(manifest.datasets), pairs, strict=True))


def _dataset(snapshot: str) -> str:
    return snapshot.partition("@")[0]
