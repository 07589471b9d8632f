"""Backs up a guest that is off, wherever its disks are: each is read as its image has it.

What has not changed since the last backup is not written again: content decides, not times. QEMU's
own locks keep the guest from being started on disks that are being read.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack

from zvmsnap.archive import images
from zvmsnap.archive.directory import BackupDirectory, StoredBackup
from zvmsnap.archive.images import Image
from zvmsnap.archive.manifest import Way, image_name
from zvmsnap.backup.of_point import lock_name
from zvmsnap.backup.writing import BackupOptions, Content, Subject, Writing, base_for, making, now
from zvmsnap.capture.one_guest import BACK_UP
from zvmsnap.common import log
from zvmsnap.common.errors import BackupFailed, BackupImpossible
from zvmsnap.common.lockfile import lock, own_lock
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks import location
from zvmsnap.points import definition
from zvmsnap.points.manifest import SMALL, HostDescription
from zvmsnap.virt import domain_xml
from zvmsnap.virt.domain_xml import Disk
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host


def back_up_offline(
    config: Config, host: Host, guest: Guest, directory: BackupDirectory, options: BackupOptions
) -> StoredBackup | None:
    """Back up a guest that is off; None if nothing has changed since its last backup.

    Raises BackupImpossible, and whatever says why it failed.
    """
    intent = f"{BACK_UP} {guest.name} to {directory.path}"
    limit_s = config.limits.lock_timeout_s
    about = log.about(guest.name, str(directory.path))
    with (
        own_lock(config.locks_dir, lock_name(guest.uuid), intent, limit_s),
        ExitStack() as guest_lock,
        making(config, directory, guest.name, guest.uuid) as writer,
    ):
        guest_lock.enter_context(lock(config.locks_dir, guest.uuid, intent, limit_s))
        _refuse_active(guest)
        domain = domain_xml.parse(guest.xml())
        disks = [disk for disk in domain.disks if disk.writable]
        chosen = [disk for disk in disks if disk.target not in options.exclude]
        contents = {disk.target: Content(image_of(host, guest, disk)) for disk in chosen}
        check_chosen(guest, disks, contents, options.exclude)
        base = base_for(directory, guest.uuid, options.level)
        writing = Writing(config, directory, writer, base, about, compress=options.compress)
        writing.check_room(contents, 0)
        for target, content in contents.items():
            writing.add_disk(target, content)
        missing = definition.store(guest, writing.path, [], [])
        writing.add_written(SMALL)
        _refuse_active(guest)
        guest_lock.close()  # its hooks need not wait for the checksums
        if writing.is_like_parent():
            return None
        subject = Subject(
            domain=guest.name,
            uuid=guest.uuid,
            created=now(),
            way=Way.OFFLINE,
            consistency=ConsistencyLevel.OFFLINE,
            host=described(host, domain),
            reasons=(missing or "",),
        )
        left_out = [disk.target for disk in disks if disk not in chosen]
        return writing.publish(subject, left_out)


def described(host: Host, domain: domain_xml.Domain) -> HostDescription:
    """What a guest is made for here. Raises LibvirtFailed."""
    versions = host.versions()
    return HostDescription(
        libvirt=versions["libvirt"],
        qemu=versions["qemu"],
        host_cpu=versions["host_cpu"],
        machine=domain.machine,
        arch=domain.arch,
        emulator=domain.emulator,
        cpu_mode=domain.cpu_mode,
        cpu_model=domain.cpu_model,
    )


def _refuse_active(guest: Guest) -> None:
    if guest.is_active():
        raise BackupFailed(f"{guest.name}: was started meanwhile: nothing of the backup is kept")


def check_chosen(
    guest: Guest, disks: list[Disk], contents: Collection[str], exclude: Collection[str]
) -> None:
    """Raises BackupImpossible for disks that cannot be backed up, or that do not exist."""
    known = {disk.target for disk in disks}
    if unknown := sorted(set(exclude) - known):
        raise BackupImpossible(
            f"{guest.name}: has no disk {unknown[0]}; it has {', '.join(sorted(known))}"
        )
    if not contents:
        raise BackupImpossible(f"{guest.name}: no disk is left to be backed up")
    for target in contents:
        try:
            image_name(target)
        except ValueError as error:
            raise BackupImpossible(f"{guest.name}: {error}") from error


def image_of(host: Host, guest: Guest, disk: Disk) -> Image:
    """The image of a disk, with all that is below it. Raises BackupImpossible, QemuImgFailed."""
    path = location.path_of(host, disk)
    if not path or (disk.encrypted and disk.format != images.RAW):
        why = "is encrypted within qcow2" if path else f"is of type {disk.type}"
        raise BackupImpossible(
            f"{guest.name}: {disk.target} {why}, and cannot be read: leave it out: -x {disk.target}"
        )
    if path.startswith("/dev/") and disk.format == images.RAW:
        return images.raw_device(path)
    return images.image_file(path, disk.format, _named, _named)


def _named(path: str) -> str:
    """What an image's header names, as QEMU itself would open it for the guest."""
    if ":" in path.partition("/")[0]:
        raise BackupImpossible(f"{path}: an image is on that, which is no path: not read")
    return path
