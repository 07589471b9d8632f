"""The disks of a point as images that QEMU may open: an overlay for each, in a directory of ours.

An overlay names what is below it as a tree of QEMU's nodes, down to the last image: nothing is
left to the headers of the guest's images, in which anybody may have written any name. What of
these names is opened, `point_disks/places.py` decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zvmsnap.archive.images import QCOW2, Node, of_file
from zvmsnap.common import foreign
from zvmsnap.common.errors import DiskUnreadable, FilesImpossible, QemuImgFailed
from zvmsnap.common.safe_files import private_dir
from zvmsnap.disks import qemu_img
from zvmsnap.point_disks.opened import PointDisks
from zvmsnap.points.point import RestorePoint

_NAME_MAX_BYTES = 1023  # of a backing file, in the header of qcow2


@dataclass(frozen=True)
class Image:
    """One disk: the guest's name for it, our overlay over it, and how long it is."""

    target: str
    path: str
    disk_bytes: int


def make(work: str, point: RestorePoint, disks: PointDisks) -> tuple[list[Image], list[str]]:
    """Make the overlays in `work`; returns them, and why disks are left out, each in a line.

    Raises FilesImpossible if no disk can be opened, and OSError.
    """
    directory = private_dir(Path(work))
    images: list[Image] = []
    left_out: list[str] = []
    for disk in point.manifest.disks:
        path = str(directory / f"{disk.target}.qcow2")
        try:
            make_overlay(path, disks.disk(disk).image.node)
            images.append(Image(disk.target, path, qemu_img.disk_bytes(path)))
        except (DiskUnreadable, QemuImgFailed, OSError) as error:
            left_out.append(f"{disk.target} is left out: {foreign.line(str(error))}")
    if not images:
        raise FilesImpossible(f"{point.name}: no disk can be opened: {'; '.join(left_out)}")
    return images, left_out


def make_overlay(path: str, tree: Node) -> None:
    """Make our overlay at `path` over these nodes.

    Its header holds a short name only: of a long chain each part gets an overlay of ours, too.
    Raises DiskUnreadable and QemuImgFailed.
    """
    nodes = list(_chain(tree))
    below = nodes.pop()
    for number, node in enumerate(reversed(nodes)):
        if not _fits(node | {"backing": below}):
            part = f"{path}.{number}"
            qemu_img.make_view(part, _name(below))
            below = {"driver": QCOW2, "file": of_file(part)}
        below = node | {"backing": below}
    if not _fits(below):
        raise DiskUnreadable("an image of it has too long a path")
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
