"""One guest's unfinished part of a snapshot run, and the state that it is in.

The state follows from the fields; the first row that fits decides.

| `step`                                      | disks frozen | held | overlays | state       |
|---------------------------------------------|--------------|------|----------|-------------|
| `undo` and a step                           | any          | any  | any      | undoing     |
| `store`, `publish`, `close`                 | any          | any  | any      | publishing  |
| `tidy`                                      | any          | any  | any      | committed   |
| `commit`, `redefine`; `release`, `merge` of | any          | any  | any      | committing  |
| any other                                   | yes          | yes  | any      | held        |
| any other                                   | yes          | no   | yes      | on overlays |
| any other                                   | yes          | no   | no       | released    |
| `dump`                                      | no           | any  | any      | dumping     |
| any other                                   | no           | yes  | any      | freezing    |
| `waiting`                                   | no           | no   | any      | waiting     |
| any other                                   | no           | no   | any      | preparing   |

Disks frozen: `disks_frozen_at_s` is set. Held: `frozen`, or `paused` at level `paused`. Overlays:
`disks` name some. A recovery, of a guest whose entry was lost, counts as frozen, and on overlays.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec

from zvmsnap.common.process import Process
from zvmsnap.common.snapshot_name import DatasetName, MaybeDatasetName, SnapshotName
from zvmsnap.config.capture_name import CaptureName, GuestUuid
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.points.manifest import OtherState, PauseParts, SnapshotRef, Timing, datasets_of
from zvmsnap.virt import domain_xml
from zvmsnap.zfs.mounts import DiskLocation
from zvmsnap.zfs.types import Partition

SCHEMA = 3

_PUBLISHING = ("store", "publish", "close")
_COMMITTING = ("commit", "redefine")
_COMMITTING_A_DISK = ("release ", "merge ")  # and its target


class EntryState(StrEnum):
    """How far the guest's part of the run is, and in which state the guest is then."""

    PREPARING = "preparing"  # runs
    DUMPING = "dumping"  # runs, or is paused, while its RAM is written
    FREEZING = "freezing"  # its file systems may be frozen
    WAITING = "waiting"  # runs, or is off: only its disks are captured
    HELD = "held"  # is paused, or its file systems are frozen
    ON_OVERLAYS = "on overlays"  # runs on its overlays
    RELEASED = "released"  # runs on its own disks; a deadline may have released it
    COMMITTING = "committing"  # each disk is on its overlay or on its base
    COMMITTED = "committed"  # is on its own disks, by both definitions
    PUBLISHING = "publishing"  # as before
    UNDOING = "undoing"  # a step failed; what could not be undone is left to the finisher


class Disk(msgspec.Struct, frozen=True):
    """A disk of the run: what it is, its place in a dataset, and its overlay ("" if none).

    Of a backup it may be in no dataset: "". `dataset_guid` is 0 if it is not known.
    """

    target: str
    type: str
    format: str
    base: str
    dataset: MaybeDatasetName
    path: str
    overlay: str = ""
    partition: Partition | None = None
    dataset_guid: int = 0

    @classmethod
    def of(
        cls,
        disk: domain_xml.Disk,
        location: DiskLocation,
        overlay: str = "",
        *,
        dataset_guid: int = 0,
    ) -> Disk:
        """A disk of a definition, at that location."""
        return cls(
            disk.target,
            disk.type,
            disk.format,
            disk.source,
            location.dataset,
            location.path,
            overlay,
            location.partition,
            dataset_guid,
        )


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One guest's unfinished part of a run.

    Without snapshot names it is no run, and has no point. It is for a backup, which copies its
    disks, or a recovery, of a guest whose entry was lost.
    """

    schema: Annotated[int, msgspec.Meta(ge=SCHEMA, le=SCHEMA)] = SCHEMA
    domain: Annotated[str, msgspec.Meta(min_length=1)]
    uuid: GuestUuid
    owner: Process  # takes the snapshots

    # The request: what the caller of the hook has announced; or the directory of backups.
    backup: str = ""
    run: str
    request_datasets: tuple[DatasetName, ...]
    snapshot_names: tuple[SnapshotName, ...]
    # Snapshots that had one of these names before the run, or before its disks were frozen.
    preexisting_guids: tuple[int, ...]
    # Where no names are announced: the txg of each dataset's newest snapshot before that.
    newest_txg_before: dict[str, int] | None = None
    minimum_level: ConsistencyLevel | None = None  # no point is made below this one

    # The capture: what is done to the guest until the snapshot.
    capture: CaptureName  # the directory in staging
    staging: str = ""  # the directory of all captures at that time; "": the configured one
    level: ConsistencyLevel
    reason: str | None  # why the level is not a better one
    disks: tuple[Disk, ...]
    other_state: tuple[OtherState, ...] = ()
    created: str  # ISO 8601 with an offset
    step: str = ""
    memory_format: str = ""  # of the RAM image, when its header was read
    paused: bool = False  # by zvmsnap: to end its dump, or until its snapshot is taken
    frozen: bool = False  # its file systems, by zvmsnap; written before the agent is asked
    thaw_script_due: bool = False  # pre-freeze was begun, so post-thaw must run
    # What QEMU allowed itself before zvmsnap changed it.
    original_downtime_ms: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | None = None
    original_speed_mib: Annotated[int, msgspec.Meta(ge=0, lt=2**44)] | None = None
    tpm_warning: str | None = None  # for the manifest

    # Timing: when the guest was held, and how long things took, in seconds.
    held_since_s: float = 0.0  # `uptime_s` before it was frozen, or when it was paused
    disks_frozen_at_s: float = 0.0  # time.time() when the disks stopped changing; 0: not yet
    pause_s: float = 0.0
    dump_s: float = 0.0
    last_ram_s: float = 0.0
    pause_parts: PauseParts = PauseParts()  # as far as they are known before it goes on
    overlay_s: float = 0.0
    commit_s: float = 0.0

    # The release: what is known when the guest is brought back to its own disks.
    # Guids of the run's snapshots just before it was released: later ones saw it run.
    snapshots_at_release: tuple[int, ...] | None = None
    # The same, with their names at that time: the point may wait until these have changed.
    refs_at_release: tuple[SnapshotRef, ...] = ()
    # It was seen held after these were listed: that it runs since does not make its point less.
    was_held_at_release: bool = False
    # Its overlays were merged before its snapshots were known to exist, maybe during a snapshot.
    released_early: bool = False
    committed_overlays: tuple[str, ...] = ()  # their data was in the base before it left them
    # What its AppArmor profile denied it of the images below its bases, before the first merge.
    denied_below: tuple[str, ...] | None = None
    in_the_way: str = ""  # the work of somebody else that keeps it on its overlays
    # Of a late run: guids as another run began to merge, until it has ended; those taken meanwhile.
    before_merge: tuple[int, ...] | None = None
    spoilt: tuple[int, ...] = ()
    relocated_datasets: dict[str, str] = {}  # where a restore has moved datasets since

    def directory(self, configured: Path) -> Path:
        """The capture's own directory, also if `staging` was changed since."""
        return Path(self.staging or configured) / self.capture

    @property
    def state(self) -> EntryState:
        """By the table above."""
        if self.step.startswith("undo "):
            return EntryState.UNDOING
        if self.step in _PUBLISHING:
            return EntryState.PUBLISHING
        if self.step == "tidy":
            return EntryState.COMMITTED
        if self.step in _COMMITTING or self.step.startswith(_COMMITTING_A_DISK):
            return EntryState.COMMITTING
        if self.is_recovery or self.disks_frozen_at_s:
            return self._state_of_guest()
        if self.step == "dump":
            return EntryState.DUMPING
        if self.is_held:
            return EntryState.FREEZING
        return EntryState.WAITING if self.step == "waiting" else EntryState.PREPARING

    def _state_of_guest(self) -> EntryState:
        if self.is_held:
            return EntryState.HELD
        return EntryState.ON_OVERLAYS if self.may_be_on_overlay else EntryState.RELEASED

    @property
    def is_recovery(self) -> bool:
        """Is it no run, but the recovery of a guest whose entry was lost?"""
        return not (self.snapshot_names or self.backup)

    @property
    def has_snapshots(self) -> bool:
        """Is it a run, of which snapshots are taken, and which may have a point?"""
        return bool(self.snapshot_names)

    @property
    def subject(self) -> str:
        """What it is about, for log lines: the datasets of the request, or the backups."""
        return self.backup or ",".join(self.request_datasets)

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets that hold the guest's disks of this run, and its other state."""
        disks = {disk.dataset for disk in self.disks} - {""}
        return tuple(sorted(disks | datasets_of(self.other_state)))

    @property
    def timing(self) -> Timing:
        """For the manifest: with the last part of the time that the guest was held for."""
        parts = self.pause_parts
        if self.level.holds_guest and self.pause_s:
            last = "resume_s" if self.may_be_on_overlay else "snapshot_s"
            rest_s = max(0.0, self.pause_s - parts.sum_s)
            parts = msgspec.structs.replace(parts, **{last: rest_s})
        return Timing(
            self.pause_s, self.dump_s, self.overlay_s, self.commit_s, self.last_ram_s, parts
        )

    @property
    def reaches_minimum(self) -> bool:
        """Is a point of its level wanted?"""
        return self.minimum_level is None or self.level.reaches(self.minimum_level)

    @property
    def is_paused_for_snapshot(self) -> bool:
        """Is the guest paused until its snapshot is taken, not just to end a dump?"""
        return self.paused and self.level is ConsistencyLevel.PAUSED

    @property
    def is_held(self) -> bool:
        """Is the guest paused, or are its file systems frozen, for the snapshot?

        The states held and freezing, and any later one in which this was not noted to be over.
        """
        return self.frozen or self.is_paused_for_snapshot

    @property
    def holds_guest(self) -> bool:
        """Is it held, or must an administrator's post-thaw run?

        As `is_held`; and preparing, from the step pre-freeze on.
        """
        return self.is_held or self.thaw_script_due

    @property
    def may_need_release(self) -> bool:
        """May it still be held, or on overlays?

        Until both definitions were proven to name its own disks: the state committed.
        """
        is_back = self.state in (EntryState.COMMITTED, EntryState.PUBLISHING)
        return self.holds_guest or (self.may_be_on_overlay and not is_back)

    @property
    def may_hold_guest(self) -> bool:
        """May it be held, or come to be held?

        The states held and freezing; at the levels paused and quiesced also preparing, dumping and
        undoing. Not after release: then the level tells nothing.
        """
        is_released = self.disks_frozen_at_s and not self.paused
        return self.frozen or (self.level.holds_guest and not is_released)

    @property
    def dump_may_continue(self) -> bool:
        """May libvirt go on with a dump or an overlay whose caller was killed?

        Any state: by level and disks alone, as the step was written before it began.
        """
        return self.may_be_on_overlay or self.level.has_memory

    @property
    def may_be_on_overlay(self) -> bool:
        """Has it overlays, or may a dump that goes on put it on them?

        Any state: overlays are named in `disks` before they exist.
        """
        return self.is_recovery or any(disk.overlay for disk in self.disks)
