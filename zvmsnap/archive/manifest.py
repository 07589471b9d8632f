"""The manifest of a backup: what lies in its directory, and how it was made.

What it says may come from elsewhere. It becomes part of paths and command lines, so nothing but
what we write there ourselves is taken; only texts for people may say anything.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

import msgspec

from zvmsnap.config.capture_name import GuestUuid
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.points.manifest import SMALL, HostDescription, Memory

SCHEMA = 1
MANIFEST = "manifest.json"
# libvirt's plain image, which `virsh restore` loads.
MEMORY = "memory.img"

# In names of directories: no colon, which qemu-img takes for a protocol and some file systems
# refuse.
TIME_FORMAT = "%Y-%m-%dT%H%M%SZ"
_NAME = r"(?!\.)[^/\x00-\x1f\x7f]{1,250}@\d{4}-\d\d-\d\dT\d{6}Z(?:\.\d{1,3})?"
_TARGET = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SUFFIX = ".qcow2"

_Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Number = Annotated[int, msgspec.Meta(ge=0)]
_Word = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
_File = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}\Z")]
_Domain = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f]+\Z", max_length=255)]
_Text = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f]*\Z", max_length=4096)]
_Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_MaybeDigest = Annotated[str, msgspec.Meta(pattern=r"\A(?:[0-9a-f]{64})?\Z")]
_Id = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
_Checkpoint = r"zvmsnap-[0-9a-f]{16}-\d{4}-\d\d-\d\dT\d{6}Z-[0-9a-f]{8}"
_MaybeCheckpoint = Annotated[str, msgspec.Meta(pattern=rf"\A(?:{_Checkpoint})?\Z")]
_MaybeId = Annotated[str, msgspec.Meta(pattern=r"\A(?:[0-9a-f]{32})?\Z")]
BackupName = Annotated[str, msgspec.Meta(pattern=rf"\A{_NAME}\Z")]
_MaybeName = Annotated[str, msgspec.Meta(pattern=rf"\A(?:{_NAME})?\Z")]


class Level(StrEnum):
    """What a backup holds of its disks, and on which other one it depends."""

    FULL = "full"  # everything
    INC = "inc"  # what differs from the backup before it
    DIFF = "diff"  # what differs from the last full one
    COPY = "copy"  # everything, and no other backup ever depends on it


class Way(StrEnum):
    """Where the content of the disks came from."""

    SNAPSHOT = "snapshot"  # ZFS snapshots
    PUSH = "push"  # libvirt's backup job
    OVERLAY = "overlay"  # the disks, while the guest ran on overlays
    OFFLINE = "offline"  # the disks, while the guest was off


class StoredFile(msgspec.Struct, frozen=True):
    """A file of a backup, by which it is known again."""

    name: _File
    length_bytes: _Bytes
    sha256: _Digest


class Origin(msgspec.Struct, frozen=True):
    """Of which snapshot a disk was read, to be compared with a later one by ZFS itself.

    `file` and `generation` say which file of its dataset the disk was; 0 for a volume.
    """

    dataset_guid: _Number
    snapshot_guid: _Number
    file: _Number = 0
    generation: _Number = 0


class BackupDisk(msgspec.Struct, frozen=True):
    """A disk: its image's file in the backup, and how long the disk is.

    `depends`: the image is on top of that of the same name in the parent. `compared` says how it
    was found out what differs from that, or why the image is a whole one.
    """

    target: _Word
    file: _File
    disk_bytes: _Bytes
    depends: bool
    compared: _Text = ""
    origin: Origin | None = None
    changed: _Text = ""  # when the file was last written, as far as that tells: of a guest off


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """What manifest.json of a backup says.

    `number` counts the backups of a guest in a directory: clocks go wrong. `parent` is the name of
    the backup that its images are on, and `parent_id` the id of that.
    """

    schema: int = SCHEMA
    id: _Id
    number: _Number
    domain: _Domain
    uuid: GuestUuid
    created: _Text  # ISO 8601 with an offset
    level: Level
    parent: _MaybeName = ""
    parent_id: _MaybeId = ""
    way: Way
    reason: _Text = ""  # why it is this way and level, if others were wanted
    consistency: ConsistencyLevel
    point: _Text = ""
    # Of libvirt, made at the same instant: it knows what has changed in the disks since that.
    checkpoint: _MaybeCheckpoint = ""
    disks: tuple[BackupDisk, ...]
    left_out: tuple[_Word, ...] = ()  # disks of the guest that the backup does not have
    files: tuple[StoredFile, ...]
    memory: Memory | None = None
    host: HostDescription
    # While images are exchanged for whole ones of the same content: these, in place of `files`.
    replacing: tuple[StoredFile, ...] = ()
    seal: _MaybeDigest = ""  # by which this host knows that it has made the backup

    def disk(self, target: str) -> BackupDisk | None:
        """The disk of that target."""
        return next((disk for disk in self.disks if disk.target == target), None)

    @property
    def stored_bytes(self) -> int:
        """What its files take, at most."""
        return sum(file.length_bytes for file in self.files)


def image_name(target: str) -> str:
    """What the image of a disk is called. Raises ValueError for a target that is no word."""
    if not _TARGET.fullmatch(target):
        raise ValueError(f"{target!r} is no target of a disk")
    return f"{target}{_SUFFIX}"


def is_name(name: str) -> bool:
    """Can a backup be called that?"""
    return bool(re.fullmatch(_NAME, name))


def why_invalid(backup: Backup, name: str) -> str:
    """What the types alone do not tell; "" if nothing is wrong."""
    if (backup.level in (Level.INC, Level.DIFF)) != bool(backup.parent):
        return f"is of level {backup.level}, with {backup.parent or 'no parent'}"
    if bool(backup.parent) != bool(backup.parent_id) or backup.parent == name:
        return "does not say what it depends on"
    names = {file.name for file in backup.files}
    if len(names) != len(backup.files) or MANIFEST in names:
        return "names a file twice"
    targets = {disk.target for disk in backup.disks}
    if len(targets) != len(backup.disks):
        return "names a disk twice"
    for disk in backup.disks:
        if disk.file != f"{disk.target}{_SUFFIX}" or disk.file not in names:
            return f"has no image of {disk.target}"
        if disk.depends and not backup.parent:
            return f"has an image of {disk.target} that depends on nothing"
    images = {disk.file for disk in backup.disks}
    known = images | {*SMALL, MEMORY}
    if unknown := names - known:
        return f"names a file that no backup has: {min(unknown)}"
    if backup.memory and (backup.memory.file != MEMORY or MEMORY not in names):
        return "has no RAM image of its own"
    if not {file.name for file in backup.replacing} <= images:
        return "exchanges a file that is no image"
    return ""
