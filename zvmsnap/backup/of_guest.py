"""Backs up a guest as it is now: takes a point for that, backs it up, and drops it again.

So all that is done to the guest is what `zvmsnap take` does, and is undone as that is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum

from zvmsnap.archive.directory import BackupDirectory, StoredBackup
from zvmsnap.backup.of_point import back_up_point
from zvmsnap.backup.offline import back_up_offline
from zvmsnap.backup.overlay import back_up_on_overlays, shut_off
from zvmsnap.backup.push import back_up_running
from zvmsnap.backup.work import BackupWork, WorkWriter
from zvmsnap.backup.writing import BackupOptions, now
from zvmsnap.capture import take
from zvmsnap.capture.take import TakePlan
from zvmsnap.common import log
from zvmsnap.common.errors import BackupFailed, BackupImpossible, BackupRefused
from zvmsnap.common.process import Process
from zvmsnap.common.signals import cancel_at_once, cancelled_by_signal, finish_before_dying
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.mode import parse_mode
from zvmsnap.config.settings import Config
from zvmsnap.disks import location
from zvmsnap.points import vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs import marks, mounts, zfs

_HAS_BACKUPS = (7, 2)  # of libvirt, with QEMU 5.2 or later


class Wanted(StrEnum):
    """What the disks must be, and what else the backup holds; as the levels of points."""

    BEST = "quiesced,crash"
    QUIESCED = "quiesced,required"
    STATE = "paused,required"
    CRASH = "crash"


def back_up_guest(
    config: Config,
    host: Host,
    guest: Guest,
    directory: BackupDirectory,
    options: BackupOptions,
    wanted: Wanted,
) -> StoredBackup | None:
    """Back up a guest, by the best way that it allows; None if nothing has changed.

    | its disks that are wanted   | it runs | way                                              |
    |-----------------------------|---------|--------------------------------------------------|
    | all on ZFS                  | any     | a point is taken for that                        |
    | some elsewhere              | no      | as its images are                                |
    | some elsewhere              | yes     | libvirt's backup job, in push mode; if libvirt   |
    |                             |         | has none, or refuses it, on overlays             |
    | some elsewhere; with RAM,   | yes     | on overlays, while its images are copied         |
    | or `backup_overlay` is set  |         |                                                  |

    Raises whatever says why it failed.
    """
    seen = location.locate_disks(host, guest, mounts.read_table())
    elsewhere = [
        disk.target
        for disk in seen.domain.disks
        if disk.writable
        and disk.target not in options.exclude
        and disk.target not in seen.locations
    ]
    if elsewhere and seen.is_off:
        return back_up_offline(config, host, guest, directory, options)
    if elsewhere:
        return _back_up_running(config, host, guest, directory, options, wanted)
    name = f"zvmsnap_{now():%Y-%m-%dT%H:%M:%SZ}_backup"
    planned = take.plan(host, [guest.uuid], None, name, wanted.value)
    with _taken(config, planned, guest) as point:
        return back_up_point(config, point, directory, options)


def _back_up_running(
    config: Config,
    host: Host,
    guest: Guest,
    directory: BackupDirectory,
    options: BackupOptions,
    wanted: Wanted,
) -> StoredBackup:
    """By libvirt's backup job, or on overlays: there it need not be paused for its RAM."""
    mode = parse_mode(wanted.value.replace(ConsistencyLevel.PAUSED, ConsistencyLevel.MEMORY))
    why = _why_no_job(config, host)
    if wanted is not Wanted.STATE and not why:
        try:
            return back_up_running(config, host, guest, directory, options, mode)
        except BackupRefused as error:
            cancel_at_once()  # what libvirt had of it was ended first
            why = str(error)
            if not guest.is_active():
                raise BackupFailed(shut_off(guest)) from error
            log.about(guest.name, str(directory.path)).warning("%s: on overlays instead", why)
    try:
        return back_up_on_overlays(
            config, host, guest, directory, options, mode, cancelled_by_signal(), why
        )
    except BackupImpossible as error:
        raise BackupImpossible(f"{error}{why and f' ({why})'}") from error


def _why_no_job(config: Config, host: Host) -> str:
    """Why guests here are not backed up by libvirt's job; "" if they are."""
    if config.backup_overlay:
        return "backup_overlay is set"
    version = host.versions()["libvirt"]
    if tuple(map(int, version.split(".")[:2])) < _HAS_BACKUPS:
        return f"libvirt {version} has no backup job"
    return ""


@contextmanager
def _taken(config: Config, planned: TakePlan, guest: Guest) -> Iterator[RestorePoint]:
    work = BackupWork(
        id=os.urandom(16).hex(),
        domain=guest.name,
        uuid=guest.uuid,
        owner=Process.of(os.getpid()),
        making="",
        snapshots=tuple(planned.full_names),
    )
    writer = WorkWriter(config, work)
    writer.note()
    try:
        points = take.execute(config, planned, None, cancelled_by_signal())
        cancel_at_once()
        own = [point for point in points if point.manifest.uuid == guest.uuid]
        if not own:
            raise BackupImpossible(f"{guest.name}: got no point to be backed up")
        yield own[0]
    finally:
        finish_before_dying()
        drop_taken(config, work.snapshots)
        writer.close()


def drop_taken(config: Config, snapshots: Sequence[str]) -> None:
    """Destroy what was taken for a backup, with the points of it. Raises ZfsFailed."""
    if not snapshots:
        return
    for name in marks.existing(snapshots):
        zfs.destroy(name)
    runs = {name.partition("@")[2] for name in snapshots}
    for run in runs:
        for point in vault.entries(config.vault_dir, run):
            if isinstance(point, RestorePoint):
                vault.remove(point)
