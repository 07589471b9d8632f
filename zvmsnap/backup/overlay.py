"""Captures a guest for its backup by the steps of the hooks; and backs it up on overlays.

| step             | what is done                                                                  |
|------------------|-------------------------------------------------------------------------------|
| capture          | as for a point, but at each level the guest goes on on overlays; with RAM too |
| copy             | the images below, which nobody writes to now                                  |
| release, tidy    | as after a snapshot: overlays are merged, pivoted, proven to be gone, deleted |
| RAM              | is moved from staging into the backup                                         |
| close            | the journal entry, which is of a backup: so no point is made                  |

So whatever dies: the watchdog, the next hook and `zvmsnap recover` bring the guest back as they do
for a run, and the directory in the making is removed by `recover`. The same is so of a guest whose
file systems are frozen while libvirt's backup job begins (`frozen`).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from zvmsnap.archive.directory import BackupDirectory, StoredBackup
from zvmsnap.archive.manifest import Way
from zvmsnap.backup.of_point import lock_name
from zvmsnap.backup.offline import check_chosen, described, image_of
from zvmsnap.backup.writing import BackupOptions, Content, Subject, Writing, base_for, making
from zvmsnap.bulk import progress
from zvmsnap.bulk import writing as bulk
from zvmsnap.capture import all_guests, eligibility, one_guest
from zvmsnap.capture.eligibility import Eligibility
from zvmsnap.capture.one_guest import BACK_UP
from zvmsnap.capture.snapshot_run import CaptureRequest, SnapshotRun
from zvmsnap.common import safe_files
from zvmsnap.common.errors import BackupFailed, BackupImpossible, Cancelled, DomainBusy
from zvmsnap.common.lockfile import own_lock
from zvmsnap.common.process import Process, asked_meanwhile
from zvmsnap.common.signals import cancel_at_once
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.mode import Mode, mode_set
from zvmsnap.config.settings import Config
from zvmsnap.disks import jobs, location, overlay_chain
from zvmsnap.disks.location import GuestDisks
from zvmsnap.disks.staging import StagingDir, free_bytes
from zvmsnap.finalize.after_snapshot import Finisher
from zvmsnap.journal import describe, other_versions
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import Operations
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.points.manifest import SMALL
from zvmsnap.quiesce import watchdog
from zvmsnap.virt import domain_xml
from zvmsnap.virt.domain_xml import Disk
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs import mounts, volume

_CHUNK_BYTES = 4 << 20


def back_up_on_overlays(
    config: Config,
    host: Host,
    guest: Guest,
    directory: BackupDirectory,
    options: BackupOptions,
    mode: Mode,
    cancelled: threading.Event,
    why: str = "",
) -> StoredBackup:
    """Back up a guest that runs, at a level of that mode; `why` it is this way, for the manifest.

    Raises BackupImpossible, and whatever says why it failed.
    """
    run = backup_run(config, host, directory, mode, cancelled, on_overlays=True)
    watchdog.start_watchdog(run.request.owner)  # it needs some time until it runs
    intent = f"{BACK_UP} {guest.name} to {directory.path}"
    with (
        own_lock(config.locks_dir, lock_name(guest.uuid), intent, config.limits.lock_timeout_s),
        ExitStack() as guest_lock,
        making(config, directory, guest.name, guest.uuid) as writer,
    ):
        guest_lock.enter_context(one_guest.locked(run, guest, intent))
        refuse_others(config, guest)
        jobs.wait_idle(guest, config.limits.busy_timeout_s, cancelled)
        seen = location.locate_disks(host, guest, run.mounts)
        if seen.is_off:
            raise BackupFailed(shut_off(guest))
        disks = [disk for disk in seen.domain.disks if disk.writable]
        chosen = [disk for disk in disks if disk.target not in options.exclude]
        check_chosen(guest, disks, [disk.target for disk in chosen], options.exclude)
        eligible = _eligible(host, guest, seen, chosen)
        contents = {disk.target: Content(image_of(host, guest, disk)) for disk in chosen}
        base = base_for(directory, guest.uuid, options.level)
        about = run.about(guest)
        writing = Writing(config, directory, writer, base, about, compress=options.compress)
        writing.check_room(contents, _ram_bytes(guest, eligible, mode))
        with _captured(run, guest, eligible) as capture:
            with asked_meanwhile(capture.check):
                for target, content in contents.items():
                    capture.check()
                    writing.add_disk(target, content)
            capture.release()
            entry, staging = capture.entry, capture.staging
            small = {name: staging.point / name for name in SMALL}
            writing.add_small({n: path.read_bytes() for n, path in small.items() if path.exists()})
            if entry.level.has_memory:
                move = partial(_move, staging.memory, capture.refuse_cancelled)
                writing.add_memory(move, entry.memory_format)
        guest_lock.close()  # its hooks need not wait for the checksums
        cancel_at_once()
        subject = Subject(
            domain=guest.name,
            uuid=guest.uuid,
            created=datetime.fromtimestamp(int(entry.disks_frozen_at_s), UTC),
            way=Way.OVERLAY,
            consistency=entry.level,
            host=described(host, eligible.domain),
            reasons=(why, entry.reason or "", entry.tpm_warning or ""),
        )
        return writing.publish(subject, [disk.target for disk in disks if disk not in chosen])


def backup_run(
    config: Config,
    host: Host,
    directory: BackupDirectory,
    mode: Mode,
    cancelled: threading.Event,
    *,
    on_overlays: bool,
) -> SnapshotRun:
    """A run that captures guests for a backup: no snapshot is taken for it, and no point made."""
    request = CaptureRequest(
        call=HookCall(Role.PRE, (), ()),
        owner=Process.of(os.getpid()),
        covered=frozenset(),
        snapshotted=frozenset(),
        modes_for=lambda _datasets: mode_set([mode]),
        cancelled=cancelled,
        backup=str(directory.path),
        on_overlays=on_overlays,
    )
    return SnapshotRun(config, host, Journal(config.journal_dir), request, mounts.read_table())


def refuse_others(config: Config, guest: Guest) -> None:
    """Raises DomainBusy and WorkOfOtherVersion if a command is at work on that guest."""
    other_versions.refuse(config.journal_dir, guest.uuid)
    if operation := Operations(config.journal_dir).read(guest.uuid):
        raise DomainBusy(f"{guest.name}: {describe.operation(operation)}")


@dataclass
class Consistency:
    """Of which level the disks are, and why of no better one."""

    level: ConsistencyLevel = ConsistencyLevel.CRASH
    reason: str = ""


@contextmanager
def frozen(run: SnapshotRun, guest: Guest, targets: Container[str]) -> Iterator[Consistency]:
    """As long as this lasts its file systems are frozen, if that is wanted, and possible.

    What they were in fact is known at the end. Raises BackupImpossible before, and BackupFailed
    after, if they were not and that is not good enough; and what keeps it from all levels.
    """
    was = Consistency()
    modes = run.request.modes_for(())
    if ConsistencyLevel.QUIESCED not in modes.levels:
        yield was
        return
    seen = location.locate_disks(run.host, guest, run.mounts)
    eligible = eligibility.assess_for_backup(seen, targets)
    if why := eligible.obstacles.get(ConsistencyLevel.QUIESCED):
        if modes.forbids(was.level):
            raise BackupImpossible(f"{guest.name}: {why}")
        was.reason = why
        yield was
        return
    entry = all_guests.capture_for_backup(run, guest, eligible)
    finisher = Finisher(run.config, run.host, run.journal, entry)
    try:
        yield was
    finally:
        try:
            finisher.let_go(guest)
        finally:
            finisher.release()
            finisher.publish()
    was.level, was.reason = finisher.entry.level, finisher.entry.reason or ""
    if modes.forbids(was.level):
        raise BackupFailed(f"{guest.name}: {was.reason}: nothing of the backup is kept")


def _eligible(host: Host, guest: Guest, seen: GuestDisks, chosen: Sequence[Disk]) -> Eligibility:
    """Raises BackupImpossible if one of the disks cannot be put on an overlay, or is another."""
    eligible = eligibility.assess_for_backup(seen, {disk.target for disk in chosen})
    if eligible.no_overlay:
        raise BackupImpossible(
            f"{guest.name}: cannot be put on an overlay: {eligible.no_overlay}: leave that disk "
            "out (-x), or shut the guest off"
        )
    process = guest.process()
    for disk in chosen:
        path = location.path_of(host, disk)
        if process and not (
            process.device(path) == volume.device_number(path)
            if path.startswith("/dev/")
            else process.has_file(path)
        ):
            raise BackupImpossible(
                f"{guest.name}: {disk.target}: QEMU has another file open than {path} is now"
            )
    return eligible


def _ram_bytes(guest: Guest, eligible: Eligibility, mode: Mode) -> int:
    """What a RAM image may need in the backup: QEMU writes no page that was never used."""
    if not mode.minimum.has_memory:
        return 0
    ram_bytes = eligible.domain.memory_kib << 10
    process = guest.process()
    return min(ram_bytes, (process and process.memory_bytes()) or ram_bytes)


@contextmanager
def _captured(run: SnapshotRun, guest: Guest, eligible: Eligibility) -> Iterator[_Capture]:
    """The guest on overlays; at the end it is off them, and nothing is left of them."""
    entry = all_guests.capture_for_backup(run, guest, eligible)
    capture = _Capture(run, guest, entry)
    try:
        yield capture
    finally:
        capture.close()


class _Capture:
    """A guest that is on overlays, for as long as the images below are copied."""

    def __init__(self, run: SnapshotRun, guest: Guest, entry: Entry) -> None:
        self._run = run
        self._guest = guest
        self._finisher = Finisher(run.config, run.host, run.journal, entry)
        self._is_released = False
        self.staging = StagingDir(entry.directory(run.config.staging_dir))

    @property
    def entry(self) -> Entry:
        """Its entry in the journal as it is now."""
        return self._finisher.entry

    def check(self) -> None:
        """To be asked every second: may the copy go on? Raises Cancelled and BackupFailed."""
        self.refuse_cancelled()
        staging = self.staging.path.parent
        free = free_bytes(staging)
        if free < self._run.config.limits.reserve_bytes:
            raise BackupFailed(
                f"{self._guest.name}: nothing of the backup is kept, as staging {staging} has only "
                f"{free >> 20} MiB left for what the guest writes meanwhile: free space there, or "
                "set `staging` to another file system"
            )

    def refuse_cancelled(self) -> None:
        """Raises Cancelled if this process was asked to stop."""
        if self._run.request.cancelled.is_set():
            raise Cancelled(f"{self._guest.name}: interrupted: nothing of the backup is kept")

    def release(self) -> None:
        """Take the guest off its overlays. Raises BackupFailed if the images were written to."""
        named = overlay_chain.of(domain_xml.parse(self._guest.xml()))
        for disk in self.entry.disks:
            chain = named.get(disk.target)
            if chain is None or disk.overlay not in chain.overlays or chain.base != disk.base:
                raise BackupFailed(
                    f"{self._guest.name}: somebody has taken {disk.target} off its overlay, and it "
                    "was written to while it was copied: nothing of the backup is kept"
                )
        self._finisher.release()
        self._is_released = True

    def close(self) -> None:
        """End the entry; before that release the guest, if that was not done, or has failed.

        If it fails again the entry stays, for the watchdog and `zvmsnap recover`.
        """
        if not self._is_released:
            self._finisher.release()
        self._finisher.publish()


def shut_off(guest: Guest) -> str:
    """What is said of a guest that ended before it could be backed up."""
    return f"{guest.name}: was shut off meanwhile: nothing was backed up"


def _move(image: Path, check: Callable[[], None], target: Path) -> None:
    """Move it, or copy it to another file system, for which `check` is asked again and again.

    Not durable. Raises OSError, and what `check` raises.
    """
    try:
        os.rename(image, target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    with (
        image.open("rb") as source,
        safe_files.created(target) as file,
        progress.shown("copied", image.stat().st_size) as shown,
    ):
        flush = bulk.EarlyFlush(file)
        while data := source.read(_CHUNK_BYTES):
            check()
            bulk.write(file, data)
            flush.wrote(len(data))
            shown.done_bytes += len(data)
