"""A directory of backups: each is a directory `GUEST@TIME` in it, which appears by one rename.

Names that begin with a dot are work under way, or what a crash has left of it: `.making-*` is a
backup in the making, `.removing-*` one that is being removed. No symlink is followed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import BinaryIO

from zvmsnap.archive.manifest import (
    MANIFEST,
    SCHEMA,
    TIME_FORMAT,
    Backup,
    Level,
    StoredFile,
    is_name,
    why_invalid,
)
from zvmsnap.common import json_file, safe_files
from zvmsnap.common.errors import BackupDamaged, BackupInvalid
from zvmsnap.common.json_file import Unreadable
from zvmsnap.common.safe_files import PRIVATE_DIR, private_dir, sync_dir
from zvmsnap.points.vault import folder_of

# A file of a directory of backups, which says by which name others know the directory.
IDENTITY = "zvmsnap-destination"
MAKING = ".making-"
REMOVING = ".removing-"
_CHUNK_BYTES = 4 << 20
_IDENTITY = re.compile(rb"[0-9a-f]{16}\n")
_IDENTITY_BYTES = 8
# More than any chain that is made: each run adds one.
_CHAIN_MAX = 10_000


@dataclass(frozen=True)
class StoredBackup:
    """A backup as it lies there."""

    directory: Path
    manifest: Backup

    @property
    def name(self) -> str:
        """`GUEST@TIME`, which is the name of its directory."""
        return self.directory.name


@dataclass(frozen=True)
class DamagedBackup:
    """A directory that is called as a backup, and cannot be read as one; and why."""

    directory: Path
    why: str


@dataclass(frozen=True)
class _Known:
    """A backup that was read: by its manifest's `stamp`, out of the directory of that `inode`."""

    inode: int
    stamp: tuple[int, ...]
    backup: StoredBackup


class BackupDirectory:
    """The directory that an operator names. It is never made: an empty mountpoint is no target.

    Others may work in it at any time, also on other hosts: each question looks at what is there
    now. A manifest is read again only if it is another file than the one that was read.
    """

    def __init__(self, path: Path) -> None:
        """Raises BackupInvalid if there is no such directory."""
        self.path = Path(os.path.realpath(path))
        if not self.path.is_dir():
            raise BackupInvalid(f"{path}: is no directory: make it, or mount what should be there")
        self._known: dict[str, _Known] = {}

    def identity(self) -> str:
        """16 hexadecimal digits that stay with the directory, wherever it is; made at first.

        Two callers must not make it at once. Raises OSError.
        """
        with safe_files.opened("", self.path) as directory:
            try:
                known = safe_files.read(IDENTITY, directory, 2 * _IDENTITY_BYTES + 1)
            except FileNotFoundError:
                known = b""
            if not _IDENTITY.fullmatch(known):
                known = os.urandom(_IDENTITY_BYTES).hex().encode() + b"\n"
                safe_files.write(IDENTITY, directory, known)
        return known.decode().rstrip()

    def read(self) -> tuple[list[StoredBackup], list[DamagedBackup]]:
        """All backups, by guest and in their order; and what cannot be read. Raises OSError."""
        return self._read(self._names())

    def of_guest(self, uuid: str) -> list[StoredBackup]:
        """The backups of one guest, oldest first. Raises OSError.

        Of which guest a backup is never changes: those of others are looked at once.
        """
        names = self._names().items()
        looked_at = {name: inode for name, inode in names if not self._is_other(name, inode, uuid)}
        return [each for each in self._read(looked_at)[0] if each.manifest.uuid == uuid]

    def backup(self, name: str) -> StoredBackup:
        """The backup of that name. Raises BackupDamaged, also if there is none."""
        try:
            inode = os.lstat(self.path / name).st_ino
        except OSError:
            inode = 0
        return self._backup(name, inode)

    def _names(self) -> dict[str, int]:
        """What can be a backup by its name, and the inode number of each, in order."""
        with os.scandir(self.path) as entries:
            return dict(sorted((e.name, e.inode()) for e in entries if is_name(e.name)))

    def _read(self, names: Mapping[str, int]) -> tuple[list[StoredBackup], list[DamagedBackup]]:
        backups: list[StoredBackup] = []
        damaged: list[DamagedBackup] = []
        for name, inode in names.items():
            try:
                backups.append(self._backup(name, inode))
            except BackupDamaged as error:
                if os.path.lexists(self.path / name):  # else it was removed just now
                    damaged.append(DamagedBackup(self.path / name, str(error)))
        backups.sort(key=lambda each: (each.manifest.domain, each.manifest.uuid, _order(each)))
        return backups, damaged

    def _backup(self, name: str, inode: int) -> StoredBackup:
        stamp = _stamp(self.path / name / MANIFEST)
        known = self._known.get(name)
        if known and stamp and (known.inode, known.stamp) == (inode, stamp):
            return known.backup
        backup = read_backup(self.path / name)
        self._known[name] = _Known(inode, stamp, backup)
        return backup

    def _is_other(self, name: str, inode: int, uuid: str) -> bool:
        known = self._known.get(name)
        return bool(known and known.inode == inode and known.backup.manifest.uuid != uuid)

    def chain(self, backup: StoredBackup) -> list[StoredBackup]:
        """The backup and all that it depends on, itself first. Raises BackupDamaged."""
        links = [backup]
        while parent := links[-1].manifest.parent:
            below = self.backup(parent)
            if below.manifest.id != links[-1].manifest.parent_id:
                raise BackupDamaged(
                    f"{links[-1].name}: depends on {parent}, and what is there is another backup"
                )
            links.append(below)
            if len(links) > _CHAIN_MAX:
                raise BackupDamaged(f"{backup.name}: depends on itself")
        return links

    def now(self, backup: StoredBackup) -> StoredBackup | None:
        """A backup as it is now, such as made whole since it was read; None if it was removed.

        One that cannot be read any more is as it was.
        """
        try:
            return self.backup(backup.name)
        except BackupDamaged:
            return backup if os.path.lexists(backup.directory) else None

    def make(self, key: str) -> Path:
        """The directory of a backup in the making, for root alone. Raises OSError."""
        return private_dir(self.path / f"{MAKING}{key}")

    def publish(self, made: Path, backup: Backup) -> StoredBackup:
        """Let a backup appear, with its manifest, under a name of its own. Raises OSError."""
        json_file.write(made / MANIFEST, backup)
        made.chmod(PRIVATE_DIR)
        sync_dir(made)
        for target in self._free(backup):
            if _is_renamed(made, target):
                break
        sync_dir(self.path)
        return StoredBackup(target, backup)

    def remove(self, backup: StoredBackup) -> None:
        """Remove a backup that no other one depends on. Raises OSError."""
        gone = self.path / f"{REMOVING}{backup.name}"
        discard(gone)
        os.rename(backup.directory, gone)
        sync_dir(self.path)
        discard(gone)

    def removed(self) -> list[Path]:
        """What a crash has left of backups that were being removed. Raises OSError."""
        return [self.path / name for name in os.listdir(self.path) if name.startswith(REMOVING)]

    def _free(self, backup: Backup) -> Iterator[Path]:
        """Where it can be published, the best first; without end."""
        created = datetime.fromisoformat(backup.created).astimezone(UTC)
        name = f"{folder_of(backup.domain)}@{created.strftime(TIME_FORMAT)}"
        for number in count(1):
            free = self.path / (name if number == 1 else f"{name}.{number}")
            if not os.path.lexists(free):
                yield free


def _is_renamed(made: Path, target: Path) -> bool:
    """Rename it, unless another backup has got that name just now. Raises OSError."""
    try:
        os.rename(made, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def read_backup(directory: Path) -> StoredBackup:
    """Read one. Raises BackupDamaged with the path, and what is wrong with it."""
    path = directory / MANIFEST
    if directory.is_symlink():
        raise BackupDamaged(f"{directory}: is a symlink; not followed")
    try:
        manifest = json_file.read(path, Backup, SCHEMA, follow_symlinks=False)
    except FileNotFoundError:
        raise BackupDamaged(f"{directory}: has no {MANIFEST}, or is not there") from None
    except Unreadable as error:
        raise BackupDamaged(str(error)) from error
    if why := why_invalid(manifest, directory.name):
        raise BackupDamaged(f"{path}: {why}")
    return StoredBackup(directory, manifest)


def _stamp(path: Path) -> tuple[int, ...]:
    """By which a file is known as the same, unchanged one; none if there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def newest(backups: Sequence[StoredBackup], *, full: bool = False) -> StoredBackup | None:
    """The last one that another may depend on; `full`: the last full one."""
    for each in reversed(backups):
        level = each.manifest.level
        if level is Level.FULL or (not full and level is not Level.COPY):
            return each
    return None


def _order(backup: StoredBackup) -> tuple[int, str]:
    return backup.manifest.number, backup.manifest.created


def open_file(backup: StoredBackup, name: str) -> int:
    """Open a file of a backup to be read: a regular file, by no symlink. Raises OSError."""
    with safe_files.opened(backup.name, backup.directory.parent) as directory:
        return safe_files.open_file(name, directory)


def described(path: Path) -> StoredFile:
    """The length and checksum of a file, which is on the disk then. Raises OSError."""
    descriptor = safe_files.open_file(str(path))
    with os.fdopen(descriptor, "rb") as file:
        os.fsync(descriptor)
        return StoredFile(path.name, *_sum(file))


def differs(backup: StoredBackup, stored: StoredFile) -> str:
    """Why a file is not the one of the manifest; "" if it is. All of it is read."""
    try:
        with os.fdopen(open_file(backup, stored.name), "rb") as file:
            length_bytes, sha256 = _sum(file)
    except OSError as error:
        return f"{stored.name} cannot be read: {error.strerror}"
    if length_bytes != stored.length_bytes:
        return f"{stored.name} is {length_bytes} bytes long, not {stored.length_bytes}"
    return "" if sha256 == stored.sha256 else f"{stored.name} does not match its checksum"


def _sum(file: BinaryIO) -> tuple[int, str]:
    length_bytes, digest = 0, hashlib.sha256()
    while data := file.read(_CHUNK_BYTES):
        length_bytes += len(data)
        digest.update(data)
    return length_bytes, digest.hexdigest()


def discard(directory: Path) -> None:
    """Remove what lies there, if anything does, though somebody else removes it, too.

    Raises OSError.
    """
    while os.path.lexists(directory):
        with suppress(FileNotFoundError):
            shutil.rmtree(directory)
