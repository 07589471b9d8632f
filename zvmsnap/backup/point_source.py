"""The disks of a restore point that are backed up, and by what each is known again next time."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from zvmsnap.archive.images import Image
from zvmsnap.archive.manifest import Origin
from zvmsnap.backup.work import WorkWriter
from zvmsnap.config.settings import Config
from zvmsnap.point_disks import opened as point_disks
from zvmsnap.points.manifest import Disk
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs.types import Snapshot

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
