"""The disks of a point as images that QEMU may open: an overlay for each, in a directory of ours.

An overlay names what is below it as a tree of QEMU's nodes, down to the last image: nothing is
left to the headers of the guest's images, in which anybody may have written any name.

| a header names            | it is                          | what is opened                      |
|---------------------------|--------------------------------|-------------------------------------|
| a file or volume          | of a dataset of the point      | that of the snapshot                |
| a file or volume          | elsewhere; a point of our own  | that, as it is now: a golden image  |
| a file or volume          | elsewhere; a point from afar   | none: the disk is left out          |
| a backing file, no format | anywhere                       | none: QEMU would look into it       |
| json:, nbd: or the like   | anywhere                       | none                                |

Only raw and qcow2 are opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zvmsnap.common import foreign
from zvmsnap.common.errors import FilesImpossible, QemuImgFailed, ZfsFailed
from zvmsnap.common.safe_files import private_dir
from zvmsnap.disks import qemu_img
from zvmsnap.files.record import View
from zvmsnap.points.manifest import Disk
from zvmsnap.points.next_start import mountpoints_of
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs import mounts, volume
from zvmsnap.zfs.mounts import Mount
from zvmsnap.zfs.types import Snapshot

_CHAIN_MAX = 200
_NAME_MAX_BYTES = 1023  # of a backing file, in the header of qcow2
_RAW, _QCOW2 = "raw", "qcow2"

Node = dict[str, Any]


@dataclass(frozen=True)
class Image:
    """One disk: the guest's name for it, and our overlay over it."""

    target: str
    path: str


def make(view: View, point: RestorePoint) -> tuple[list[Image], list[str]]:
    """Make the overlays; returns them, and why disks are left out, each in a line.

    The clones exist. Raises FilesImpossible if no disk can be opened, and OSError.
    """
    directory = private_dir(Path(view.work))
    places = Places.of(view, point, mounts.read_table())
    images: list[Image] = []
    left_out: list[str] = []
    for disk in point.manifest.disks:
        path = str(directory / f"{disk.target}.qcow2")
        try:
            make_overlay(path, places.tree(disk))
            images.append(Image(disk.target, path))
        except (FilesImpossible, QemuImgFailed, ZfsFailed, OSError) as error:
            left_out.append(f"{disk.target} is left out: {foreign.line(str(error))}")
    if not images:
        raise FilesImpossible(f"{view.point}: no disk can be opened: {'; '.join(left_out)}")
    return images, left_out


def make_overlay(path: str, tree: Node) -> None:
    """Make our overlay at `path` over these nodes.

    Its header holds a short name only: of a long chain each part gets an overlay of ours, too.
    Raises FilesImpossible and QemuImgFailed.
    """
    nodes = list(_chain(tree))
    below = nodes.pop()
    for number, node in enumerate(reversed(nodes)):
        if not _fits(node | {"backing": below}):
            part = f"{path}.{number}"
            qemu_img.make_view(part, _name(below))
            below = {"driver": _QCOW2, "file": _file(part)}
        below = node | {"backing": below}
    if not _fits(below):
        raise FilesImpossible("an image of it has too long a path")
    qemu_img.make_view(path, _name(below))


def _chain(tree: Node) -> Iterator[Node]:
    """The nodes from top to bottom, each without what is below it."""
    below: Node | None = tree
    while below:
        own, below = below, below.get("backing")
        yield {name: value for name, value in own.items() if name != "backing" or value is None}


def _fits(tree: Node) -> bool:
    return len(_name(tree).encode(errors="surrogateescape")) <= _NAME_MAX_BYTES


def _name(tree: Node) -> str:
    return f"json:{json.dumps(tree, separators=(',', ':'))}"


@dataclass(frozen=True)
class Places:
    """Where the content of the point's datasets is seen: directories of snapshots, and clones.

    `folders` are directories by the mountpoints of their datasets, of now and of when the point was
    made; `datasets` likewise by the names of the datasets; `volumes` are clones by those of theirs.
    """

    folders: Mapping[str, Path]
    datasets: Mapping[str, Path]
    volumes: Mapping[str, str]
    made_here: bool

    @classmethod
    def of(cls, view: View, point: RestorePoint, table: Sequence[Mount]) -> Places:
        """Those of a view whose clones exist."""
        clones = {origin: name for name, origin in view.clones}
        volumes, datasets, folders = {}, {}, {}
        for dataset, full_name in view.snapshots.items():
            if full_name in clones:
                volumes[dataset] = volumes[full_name.partition("@")[0]] = clones[full_name]
            elif directory := _directory(full_name, table):
                datasets[dataset] = directory
        for dataset, path in mountpoints_of(point.manifest):
            if dataset in datasets:
                folders[path] = datasets[dataset]
        for dataset, directory in datasets.items():
            current = view.snapshots[dataset].partition("@")[0]
            if mountpoint := mounts.mountpoint_of(current, table):
                folders[mountpoint] = directory
        return cls(folders, datasets, volumes, view.made_here)

    def tree(self, disk: Disk) -> Node:
        """What QEMU opens as this disk. Raises FilesImpossible, QemuImgFailed, ZfsFailed."""
        if disk.path:
            directory = self.datasets.get(disk.dataset)
            if directory is None:
                raise ZfsFailed(f"{disk.dataset} is not mounted: zfs mount {disk.dataset}")
            return self._image(_inside(directory, disk.path), disk.format)
        device = volume.device_of(self.volumes[disk.dataset])
        if not disk.partition:
            return self._image(device, disk.format)
        if disk.format != _RAW:
            raise FilesImpossible(f"{disk.format} on a partition is not opened")
        part = {"offset": disk.partition.start_bytes, "size": disk.partition.size_bytes}
        return {"driver": _RAW, **part, "file": _file(device)}

    def _image(self, path: str, image_format: str) -> Node:
        """The node of an image, with all that is below it."""
        top: Node = {}
        node = top
        for _ in range(_CHAIN_MAX):
            if image_format not in (_RAW, _QCOW2):
                raise FilesImpossible(f"{path}: format {image_format or 'unknown'} is not opened")
            node |= {"driver": image_format, "file": _file(path)}
            if image_format == _RAW:
                return top
            header = qemu_img.header(path, image_format)
            if header.data_file:
                node["data-file"] = _file(self._own(_beside(path, header.data_file)))
            if not header.backing:
                node["backing"] = None
                return top
            path, image_format = self._own(header.backing), header.backing_format
            node["backing"] = node = {}
        raise FilesImpossible(f"{path}: is below more than {_CHAIN_MAX} images")

    def _own(self, named: str) -> str:
        """What is opened for a name in a header, by the table above. Raises FilesImpossible."""
        if not named.startswith("/"):
            raise FilesImpossible(f"it is on {named}, which is no file")
        path = os.path.normpath(named)
        devices = {volume.device_of(name): own for name, own in self.volumes.items()}
        if path in devices:
            return volume.device_of(devices[path])
        if any(path.startswith(f"{directory}/") for directory in self.datasets.values()):
            return _not_led_away(path)
        tops = [top for top in self.folders if path.startswith(f"{top.rstrip('/')}/")]
        if tops:
            top = max(tops, key=len)
            return _inside(self.folders[top], os.path.relpath(path, top))
        if not self.made_here:
            raise FilesImpossible(f"it is on {named}, which is in no dataset of the point")
        return path


def _directory(full_name: str, table: Sequence[Mount]) -> Path | None:
    dataset, _, name = full_name.partition("@")
    return mounts.snapshot_directory(Snapshot(dataset, name, 0, 0), table)


def _inside(directory: Path, path: str) -> str:
    return _not_led_away(os.path.join(directory, path))


def _not_led_away(path: str) -> str:
    """Nothing changes in a snapshot: what is no symlink now never is. Raises FilesImpossible."""
    if os.path.realpath(path) != os.path.normpath(path):
        raise FilesImpossible(f"{path}: is a symlink, or behind one; not followed")
    return path


def _beside(path: str, name: str) -> str:
    if ":" in name.partition("/")[0]:
        raise FilesImpossible(f"{path}: its data is in {name}, which is no file")
    return os.path.normpath(os.path.join(os.path.dirname(path), name))


def _file(path: str) -> Node:
    return {"driver": "host_device" if path.startswith("/dev/") else "file", "filename": path}
