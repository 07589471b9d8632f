"""Looks whether backups are what their manifests say: every file, and all that they depend on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zvmsnap.archive import images
from zvmsnap.archive.directory import BackupDirectory, StoredBackup, differs
from zvmsnap.common.errors import BackupDamaged


def problems(directory: BackupDirectory, backup: StoredBackup) -> list[str]:
    """What is wrong with a backup itself; of those that it depends on, only that they are there.

    All files are read. A backup that is made whole meanwhile is looked at again, and one that is
    removed meanwhile is no problem.
    """
    while found := list(_problems(directory, backup)):
        now = directory.now(backup)
        if now is None:
            break
        if now == backup:
            return found
        backup = now
    return []


def _problems(directory: BackupDirectory, backup: StoredBackup) -> Iterator[str]:
    yield from _of_files(backup)
    try:
        directory.chain(backup)
        images.check_own(backup)
    except BackupDamaged as error:
        yield str(error)


def check_chain(chain: Sequence[StoredBackup], targets: frozenset[str]) -> None:
    """Read all that an import of these disks needs. Raises BackupDamaged."""
    for position, backup in enumerate(chain):
        wanted = {disk.file for disk in backup.manifest.disks if disk.target in targets}
        if position == 0:
            wanted |= {file.name for file in backup.manifest.files} - {
                disk.file for disk in backup.manifest.disks
            }
        for problem in _of_files(backup, wanted):
            raise BackupDamaged(f"{backup.directory}: {problem}")
    for target in targets:
        with images.opened(chain, target):
            pass


def _of_files(backup: StoredBackup, only: set[str] | None = None) -> Iterator[str]:
    others = {file.name: file for file in backup.manifest.replacing}
    for file in backup.manifest.files:
        if only is not None and file.name not in only:
            continue
        why = differs(backup, file)
        if why and file.name in others:
            why = differs(backup, others[file.name])
        if why:
            yield why
