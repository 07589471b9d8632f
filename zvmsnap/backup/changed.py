"""What of a disk differs from its last backup, told by ZFS: so not all of it must be read.

A stream of `zfs send -i` names each block that was written or freed between two snapshots. The
older one need not exist any more: a bookmark of it does, which takes no room. It counts only if
the disk is the same file, or volume, and is a raw one. In any other case, and if ZFS or the stream
says anything unknown, all of the disk is compared instead.

Bookmarks are called `zvmsnap_backup_ID`, by the backup: so each directory of backups has its own.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zvmsnap.archive import difference
from zvmsnap.archive.directory import BackupDirectory, StoredBackup, newest
from zvmsnap.archive.images import Image
from zvmsnap.archive.manifest import BackupDisk, Level, Origin
from zvmsnap.backup.work import WorkWriter
from zvmsnap.common.errors import ZfsFailed
from zvmsnap.common.log import Logger
from zvmsnap.config.settings import Config
from zvmsnap.point_disks import opened as point_disks
from zvmsnap.points.manifest import Disk
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs import marks, stream, zfs
from zvmsnap.zfs.types import Snapshot

_MARK = "zvmsnap_backup_"
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
    config: Config, point: RestorePoint, targets: frozenset[str], writer: WorkWriter
) -> Iterator[dict[str, SourceDisk]]:
    """Those disks of a point that have these targets, as long as this lasts.

    Raises SnapshotMissing, DiskUnreadable, QemuImgFailed and ZfsFailed.
    """

    def note(names: tuple[str, ...]) -> None:
        writer.note(datasets=names)

    with point_disks.opened(config, point, writer.work.id, note) as disks:
        yield {
            disk.target: _source(disk, disks.disk(disk))
            for disk in point.manifest.disks
            if disk.target in targets
        }


def _source(disk: Disk, seen: point_disks.SourceDisk) -> SourceDisk:
    which = _which_file(seen.path) if disk.path else (0, 0)
    origin = Origin(disk.dataset_guid, seen.snapshot.guid, *which)
    return SourceDisk(seen.image, origin, seen.snapshot, seen.path if seen.is_plain else "")


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


class Changes:
    """What has changed in the disks of a point, asked once for each of its datasets."""

    def __init__(self, disks: Mapping[str, SourceDisk], about: Logger) -> None:
        self._disks = disks
        self._log = about
        self._ranges: dict[tuple[str, str], dict[int, list[tuple[int, int]]]] = {}

    def write(
        self, target: str, parent: StoredBackup, before: BackupDisk, disk_bytes: int, path: Path
    ) -> str:
        """Write an image of what has changed since `parent`; returns how, "" if ZFS cannot tell.

        Raises OSError.
        """
        disk = self._disks[target]
        if not (disk.path and before.origin and _is_same(before, disk)):
            return ""
        try:
            since = _since(disk.snapshot, before.origin.snapshot_guid)
            if not since:
                return ""
            ranges = self._of(disk, since)
        except ZfsFailed as error:
            self._log.info("%s: all of it is compared, as ZFS does not tell: %s", target, error)
            return ""
        descriptor = os.open(disk.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            below = f"../{parent.name}/{before.file}"
            count = difference.write(descriptor, disk_bytes, ranges, path, below)
        finally:
            os.close(descriptor)
        changed_bytes = count * difference.CLUSTER_BYTES
        return f"{changed_bytes >> 10} KiB have changed, as ZFS says, since {since}"

    def _of(self, disk: SourceDisk, since: str) -> list[tuple[int, int]]:
        if since == disk.snapshot.full_name:
            return []
        key = (since, disk.snapshot.full_name)
        if key not in self._ranges:
            objects = frozenset(
                _object(each)
                for each in self._disks.values()
                if each.snapshot == disk.snapshot and each.path
            )
            self._ranges[key] = stream.changed_ranges(*key, objects)
        return self._ranges[key].get(_object(disk), [])


def _object(disk: SourceDisk) -> int:
    return disk.origin.file or stream.VOLUME_OBJECT


def _is_same(before: BackupDisk, disk: SourceDisk) -> bool:
    """Is it the same file, not another one of its number; or a volume, as before?"""
    old, new = before.origin, disk.origin
    assert old
    if not (old.file or new.file):
        return True
    return bool(new.generation) and (old.file, old.generation) == (new.file, new.generation)


def _since(snapshot: Snapshot, guid: int) -> str:
    """What the dataset still has of the snapshot with that guid, itself or a bookmark; "" if not.

    Raises ZfsFailed.
    """
    if snapshot.guid == guid:
        return snapshot.full_name
    for usage in zfs.snapshot_usage([snapshot.dataset]):
        if usage.snapshot.guid == guid and usage.snapshot.createtxg < snapshot.createtxg:
            return usage.snapshot.full_name
    for mark in zfs.bookmarks([snapshot.dataset]):
        if mark.guid == guid and mark.createtxg < snapshot.createtxg:
            return mark.full_name
    return ""


def remember(
    directory: BackupDirectory,
    backup: StoredBackup,
    snapshots: Iterable[Snapshot],
    about: Logger,
) -> None:
    """Keep bookmarks of the snapshots of a backup, for the next one; older ones go.

    Without them the next one compares, so a failure is no more than a line.
    """
    if backup.manifest.level is Level.COPY:
        return
    own = directory.of_guest(backup.manifest.uuid)
    needed = {each.name for each in (newest(own), newest(own, full=True)) if each}
    by_dataset = {each.dataset: each.full_name for each in snapshots}
    gone = [
        f"{dataset}#{_name(each)}"
        for dataset in by_dataset
        for each in own
        if each.name not in needed
    ]
    try:
        marks.bookmark({f"{dataset}#{_name(backup)}": name for dataset, name in by_dataset.items()})
        marks.destroy_bookmarks(gone)
    except ZfsFailed as error:
        about.info("the next backup will have to compare: %s", error)


def _name(backup: StoredBackup) -> str:
    return f"{_MARK}{backup.manifest.id[:16]}"
