"""Removes old backups of a guest, and makes whole what depends on them.

    whole     of each backup that is kept and is on one that goes: images that are on nothing
    remove    those that go, the youngest first: none is ever there without what it is on

A whole image has the same content, so it takes the place of the other by a rename, and what is on
top of it stays right:

| killed                                         | true then                                      |
|------------------------------------------------|------------------------------------------------|
| while whole images are written (`.whole-*`)    | nothing has changed; they are written anew     |
| after the manifest names them (`replacing`)    | each image is the old or the whole one         |
| after all are renamed, before the manifest     | all are whole; the manifest allows it          |
| while old ones are removed                     | all that are kept are on nothing that goes     |
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from zvmsnap.archive import images
from zvmsnap.archive.directory import (
    BackupDirectory,
    StoredBackup,
    described,
    discard,
)
from zvmsnap.archive.manifest import MANIFEST, Backup, Level, StoredFile
from zvmsnap.archive.verify import check_chain
from zvmsnap.common import json_file, log
from zvmsnap.common.errors import BackupDamaged, BackupImpossible, BackupInvalid
from zvmsnap.common.safe_files import PRIVATE_FILE, sync_dir
from zvmsnap.disks import qemu_img
from zvmsnap.points.vault import folder_of

_WHOLE = ".whole-"


def guest_named(directory: BackupDirectory, name: str) -> str:
    """The UUID of the guest whose backups are meant. Raises BackupInvalid and OSError."""
    found = {
        each.manifest.uuid
        for each in directory.read()[0]
        if name in (each.manifest.uuid, each.manifest.domain)
    }
    if len(found) > 1:
        raise BackupInvalid(f"{name}: several guests are called that: say one of {sorted(found)}")
    if not found:
        raise BackupInvalid(f"{name}: has no backup in {directory.path}")
    return found.pop()


def consolidate(
    directory: BackupDirectory, uuid: str, keep: int, *, compress: bool = False
) -> tuple[list[str], list[str]]:
    """Keep the newest `keep` backups of a guest; returns what was made whole, and what is gone.

    Those of level `copy` do not count, and stay. Raises BackupDamaged, BackupImpossible and
    QemuImgFailed, with all backups as good as they were.
    """
    for left in directory.removed():
        discard(left)
    for each in directory.of_guest(uuid):
        _finish(each)
    own = directory.of_guest(uuid)
    others = _others(directory, own)
    counted = [each for each in own if each.manifest.level is not Level.COPY]
    kept, gone = counted[-keep:], counted[:-keep]
    names = {each.name for each in gone}
    made_whole = [each for each in kept if each.manifest.parent in names]
    for each in made_whole:
        _make_whole(directory, each, compress=compress)
    for each in reversed(gone):
        _refuse_needed(each, [*others, *directory.of_guest(uuid)])
        directory.remove(each)
    return [each.name for each in made_whole], [each.name for each in gone]


def _others(directory: BackupDirectory, own: Sequence[StoredBackup]) -> list[StoredBackup]:
    """The backups of other guests. Raises BackupDamaged: such a one may need any of the rest."""
    backups, damaged = directory.read()
    folders = {folder_of(each.manifest.domain) for each in own}
    for each in damaged:
        if each.directory.name.rpartition("@")[0] in folders:
            raise BackupDamaged(f"{each.why}: nothing is removed, as it may need any of the rest")
    uuids = {each.manifest.uuid for each in own}
    return [each for each in backups if each.manifest.uuid not in uuids]


def _refuse_needed(gone: StoredBackup, stay: Sequence[StoredBackup]) -> None:
    for each in stay:
        if each.manifest.parent == gone.name:
            raise BackupDamaged(f"{gone.name}: {each.name} depends on it: kept")


def _make_whole(directory: BackupDirectory, backup: StoredBackup, *, compress: bool) -> None:
    about = log.about(backup.manifest.domain, str(directory.path))
    targets = [disk.target for disk in backup.manifest.disks if disk.depends]
    chain = directory.chain(backup)
    # What is damaged would get a checksum of its own, by which it seems to be right.
    check_chain(chain, frozenset(targets))
    about.info("%s: is made whole, of %d backups", backup.name, len(chain))
    replacing = []
    try:
        for target in targets:
            replacing.append(_write_whole(backup, chain, target, compress=compress))
    except BaseException:
        for target in targets:
            with suppress(OSError):
                _whole_path(backup, f"{target}.qcow2").unlink(missing_ok=True)
        raise
    manifest = msgspec.structs.replace(backup.manifest, replacing=tuple(replacing))
    json_file.write(backup.directory / MANIFEST, manifest)
    _finish(StoredBackup(backup.directory, manifest))


def _write_whole(
    backup: StoredBackup, chain: Sequence[StoredBackup], target: str, *, compress: bool
) -> StoredFile:
    disk = backup.manifest.disk(target)
    assert disk
    path = _whole_path(backup, disk.file)
    path.unlink(missing_ok=True)
    with images.opened(chain, target) as image:
        needed_bytes = 0 if compress else qemu_img.needed_bytes(image.name)
        free_bytes = shutil.disk_usage(backup.directory).free
        if needed_bytes > free_bytes:
            raise BackupImpossible(
                f"{backup.directory} has {free_bytes >> 20} MiB free, and {target} as a whole may "
                f"need {needed_bytes >> 20} MiB: nothing is removed"
            )
        qemu_img.convert(image.name, str(path), compress=compress)
    path.chmod(PRIVATE_FILE)
    return msgspec.structs.replace(described(path), name=disk.file)


def _whole_path(backup: StoredBackup, name: str) -> Path:
    return backup.directory / f"{_WHOLE}{name}"


def _finish(backup: StoredBackup) -> None:
    """Let whole images that the manifest names take their places, if there are any."""
    manifest = backup.manifest
    if not manifest.replacing:
        for name in os.listdir(backup.directory):
            if name.startswith(_WHOLE):  # the manifest does not name it: it may be half
                (backup.directory / name).unlink()
        return
    for file in manifest.replacing:
        with suppress(FileNotFoundError):  # it has its place already
            os.rename(_whole_path(backup, file.name), backup.directory / file.name)
    sync_dir(backup.directory)
    json_file.write(backup.directory / MANIFEST, _whole(manifest))


def _whole(manifest: Backup) -> Backup:
    """The manifest of a backup whose images are on nothing any more."""
    new = {file.name: file for file in manifest.replacing}
    return msgspec.structs.replace(
        manifest,
        level=Level.FULL,
        parent="",
        parent_id="",
        disks=tuple(msgspec.structs.replace(disk, depends=False) for disk in manifest.disks),
        files=tuple(new.get(file.name, file) for file in manifest.files),
        replacing=(),
    )
