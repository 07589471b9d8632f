"""Images as QEMU is told to read them: with the driver and path of each file; none is probed.

What the header of an image names may be anything: whoever has made it may have named any file of
the host. So headers are read, and QEMU is told what is below instead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import Any

from zvmsnap.archive.directory import StoredBackup, open_file
from zvmsnap.archive.manifest import BackupDisk
from zvmsnap.common.errors import BackupDamaged, DiskUnreadable
from zvmsnap.disks import qemu_img
from zvmsnap.inventory import qcow2
from zvmsnap.zfs.types import Partition

RAW, QCOW2 = "raw", "qcow2"
# QEMU's own limit for what is nested in json: is 1024.
CHAIN_MAX = 400
_HEAD_BYTES = 64 << 10
# Images whose names fit into the 1023 bytes that a header has for them.
_PART = 8

Node = dict[str, Any]
Place = Callable[[str], str]


class Image:
    """An image that QEMU can be told to read."""

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    def driver(self) -> str:
        """The driver by which it is read: `raw` or `qcow2`."""
        return str(self.node["driver"])

    @property
    def name(self) -> str:
        """As qemu-img is told."""
        return f"json:{json.dumps(self.node)}"

    @property
    def top(self) -> str:
        """The same, without what is below it: for `qemu-img info`, which does not open that."""
        alone = {**self.node, "backing": None} if self.driver == QCOW2 else self.node
        return f"json:{json.dumps(alone)}"


def of_file(path: str) -> Node:
    """A file, or a block device, by its path."""
    is_device = path.startswith("/dev/") and not os.path.isfile(path)
    return {"driver": "host_device" if is_device else "file", "filename": path}


def raw_file(path: str) -> Image:
    """A raw image in a file."""
    return Image({"driver": RAW, "file": of_file(path)})


def raw_device(path: str, partition: Partition | None = None) -> Image:
    """A block device, or the part of it that a partition was."""
    node: Node = {"driver": RAW, "file": of_file(path)}
    if partition:
        node |= {"offset": partition.start_bytes, "size": partition.size_bytes}
    return Image(node)


def image_file(path: str, image_format: str, backing: Place, data_file: Place) -> Image:
    """An image in a file, or on a device, with all that is below it.

    `backing` and `data_file` say where such a file is that a header names, and raise for one that
    must not be read. Raises DiskUnreadable and QemuImgFailed too.
    """
    top: Node = {}
    node = top
    for _ in range(CHAIN_MAX):
        if image_format not in (RAW, QCOW2):
            raise DiskUnreadable(
                f"{path}: is of {image_format}, and is not read: qemu-img convert it first"
            )
        node |= {"driver": image_format, "file": of_file(path)}
        if image_format == RAW:
            return Image(top)
        header = qemu_img.header(path, QCOW2)
        node["backing"] = None
        if header.data_file:
            named = os.path.join(os.path.dirname(path), header.data_file)
            node["data-file"] = of_file(data_file(named))
        if not header.backing:
            return Image(top)
        if not header.backing_format:
            raise DiskUnreadable(
                f"{path}: does not say of which format {header.backing} is: qemu-img rebase -u -F"
            )
        path, image_format = backing(header.backing), header.backing_format
        node["backing"] = node = {}
    raise DiskUnreadable(f"{path}: is behind too many others: qemu-img convert it first")


@contextmanager
def opened(chain: Sequence[StoredBackup], target: str) -> Iterator[Image]:
    """The image of a disk in a backup, which is the first of `chain`, as long as it is open.

    The files are open here, and QEMU has them by our descriptors: nobody exchanges one meanwhile.
    Raises BackupDamaged and QemuImgFailed.
    """
    with ExitStack() as files:
        nodes: list[Node] = []
        sizes_bytes: list[int] = []
        for backup in chain:
            disk = backup.manifest.disk(target)
            if disk is None:
                raise BackupDamaged(f"{backup.name}: has no image of {target}, on which others are")
            descriptor = _opened(files, backup, disk.file)
            is_whole = _is_whole(descriptor, backup, disk)
            path = f"/proc/{os.getpid()}/fd/{descriptor}"
            nodes.append({"driver": QCOW2, "file": of_file(path), "backing": None})
            sizes_bytes.append(disk.disk_bytes)
            if is_whole:
                break
        else:
            raise BackupDamaged(f"{chain[0].name}: what its {target} depends on is not there")
        yield Image(_chained(files, nodes, sizes_bytes))


def _chained(files: ExitStack, nodes: Sequence[Node], sizes_bytes: Sequence[int]) -> Node:
    """The first of these nodes, on top of the second, and so on.

    QEMU takes half a minute to read 200 of them within each other. So a long chain is cut: each
    part is named by the header of an empty image of ours, on which the part above it is.
    """
    below: Node | None = None
    folder = ""
    for first in reversed(range(0, len(nodes), _PART)):
        part = [dict(node) for node in nodes[first : first + _PART]]
        for upper, lower in pairwise(part):
            upper["backing"] = lower
        part[-1]["backing"] = below
        if first == 0:
            return part[0]
        folder = folder or files.enter_context(TemporaryDirectory(prefix="zvmsnap-"))
        link = f"{folder}/{first}.qcow2"
        qemu_img.make_link(link, Image(part[0]).name, sizes_bytes[first])
        below = {"driver": QCOW2, "file": of_file(link)}
    raise BackupDamaged("a chain of no images")


def check_own(backup: StoredBackup) -> None:
    """Does each image of a backup name what it may, and nothing else? Raises BackupDamaged."""
    with ExitStack() as files:
        for disk in backup.manifest.disks:
            _is_whole(_opened(files, backup, disk.file), backup, disk)


def _is_whole(descriptor: int, backup: StoredBackup, disk: BackupDisk) -> bool:
    """Is the image on no other one, by its header? Raises BackupDamaged if it may not be so."""
    where = backup.directory / disk.file
    try:
        head = os.pread(descriptor, _HEAD_BYTES, 0)
        is_whole = qcow2.backing_format(head) is None
        has_data_file = len(qcow2.named_in(head)) > (not is_whole)
    except ValueError as error:
        raise BackupDamaged(f"{where}: {error}") from error
    is_being_replaced = any(each.name == disk.file for each in backup.manifest.replacing)
    if has_data_file or (is_whole is disk.depends and not is_being_replaced):
        raise BackupDamaged(f"{where}: names another file than it may")
    return is_whole


def _opened(files: ExitStack, backup: StoredBackup, name: str) -> int:
    try:
        descriptor = open_file(backup, name)
    except OSError as error:
        raise BackupDamaged(
            f"{backup.directory / name}: cannot be opened: {error.strerror}"
        ) from error
    files.callback(os.close, descriptor)
    return descriptor
