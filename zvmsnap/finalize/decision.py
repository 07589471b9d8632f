"""Is there a restore point of a run, and of which level? By what exists; nothing is changed.

The first row that fits counts:

| entry                    | snapshots | vault and staging             | point                     |
|--------------------------|-----------|-------------------------------|---------------------------|
| a recovery, or a backup  | any       | any                           | none                      |
| of a run                 | none      | any                           | none: SnapshotMissing     |
| of a run, released early | some      | any                           | none, an error is logged  |
| of a run                 | some      | the vault has the point       | no second one             |
| of a run                 | not of    | any                           | none: SnapshotMissing     |
|                          | each disk |                               |                           |
| of a run                 | some      | staging has nothing of it     | none, a warning is logged |
| of a run                 | some      | no definition was stored      | none, a warning is logged |
| of a run                 | some      | the level is less than wanted | none: LevelMissed         |
| of a run                 | some      | definition, maybe a RAM image | one, see `_changes`       |
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from zvmsnap.common.errors import ImageUnloadable, LevelMissed, SnapshotMissing
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks.staging import StagingDir
from zvmsnap.journal import describe, snapshot_match
from zvmsnap.journal.entry import Entry
from zvmsnap.points import vault
from zvmsnap.points.liveness import complete_names
from zvmsnap.points.manifest import (
    DOMAIN_XML,
    MEMORY,
    SnapshotRef,
)
from zvmsnap.quiesce.thaw import WENT_ON
from zvmsnap.virt import save_image


def announced_run(entry: Entry) -> str | None:
    """The run of its point; None if its name comes from the snapshots: nobody announced any."""
    return entry.run if entry.newest_txg_before is None else None


class CaptureFiles:
    """What staging and vault have of one capture; each is looked at when it is asked for.

    All but `staging` raise VaultMissing, VaultDamaged and OSError.
    """

    def __init__(self, config: Config, entry: Entry) -> None:
        self._config = config
        self._entry = entry
        self.staging = StagingDir(entry.directory(config.staging_dir))

    @cached_property
    def is_published(self) -> bool:
        """Has the vault the point of this capture already?"""
        vault.claim(self._config)
        entry, vault_dir = self._entry, self._config.vault_dir
        run = announced_run(entry)
        return vault.published(vault_dir, entry.domain, run, entry.capture) is not None

    @property
    def has_definition(self) -> bool:
        """Has pre stored the definition?"""
        return (self.staging.point / DOMAIN_XML).exists()

    @cached_property
    def incoming(self) -> Path:
        """The directory in the vault in which the point is put together."""
        return vault.incoming(self._config.vault_dir, self._entry.domain, self._entry.capture)

    @property
    def has_image(self) -> bool:
        """Has staging a RAM image, or the vault already?"""
        return self.staging.memory.exists() or (self.incoming / MEMORY).exists()

    def image_format(self) -> str:
        """The format of the RAM image in staging. Raises ImageUnloadable."""
        return save_image.read_header(self.staging.memory).format


@dataclass(frozen=True)
class NoPoint:
    """No point is made; `why` is logged before the entry is closed, or raised as `error` after."""

    why: str
    severity: int = logging.DEBUG
    error: type[SnapshotMissing | LevelMissed] | None = None


@dataclass(frozen=True)
class NewPoint:
    """A point of these snapshots is made, after these changes of the entry are noted.

    `too_late` have names of the run, too, but were taken after the guest was released.
    """

    snapshots: tuple[SnapshotRef, ...]
    too_late: tuple[SnapshotRef, ...]
    changes: dict[str, Any]


def decide(
    entry: Entry, existing: tuple[SnapshotRef, ...], files: CaptureFiles
) -> NoPoint | NewPoint:
    """Follow the table; `existing` are the snapshots that may be of the run. Changes no entry."""
    if not entry.has_snapshots:
        return NoPoint(f"{describe.work(entry)} has no point")
    own = snapshot_match.among(entry, existing)
    if not own:
        return NoPoint(_why_no_snapshot(entry), error=SnapshotMissing)
    if entry.released_early:
        # A merge writes in an order of its own: what a snapshot sees of it is less than a crash.
        return NoPoint(
            "no point: its overlays were merged before its snapshots were known to be taken. They "
            f"may hold disks in the middle of a merge: {names_of(existing)}",
            logging.ERROR,
        )
    if files.is_published:
        return NoPoint("was published already")
    if not complete_names(own, entry.datasets):
        return NoPoint(_why_not_whole(entry, own), error=SnapshotMissing)
    if not files.staging.path.exists():
        return NoPoint(
            f"no point: {files.staging.path} is gone, with all that pre had stored",
            logging.WARNING,
        )
    if not files.has_definition:
        return NoPoint("no point: pre was killed before it had stored anything", logging.WARNING)
    changes = _changes(entry, files)
    decided = msgspec.structs.replace(entry, **changes)
    if not decided.reaches_minimum:
        why = f"no point, as less than {entry.minimum_level} is not good enough: {decided.reason}"
        return NoPoint(why, error=LevelMissed)
    # Where no names were announced, the others may be anybody's.
    late = set(existing) - set(own) if entry.newest_txg_before is None else set()
    return NewPoint(own, tuple(late), changes)


def _why_no_snapshot(entry: Entry) -> str:
    if entry.newest_txg_before is not None:
        return "no snapshot was taken since pre: the RAM image is discarded"
    return (
        f"none of {', '.join(entry.snapshot_names)} was taken after pre: the RAM image is "
        "discarded; sanoid's own log says why the snapshot was not taken"
    )


def _why_not_whole(entry: Entry, own: tuple[SnapshotRef, ...]) -> str:
    without = sorted(set(entry.datasets) - {ref.dataset for ref in own})
    but = f"nothing of {', '.join(without)}" if without else "no name that all datasets have"
    return f"no point, as not all disks are in one snapshot: there is {names_of(own)}, but {but}"


def _changes(entry: Entry, files: CaptureFiles) -> dict[str, Any]:
    """The level that the point gets, and why, if it is not the one that was begun.

    | level that was begun        | and                                        | the point |
    |-----------------------------|--------------------------------------------|-----------|
    | memory, paused, quiesced    | no snapshot existed before it was released | crash     |
    | memory, paused, quiesced    | pre ended before the freeze                | crash     |
    | memory, paused              | no RAM image that libvirt can load         | crash     |
    | any                         | none of these                              | as begun  |
    """
    level = entry.level
    why = ""
    if level not in (ConsistencyLevel.CRASH, ConsistencyLevel.OFFLINE):
        if entry.snapshots_at_release == ():
            why = WENT_ON
        elif not entry.disks_frozen_at_s:
            # The RAM image may be complete, but it is of a later instant than the snapshot.
            what = "the disks" if level.has_memory else "its file systems"
            why = f"pre ended before {what} were frozen"
        elif level.has_memory and not files.has_image:
            why = f"its RAM image is gone from {files.staging.memory}"
        elif level.has_memory and not entry.memory_format:
            try:
                return {"memory_format": files.image_format()}
            except ImageUnloadable as error:
                why = str(error)
    return {"level": ConsistencyLevel.CRASH, "reason": why} if why else {}


def names_of(snapshots: Iterable[SnapshotRef]) -> str:
    """As messages name them."""
    return ", ".join(sorted(snapshot.full_name for snapshot in snapshots))
