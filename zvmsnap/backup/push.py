"""Backs up a guest that runs, wherever its disks are: libvirt's backup job, in push mode.

QEMU itself writes each disk as it was when the job began, while the guest runs on: what has changed
since libvirt's checkpoint of the last backup (backup/checkpoints), or all of it, which is compared
with the last backup after that. The guest's lock is held until the job has ended, as hooks and
backups must take turns: a merge would wait for the job.

    pushes, checkpoint   are noted before the job begins: libvirt may have both
    publish              from then on the checkpoint is that of a backup
    old checkpoints      libvirt forgets them
    close                both are taken back before, if there is no such backup
"""

from __future__ import annotations

import os
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from zvmsnap.archive import images
from zvmsnap.archive.directory import BackupDirectory, StoredBackup
from zvmsnap.archive.images import Image
from zvmsnap.archive.manifest import Way
from zvmsnap.backup import checkpoints
from zvmsnap.backup.checkpoints import Pushing, Source
from zvmsnap.backup.of_point import lock_name
from zvmsnap.backup.offline import check_chosen, described
from zvmsnap.backup.overlay import Consistency, backup_run, frozen, refuse_others
from zvmsnap.backup.work import BackupWork, Works, WorkWriter
from zvmsnap.backup.writing import (
    BackupOptions,
    Content,
    Subject,
    Writing,
    base_for,
    discard_made,
    making,
    now,
)
from zvmsnap.bulk import progress, zeros
from zvmsnap.capture import one_guest
from zvmsnap.capture.one_guest import BACK_UP
from zvmsnap.capture.snapshot_run import SnapshotRun
from zvmsnap.common import log
from zvmsnap.common.errors import (
    BackupImpossible,
    BackupRefused,
    ConnectionLost,
    LibvirtFailed,
    QemuImgFailed,
    ZvmsnapError,
)
from zvmsnap.common.lockfile import lock, own_lock
from zvmsnap.common.log import Logger
from zvmsnap.common.safe_files import PASSABLE_DIR
from zvmsnap.common.signals import finish_before_dying
from zvmsnap.common.waiting import wait_until
from zvmsnap.config.mode import Mode
from zvmsnap.config.settings import Config
from zvmsnap.disks import backup_job, jobs, location, qemu_img
from zvmsnap.disks.backup_job import NO_REFUSALS
from zvmsnap.points import definition
from zvmsnap.points.manifest import SMALL
from zvmsnap.virt import domain_xml
from zvmsnap.virt.domain_xml import Disk
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host

_LOOK_EVERY_S = 0.5
# libvirtd may be started again, and is asked what it has when it is back.
_BACK_WITHIN_S = 60
_IDENTITY_LOCK = "backup-destination"
# To copy a disk is as much work again as to push it.
_ZEROS_SHARE_MAX = 1 / 8


def back_up_running(
    config: Config,
    host: Host,
    guest: Guest,
    directory: BackupDirectory,
    options: BackupOptions,
    mode: Mode,
) -> StoredBackup:
    """Back up a guest that runs, at level `quiesced` or `crash`, as that mode says.

    Raises BackupRefused if libvirt has no such job for it, BackupImpossible, and whatever says why
    it failed.
    """
    run = backup_run(config, host, directory, mode, threading.Event(), on_overlays=False)
    intent = f"{BACK_UP} {guest.name} to {directory.path}"
    limit_s = config.limits.lock_timeout_s
    about = run.about(guest)
    with (
        own_lock(config.locks_dir, lock_name(guest.uuid), intent, limit_s),
        ExitStack() as guest_lock,
    ):
        guest_lock.enter_context(one_guest.locked(run, guest, intent))
        refuse_others(config, guest)
        _end_dead(config, host, guest)
        with (
            making(config, directory, guest.name, guest.uuid) as writer,
            _taken_back(host, writer, about),
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
            with lock(config.locks_dir, _IDENTITY_LOCK, intent, limit_s):
                destination = directory.identity()
            name = checkpoints.name_of(destination, created, writer.work.id)
            sources = [Source(disk, location.path_of(host, disk)) for disk in chosen]
            planned = checkpoints.plan(guest, sources, base, destination, name)
            writing.check_free(_room_bytes(sources, planned))
            missing = definition.store(guest, writing.path, [], [])
            with _pushed(run, guest, domain, chosen, planned, writer) as (did, was, pushed):
                guest_lock.close()  # its hooks need not wait for what is read and written now
                for target, path in pushed.items():
                    writing.add_disk(target, _content(path, target, did, writing))
                    path.unlink(missing_ok=True)
            writing.add_written(SMALL)
            subject = Subject(
                domain=guest.name,
                uuid=guest.uuid,
                created=created,
                way=Way.PUSH,
                consistency=was.level,
                host=described(host, domain),
                reasons=(was.reason, missing or "", did.reason),
                checkpoint=did.name,
            )
            made = writing.publish(subject, [disk.target for disk in disks if disk not in chosen])
            _forget_old(run, guest, directory, destination)
            writer.note(pushes=False, checkpoint="")
        return made


def _refuse_encrypted(guest: Guest, disks: list[Disk]) -> None:
    for disk in disks:
        if disk.encrypted:
            raise BackupImpossible(
                f"{guest.name}: {disk.target} is encrypted (LUKS), and its backup would be in "
                f"clear text: leave it out: -x {disk.target}"
            )


def _forget_old(
    run: SnapshotRun, guest: Guest, directory: BackupDirectory, destination: str
) -> None:
    """Checkpoints that no next backup needs go, while no hook is at work on the guest's disks.

    Without that nothing is wrong: the backup is there, and the next one does it.
    """
    about = run.about(guest)
    try:
        with one_guest.locked(run, guest, f"forget checkpoints of {guest.name}"):
            checkpoints.forget_old(guest, directory, destination, about)
    except ZvmsnapError as error:
        about.info("the next backup lets libvirt forget old checkpoints: %s", error)


def _room_bytes(sources: list[Source], planned: Pushing) -> int:
    """What the disks that are pushed whole need at once, as far as their images tell."""
    pushed_bytes = 0
    for disk, path in ((each.disk, each.path) for each in sources):
        if path and disk.target not in planned.increments:
            driver = "host_device" if path.startswith("/dev/") else "file"
            node = {"driver": driver, "filename": path}
            image = Image({"driver": disk.format, "force-share": True, "file": node})
            with suppress(QemuImgFailed):
                pushed_bytes += qemu_img.needed_bytes(image.name)
    return pushed_bytes


def _content(path: Path, target: str, did: Pushing, writing: Writing) -> Content:
    image = Image({"driver": images.QCOW2, "file": images.of_file(str(path)), "backing": None})
    if target in did.increments:
        return Content(image, differences=partial(checkpoints.taken_over, path, did.since))
    whole = partial(_taken_over, path, image, writing)
    return Content(image, because=did.whole.get(target, ""), whole=whole)


def _taken_over(pushed: Path, image: Image, writing: Writing, target: Path) -> bool:
    """Let what QEMU has pushed be the image of a disk, unless a copy takes much less room.

    QEMU leaves out holes, and writes zeros that are data in the guest's image, as all of a logical
    volume is. A copy has none of these. Raises QemuImgFailed and OSError.
    """
    if zeros.share(pushed) > _ZEROS_SHARE_MAX:
        with suppress(BackupImpossible):  # there is room for one of them only
            writing.check_free(qemu_img.needed_bytes(image.name))
            return False
    pushed.rename(target)
    return True


# -- libvirt's job


@contextmanager
def _pushed(
    run: SnapshotRun,
    guest: Guest,
    domain: domain_xml.Domain,
    disks: list[Disk],
    planned: Pushing,
    writer: WorkWriter,
) -> Iterator[tuple[Pushing, Consistency, Mapping[str, Path]]]:
    """What QEMU has written of each disk, by target; files that are still there go at the end."""
    assert isinstance(writer.work, BackupWork)
    host, about = run.host, run.about(guest)
    folder = Path(writer.work.making)
    files = {disk.target: folder / f"{disk.target}.pushed.qcow2" for disk in disks}
    # QEMU's user must reach its own files there; all others are root's.
    folder.chmod(PASSABLE_DIR)
    writer.note(pushes=True, checkpoint=planned.name)
    with frozen(run, guest, files) as was:
        did = _begin(host, guest, domain, files, planned)
    _say(did, about)
    try:
        with progress.told(partial(backup_job.how_far, guest, files)):
            backup_job.await_end(host, guest)
        for path in files.values():
            os.chown(path, os.geteuid(), os.getegid())
        yield did, was, files
    finally:
        for path in files.values():
            path.unlink(missing_ok=True)


def _begin(
    host: Host,
    guest: Guest,
    domain: domain_xml.Domain,
    files: Mapping[str, Path],
    planned: Pushing,
) -> Pushing:
    """Begin the job; returns what it pushes, which is less if libvirt refuses what was planned.

    Raises LibvirtFailed, and BackupRefused if it refuses all.
    """
    while True:
        try:
            xml = _xml(domain, files, planned)
            host.begin_backup(guest.uuid, xml, planned.checkpoint_xml(domain))
        except NO_REFUSALS:
            raise
        except LibvirtFailed as error:
            less = planned.with_less(error)
            if less is None:
                raise BackupRefused(str(error)) from error
            planned = less
            for path in files.values():
                path.unlink(missing_ok=True)
        else:
            return planned


def _xml(domain: domain_xml.Domain, files: Mapping[str, Path], planned: Pushing) -> str:
    """Every disk is named: libvirt would make files beside the images of those that are not.

    Its mode is named only where there are several: older versions know no such attribute.
    """
    root = ET.Element("domainbackup", mode="push")
    listed = ET.SubElement(root, "disks")
    for disk in domain.disks:
        if disk.target not in files:
            ET.SubElement(listed, "disk", name=disk.target, backup="no")
            continue
        one = ET.SubElement(listed, "disk", name=disk.target, backup="yes", type="file")
        if disk.target in planned.increments:
            one.attrib |= {"backupmode": "incremental", "incremental": planned.since}
        elif planned.increments:
            one.set("backupmode", "full")
        ET.SubElement(one, "driver", type="qcow2")
        ET.SubElement(one, "target", file=str(files[disk.target]))
    return ET.tostring(root, encoding="unicode")


def _say(did: Pushing, about: Logger) -> None:
    """Each reason for which more is pushed than what has changed, once."""
    if did.reason:
        about.warning("%s", did.reason)
    for why in dict.fromkeys(did.whole.values()):
        targets = ", ".join(target for target, each in did.whole.items() if each == why)
        about.info("all of %s is pushed and compared, as %s", targets, why)


# -- what is taken back, now or after a crash


@contextmanager
def _taken_back(host: Host, writer: WorkWriter, about: Logger) -> Iterator[None]:
    """If what is inside fails, libvirt keeps neither its job nor its checkpoint."""
    try:
        yield
    except BaseException:
        finish_before_dying()
        why: Exception | None = None

        def is_done() -> bool:
            nonlocal why
            try:
                take_back(host, writer)
            except ConnectionLost as error:
                why = error
                return False
            return True

        try:
            if wait_until(is_done, _BACK_WITHIN_S, _LOOK_EVERY_S):
                why = None
        except (LibvirtFailed, OSError) as error:
            why = error
        if why:
            about.warning("libvirt may still have a job of it: zvmsnap recover ends that: %s", why)
        raise


def take_back(host: Host, writer: WorkWriter) -> None:
    """End the job of a backup that failed, and let libvirt forget its checkpoint; note both.

    A guest that is off keeps the checkpoint: with its bitmaps only a QEMU removes it, and the next
    backup does. So does one that is refused. Raises LibvirtFailed.
    """
    work = writer.work
    assert isinstance(work, BackupWork)
    if not (work.pushes or work.checkpoint):
        return
    guest = host.find(work.uuid)
    if guest:
        if work.pushes:
            backup_job.end(host, guest, work.making)
        if work.checkpoint and guest.is_active() and not _may_exist(work):
            about = log.about(guest.name, str(Path(work.making).parent))
            checkpoints.forget_if_allowed(guest, work.checkpoint, about)
    writer.note(pushes=False, checkpoint="")


def _may_exist(work: BackupWork) -> bool:
    """Was the backup published; or is its directory not there, so that nobody knows?"""
    path = Path(work.making).parent
    return not path.is_dir() or any(
        each.manifest.id == work.id for each in BackupDirectory(path).read()[0]
    )


def _end_dead(config: Config, host: Host, guest: Guest) -> None:
    """What an interrupted backup of this guest has left of its job. Raises LibvirtFailed."""
    for work in Works(config).all()[0]:
        is_dead = work.uuid == guest.uuid and not work.owner.is_alive()
        if is_dead and isinstance(work, BackupWork) and (work.pushes or work.checkpoint):
            writer = WorkWriter(config, work)
            take_back(host, writer)
            discard_made(work)
            writer.close()
