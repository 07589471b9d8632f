"""The steps that all levels share, and how steps are run: journalled, undone if one fails."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from zvmsnap.capture.eligibility import Eligibility
from zvmsnap.capture.snapshot_run import Shared, SnapshotRun
from zvmsnap.common import foreign
from zvmsnap.common.errors import Cancelled
from zvmsnap.common.log import Logger
from zvmsnap.common.steps import Step, StepFailed
from zvmsnap.common.steps import run as run_steps
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks import own_overlays
from zvmsnap.disks.qemu_img import Layer
from zvmsnap.disks.staging import StagingDir
from zvmsnap.finalize.release import release
from zvmsnap.journal import snapshot_match
from zvmsnap.journal.entry import Disk, Entry
from zvmsnap.journal.journal import EntryWriter
from zvmsnap.points import definition
from zvmsnap.points.manifest import OtherState
from zvmsnap.quiesce import watchdog
from zvmsnap.quiesce.barrier import Stage
from zvmsnap.virt import domain_xml
from zvmsnap.virt.guest import Guest


@dataclass(frozen=True)
class Attempt:
    """The attempt to capture one guest at one level, in a staging directory of its own.

    `missed`: why better levels were missed, "" if none were; `errors`: what went wrong with them.
    """

    run: SnapshotRun
    shared: Shared
    guest: Guest
    eligibility: Eligibility
    level: ConsistencyLevel
    minimum: ConsistencyLevel | None
    missed: str
    errors: tuple[Exception, ...]
    staging: StagingDir

    @property
    def config(self) -> Config:
        """The configuration."""
        return self.run.config

    @property
    def log(self) -> Logger:
        """The logger for lines about this guest."""
        return self.run.about(self.guest)

    def enter(self, stage: Stage) -> None:
        """Pass the freeze barrier; no guest is held without a watchdog that would release it.

        Raises Cancelled and NotHeld.
        """
        request = self.run.request
        self.shared.barrier.enter(self.guest.uuid, stage, request.cancelled)
        watchdog.require_watchdog(self.config, request.owner, request.post_within_s)

    def open_entry(self, *, overlays: bool = False) -> EntryWriter:
        """The entry of this attempt; it is written with the first step."""
        call = self.run.request.call
        disks = {disk.target: disk for disk in self.eligibility.domain.disks}
        entry = Entry(
            domain=self.guest.name,
            uuid=self.guest.uuid,
            backup=self.run.request.backup,
            run=call.run,
            request_datasets=call.datasets,
            snapshot_names=call.names,
            preexisting_guids=self.shared.preexisting.guids,
            newest_txg_before=self._newest_txg_before(),
            owner=self.run.request.owner,
            capture=self.staging.path.name,
            staging=str(self.staging.path.parent),
            level=self.level,
            minimum_level=self.minimum,
            reason=foreign.line(self.missed) or None,
            disks=tuple(
                Disk.of(
                    disks[target],
                    place,
                    str(self.staging.overlay(target)) if overlays else "",
                    dataset_guid=self.run.request.guids.get(place.dataset, 0),
                )
                for target, place in self.eligibility.covered.items()
            ),
            other_state=tuple(map(OtherState.of, self.eligibility.other_state)),
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        return EntryWriter(self.run.journal, entry)

    def snapshots_before_freeze(self, entry: Entry) -> dict[str, Any]:
        """Changes of an entry whose disks are frozen just now: what saw the guest run.

        That is all that anybody has snapshotted until now, though it has an announced name: two
        sanoids that were started in the same second announce the same. Raises ZfsFailed.
        """
        if not entry.has_snapshots:
            return {}
        if self.shared.preexisting.newest_txg_before is not None:
            return {"newest_txg_before": snapshot_match.newest_txg(self.eligibility.datasets)}
        return {"preexisting_guids": snapshot_match.before_freeze(entry)}

    def preparation(self, writer: EntryWriter) -> list[Step]:
        """The first steps of each level: the staging directory, and what is stored in it."""

        def define() -> None:
            places = self.eligibility.covered.values() if writer.entry.has_snapshots else ()
            warning = definition.store(self.guest, self.staging.point, places, self.run.mounts)
            writer.note(tpm_warning=warning)
            if self.level.holds_guest and self.shared.preexisting.newest_txg_before is None:
                # So that what this needs is not loaded while the guest is held.
                self.snapshots_before_freeze(writer.entry)

        def discard() -> None:
            # A guest that could not be let go yet gets its point when that is done.
            if not writer.entry.is_held:
                self.staging.remove()

        return [
            Step("staging", self.staging.make, discard),
            Step("definition", define),
        ]

    def release(self, writer: EntryWriter) -> None:
        """The undo of all that holds the guest, or puts it on overlays."""
        release(self.config, self.guest, writer, self.log)

    def snapshot_xml(self, writer: EntryWriter, memory: str) -> str:
        """Asks libvirt for the overlays of the entry, and for RAM in `memory` ("": no RAM)."""
        overlays = {disk.target: disk.overlay for disk in writer.entry.disks}
        return domain_xml.snapshot_xml(
            self.staging.path.name, memory, overlays, self.eligibility.others
        )

    def below_overlays(self, writer: EntryWriter) -> dict[str, Layer]:
        """The overlays of the entry, and what is below each."""
        return {disk.overlay: Layer(disk.base, disk.format) for disk in writer.entry.disks}

    def put_on_overlays(self, writer: EntryWriter, owner: tuple[int, int] | None) -> None:
        """Let the guest write to the overlays of the entry from now on.

        `owner`: who must own them, if zvmsnap makes them (disks/own_overlays). Raises
        LibvirtFailed, QemuImgFailed and OSError.
        """
        if owner:
            own_overlays.make(self.below_overlays(writer), owner)
        xml = self.snapshot_xml(writer, "")
        self.guest.snapshot_create(xml, disk_only=True, reuse_overlays=owner is not None)

    def run_steps(self, steps: list[Step], writer: EntryWriter) -> None:
        """Run the steps; if one fails, undo them, close the entry and raise StepFailed.

        If something cannot be undone, the entry stays open for the next hook.
        """

        def record(step: str) -> None:
            if self.run.request.cancelled.is_set() and not step.startswith("undo"):
                raise Cancelled(f"interrupted before {step}")
            if writer.entry.step != step:  # else it was written with what came before it
                writer.note(step=step)

        try:
            run_steps(steps, record)
        except StepFailed as error:
            if not error.not_undone:
                writer.close()
            raise

    def _newest_txg_before(self) -> dict[str, int] | None:
        newest = self.shared.preexisting.newest_txg_before
        datasets = self.eligibility.datasets
        return None if newest is None else {each: newest.get(each, 0) for each in datasets}
