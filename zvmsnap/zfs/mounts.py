"""The mount table: which filesystem holds a path, and where a whole filesystem is mounted."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from zvmsnap.zfs.types import Partition, Snapshot


@dataclass(frozen=True)
class Mount:
    """One line of the mount table: a file system of that kind (`ext4`, `zfs`, `tmpfs`).

    `dataset` is "" where it is not ZFS.

    `root` is the directory of the file system that is seen at `mountpoint`: "/", but for bind
    mounts. `parent` is the number of the mount on which this one is
    mounted.
    """

    number: int
    parent: int
    root: str
    mountpoint: str
    dataset: str
    kind: str = ""


def read_table(table: Path = Path("/proc/self/mountinfo")) -> list[Mount]:
    """The mount table, in the kernel's order."""
    mounts = []
    # Of what a mountpoint may hold, the kernel escapes blank, tab, \n and backslash alone: others
    # that Python takes for the end of a line, such as \r, stand in it.
    for line in table.read_bytes().decode(errors="surrogateescape").split("\n")[:-1]:
        # proc_pid_mountinfo(5): id parent device root mountpoint ... - type source ...
        before, _, after = line.partition(" - ")
        number, parent, _, root, mountpoint = before.split(" ")[:5]
        kind, source = after.split(" ")[:2]
        dataset = _unescape(source) if kind == "zfs" else ""
        mounts.append(
            Mount(int(number), int(parent), _unescape(root), _unescape(mountpoint), dataset, kind)
        )
    return mounts


def dataset_of_path(path: str, table: Sequence[Mount]) -> tuple[str, str] | None:
    """The filesystem that holds `path`, and the path in it; None if that is not ZFS.

    `path` must be absolute and free of symlinks.
    """
    mount = _mount_of_path(path, table)
    if mount is None or not mount.dataset:
        return None
    inside = os.path.relpath(path, mount.mountpoint)
    return mount.dataset, os.path.relpath(os.path.join(mount.root, inside), "/")


def kind_of_path(path: str, table: Sequence[Mount]) -> str:
    """The kind of the file system that holds `path`, as of `dataset_of_path`; "" if none does."""
    mount = _mount_of_path(path, table)
    return mount.kind if mount else ""


def mountpoint_of(dataset: str, table: Sequence[Mount]) -> str | None:
    """Where a whole filesystem can be seen; None if it is not mounted, or hidden."""
    for mount in table:
        if mount.dataset == dataset and dataset_of_path(mount.mountpoint, table) == (dataset, "."):
            return mount.mountpoint
    return None


def snapshot_directory(snapshot: Snapshot, table: Sequence[Mount]) -> Path | None:
    """Where the files of a filesystem's snapshot can be seen; None if they cannot."""
    mountpoint = mountpoint_of(snapshot.dataset, table)
    if mountpoint is None:
        return None
    directory = Path(mountpoint, ".zfs", "snapshot", snapshot.name)
    # The kernel mounts it for whoever enters it.
    return directory if os.path.isdir(f"{directory}/.") else None


def _mount_of_path(path: str, table: Sequence[Mount]) -> Mount | None:
    """Walk down from the root as the kernel does, onto the mount on each directory.

    So a mount that a later one hides, on the same directory or above it, is never reached.
    """
    numbers = {mount.number for mount in table}
    mounted_on: dict[tuple[int | None, str], Mount] = {}
    for mount in table:
        # The parent of the root is itself, or outside of our namespace.
        is_root = mount.parent == mount.number or mount.parent not in numbers
        mounted_on[None if is_root else mount.parent, mount.mountpoint] = mount
    deepest: Mount | None = None
    for directory in (*reversed(PurePath(path).parents), path):
        while next_mount := mounted_on.get((deepest.number if deepest else None, str(directory))):
            deepest = next_mount
    return deepest


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


@dataclass(frozen=True)
class DiskLocation:
    """Where a disk really is: dataset, path in it ("" for a volume), or partition of a volume."""

    dataset: str
    path: str
    partition: Partition | None = None

    def __str__(self) -> str:
        if self.partition:
            return f"{self.partition} of {self.dataset}"
        return f"{self.path} in {self.dataset}" if self.path else self.dataset
