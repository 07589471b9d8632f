"""A point comes back in place of its guest, and nothing is lost on the way.

    former       definition, NVRAM and TPM state of now are kept in staging
    clone        the datasets of then, beside those of now (switch.prepare)
    unpack       a compressed RAM image, into staging
    stop         RAM of now is saved at the instant at which the guest stops
    safety       a snapshot of the disks of now; with that RAM it becomes a point
    switch       the names of the datasets lead to the disks of then
    promote      and hold their history
    rollback     instead of these three, if it was asked for
    definition   definition, NVRAM and TPM state of then
    load         RAM of then, or a start from the disks; the guest stands still
    resume       it goes on
    clock        its agent, if it has one, is told the time
    points       those whose snapshots have moved with their datasets are told (retie)
    publish      what was there before becomes a point
    close        staging and journal are cleared

Up to `resume` every failure is undone, and ends with the former machine running on from its saved
RAM. After a crash, `zvmsnap recover` goes on by this table:

| died at                  | the guest now             | what happens                          |
|--------------------------|---------------------------|---------------------------------------|
| former, clone, unpack    | any                       | undone; it was not touched            |
| stop                     | runs                      | undone                                |
| stop                     | off, its RAM is not saved | undone: it is off, as the crash left it |
| stop and later           | off                       | gone on with                          |
| stop, safety, switch     | runs: somebody started it | undone, if its disks are those of now |
| switch and later         | runs: somebody started it | gone on with, but its RAM is not loaded |
| load                     | off, its disks were used  | the same                              |
| undo ...                 | any                       | undone further                        |
| undo ..., of a rollback that has begun | off         | gone on with                          |
"""

from __future__ import annotations

import threading

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
from zvmsnap.finalize.after_snapshot import finish_interrupted
from zvmsnap.journal import other_versions
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import Operations, OperationWriter, RestoreOperation
from zvmsnap.points.point import RestorePoint
from zvmsnap.restore.plan import RestoreOptions, plan
from zvmsnap.restore.relocate import retie
from zvmsnap.restore.replaced_guest import ReplacedGuest
from zvmsnap.restore.restored_guest import RestoredGuest
from zvmsnap.virt.host import Host
from zvmsnap.virt.save_image import Header
from zvmsnap.zfs import dataset_swap, mounts, volume, zfs

_UNTOUCHED = ("", "keep", "clone", "unpack")
_BEFORE_SWITCH = ("stop", "safety", "swap", "rollback")

# What is undone after one of these rests on it: RAM of now destroys the disks of then, and a clone
# that is still promoted holds the dataset's whole history.
_UNDONE_FIRST = ("load", "promote", "swap", "stop")


def restore(
    config: Config,
    hypervisor: Host,
    point: RestorePoint,
    wish: RestoreOptions,
    image: Header | None,
    cancelled: threading.Event,
) -> None:
    """Bring a point back in place. `image` is what loadable.check said of its RAM, None without.

    Raises RestoreImpossible with nothing touched, and RestoreFailed with what is there now.
    """
    uuid = point.manifest.uuid
    timeout_s = config.limits.lock_timeout_s
    with lock(config.locks_dir, uuid, f"restore {point.name}", timeout_s):
        other_versions.refuse(config.journal_dir, uuid)
        if Operations(config.journal_dir).read(uuid):
            raise RestoreImpossible(
                f"{point.manifest.domain}: another restore of it was interrupted: zvmsnap recover "
                f"{point.manifest.domain} ends it"
            )
        _end_moment(config, hypervisor, point)
        planned = plan(config, hypervisor, point, wish, image)
        if planned.task.was_active:
            staging.check_usable(config.staging_dir, planned.datasets, mounts.read_table())
        InPlaceRestore(config, hypervisor, planned.task, cancelled).run()


def _end_moment(config: Config, hypervisor: Host, point: RestorePoint) -> None:
    """No dataset is touched whose guest is on an overlay."""
    manifest = point.manifest
    entry = Journal(config.journal_dir).read(manifest.uuid)
    if entry and entry.owner.is_alive():
        raise DomainBusy(
            f"{manifest.domain}: moment {entry.run} is under way (sanoid has pid "
            f"{entry.owner.pid}); try again when it is over"
        )
    try:
        finish_interrupted(config, hypervisor, hypervisor.guest(manifest.uuid), entry)
    except DomainGone:
        return


class InPlaceRestore:
    """One restore, as planned or as a crash has left it. The caller holds the guest's lock."""

    def __init__(
        self,
        config: Config,
        hypervisor: Host,
        task: RestoreOperation,
        cancelled: threading.Event | None = None,
    ) -> None:
        self._config = config
        self._hypervisor = hypervisor
        self._work = OperationWriter(config.journal_dir, task)
        self._former = ReplacedGuest(config, hypervisor, self._work)
        self._then = RestoredGuest(hypervisor, self._work, self._former)
        self._cancelled = cancelled or threading.Event()
        self._not_undone: list[str] = []
        self._after_crash = False
        self._log = log.about(task.domain, "restore")

    @property
    def _operation(self) -> RestoreOperation:
        return self._work.task

    def run(self) -> None:
        """Bring the point back. Raises RestoreFailed, with what is there now."""
        self._run(None)

    def go_on(self) -> None:
        """End what a crash interrupted, by the table above. Raises RestoreFailed."""
        self._after_crash = True
        guest = self._former.guest()
        if guest and guest.is_active():
            # A save or load whose caller was killed goes on in libvirt.
            wait_idle(guest, self._config.limits.busy_timeout_s)
        step = self._operation.step
        if (
            step.startswith("undo ")
            and self._operation.rollback_begun
            and not self._former.is_active()
        ):
            self._log.warning("disks were rolled back already: going on with that")
            self._run("rollback")
        elif step.startswith("undo "):
            self._take_back(step.removeprefix("undo "))
        elif step in _UNTOUCHED or not self._may_go_on(step):
            self._take_back(step or "keep")
        else:
            self._log.warning("going on with the restore of %s at %s", self._operation.point, step)
            self._run(step)

    def _run(self, begin_with: str | None) -> None:
        afterwards = [step.name for step in self._afterwards()]
        if begin_with in afterwards:
            # The host may have gone down since the guest was resumed.
            self._then.resume()
            self._finish(begin_with)
            return
        try:
            run(self._steps(), self._record, begin_with=begin_with)
        except StepFailed as error:
            if error.not_undone:
                raise RestoreFailed(
                    f"{error}. zvmsnap recover {self._operation.domain} tries again"
                ) from error
            self._work.close()
            raise RestoreFailed(f"{error}. {self._what_is()}") from error
        self._finish(None)

    def _finish(self, begin_with: str | None) -> None:
        try:
            run(
                self._afterwards(),
                lambda step: self._work.note(step=step),
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
        left = take_back(self._steps(), step, self._record)
        if left:
            raise RestoreFailed(f"{self._operation.domain}: could not be undone: {'; '.join(left)}")
        self._work.close()
        self._log.info("%s", self._what_is())

    def _may_go_on(self, step: str) -> bool:
        active = self._former.is_active()
        if step == "stop":
            return not active and (not self._operation.saves_memory or self._former.saved())
        return not (active and step in _BEFORE_SWITCH and not all(self._switched()))

    def _switched(self) -> list[bool]:
        """Which of the tops hold the disks of then; of a rollback, whether it has begun."""
        if not self._operation.swap_trees:
            return [self._operation.rollback_begun]
        there = zfs.datasets()
        return [
            unit.top in there and there[unit.top].guid == unit.datasets[0].new_guid
            for unit in self._operation.swap_trees
        ]

    def _what_is(self) -> str:
        begun = (
            "Disks were rolled back already"
            if self._operation.rollback_begun
            else "All is as it was"
        )
        return f"{begun}: {self._state()}"

    def _state(self) -> str:
        guest = self._former.guest()
        return f"{self._operation.domain} is {guest.state() if guest else 'not defined'}"

    def _record(self, step: str) -> None:
        if self._cancelled.is_set() and step in (*_UNTOUCHED, "stop"):
            raise Cancelled(f"interrupted before {step}")
        self._work.note(step=step)

    def _steps(self) -> list[Step]:
        task = self._operation
        steps = [Step("keep", self._former.keep, self._former.forget)]
        if task.swap_trees:
            steps.append(
                Step("clone", self._clone, lambda: dataset_swap.discard(self._operation.swap_trees))
            )
        if task.memory:
            steps.append(Step("unpack", self._then.unpack))
        if task.was_active:
            steps.append(Step("stop", self._former.stop, self._former.bring_back))
        if task.safety_entry:
            steps.append(Step("safety", self._former.take_safety, self._former.drop_safety))
        if task.swap_trees:
            steps += [
                Step("swap", self._switch, self._switch_back),
                Step(
                    "promote",
                    lambda: dataset_swap.promote(self._operation.swap_trees),
                    lambda: dataset_swap.demote(self._operation.swap_trees),
                ),
            ]
        else:
            steps.append(Step("rollback", self._roll_back))
        steps += [
            Step("definition", self._then.define, self._former.define),
            Step("load", self._load, self._then.unload),
            Step("resume", self._then.resume),
        ]
        return [self._in_order(step) for step in steps]

    def _in_order(self, step: Step) -> Step:
        """The step; undone only if what that rests on could be undone."""
        undo = step.undo
        if undo is None:
            return step

        def guarded() -> None:
            for name in self._not_undone:
                # Only from what `former` has kept can the others be undone later.
                if name in _UNDONE_FIRST or step.name == "keep":
                    raise RestoreFailed(f"waits for {name}")
            try:
                undo()
            except Exception:
                self._not_undone.append(step.name)
                raise

        return Step(step.name, step.do, guarded)

    def _clone(self) -> None:
        units = dataset_swap.materialize(self._operation.swap_trees)
        written_bytes = {
            unit.top + member.path: zfs.written_bytes(unit.fresh + member.path)
            for unit in units
            for member in unit.datasets
        }
        self._work.note(swap_trees=units, written_bytes=written_bytes)

    def _switch(self) -> None:
        if self._former.is_active():
            raise RestoreFailed(f"{self._operation.domain} was started meanwhile")
        dataset_swap.swap(self._operation.swap_trees)

    def _switch_back(self) -> None:
        if self._former.is_active() and any(self._switched()):
            raise RestoreFailed(
                f"{self._operation.domain} was started meanwhile, on the restored disks: "
                "shut it off first"
            )
        dataset_swap.swap_back(self._operation.swap_trees)

    def _roll_back(self) -> None:
        if self._former.is_active():
            raise RestoreFailed(f"{self._operation.domain} was started meanwhile")
        self._work.note(rollback_begun=True)
        for snapshot in self._operation.rollback:
            zfs.rollback(snapshot)
        datasets = [snapshot.partition("@")[0] for snapshot in self._operation.rollback]
        written_bytes = {dataset: zfs.written_bytes(dataset) for dataset in datasets}
        self._work.note(written_bytes=written_bytes)
        for dataset in datasets:
            if zfs.datasets()[dataset].type == "volume":
                volume.wait_device(dataset, dataset_swap.DEVICE_TIMEOUT_S)

    def _load(self) -> None:
        self._then.load(after_crash=self._after_crash)

    def _afterwards(self) -> list[Step]:
        """Nothing of this is undone, all of it may be repeated."""
        steps = [
            Step("clock", self._then.set_clock),
            Step("points", lambda: retie(self._config, self._operation.swap_trees)),
        ]
        if self._operation.safety_entry:
            steps.append(Step("publish", self._former.publish))
        return [*steps, Step("close", self._close)]

    def _close(self) -> None:
        self._former.kept.remove()
        self._work.close()
