"""Backs up a guest that runs, wherever its disks are: libvirt's backup job, in push mode.

QEMU itself writes each disk as it was when the job began, while the guest runs on. What differs
from the last backup is found by comparing after that. The guest's lock is held meanwhile, as hooks
and backups must take turns: a merge would wait for the job.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from zvmsnap.archive import images
from zvmsnap.archive.directory import BackupDirectory, StoredBackup
from zvmsnap.archive.images import Image
from zvmsnap.archive.manifest import Way
from zvmsnap.backup.of_point import lock_name
from zvmsnap.backup.offline import check_chosen, described
from zvmsnap.backup.work import BackupWork, WorkWriter
from zvmsnap.backup.writing import BackupOptions, Content, Subject, Writing, base_for, making, now
from zvmsnap.common import log
from zvmsnap.common.errors import BackupFailed, BackupImpossible, LibvirtFailed
from zvmsnap.common.lockfile import lock, own_lock
from zvmsnap.common.safe_files import PASSABLE_DIR
from zvmsnap.common.waiting import sleep, wait_until
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks import jobs
from zvmsnap.points import definition
from zvmsnap.points.manifest import SMALL
from zvmsnap.virt import domain_xml
from zvmsnap.virt.domain_xml import Disk
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host

_LOOK_EVERY_S = 0.5
_ENDS_WITHIN_S = 60
_BACKUP = "backup"


def back_up_running(
    config: Config, host: Host, guest: Guest, directory: BackupDirectory, options: BackupOptions
) -> StoredBackup:
    """Back up a guest that runs. Raises BackupImpossible, and whatever says why it failed."""
    intent = f"back up {guest.name} to {directory.path}"
    limit_s = config.limits.lock_timeout_s
    about = log.about(guest.name, str(directory.path))
    with (
        lock(config.locks_dir, guest.uuid, intent, limit_s),
        own_lock(config.locks_dir, lock_name(guest.uuid), intent, limit_s),
        making(config, directory, guest.name, guest.uuid) as writer,
    ):
        jobs.wait_idle(guest, config.limits.busy_timeout_s)
        domain = domain_xml.parse(guest.xml())
        disks = [disk for disk in domain.disks if disk.writable]
        chosen = [disk for disk in disks if disk.target not in options.exclude]
        check_chosen(guest, disks, [disk.target for disk in chosen], options.exclude)
        _refuse_encrypted(guest, chosen)
        base = base_for(directory, guest.uuid, options.level)
        writing = Writing(config, directory, writer, base, about, compress=options.compress)
        created = now()
        missing = definition.store(guest, writing.path, [], [])
        with _pushed(host, guest, domain, chosen, writer) as pushed:
            contents = {target: Content(image) for target, image in pushed.items()}
            writing.check_room(list(contents.values()), 0)
            for target, content in contents.items():
                writing.add_disk(target, content)
        writing.add_written(SMALL)
        subject = Subject(
            domain=guest.name,
            uuid=guest.uuid,
            created=created,
            way=Way.PUSH,
            consistency=ConsistencyLevel.CRASH,
            host=described(host, domain),
            reasons=(missing or "",),
        )
        return writing.publish(subject, [disk.target for disk in disks if disk not in chosen])


def _refuse_encrypted(guest: Guest, disks: list[Disk]) -> None:
    for disk in disks:
        if disk.encrypted:
            raise BackupImpossible(
                f"{guest.name}: {disk.target} is encrypted (LUKS), and its backup would be in "
                f"clear text: leave it out: -x {disk.target}"
            )


@contextmanager
def _pushed(
    host: Host, guest: Guest, domain: domain_xml.Domain, disks: list[Disk], writer: WorkWriter
) -> Iterator[Mapping[str, Image]]:
    """What QEMU has written of each disk, by target; the files go at the end."""
    assert isinstance(writer.work, BackupWork)
    folder = Path(writer.work.making)
    files = {disk.target: folder / f"{disk.target}.pushed.qcow2" for disk in disks}
    # QEMU's user must reach its own files there; all others are root's.
    folder.chmod(PASSABLE_DIR)
    writer.note(pushes=True)
    try:
        host.begin_backup(guest.uuid, _xml(domain, files))
        _await_end(host, guest)
        for path in files.values():
            os.chown(path, os.geteuid(), os.getegid())
        yield {
            target: Image(
                {"driver": images.QCOW2, "file": images.of_file(str(path)), "backing": None}
            )
            for target, path in files.items()
        }
    finally:
        end_job(host, guest, str(folder))
        for path in files.values():
            path.unlink(missing_ok=True)


def _xml(domain: domain_xml.Domain, files: Mapping[str, Path]) -> str:
    """Every disk is named: libvirt would make files beside the images of those that are not."""
    root = ET.Element("domainbackup", mode="push")
    listed = ET.SubElement(root, "disks")
    for disk in domain.disks:
        if disk.target not in files:
            ET.SubElement(listed, "disk", name=disk.target, backup="no")
            continue
        one = ET.SubElement(listed, "disk", name=disk.target, backup="yes", type="file")
        ET.SubElement(one, "driver", type="qcow2")
        ET.SubElement(one, "target", file=str(files[disk.target]))
    return ET.tostring(root, encoding="unicode")


def _await_end(host: Host, guest: Guest) -> None:
    """Raises BackupFailed if the guest is gone, or the job did not end well."""
    while guest.is_active() and guest.has_job() and guest.job_kind() == _BACKUP:
        sleep(_LOOK_EVERY_S)
    if not guest.is_active():
        raise BackupFailed(f"{guest.name}: was shut off, or has crashed, while it was backed up")
    if why := host.why_backup_failed(guest.uuid):
        raise BackupFailed(f"{guest.name}: its backup job did not end well: {why}")


def end_job(host: Host, guest: Guest, folder: str) -> None:
    """End the backup job that writes into this directory, if there is one. Raises LibvirtFailed."""
    if not guest.is_active():
        return

    def is_ours() -> bool:
        try:
            return guest.job_kind() == _BACKUP and f"{folder}/" in host.backup_xml(guest.uuid)
        except LibvirtFailed:
            return False  # it has just ended

    if is_ours():
        guest.abort_job()
        wait_until(lambda: not is_ours(), _ENDS_WITHIN_S, _LOOK_EVERY_S)
