"""One guest's part of a moment: the best level of those demanded that can be reached.

For each level the steps are (see levels for what they are for):

| memory     | paused     | quiesced        | crash, offline |                                |
|------------|------------|-----------------|----------------|--------------------------------|
| staging    | staging    | staging         | staging        | a directory for it             |
| definition | definition | definition      | definition     | XML, NVRAM, TPM                |
| dump       | dump       |                 |                | RAM image; overlays for memory |
| judge      | judge      |                 |                | will libvirt load it?          |
|            |            | (pre-freeze)    |                | the administrator's own        |
|            |            | gate            |                | others have done what is slow  |
|            |            | freeze          |                | by its agent                   |
|            |            | (overlay, thaw) |                | if quiesce_overlay             |
| frozen     | frozen     | frozen          | waiting        | until post                     |

A level for which a step fails is undone at once, and the next one is tried.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from zvmsnap.capture import eligibility
from zvmsnap.capture.eligibility import Eligibility
from zvmsnap.capture.memory_dump import DumpSupervisor
from zvmsnap.capture.snapshot_run import PreexistingSnapshots, SnapshotRun
from zvmsnap.common.errors import (
    Cancelled,
    DomainBusy,
    DumpAborted,
    ModeInvalid,
    NotHeld,
    NotReached,
    ZvmsnapError,
)
from zvmsnap.common.lockfile import lock
from zvmsnap.common.process import uptime_s
from zvmsnap.common.steps import Step, StepFailed
from zvmsnap.common.steps import run as run_steps
from zvmsnap.config import mode
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.mode import ModeSet, parse_mode
from zvmsnap.disks import location
from zvmsnap.disks.jobs import wait_idle
from zvmsnap.disks.staging import StagingDir
from zvmsnap.finalize.after_snapshot import finish_interrupted
from zvmsnap.finalize.release import release
from zvmsnap.journal import snapshot_match
from zvmsnap.journal.entry import Disk, Entry
from zvmsnap.journal.journal import EntryWriter
from zvmsnap.journal.operation import Operations
from zvmsnap.points import definition
from zvmsnap.points.manifest import DOMAIN_XML, TPM
from zvmsnap.quiesce import scripts, thaw, watchdog
from zvmsnap.quiesce.barrier import FreezeBarrier, Stage
from zvmsnap.virt import agent, domain_xml, qemu_conf, save_image, tpm_state
from zvmsnap.virt.guest import Guest

_LOOK_AGAIN_S = 0.2


class GuestCapture:
    """One guest's part."""

    def __init__(
        self,
        moment: SnapshotRun,
        guest: Guest,
        former: PreexistingSnapshots,
        reserve: Callable[[str, int], None],
        gate: FreezeBarrier,
    ) -> None:
        self._moment = moment
        self._guest = guest
        self._former = former
        self._reserve = reserve
        self._gate = gate
        self._log = moment.about(guest)
        self._dir = StagingDir.fresh(moment.config.staging_dir, guest.uuid)
        self._missed: list[str] = []
        self._failed = False
        self._misled = False
        self._least: ConsistencyLevel | None = None
        self._too_busy = ""

    def take(self) -> bool:
        """True if the guest got what is demanded, or the best that can be had of such a guest."""
        try:
            if Operations(self._moment.config.journal_dir).read(self._guest.uuid):
                raise DomainBusy("a restore of it is under way, or interrupted: zvmsnap recover")
            with self._alone():
                found = location.locate_disks(self._moment.host, self._guest, self._moment.mounts)
                placed = eligibility.judge_guest(found, self._moment.covered)
                return placed is None or self._best(placed)
        finally:
            self._gate.leave(self._guest.uuid)

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
                    finish_interrupted(config, self._moment.host, self._guest, entry)
                    yield
                    return
            if time.monotonic() > deadline_s:
                raise DomainBusy(
                    f"moment {entry.run} of {','.join(entry.request_datasets)} is under way "
                    f"(sanoid has pid {entry.owner.pid})"
                )
            if self._moment.cancelled.wait(_LOOK_AGAIN_S):
                raise Cancelled("interrupted while another moment was under way")

    def _best(self, placed: Eligibility) -> bool:
        if placed.is_off:
            return self._disks_alone(
                placed, ConsistencyLevel.OFFLINE, placed.obstacles[ConsistencyLevel.MEMORY]
            )
        demand = self._demand(placed)
        self._least = demand.minimum
        for level in demand.levels:
            if level is ConsistencyLevel.CRASH:
                break
            if demand.forbids(level):
                continue
            if self._reaches(level, placed):
                if self._missed:
                    self._log.warning("level %s: %s", level, self._why())
                return self._is_enough(demand, level)
            if self._moment.cancelled.is_set() or self._moment.journal.read(self._guest.uuid):
                return False  # what could not be undone is for the next hook
        if demand.forbids(ConsistencyLevel.CRASH):
            self._log.error("no point, as less is not good enough: %s", self._why())
            return False
        self._disks_alone(placed, ConsistencyLevel.CRASH, self._why() or None)
        return self._is_enough(demand, ConsistencyLevel.CRASH)

    def _demand(self, placed: Eligibility) -> ModeSet:
        try:
            return self._moment.modes_for(placed.datasets)
        except ModeInvalid as error:
            default = self._moment.config.mode
            self._log.error("%s; until that is mended: %s", error, default)
            self._misled = True
            return mode.mode_set([parse_mode(default)])

    def _is_enough(self, demand: ModeSet, reached: ConsistencyLevel) -> bool:
        """What is demanded; or less, of a guest that cannot have more, if that is allowed."""
        if self._misled:
            return False
        return demand.satisfied_by(reached) or not (self._failed or demand.forbids(reached))

    def _why(self) -> str:
        return "; ".join(dict.fromkeys(self._missed))

    def _reaches(self, level: ConsistencyLevel, placed: Eligibility) -> bool:
        if obstacle := placed.obstacles.get(level) or self._why_no_dump(level):
            self._missed.append(obstacle)
            return False
        take = self._quiesced if level is ConsistencyLevel.QUIESCED else self._with_memory
        try:
            if why := self._why_not(level):
                raise NotReached(why)
            take(placed, level)
            return True
        except (StepFailed, ZvmsnapError) as error:
            self._log.error("not of level %s: %s", level, error)
            self._failed = True
            self._missed.append(str(error))
            if isinstance(error, StepFailed) and isinstance(error.cause, DumpAborted):
                self._too_busy = "its RAM could not be written in time"
            self._dir = StagingDir.fresh(self._moment.config.staging_dir, self._guest.uuid)
            return False

    def _why_no_dump(self, level: ConsistencyLevel) -> str:
        if level.has_memory and self._gate.keeps_from_dumping(self._guest.uuid):
            return "no RAM is dumped while other guests of this moment stand still"
        return self._too_busy if level.has_memory else ""

    def _why_not(self, level: ConsistencyLevel) -> str | None:
        """What can be asked for, rather than tried."""
        if level is ConsistencyLevel.QUIESCED:
            return agent.why_no_freeze(self._guest)
        return qemu_conf.why_unloadable()

    def _disks_alone(
        self, placed: Eligibility, level: ConsistencyLevel, reason: str | None
    ) -> bool:
        work = self._open(placed, level, reason)
        self._run_journalled(self._preparation(placed, work), work)
        work.note(step="waiting")
        self._log.log(
            logging.WARNING if level is ConsistencyLevel.CRASH and reason else logging.INFO,
            "level %s%s",
            level,
            f": {reason}" if reason else "",
        )
        return True

    def _with_memory(self, placed: Eligibility, level: ConsistencyLevel) -> None:
        """`memory` or `paused`."""
        wait_idle(self._guest, self._moment.config.limits.busy_timeout_s, self._moment.cancelled)
        ram_bytes = placed.domain.memory_kib << 10
        self._reserve(self._guest.uuid, ram_bytes)
        if level is ConsistencyLevel.PAUSED:
            self._enter(Stage.PAUSE)
        work = self._open(
            placed, level, self._why() or None, overlays=level is ConsistencyLevel.MEMORY
        )
        self._run_journalled(
            [
                *self._preparation(placed, work),
                Step(
                    "dump", lambda: self._dump(placed, work, ram_bytes), lambda: self._leave(work)
                ),
                Step("read header", lambda: self._judge(work)),
                Step("frozen", lambda: None),
            ],
            work,
        )
        stands = (
            "and now stands still"
            if level is ConsistencyLevel.PAUSED
            else f"{work.entry.pause_s:.2f} s"
        )
        self._log.info(
            "RAM image of %d MiB in %.1f s, guest paused %s",
            self._dir.memory.stat().st_size >> 20,
            work.entry.dump_s,
            stands,
        )

    def _quiesced(self, placed: Eligibility, _level: ConsistencyLevel) -> None:
        overlays = self._moment.config.quiesce_overlay and not any(
            domain_xml.why_no_overlay(disk)
            for disk in placed.domain.disks
            if disk.target in placed.covered
        )
        if overlays:
            self._reserve(self._guest.uuid, 0)
        work = self._open(placed, ConsistencyLevel.QUIESCED, self._why() or None, overlays=overlays)
        steps = self._preparation(placed, work)
        if scripts.exists(self._moment.config, work.entry, scripts.PRE_FREEZE):
            steps.append(
                Step("pre-freeze", lambda: self._pre_freeze(work), lambda: self._leave(work))
            )
        steps.append(Step("barrier", lambda: self._enter(Stage.FREEZE)))
        steps.append(Step("freeze", lambda: self._freeze(placed, work), lambda: self._leave(work)))
        if overlays:
            steps.append(Step("overlay", lambda: self._overlay(placed, work)))
            steps.append(
                Step(
                    "thaw",
                    lambda: thaw.thaw(self._moment.config, self._guest, work, self._log),
                )
            )
        steps.append(Step("frozen", lambda: self._still(work)))
        self._run_journalled(steps, work)
        self._log.info(
            "its file systems were frozen for %.2f s"
            if overlays
            else "its file systems are frozen",
            *([work.entry.pause_s] if overlays else []),
        )

    def _enter(self, stage: Stage) -> None:
        self._gate.enter(self._guest.uuid, stage, self._moment.cancelled)
        # Nobody is made to stand still without somebody else who would let it go.
        watchdog.require_watchdog(
            self._moment.config, self._moment.owner, self._moment.post_within_s
        )

    def _open(
        self,
        placed: Eligibility,
        level: ConsistencyLevel,
        reason: str | None,
        *,
        overlays: bool = False,
    ) -> EntryWriter:
        by_target = {disk.target: disk for disk in placed.domain.disks}
        entry = Entry(
            domain=self._guest.name,
            uuid=self._guest.uuid,
            run=self._moment.call.run,
            request_datasets=self._moment.call.datasets,
            snapshot_names=self._moment.call.names,
            preexisting_guids=self._former.guids,
            newest_txg_before=self._since_txg(placed),
            owner=self._moment.owner,
            capture=self._dir.path.name,
            level=level,
            minimum_level=self._least,
            reason=reason,
            disks=tuple(
                Disk.of(
                    by_target[target], place, str(self._dir.overlay(target)) if overlays else ""
                )
                for target, place in placed.covered.items()
            ),
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        return EntryWriter(self._moment.journal, entry)

    def _since_txg(self, placed: Eligibility) -> dict[str, int] | None:
        newest = self._former.newest_txg_before
        return None if newest is None else {each: newest.get(each, 0) for each in placed.datasets}

    def _since_now(self, placed: Eligibility) -> dict[str, int] | None:
        """What anybody has snapshotted until now was of a guest that ran."""
        if self._former.newest_txg_before is None:
            return None
        return snapshot_match.newest_txg(placed.datasets)

    def _run_journalled(self, steps: list[Step], work: EntryWriter) -> None:
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

    def _preparation(self, placed: Eligibility, work: EntryWriter) -> list[Step]:
        def define() -> None:
            places = placed.covered.values()
            with self._gate.place():
                why_no_tpm = definition.store(
                    self._guest, self._dir.point, places, self._moment.mounts
                )
            work.note(tpm_warning=why_no_tpm)

        return [
            Step("staging", self._dir.make, self._dir.remove),
            Step("definition", define),
        ]

    def _leave(self, work: EntryWriter) -> None:
        release(self._moment.config, self._guest, work, self._log)

    def _dump(self, placed: Eligibility, work: EntryWriter, ram_bytes: int) -> None:
        xml = domain_xml.snapshot_xml(
            self._dir.path.name,
            str(self._dir.memory),
            {disk.target: disk.overlay for disk in work.entry.disks},
            placed.others,
        )
        stays_paused = work.entry.level is ConsistencyLevel.PAUSED
        watch = DumpSupervisor(
            self._guest,
            self._dir.memory,
            ram_bytes,
            self._moment.config.limits,
            self._moment.cancelled,
            self._log.warning,
            work.note,
            stays_paused=stays_paused,
        )
        with self._gate.place(), self._guest.pauses() as clock:
            begun_s = time.monotonic()
            work.note(paused=stays_paused)
            with watch:
                self._guest.snapshot_create(xml)
            now_s = time.monotonic()
            since_s = uptime_s() - (now_s - clock.stopped_at_s()) if stays_paused else 0.0
            work.note(
                # One that came an instant after the dump, and could not be ended, is for leave.
                paused=stays_paused or (work.entry.paused and bool(self._guest.pause())),
                newest_txg_before=self._since_now(placed),
                disks_frozen_at_s=time.time(),
                held_since_s=since_s,
                dump_s=now_s - begun_s,
                last_ram_s=clock.last_ram_s,
                pause_s=0.0 if stays_paused else clock.seconds(),
            )

    def _judge(self, work: EntryWriter) -> None:
        xml = (self._dir.point / DOMAIN_XML).read_text()
        why = tpm_state.why_stale(xml, self._guest.uuid, self._dir.point / TPM)
        work.note(
            memory_format=save_image.read_header(self._dir.memory).format,
            tpm_warning=work.entry.tpm_warning or why,
        )

    def _pre_freeze(self, work: EntryWriter) -> None:
        self._enter(Stage.SCRIPT)
        work.note(thaw_script_due=True, held_since_s=uptime_s())
        scripts.run(self._moment.config, work.entry, scripts.PRE_FREEZE)

    def _freeze(self, placed: Eligibility, work: EntryWriter) -> None:
        work.note(frozen=True, held_since_s=uptime_s())
        if not agent.freeze(self._guest, self._moment.config.limits.freeze_timeout_s):
            raise NotHeld("its agent found no file system to freeze")
        work.note(disks_frozen_at_s=time.time(), newest_txg_before=self._since_now(placed))

    def _overlay(self, placed: Eligibility, work: EntryWriter) -> None:
        overlays = {disk.target: disk.overlay for disk in work.entry.disks}
        xml = domain_xml.snapshot_xml(self._dir.path.name, "", overlays, placed.others)
        self._guest.snapshot_create(xml, disk_only=True)
        work.note(disks_frozen_at_s=time.time())

    def _still(self, work: EntryWriter) -> None:
        """Hours may have passed since the freeze, as far as we know: were we stopped meanwhile?"""
        if work.entry.frozen and not agent.is_frozen(self._guest):
            raise NotHeld("its file systems thawed before the snapshot could be taken")
