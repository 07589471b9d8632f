"""The ZFS seam: every question and order to OpenZFS goes through here.

libzfs_core cannot list, so listings come from `zfs list -Hp`, one process for many names. Silence
of a failed process is never taken for "does not exist": see `snapshots`.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from zvmsnap.errors import ZfsFailed

_BLKZNAME = 0x8000_0000 | 256 << 16 | 0x12 << 8 | 125  # _IOR(0x12, 125, char[256]), sys/zvol.h
_ARGUMENTS_MAX = 500  # names in one command line; far below any ARG_MAX


@dataclass(frozen=True)
class Dataset:
    """A filesystem or volume; `mode` and `recursive` are our user properties, "" if unset."""

    name: str
    type: str
    compressed: bool
    mode: str = ""
    recursive: str = ""


@dataclass(frozen=True, order=True)
class Snapshot:
    """A snapshot that exists; its guid outlives renames and replication, its name does not."""

    dataset: str
    name: str
    guid: int
    createtxg: int

    @property
    def full_name(self) -> str:
        """`dataset@name`."""
        return f"{self.dataset}@{self.name}"


@dataclass(frozen=True)
class Mount:
    """One line of the mount table; `dataset` is "" where the file system is not ZFS.

    `root` is the directory of the file system that is seen at `mountpoint`: "/", but for bind
    mounts. `parent` is the number of the mount that this one lies upon.
    """

    number: int
    parent: int
    root: str
    mountpoint: str
    dataset: str


@dataclass(frozen=True)
class Answer:
    """What ZFS said of snapshots: `dataset@name` to what exists, and which pools are imported.

    Absence from a pool that is not imported proves nothing. `homeless` are names asked for whose
    dataset does not exist: destroyed with them, or renamed, which a name cannot tell.
    """

    present: Mapping[str, Snapshot]
    pools: frozenset[str]
    homeless: frozenset[str] = frozenset()


def datasets() -> dict[str, Dataset]:
    """All filesystems and volumes of all imported pools. Raises ZfsFailed."""
    columns = "name,type,compression,zvmsnap:mode,zvmsnap:recursive"
    found = {}
    for line in _list("-t", "filesystem,volume", "-o", columns):
        name, kind, compression, mode, recursive = line
        found[name] = Dataset(name, kind, compression != "off", _value(mode), _value(recursive))
    return found


def snapshots(names: Iterable[str]) -> Answer:
    """Which of the snapshots `dataset@name` exist, in one process. Raises ZfsFailed.

    `zfs list` also fails when only some names are missing. So the pools are asked for in the
    same call: a pool that answers vouches for what is missing in it. What seems missing is asked
    for once more through libzfs_core, whose errors have numbers, so that no other failure than
    "no such snapshot" is ever taken for one.
    """
    asked = sorted(set(names))
    datasets: set[str] = set()
    present: dict[str, Snapshot] = {}
    for begin in range(0, len(asked), _ARGUMENTS_MAX):
        part = asked[begin : begin + _ARGUMENTS_MAX]
        homes = {_pool(name) for name in part} | {_dataset(name) for name in part}
        kinds = "filesystem,volume,snapshot"
        wanted = [*sorted(homes), *part]
        for line in _list("-t", kinds, "-o", _SNAPSHOT_COLUMNS, *wanted, partial=True):
            if "@" in line[0]:
                snapshot = _snapshot(line)
                present[snapshot.full_name] = snapshot
            else:
                datasets.add(line[0])
    pools = frozenset(_pool(name) for name in asked) & datasets
    missing = [name for name in asked if name not in present]
    for name in missing:
        if _pool(name) in pools:
            _check_gone(name)
    homeless = frozenset(name for name in missing if _dataset(name) not in datasets)
    return Answer(present, pools, homeless)


def all_snapshots() -> Answer:
    """All snapshots of all imported pools. Raises ZfsFailed."""
    pools = frozenset(line[0] for line in _list("-d", "0", "-t", "filesystem", "-o", "name"))
    found = [_snapshot(line) for line in _list("-t", "snapshot", "-o", _SNAPSHOT_COLUMNS)]
    return Answer({snapshot.full_name: snapshot for snapshot in found}, pools)


def mounts(table: Path = Path("/proc/self/mountinfo")) -> list[Mount]:
    """The mount table, in the kernel's order."""
    found = []
    # A mountpoint may hold any byte; of those that would break a line only \n is escaped.
    for line in table.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]:
        # proc_pid_mountinfo(5): id parent device root mountpoint ... - type source ...
        before, _, after = line.partition(" - ")
        number, parent, _, root, mountpoint = before.split(" ")[:5]
        kind, source = after.split(" ")[:2]
        dataset = _unescape(source) if kind == "zfs" else ""
        found.append(
            Mount(int(number), int(parent), _unescape(root), _unescape(mountpoint), dataset)
        )
    return found


def volume_of(device: str) -> str | None:
    """The volume behind a block device such as /dev/zvol/..., /dev/zd16 or a partition of one.

    Asked of the device itself, which no symlink and no naming rule can fool. None if it is none.
    """
    real = os.path.realpath(device)
    name = os.path.basename(real)
    if not name.startswith("zd"):
        return None
    if Path(f"/sys/class/block/{name}/partition").exists():
        real = "/dev/" + Path(f"/sys/class/block/{name}").resolve().parent.name
    try:
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        answer = fcntl.ioctl(descriptor, _BLKZNAME, bytes(256))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return answer.split(b"\0", 1)[0].decode() or None


def dataset_of_path(path: str, table: Sequence[Mount]) -> tuple[str, str] | None:
    """The filesystem that holds `path`, and the path in it; None if that is not ZFS.

    `path` must be absolute and free of symlinks.
    """
    mount = _mount_of_path(path, table)
    if mount is None or not mount.dataset:
        return None
    inside = os.path.relpath(path, mount.mountpoint)
    return mount.dataset, os.path.relpath(os.path.join(mount.root, inside), "/")


def mountpoint_of(dataset: str, table: Sequence[Mount]) -> str | None:
    """Where the whole of a filesystem can be seen; None if it is not mounted, or hidden."""
    for mount in table:
        if mount.dataset == dataset and dataset_of_path(mount.mountpoint, table) == (dataset, "."):
            return mount.mountpoint
    return None


def _mount_of_path(path: str, table: Sequence[Mount]) -> Mount | None:
    """Go down from the root as the kernel does, onto whatever is mounted upon each directory.

    So a mount that a later one hides, by lying on it or above it, is never reached.
    """
    numbers = {mount.number for mount in table}
    upon: dict[tuple[int | None, str], Mount] = {}
    for mount in table:
        # The root's parent is itself, or one that we cannot see.
        is_root = mount.parent == mount.number or mount.parent not in numbers
        upon[None if is_root else mount.parent, mount.mountpoint] = mount
    found: Mount | None = None
    for directory in (*reversed(PurePath(path).parents), path):
        while below := upon.get((found.number if found else None, str(directory))):
            found = below
    return found


_SNAPSHOT_COLUMNS = "name,guid,createtxg"


def _snapshot(line: Sequence[str]) -> Snapshot:
    dataset, _, name = line[0].partition("@")
    return Snapshot(dataset, name, int(line[1]), int(line[2]))


def _value(text: str) -> str:
    return "" if text == "-" else text


def _pool(name: str) -> str:
    return re.split("[/@]", name, maxsplit=1)[0]


def _dataset(name: str) -> str:
    return name.partition("@")[0]


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _list(*arguments: str, partial: bool = False) -> list[list[str]]:
    command = ["zfs", "list", "-Hp", *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise ZfsFailed(f"zfs cannot be run: {error.strerror}; is zfsutils-linux there?") from error
    # 1 is "an error occurred", which with `partial` may be no more than a missing name.
    if done.returncode not in ((0, 1) if partial else (0,)):
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ZfsFailed(f"zfs list failed ({done.returncode}): {reason}")
    return [line.split("\t") for line in done.stdout.splitlines()]


def _check_gone(name: str) -> None:
    import libzfs_core
    from libzfs_core.exceptions import SnapshotNotFound, ZFSError

    try:
        libzfs_core.lzc_get_holds(name.encode())
    except SnapshotNotFound:
        return
    except ZFSError as error:
        raise ZfsFailed(f"{name}: cannot be asked for: {error}") from error
    raise ZfsFailed(f"{name}: exists, but `zfs list` does not show it; nothing is concluded")
