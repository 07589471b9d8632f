"""One guest's part in a snapshot run that is not finished."""

from __future__ import annotations

from typing import Annotated

import msgspec

from zvmsnap.common.process import Process
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.virt import domain_xml
from zvmsnap.zfs.mounts import DiskLocation

SCHEMA = 3

# Both become parts of paths: nothing that a damaged file says may lead out of our directories.
_GUEST = r"\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_UUID = _GUEST + r"\Z"
_CAPTURE = _GUEST + r"\.[0-9a-f]{8}\Z"

# Both become words of command lines: nothing in them may be taken for something else.
_Dataset = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][^\x00-\x1f\x7f@]*\Z")]
_Name = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f@/]+\Z")]


class Disk(msgspec.Struct, frozen=True):
    """A covered disk: what it is, where it lies, and the overlay for its writes ("" if none)."""

    target: str
    type: str
    format: str
    base: str
    dataset: _Dataset
    path: str
    overlay: str = ""

    @classmethod
    def of(cls, disk: domain_xml.Disk, place: DiskLocation, overlay: str = "") -> Disk:
        """A disk of a definition, that lies there."""
        return cls(
            disk.target, disk.type, disk.format, disk.source, place.dataset, place.path, overlay
        )


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One guest's part in a moment that is not finished.

    `snapshot_names` are announced by the caller; `preexisting_guids` are of snapshots that had one
    of these names before, so they are not of this run. `capture` is the directory in staging.
    Without snapshot names it is no run, but the recovery of a guest of which no journal knew.
    """

    schema: Annotated[int, msgspec.Meta(ge=SCHEMA, le=SCHEMA)] = SCHEMA
    domain: Annotated[str, msgspec.Meta(min_length=1)]
    uuid: Annotated[str, msgspec.Meta(pattern=_UUID)]
    run: str
    request_datasets: tuple[_Dataset, ...]
    snapshot_names: tuple[_Name, ...]
    preexisting_guids: tuple[int, ...]
    owner: Process
    capture: Annotated[str, msgspec.Meta(pattern=_CAPTURE)]
    level: ConsistencyLevel
    minimum_level: ConsistencyLevel | None = None  # a point of less than that is not wanted
    reason: str | None
    disks: tuple[Disk, ...]
    created: str
    step: str = ""
    memory_format: str = ""
    pause_s: float = 0.0
    dump_s: float = 0.0
    last_ram_s: float = 0.0
    committed_overlays: tuple[
        str, ...
    ] = ()  # overlays whose data was in the base when we began to leave them
    released_early: bool = (
        False  # its overlays were merged before the end, maybe during the snapshot
    )
    paused: bool = False  # by us: to end its dump, or until its snapshot is taken
    frozen: bool = False  # its file systems, by us
    held_since_s: float = 0.0  # `uptime_s` when it was about to be frozen, or was paused
    thaw_script_due: bool = False  # pre-freeze was begun, so post-thaw must run
    original_downtime_ms: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | None = (
        None  # what QEMU allowed itself before we changed it
    )
    overlay_s: float = 0.0
    commit_s: float = 0.0
    disks_frozen_at_s: float = 0.0  # time.time() at which the disks had switched to their overlays
    relocated_datasets: dict[
        str, str
    ] = {}  # where a restore has moved datasets since their snapshots
    # Where nobody says how snapshots are called: the txg of each dataset's newest one before.
    newest_txg_before: dict[str, int] | None = None
    # Guids of the snapshots that there were when it was about to be let go: later ones saw it run.
    snapshots_at_release: tuple[int, ...] | None = None
    tpm_warning: str | None = None  # why the TPM's state is not coherent with the disks

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets that hold the guest's disks of this moment."""
        return tuple(sorted({disk.dataset for disk in self.disks}))

    @property
    def reaches_minimum(self) -> bool:
        """Is a point of its level wanted?"""
        return self.minimum_level is None or self.level.reaches(self.minimum_level)

    @property
    def dump_may_continue(self) -> bool:
        """May a dump of ours go on, though its caller was killed?"""
        return self.may_be_on_overlay or self.level.has_memory

    @property
    def may_hold_guest(self) -> bool:
        """May it, or its file systems, stand still because of us, or come to do so?"""
        is_let_go = self.disks_frozen_at_s and not self.paused
        return self.frozen or (self.level.holds_guest and not is_let_go)

    @property
    def holds_guest(self) -> bool:
        """Did we make something stand still, or ask an administrator's program to?"""
        return (
            self.frozen
            or self.thaw_script_due
            or (self.paused and self.level is ConsistencyLevel.PAUSED)
        )

    @property
    def may_be_on_overlay(self) -> bool:
        """May the guest be on overlays, or come to be on them by a dump that goes on?"""
        return not self.snapshot_names or any(disk.overlay for disk in self.disks)
