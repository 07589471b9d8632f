"""Captures one guest at the best level that it can have, of those that are wanted.

The steps of each level (see docs/architecture.md for what is interrupted where):

| memory      | paused      | quiesced        | crash, offline | what the step does               |
|-------------|-------------|-----------------|----------------|----------------------------------|
| staging     | staging     | staging         | staging        | makes the staging directory      |
| definition  | definition  | definition      | definition     | stores XML, NVRAM, TPM           |
| dump        | dump        |                 |                | RAM image; overlays for memory   |
| read header | read header |                 |                | will libvirt load the image?     |
|             |             | (pre-freeze)    |                | the administrator's program      |
|             |             | barrier         |                | waits for others' slow work      |
|             |             | freeze          |                | by the guest's agent             |
|             |             | (overlay, thaw) |                | if quiesce_overlay               |
| frozen      | frozen      | frozen          | waiting        | nothing; waits for post          |

A level of which a step fails is undone at once, and the next one is tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Protocol

import msgspec

from zvmsnap.capture import crash_level, eligibility, memory_level, quiesced_level
from zvmsnap.capture.eligibility import Eligibility
from zvmsnap.capture.snapshot_run import Shared, SnapshotRun
from zvmsnap.capture.steps import Attempt
from zvmsnap.common import log
from zvmsnap.common.errors import (
    Cancelled,
    DomainBusy,
    LevelRefused,
    LockTimeout,
    ModeInvalid,
    RunUnderWay,
    ZvmsnapError,
)
from zvmsnap.common.lockfile import lock
from zvmsnap.common.steps import StepFailed
from zvmsnap.common.waiting import now_s, wait
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.mode import ModeSet, mode_set, parse_mode
from zvmsnap.disks import location
from zvmsnap.disks.staging import StagingDir
from zvmsnap.finalize.after_snapshot import finish_interrupted
from zvmsnap.journal import describe, late, other_versions
from zvmsnap.journal.operation import CloneOperation, Operations
from zvmsnap.notify.event import Kind
from zvmsnap.points import own_directories
from zvmsnap.virt.guest import Guest

_POLL_S = 0.2
_CRASH = ConsistencyLevel.CRASH
_CAPTURE = "capture"  # what the lock of a guest is held for
BACK_UP = "back up"  # the same, for a backup: for hours, in which sanoid's snapshots are whole


class Level(Protocol):
    """How a level is reached: what a module NAME_level.py has."""

    def obstacle(self, attempt: Attempt, /) -> str:
        """Why the guest cannot have this level now, through no failure; "" if it may."""

    def capture(self, attempt: Attempt, /) -> None:
        """Capture the guest. Raises ZvmsnapError; what could not be undone is in the journal."""


LEVELS: Mapping[ConsistencyLevel, Level] = {
    ConsistencyLevel.MEMORY: memory_level,
    ConsistencyLevel.PAUSED: memory_level,
    ConsistencyLevel.QUIESCED: quiesced_level,
    ConsistencyLevel.CRASH: crash_level,
    ConsistencyLevel.OFFLINE: crash_level,
}


class GuestCapture:
    """Captures one guest of a run, under its lock."""

    def __init__(self, run: SnapshotRun, guest: Guest, shared: Shared) -> None:
        self._run = run
        self._guest = guest
        self._shared = shared

    def capture(self) -> bool:
        """True if the guest got what is wanted, or the best that such a guest can have.

        Raises what kept it from any level.
        """
        try:
            other_versions.refuse(self._run.config.journal_dir, self._guest.uuid)
            operation = Operations(self._run.config.journal_dir).read(self._guest.uuid)
            if isinstance(operation, CloneOperation) and operation.owner.is_alive():
                self._run.about(self._guest).info(
                    "is a clone that is being made or verified: no point of it"
                )
                return True
            if operation:
                raise DomainBusy("a restore of it is under way, or interrupted: zvmsnap recover")
            with locked(self._run, self._guest, f"{_CAPTURE} {self._guest.name}"):
                disks = location.locate_disks(self._run.host, self._guest, self._run.mounts)
                eligible = eligibility.assess(disks, self._run.request.covered)
                if eligible is None:
                    return True
                own_directories.check(self._run.config, eligible.datasets, self._run.mounts)
                return LevelChoice(self._run, self._guest, self._shared, eligible).capture()
        except RunUnderWay as error:
            return self._come_late(error)
        finally:
            self._shared.finish(self._guest.uuid)

    def _come_late(self, error: RunUnderWay) -> bool:
        """Note that the snapshot is taken, for a point when the other run has ended (journal/late).

        Always False. Raises the error, if there can be no such point; so during a restore, which
        renames datasets.
        """
        request, config, uuid = self._run.request, self._run.config, self._guest.uuid
        is_restored = Operations(config.journal_dir).read(uuid) is not None
        if not request.may_be_late or not error.captures or is_restored:
            raise error
        disks = location.locate_disks(self._run.host, self._guest, self._run.mounts)
        eligible = eligibility.assess(disks, request.covered)
        modes = mode_set([parse_mode(config.mode)])
        with suppress(ModeInvalid):
            modes = request.modes_for(eligible.datasets) if eligible else modes
        if not eligible or modes.forbids(_CRASH) or self._overlays_are_of_some(eligible):
            raise error
        attempt = Attempt(
            self._run,
            self._shared,
            self._guest,
            eligible,
            _CRASH,
            modes.minimum,
            f"its snapshot was taken during another run: {error}",
            (),
            StagingDir.fresh(config.staging_dir, self._guest.uuid),
        )
        entry = msgspec.structs.replace(attempt.open_entry().entry, step="waiting")
        late.journal_of(config.journal_dir, entry.capture).write(entry)
        self._run.about(self._guest).error("level crash: %s", error)
        self._run.tell(self._guest, Kind.LEVEL, error, level=_CRASH, wanted=str(modes))
        return False

    def _overlays_are_of_some(self, eligible: Eligibility) -> bool:
        """Has the other run frozen some of these disks, while the guest writes to the others?

        A snapshot of all of them would have disks of different times: no power cut leaves that.
        """
        other = self._run.journal.read(self._guest.uuid)
        if other is None or not other.may_be_on_overlay:
            return False
        frozen = eligible.covered.keys() & {disk.target for disk in other.disks if disk.overlay}
        return bool(frozen) and frozen != eligible.covered.keys()


@contextmanager
def locked(run: SnapshotRun, guest: Guest, intent: str) -> Iterator[None]:
    """Hold the guest's lock, with no run of it open; that of another sanoid is waited for.

    A snapshot that is taken while that one merges its overlays would have half of their
    writes. Raises RunUnderWay, WorkOfOtherVersion and Cancelled.
    """
    config, request = run.config, run.request
    limit_s = config.limits.lock_timeout_s
    deadline_s = now_s() + limit_s
    while True:
        with ExitStack() as held:
            try:
                held.enter_context(lock(config.locks_dir, guest.uuid, intent, limit_s))
            except LockTimeout as error:
                # It may not have opened its entry yet.
                captures = error.holder.startswith((_CAPTURE, BACK_UP))
                captures = captures or run.journal.read(guest.uuid) is not None
                raise RunUnderWay(str(error), captures=captures) from error
            entry = run.journal.read(guest.uuid)
            if not entry or entry.owner == request.owner or not entry.owner.is_alive():
                finish_interrupted(config, run.host, guest, entry, may_wait=True)
                yield
                return
        if now_s() > deadline_s:
            of = entry.request_datasets and f" of {','.join(entry.request_datasets)}"
            why = f"{describe.work(entry)}{of or ''} is under way ({describe.owner(entry)})"
            raise RunUnderWay(why, captures=True)
        if wait(request.cancelled, _POLL_S):
            raise Cancelled("interrupted while another run was under way")


class LevelChoice:
    """Tries the levels that are wanted of a guest in order; knows why better ones were missed."""

    def __init__(
        self, run: SnapshotRun, guest: Guest, shared: Shared, eligible: Eligibility
    ) -> None:
        self._run = run
        self._guest = guest
        self._shared = shared
        self._eligible = eligible
        self._log = run.about(guest)
        self._minimum: ConsistencyLevel | None = None
        self._missed: list[str] = []
        self._errors: list[Exception] = []
        self._wanted = ""

    def capture(self) -> bool:
        """As `GuestCapture.capture`."""
        if self._eligible.is_off:
            if why := self._eligible.obstacles.get(ConsistencyLevel.OFFLINE):
                self._log.error("no point: %s", why)
                self._tell(Kind.NO_POINT, why)
                return False
            self._missed.append(self._eligible.obstacles[ConsistencyLevel.MEMORY])
            self._capture_at(ConsistencyLevel.OFFLINE)
            return True
        try:
            modes = self._run.request.modes_for(self._eligible.datasets)
        except ModeInvalid as error:
            default = self._run.config.mode
            self._log.error("%s; until that is mended: %s", error, default)
            self._tell(Kind.LEVEL, f"{error}; until that is mended: {default}")
            self._capture_best(mode_set([parse_mode(default)]))
            return False
        return self._capture_best(modes)

    def _capture_best(self, modes: ModeSet) -> bool:
        self._wanted = str(modes)
        level = self.reach(modes)
        if level:
            return self._is_enough(modes, level)
        if self._is_over():
            # The next hook ends what could not be undone.
            self._tell(Kind.UNFINISHED, self.why_missed())
        else:
            self._log.error("no point, as less is not good enough: %s", self.why_missed())
            self._tell(Kind.NO_POINT, self.why_missed())
        return False

    def reach(self, modes: ModeSet) -> ConsistencyLevel | None:
        """Capture the guest at the best level that it can have; None if that is not good enough.

        Or if it was interrupted, or what was done could not be undone. Raises what keeps it from
        level `crash`.
        """
        self._minimum = modes.minimum
        for level in modes.levels:
            if level is ConsistencyLevel.CRASH:
                break
            if modes.forbids(level):
                continue
            if self._reaches(level):
                if self._missed:
                    self._log.warning("level %s: %s", level, self.why_missed())
                return level
            if self._is_over():
                return None
        if modes.forbids(ConsistencyLevel.CRASH):
            return None
        self._capture_at(ConsistencyLevel.CRASH)
        return ConsistencyLevel.CRASH

    @property
    def is_interrupted(self) -> bool:
        """Was it asked to stop: before a step, or by an exception within one (signals)?"""
        errors = (e.cause if isinstance(e, StepFailed) else e for e in self._errors)
        return self._run.request.cancelled.is_set() or any(
            isinstance(error, Cancelled) for error in errors
        )

    def _is_over(self) -> bool:
        """Was it interrupted, or is something left that could not be undone?"""
        return self.is_interrupted or self._run.journal.read(self._guest.uuid) is not None

    def _is_enough(self, modes: ModeSet, reached: ConsistencyLevel) -> bool:
        """Is it what is wanted; or less, of a guest that cannot have more, if that is allowed?"""
        if modes.satisfied_by(reached) or not (self._errors or modes.forbids(reached)):
            return True
        self._tell(Kind.LEVEL, self.why_missed(), level=reached)
        return False

    def _tell(self, kind: Kind, cause: str, level: str = "") -> None:
        """Let the administrator hear of it, with the last error, if it was one."""
        error = log.class_of(self._errors[-1]) if self._errors else ""
        fields = {"level": level, "wanted": self._wanted, "error": error}
        self._run.tell(self._guest, kind, cause, **fields)

    def _reaches(self, level: ConsistencyLevel) -> bool:
        attempt = self._attempt(level)
        if obstacle := self._eligible.obstacles.get(level) or LEVELS[level].obstacle(attempt):
            self._missed.append(obstacle)
            return False
        try:
            LEVELS[level].capture(attempt)
            return True
        except ZvmsnapError as error:
            self._missed.append(str(error))
            if _is_refused(error):
                return False
            self._log.error("not of level %s: %s", level, error)
            self._errors.append(error)
            return False

    def _capture_at(self, level: ConsistencyLevel) -> None:
        LEVELS[level].capture(self._attempt(level))

    def _attempt(self, level: ConsistencyLevel) -> Attempt:
        return Attempt(
            self._run,
            self._shared,
            self._guest,
            self._eligible,
            level,
            self._minimum,
            self.why_missed(),
            tuple(self._errors),
            # A name that no attempt had before: what could not be undone may have an older one.
            StagingDir.fresh(self._run.config.staging_dir, self._guest.uuid),
        )

    def why_missed(self) -> str:
        """Why better levels, or all that are wanted, were missed; "" if none were."""
        return "; ".join(dict.fromkeys(self._missed))


def _is_refused(error: ZvmsnapError) -> bool:
    """Is the level refused to such a guest, and nothing left of the attempt?"""
    if isinstance(error, StepFailed):
        return isinstance(error.cause, LevelRefused) and not error.not_undone
    return isinstance(error, LevelRefused)
