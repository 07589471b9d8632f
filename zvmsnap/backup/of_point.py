"""Backs up a restore point: its disks out of ZFS snapshots, with its RAM.

The guest is not touched, whether it runs or not.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from functools import partial

from zvmsnap.archive.directory import BackupDirectory, StoredBackup
from zvmsnap.archive.manifest import Way, image_name
from zvmsnap.backup.changed import Changes, opened, remember
from zvmsnap.backup.writing import BackupOptions, Content, Subject, Writing, base_for, making
from zvmsnap.common import log
from zvmsnap.common.errors import BackupImpossible
from zvmsnap.common.lockfile import own_lock
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.points import compatibility, definition, memory_image
from zvmsnap.points.manifest import SMALL, Manifest
from zvmsnap.points.point import RestorePoint


def back_up_point(
    config: Config,
    point: RestorePoint,
    directory: BackupDirectory,
    options: BackupOptions,
    reasons: tuple[str, ...] = (),
) -> StoredBackup:
    """Back up a point. Raises BackupImpossible, and whatever says why it failed."""
    manifest = point.manifest
    targets = _targets(manifest, options.exclude)
    compatibility.refuse_unidentified(point, BackupImpossible)
    intent = f"back up {point.name} to {directory.path}"
    about = log.about(manifest.domain, str(directory.path))
    with (
        own_lock(config.locks_dir, lock_name(manifest.uuid), intent, config.limits.lock_timeout_s),
        making(config, directory, manifest.domain, manifest.uuid) as writer,
        opened(config, point, targets, writer) as disks,
    ):
        base = base_for(directory, manifest.uuid, options.level)
        writing = Writing(config, directory, writer, base, about, compress=options.compress)
        changes = Changes(disks, about)
        contents = {
            target: Content(disk.image, disk.origin, differences=partial(changes.write, target))
            for target, disk in disks.items()
        }
        memory = manifest.memory
        writing.check_room(contents, memory.image_bytes if memory else 0)
        for target, content in contents.items():
            writing.add_disk(target, content)
        stored = {name: definition.stored(point.directory, name) for name in SMALL}
        writing.add_small({name: data for name, data in stored.items() if data is not None})
        if memory:
            # libvirt's image of a paused guest says so; but it ran until the snapshot.
            ran = manifest.level is ConsistencyLevel.PAUSED
            image = point.directory / memory.file
            export = partial(memory_image.export, image, memory, ran=ran)
            writing.add_memory(export, memory.format)
        subject = Subject(
            domain=manifest.domain,
            uuid=manifest.uuid,
            created=datetime.fromisoformat(manifest.created),
            way=Way.SNAPSHOT,
            consistency=manifest.level,
            host=manifest.host,
            point=point.name,
            reasons=(*reasons, manifest.reason or "", manifest.tpm_warning or ""),
        )
        left_out = [disk.target for disk in manifest.disks if disk.target not in targets]
        made = writing.publish(subject, left_out)
        remember(directory, made, [disk.snapshot for disk in disks.values()], about)
        return made


def lock_name(uuid: str) -> str:
    """The lock that keeps two backups of a guest apart."""
    return f"backup-{uuid}"


def _targets(manifest: Manifest, exclude: Collection[str]) -> frozenset[str]:
    """The disks to be backed up. Raises BackupImpossible."""
    known = {disk.target for disk in manifest.disks}
    if unknown := sorted(set(exclude) - known):
        raise BackupImpossible(
            f"{manifest.domain}: has no disk {unknown[0]}; it has {', '.join(sorted(known))}"
        )
    targets = known - set(exclude)
    if not targets:
        raise BackupImpossible(f"{manifest.domain}: no disk is left to be backed up")
    for target in targets:
        try:
            image_name(target)
        except ValueError as error:
            raise BackupImpossible(f"{manifest.domain}: {error}") from error
    return frozenset(targets)
