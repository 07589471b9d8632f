"""pre: take each guest's part of a moment. Afterwards its disks are frozen under overlays.

For each guest, in parallel: settle what an earlier moment left behind, then

    staging      a directory for this capture
    definition   live and persistent XML, NVRAM, TPM; also into the dataset, so that they travel
    dump         RAM image and overlays, in one libvirt call, at one instant
    judge        is the image one that libvirt will load? is the TPM as it was?

A guest for which a step fails is put back at once and gets a point without RAM; the others go on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from zvmsnap import (
    definition,
    domainxml,
    guard,
    log,
    mounttable,
    placement,
    point,
    qemuconf,
    saveimage,
    staging,
    survey,
    tpm,
    zfs,
)
from zvmsnap.config import Config
from zvmsnap.dumpwatch import DumpWatch
from zvmsnap.errors import (
    Cancelled,
    DomainBusy,
    DomainGone,
    HookEnvironmentInvalid,
    ZvmsnapError,
)
from zvmsnap.finish import settle
from zvmsnap.hypervisor import Guest, Hypervisor
from zvmsnap.journal import Disk, Entry, Journal, Open, Process
from zvmsnap.leave import leave, wait_idle
from zvmsnap.locks import lock
from zvmsnap.placement import Level, Placement
from zvmsnap.sanoid import HookCall, spellings
from zvmsnap.staging import CaptureDir, Room
from zvmsnap.steps import Step, StepFailed
from zvmsnap.steps import run as run_steps
from zvmsnap.tasks import Tasks

_PARALLEL_GUESTS = 16
_LOOK_AGAIN_S = 0.2
_MIB = 1 << 20


@dataclass(frozen=True)
class Moment:
    """What all guests of one call of pre share."""

    config: Config
    hypervisor: Hypervisor
    journal: Journal
    call: HookCall
    owner: Process
    covered: frozenset[str]
    mounts: list[mounttable.Mount]
    cancelled: threading.Event


def begin(
    call: HookCall,
    config: Config,
    owner: Process,
    takes_recursively: Mapping[str, bool],
    cancelled: threading.Event,
    *,
    guarded: bool,
) -> bool:
    """Take every concerned guest's part of the moment; True if all got what they should.

    `guarded`: the owner is sanoid, so that its death means that nobody will call post.
    Raises StagingUnusable, ZfsFailed, HypervisorUnreachable before anything is touched, and
    Cancelled after everything was undone.
    """
    datasets = zfs.datasets()
    for target in call.datasets:
        if target not in datasets:
            raise HookEnvironmentInvalid(f"SANOID_TARGET {target!r}: there is no such dataset")
    snapshotted = placement.snapshotted_datasets(call.datasets, datasets, takes_recursively)
    covered = placement.without_excluded(snapshotted, datasets)
    return begin_on(covered, snapshotted, call, config, owner, cancelled, guarded=guarded)


def begin_on(
    covered: frozenset[str],
    snapshotted: frozenset[str],
    call: HookCall,
    config: Config,
    owner: Process,
    cancelled: threading.Event,
    *,
    guarded: bool,
) -> bool:
    """As `begin`, of guests with disks on `covered`, when `snapshotted` will be snapshotted."""
    if not covered:
        return True
    mounts = mounttable.mounts()
    with Hypervisor(config.uri) as hypervisor:
        moment = Moment(
            config, hypervisor, Journal(config.journal_dir), call, owner, covered, mounts, cancelled
        )
        guests, complete = _concerned(moment)
        if not guests:
            log.plain().debug("%s: no guest has a disk there", ",".join(call.datasets))
            return complete
        # Only now, as datasets without guests need no staging at all.
        staging.check_usable(config.staging_dir, snapshotted, mounts)
        if guarded:
            guard.arm(owner)
        return _all_in_parallel(moment, guests) and complete


def _concerned(moment: Moment) -> tuple[dict[str, Guest], bool]:
    found = {}
    complete = True
    for guest in moment.hypervisor.guests():
        try:
            if placement.place(
                survey.look(moment.hypervisor, guest, moment.mounts), moment.covered
            ):
                found[guest.uuid] = guest
        except DomainGone:
            continue
        except ZvmsnapError as error:
            _about(moment, guest).error("not looked at: %s", error)
            complete = False
    return found, complete


def _all_in_parallel(moment: Moment, guests: Mapping[str, Guest]) -> bool:
    former = _former_snapshots(moment)
    room = Room(moment.config.staging_dir, moment.config.limits.overlay_room_mib * _MIB)
    taking = threading.Lock()

    def reserve(ram_bytes: int) -> None:
        with taking:
            room.take(ram_bytes)

    with ThreadPoolExecutor(min(_PARALLEL_GUESTS, len(guests))) as pool:
        futures: dict[Guest, Future[bool]] = {
            guest: pool.submit(_GuestCapture(moment, guest, former, reserve).run)
            for guest in guests.values()
        }
    complete = True
    for guest, future in futures.items():
        error = future.exception()
        if error is None:
            complete = future.result() and complete
        else:
            complete = False
            _about(moment, guest).error("no point: %s", error, exc_info=_unexpected(error))
    if moment.cancelled.is_set():
        _put_back(moment, guests)
        raise Cancelled("interrupted: no guest has a part in this moment")
    return complete


def _unexpected(error: BaseException) -> BaseException | None:
    return None if isinstance(error, ZvmsnapError | OSError) else error


def _put_back(moment: Moment, guests: Mapping[str, Guest]) -> None:
    """After an interruption nobody may call post: guests that were done are put back too."""
    for uuid, guest in guests.items():
        entry = moment.journal.read(uuid)
        if entry is None or entry.owner != moment.owner:
            continue
        try:
            with lock(
                moment.config.locks_dir,
                uuid,
                f"put back {guest.name}",
                moment.config.limits.lock_timeout_s,
            ):
                settle(moment.config, moment.hypervisor, guest, entry)
        except (ZvmsnapError, OSError) as error:
            _about(moment, guest).error("not put back, the next hook tries again: %s", error)


def _about(moment: Moment, guest: Guest) -> log.Logger:
    return log.about(guest.name, ",".join(moment.call.datasets))


def _former_snapshots(moment: Moment) -> tuple[int, ...]:
    """Guids of snapshots that bear the announced names before the moment: not ours."""
    wanted = [
        f"{dataset}@{spelling}"
        for dataset in moment.covered
        for name in moment.call.names
        for spelling in spellings(name)
    ]
    return tuple(snapshot.guid for snapshot in zfs.snapshots(wanted).present.values())


class _GuestCapture:
    """One guest's part."""

    def __init__(
        self,
        moment: Moment,
        guest: Guest,
        former_guids: tuple[int, ...],
        reserve: Callable[[int], None],
    ) -> None:
        self._moment = moment
        self._guest = guest
        self._former_guids = former_guids
        self._reserve = reserve
        self._log = _about(moment, guest)
        self._dir = CaptureDir.fresh(moment.config.staging_dir, guest.uuid)

    def run(self) -> bool:
        """True if the guest got the best level that its disks allow."""
        if Tasks(self._moment.config.journal_dir).read(self._guest.uuid):
            raise DomainBusy("a restore of it is under way, or was interrupted: zvmsnap recover")
        with self._alone():
            found = survey.look(self._moment.hypervisor, self._guest, self._moment.mounts)
            placed = placement.place(found, self._moment.covered)
            if placed is None:
                return True
            if placed.level is not Level.MEMORY:
                return self._without_memory(placed, placed.level, placed.reason)
            if why := qemuconf.why_unloadable():
                self._log.error("no RAM in this point: %s", why)
                self._without_memory(placed, Level.CRASH, why)
                return False
            try:
                self._with_memory(placed)
                return True
            except (StepFailed, ZvmsnapError) as error:
                self._log.error("no RAM in this point: %s", error)
                if isinstance(error, StepFailed) and error.not_undone:
                    return False
                if self._moment.cancelled.is_set():
                    return False
                self._dir = CaptureDir.fresh(self._moment.config.staging_dir, self._guest.uuid)
                self._without_memory(placed, Level.CRASH, str(error))
                return False

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the guest's lock, with no moment of it open; another sanoid's is waited for.

        A snapshot that is taken while that one merges its overlays would hold half of their
        writes. Raises LockTimeout and DomainBusy.
        """
        config = self._moment.config
        deadline_s = time.monotonic() + config.limits.lock_timeout_s
        intent = f"capture {self._guest.name}"
        while True:
            with lock(config.locks_dir, self._guest.uuid, intent, config.limits.lock_timeout_s):
                entry = self._moment.journal.read(self._guest.uuid)
                if not entry or entry.owner == self._moment.owner or not entry.owner.is_alive():
                    settle(config, self._moment.hypervisor, self._guest, entry)
                    yield
                    return
            if time.monotonic() > deadline_s:
                raise DomainBusy(
                    f"moment {entry.moment} of {','.join(entry.targets)} is under way "
                    f"(sanoid has pid {entry.owner.pid})"
                )
            if self._moment.cancelled.wait(_LOOK_AGAIN_S):
                raise Cancelled("interrupted while another moment was under way")

    def _without_memory(self, placed: Placement, level: Level, reason: str | None) -> bool:
        work = self._open(placed, level, reason)
        self._run_journalled(self._preparation(placed, work), work)
        work.note(step="waiting")
        self._log.log(
            logging.INFO if level is Level.OFFLINE else logging.WARNING,
            "level %s: %s",
            level,
            reason,
        )
        return True

    def _with_memory(self, placed: Placement) -> None:
        limits = self._moment.config.limits
        wait_idle(self._guest, limits.busy_timeout_s, self._moment.cancelled)
        ram_bytes = placed.domain.memory_kib << 10
        self._reserve(ram_bytes)
        work = self._open(placed, Level.MEMORY, None, with_overlays=True)
        self._run_journalled(
            [
                *self._preparation(placed, work),
                Step(
                    "dump",
                    lambda: self._dump(placed, work, ram_bytes),
                    lambda: leave(self._moment.config, self._guest, work, self._log),
                ),
                Step("judge", lambda: self._judge(work)),
                Step("frozen", lambda: None),
            ],
            work,
        )
        self._log.info(
            "RAM image of %d MiB in %.1f s, guest paused %.2f s",
            self._dir.memory.stat().st_size >> 20,
            work.entry.dump_s,
            work.entry.pause_s,
        )

    def _open(
        self, placed: Placement, level: Level, reason: str | None, *, with_overlays: bool = False
    ) -> Open:
        by_target = {disk.target: disk for disk in placed.domain.disks}
        entry = Entry(
            domain=self._guest.name,
            uuid=self._guest.uuid,
            moment=self._moment.call.moment,
            targets=self._moment.call.datasets,
            names=self._moment.call.names,
            former_guids=self._former_guids,
            owner=self._moment.owner,
            capture=self._dir.path.name,
            level=level,
            reason=reason,
            disks=tuple(
                Disk.of(
                    by_target[target],
                    place,
                    str(self._dir.overlay(target)) if with_overlays else "",
                )
                for target, place in placed.covered.items()
            ),
            taken=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        return Open(self._moment.journal, entry)

    def _run_journalled(self, steps: list[Step], work: Open) -> None:
        def record(step: str) -> None:
            if self._moment.cancelled.is_set() and not step.startswith("undo"):
                raise Cancelled(f"interrupted before {step}")
            work.note(step=step)

        try:
            run_steps(steps, record)
        except StepFailed as error:
            # What could not be undone stays in the journal, for the next hook to end.
            if not error.not_undone:
                work.close()
            raise

    def _preparation(self, placed: Placement, work: Open) -> list[Step]:
        def define() -> None:
            places = placed.covered.values()
            why_no_tpm = definition.store(self._guest, self._dir.point, places, self._moment.mounts)
            work.note(tpm=why_no_tpm)

        return [
            Step("staging", self._dir.make, self._dir.remove),
            Step("definition", define),
        ]

    def _dump(self, placed: Placement, work: Open, ram_bytes: int) -> None:
        xml = domainxml.snapshot_xml(
            self._dir.path.name,
            str(self._dir.memory),
            {disk.target: disk.overlay for disk in work.entry.disks},
            placed.others,
        )
        begun_s = time.monotonic()
        watch = DumpWatch(
            self._guest,
            self._dir.memory,
            ram_bytes,
            self._moment.config.limits,
            self._moment.cancelled,
            self._log.warning,
            work.note,
        )
        with self._guest.pauses() as paused_s:
            with watch:
                self._guest.snapshot_create(xml)
            work.note(
                paused=False,
                allowed_pause_ms=None,
                frozen_at_s=time.time(),
                dump_s=time.monotonic() - begun_s,
                pause_s=paused_s(),
            )

    def _judge(self, work: Open) -> None:
        xml = (self._dir.point / point.DOMAIN_XML).read_text()
        why = tpm.why_stale(xml, self._guest.uuid, self._dir.point / point.TPM)
        work.note(memory_format=saveimage.judge(self._dir.memory).format, tpm=work.entry.tpm or why)
