"""Restores a point in place of its guest; at any time the replaced or the restored guest exists.

    keep         stores definition, NVRAM and TPM state of the replaced guest in staging
    clone        clones the snapshots of the point, beside the datasets
    unpack       makes the RAM image in staging, of stored pages or a compressed file
    stop         saves the RAM of the replaced guest, and stops it, at one instant
    safety       snapshots its disks; with the saved RAM they become the safety point
    swap         renames: the datasets' names lead to the clones
    promote      the clones own the snapshots up to theirs
    rollback     with --rollback, instead of clone, swap and promote
    definition   definition, NVRAM and TPM state of the point
    load         loads the RAM, or starts from the disks; the guest is paused
    check        asks QEMU which disks it has open: those of the point, or all is undone
    resume       resumes it
    clock        tells its agent the time
    checkpoints  libvirt forgets checkpoints and snapshots that the restored disks do not have
    points       writes into the points where their snapshots are now
    publish      the safety point goes into the vault
    close        clears staging and the journal

A failure up to `resume` is undone, and the replaced guest goes on from its saved RAM. After a
crash, `zvmsnap recover` follows this table:

| died at               | the guest now             | what happens                               |
|-----------------------|---------------------------|--------------------------------------------|
| keep, clone, unpack   | any                       | undone; the guest was not touched          |
| stop                  | runs                      | undone                                     |
| stop                  | off, its RAM is not saved | undone; it is off, as the crash left it    |
| stop and later        | off                       | finished                                   |
| stop, safety, swap    | runs: somebody started it | undone, if its disks are the replaced ones |
| swap and later        | runs: somebody started it | finished, but the RAM is not loaded        |
| load                  | off, its disks were used  | finished, but the RAM is not loaded        |
| clock and later       | any                       | finished; boots if the host went down      |
| undo ...              | any                       | undone further                             |
| undo ..., rolled back | off                       | finished                                   |
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zvmsnap.common import log
from zvmsnap.common.errors import (
    Cancelled,
    DomainBusy,
    DomainGone,
    RestoreFailed,
    RestoreImpossible,
)
from zvmsnap.common.lockfile import lock
from zvmsnap.common.steps import Step, StepFailed, run, take_back
from zvmsnap.config.settings import Config
from zvmsnap.disks import staging
from zvmsnap.disks.jobs import wait_idle
from zvmsnap.finalize.after_snapshot import finish_interrupted, publish_waiting
from zvmsnap.journal import describe, other_versions
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import Operations, OperationWriter, RestoreOperation
from zvmsnap.points.point import RestorePoint
from zvmsnap.restore import running_sends
from zvmsnap.restore.plan import RestorePlan, RestoreRequest, plan_restore
from zvmsnap.restore.replaced_guest import ReplacedGuest
from zvmsnap.restore.restored_disks import RestoredDisks, relocate_points
from zvmsnap.restore.restored_guest import RestoredGuest
from zvmsnap.restore.running_sends import RunningSends
from zvmsnap.virt.host import Host
from zvmsnap.zfs import mounts

_UNTOUCHED = ("", "keep", "clone", "unpack")
_BEFORE_PROMOTE = ("stop", "safety", "swap", "rollback")

# Nothing before these steps is undone while one of them could not be: loading the saved RAM would
# destroy the restored disks, and a clone that is promoted owns the dataset's whole history.
_UNDONE_FIRST = ("load", "promote", "swap", "stop")


def restore(
    config: Config,
    host: Host,
    plan: RestorePlan,
    cancelled: threading.Event,
) -> None:
    """Carry the plan of a restore out, as it was shown, under the names that it says.

    Raises RestoreImpossible with nothing touched, also if it does not fit any more; and
    RestoreFailed with the state of the guest.
    """
    with _at_rest(config, host, plan.request.point):
        again = plan_restore(config, host, plan.request, plan.names)
        plan.refuse_other(again)
        _carry_out(config, host, again, cancelled)


def restore_at_once(
    config: Config,
    host: Host,
    request: RestoreRequest,
    check_image: Callable[[], object],
    tell: Callable[[RestorePlan], threading.Event],
) -> None:
    """Plan a restore, tell the plan, and carry it out: once, as nobody is asked.

    `check_image` waits for the check of the RAM image, which goes on while this plans, and raises
    ImageUnloadable; nothing is touched before. What `tell` returns cancels it from then on. Raises
    as `restore` does, and as `plan_restore`.
    """
    with _at_rest(config, host, request.point):
        plan = plan_restore(config, host, request)
        check_image()
        _carry_out(config, host, plan, tell(plan))


@contextmanager
def _at_rest(config: Config, host: Host, point: RestorePoint) -> Iterator[None]:
    """Keep everybody else from the guest, of which no other work is unfinished."""
    domain, uuid = point.manifest.domain, point.manifest.uuid
    timeout_s = config.limits.lock_timeout_s
    with lock(config.locks_dir, uuid, f"restore {point.name}", timeout_s):
        other_versions.refuse(config.journal_dir, uuid)
        if Operations(config.journal_dir).read(uuid):
            raise RestoreImpossible(
                f"{domain}: another restore of it was interrupted: zvmsnap recover {domain} ends it"
            )
        _finish_interrupted_run(config, host, point)
        yield


def _carry_out(config: Config, host: Host, plan: RestorePlan, cancelled: threading.Event) -> None:
    plan.sends.refuse(plan.operation.domain)
    if plan.operation.was_active:
        staging.check_usable(config.staging_dir, plan.datasets, mounts.read_table())
    InPlaceRestore(config, host, plan.operation, cancelled, plan.sends).run()


def _finish_interrupted_run(config: Config, host: Host, point: RestorePoint) -> None:
    """Take the guest off its overlays: no dataset is touched while its guest is on one."""
    manifest = point.manifest
    entry = Journal(config.journal_dir).read(manifest.uuid)
    if entry and entry.owner.is_alive():
        raise DomainBusy(
            f"{manifest.domain}: {describe.work(entry)} is under way ({describe.owner(entry)}); "
            "try again when it is over"
        )
    try:
        finish_interrupted(config, host, host.guest(manifest.uuid), entry)
        # Their snapshots are found by name, which the restore may give to others.
        publish_waiting(config, host, manifest.uuid)
    except DomainGone:
        return


class InPlaceRestore:
    """One restore, as planned or as a crash has interrupted it. The caller has the guest's lock."""

    def __init__(
        self,
        config: Config,
        host: Host,
        operation: RestoreOperation,
        cancelled: threading.Event | None = None,
        sends: RunningSends | None = None,
    ) -> None:
        self._config = config
        self._sends = sends
        self._writer = OperationWriter(config.journal_dir, operation)
        self._replaced = ReplacedGuest(config, host, self._writer)
        self._disks = RestoredDisks(self._writer, self._replaced)
        self._restored = RestoredGuest(host, self._writer, self._replaced)
        self._cancelled = cancelled or threading.Event()
        self._not_undone: list[str] = []
        self._after_crash = False
        self._log = log.about(operation.domain, "restore")

    @property
    def _operation(self) -> RestoreOperation:
        return self._writer.operation

    def run(self) -> None:
        """Restore the point. Raises RestoreFailed, with the state of the guest."""
        self._run(None)

    def go_on(self) -> None:
        """End what a crash interrupted, by the table above. Raises RestoreFailed."""
        self._after_crash = True
        guest = self._replaced.guest()
        if guest and guest.is_active():
            # A save or load whose caller was killed goes on in libvirt.
            wait_idle(guest, self._config.limits.busy_timeout_s)
        step = self._operation.step
        was_undoing = step.startswith("undo ")
        if was_undoing and self._operation.rollback_begun and not self._replaced.is_active():
            self._log.warning("disks were rolled back already: finishing the restore")
            self._run("rollback")
        elif was_undoing:
            self._take_back(step.removeprefix("undo "))
        elif step in _UNTOUCHED or not self._may_go_on(step):
            self._take_back(step or "keep")
        else:
            self._log.warning("finishing the restore of %s, from %s", self._operation.point, step)
            self._run(step)

    def _may_go_on(self, step: str) -> bool:
        active = self._replaced.is_active()
        if step == "stop":
            return not active and (not self._operation.saves_memory or self._replaced.saved())
        return not (active and step in _BEFORE_PROMOTE and not self._disks.are_restored())

    def _run(self, begin_with: str | None) -> None:
        if begin_with in [step.name for step in self._steps_after_resume()]:
            # The host may have gone down since the guest was resumed.
            self._restored.resume()
            self._finish(begin_with)
            return
        try:
            run(self._steps(), self._record, begin_with=begin_with)
        except StepFailed as error:
            if error.not_undone:
                raise RestoreFailed(
                    f"{error}. zvmsnap recover {self._operation.domain} tries again"
                ) from error
            self._writer.close()
            raise RestoreFailed(f"{error}. {self._outcome()}") from error
        self._finish(None)

    def _finish(self, begin_with: str | None) -> None:
        try:
            run(
                self._steps_after_resume(),
                lambda step: self._writer.note(step=step),
                begin_with=begin_with,
            )
        except StepFailed as error:
            raise RestoreFailed(
                f"{self._operation.domain} is back, but not all is done: {error}. zvmsnap recover "
                f"{self._operation.domain} ends it"
            ) from error
        self._log.info("%s is back: %s", self._operation.point, self._state())

    def _take_back(self, step: str) -> None:
        self._log.warning(
            "undoing the restore of %s, which died at %s", self._operation.point, step
        )
        not_undone = take_back(self._steps(), step, self._record)
        if not_undone:
            raise RestoreFailed(
                f"{self._operation.domain}: could not be undone: {'; '.join(not_undone)}"
            )
        self._writer.close()
        self._log.info("%s", self._outcome())

    def _outcome(self) -> str:
        if self._operation.rollback_begun:
            return f"Disks were rolled back already: {self._state()}"
        return f"All is as it was: {self._state()}"

    def _state(self) -> str:
        guest = self._replaced.guest()
        return f"{self._operation.domain} is {guest.state() if guest else 'not defined'}"

    def _record(self, step: str) -> None:
        if self._cancelled.is_set() and step in (*_UNTOUCHED, "stop"):
            raise Cancelled(f"interrupted before {step}")
        self._writer.note(step=step)

    def _steps(self) -> list[Step]:
        """Up to `resume`: all that is undone after a failure."""
        operation = self._operation
        replaced, disks, restored = self._replaced, self._disks, self._restored
        steps = [Step("keep", replaced.keep, replaced.forget)]
        if operation.swap_trees:
            steps.append(Step("clone", disks.clone, disks.discard_clones))
        if operation.memory:
            steps.append(Step("unpack", restored.unpack))
        if operation.was_active:
            steps.append(Step("stop", self._stop, replaced.bring_back))
        if operation.safety_entry:
            steps.append(Step("safety", replaced.take_safety, replaced.drop_safety))
        if operation.swap_trees:
            steps += [
                Step("swap", disks.swap, disks.swap_back),
                Step("promote", disks.promote, disks.demote),
            ]
        else:
            steps.append(Step("rollback", disks.roll_back))
        steps += [
            Step("definition", restored.define, replaced.define),
            Step("load", self._load, restored.unload),
            Step("check", restored.check),
            Step("resume", restored.resume),
        ]
        return [self._undone_in_order(step) for step in steps]

    def _undone_in_order(self, step: Step) -> Step:
        """The step, with an undo that waits for the steps that must be undone before it."""
        undo = step.undo
        if undo is None:
            return step

        def undo_in_order() -> None:
            for name in self._not_undone:
                # What `keep` has stored is needed to undo any other step later.
                if name in _UNDONE_FIRST or step.name == "keep":
                    raise RestoreFailed(f"waits for {name}")
            try:
                undo()
            except Exception:
                self._not_undone.append(step.name)
                raise

        return Step(step.name, step.do, undo_in_order)

    def _stop(self) -> None:
        if self._replaced.is_active():
            # To unpack the RAM image may have taken minutes.
            self._sends_of_now().refuse(self._operation.domain)
        self._replaced.stop()

    def _sends_of_now(self) -> RunningSends:
        """Those in the way. What was snapshotted since the plan is moved by no swap."""
        if self._sends is None or self._operation.rollback:
            return running_sends.find_now(self._operation)
        return RunningSends.among(self._sends.concerned)

    def _load(self) -> None:
        self._restored.load(after_crash=self._after_crash)

    def _steps_after_resume(self) -> list[Step]:
        """Nothing of this is undone, all of it may be repeated."""
        steps = [Step("clock", self._restored.set_clock)]
        if self._operation.stale_checkpoints or self._operation.stale_snapshots:
            steps.append(Step("checkpoints", self._restored.forget_stale_metadata))
        steps.append(Step("points", self._relocate_points))
        if self._operation.safety_entry:
            steps.append(Step("publish", self._replaced.publish))
        return [*steps, Step("close", self._close)]

    def _relocate_points(self) -> None:
        relocate_points(self._config, self._operation.swap_trees)

    def _close(self) -> None:
        self._replaced.kept.remove()
        self._writer.close()
