"""Makes the restore point of a run, which names exactly the snapshots that ZFS has; or none.

First it is decided, by what exists, and then it is done. The first row that fits counts:

| entry                    | snapshots | vault and staging             | point                     |
|--------------------------|-----------|-------------------------------|---------------------------|
| a recovery               | any       | any                           | none                      |
| of a run                 | none      | any                           | none: SnapshotMissing     |
| of a run, released early | some      | any                           | none, an error is logged  |
| of a run                 | some      | the vault has the point       | no second one             |
| of a run                 | not of    | any                           | none: SnapshotMissing     |
|                          | each disk |                               |                           |
| of a run                 | some      | staging has nothing of it     | none, a warning is logged |
| of a run                 | some      | no definition was stored      | none, a warning is logged |
| of a run                 | some      | the level is less than wanted | none: LevelMissed         |
| of a run                 | some      | definition, maybe a RAM image | one, see `_changes`       |

store      the RAM image is stored in the vault: see `store`
publish    manifest, and one rename
close      staging directory and journal entry are removed; with or without a point
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
from zvmsnap.common.log import Logger
from zvmsnap.common.safe_files import write_atomic
from zvmsnap.common.snapshot_name import run_of
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks.staging import StagingDir
from zvmsnap.finalize.store import RamStore
from zvmsnap.journal import snapshot_match
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter
from zvmsnap.points import definition, manifest, vault
from zvmsnap.points.liveness import complete_names
from zvmsnap.points.manifest import (
    DOMAIN_XML,
    MEMORY,
    SMALL,
    HostDescription,
    Manifest,
    Memory,
    SnapshotRef,
)
from zvmsnap.quiesce.thaw import WENT_ON
from zvmsnap.virt import domain_xml, save_image
from zvmsnap.virt.host import Host
from zvmsnap.zfs import mounts, zfs


def publish(config: Config, host: Host, writer: EntryWriter, log: Logger) -> None:
    """Publish and close.

    May be repeated after any interruption. Raises, after closing, SnapshotMissing if ZFS has no
    snapshot of this run, and LevelMissed if a point of the level that was reached is not wanted;
    VaultDamaged, VaultMissing and OSError keep the entry open, for the next run.
    """
    files = CaptureFiles(config, writer.entry)
    files.staging.check()
    existing = () if writer.entry.is_recovery else snapshot_match.candidates(writer.entry)
    if others := snapshot_match.of_other_datasets(writer.entry, existing):
        log.error("not of its point, as another dataset has got the name: %s", _names(others))
        existing = tuple(ref for ref in existing if ref not in others)
    decision = decide(writer.entry, existing, files)
    if isinstance(decision, NoPoint):
        _conclude(decision, writer, files, log)
        return
    if decision.too_late:
        log.warning(
            "too late for its point, as it ran on already, or overlays were being merged: %s",
            _names(decision.too_late),
        )
    if decision.changes:
        writer.note(**decision.changes)
    _Publication(config, host, writer, files, decision.snapshots, log).run()
    _close(writer, files.staging)


def _conclude(decision: NoPoint, writer: EntryWriter, files: CaptureFiles, log: Logger) -> None:
    if decision.error is LevelMissed:
        vault.drop_incoming(files.incoming)
    if not decision.error:
        log.log(decision.severity, "%s", decision.why)
    _close(writer, files.staging)
    if decision.error:
        raise decision.error(decision.why)


def _close(writer: EntryWriter, staging: StagingDir) -> None:
    def close() -> None:
        if not staging.overlays():
            staging.remove()
        writer.close()

    writer.step("close", close)


def _announced_run(entry: Entry) -> str | None:
    """The run of its point; None if its name comes from the snapshots: nobody announced any."""
    return entry.run if entry.newest_txg_before is None else None


# -- the decision


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
        run = _announced_run(entry)
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
    if entry.is_recovery:
        return NoPoint("a recovery has no point")
    own = snapshot_match.among(entry, existing)
    if not own:
        return NoPoint(_why_no_snapshot(entry), error=SnapshotMissing)
    if entry.released_early:
        # A merge writes in an order of its own: what a snapshot sees of it is less than a crash.
        return NoPoint(
            "no point: its overlays were merged before its snapshots were known to be taken. They "
            f"may hold disks in the middle of a merge: {_names(existing)}",
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
    return f"no point, as not all disks are in one snapshot: there is {_names(own)}, but {but}"


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


def _names(snapshots: Iterable[SnapshotRef]) -> str:
    return ", ".join(sorted(snapshot.full_name for snapshot in snapshots))


# -- the point


class _Publication:
    """One point on its way from staging into the vault."""

    def __init__(
        self,
        config: Config,
        host: Host,
        writer: EntryWriter,
        files: CaptureFiles,
        snapshots: tuple[SnapshotRef, ...],
        log: Logger,
    ) -> None:
        self._config = config
        self._host = host
        self._writer = writer
        self._staging = files.staging
        self._incoming = files.incoming
        self._snapshots = snapshots
        self._log = log
        self._memory: Memory | None = None

    def run(self) -> None:
        """Steps `store` and `publish`."""
        self._writer.step("store", self._store)
        self._writer.step("publish", self._publish)

    def _store(self) -> None:
        for name in SMALL:
            source = self._staging.point / name
            if source.exists():
                write_atomic(self._incoming / name, source.read_bytes())
        if self._writer.entry.level.has_memory:
            entry = self._writer.entry
            ram = RamStore(
                self._incoming,
                entry.domain,
                entry.uuid,
                self._config.image.pages,
                self._zstd_level(entry.memory_format),
                self._log,
                self._config.limits.staging_reserve_mib << 20,
            )
            self._memory = ram.store(self._staging.memory, entry.memory_format)

    def _zstd_level(self, image_format: str) -> int | None:
        """None if the image is stored as it is."""
        image = self._config.image
        is_plain = image.compression == "none" or (
            image.compression == "auto"
            and (
                self._incoming.stat().st_dev == self._staging.point.stat().st_dev
                or self._is_compressed_already(image_format)
            )
        )
        return None if is_plain else image.zstd_level

    def _is_compressed_already(self, image_format: str) -> bool:
        if image_format != "raw":
            return True
        vault_dir = str(self._config.vault_dir.resolve())
        dataset_and_path = mounts.dataset_of_path(vault_dir, mounts.read_table())
        if dataset_and_path is None:
            return False
        return zfs.properties(dataset_and_path[0], ("compression",))["compression"] != "off"

    def _publish(self) -> None:
        entry, memory = self._writer.entry, self._memory
        described = self._manifest()
        sealed = definition.seal_of(self._config, self._incoming, described)
        point = vault.publish(self._incoming, msgspec.structs.replace(described, seal=sealed))
        measured = ""
        if memory:
            measured = f", {memory.stored_bytes >> 20} MiB of RAM stored, " + (
                f"on its overlay for {entry.overlay_s:.1f} s"
                if entry.overlay_s
                else f"paused for {entry.pause_s:.2f} s"
            )
        self._log.info("point %s: level %s%s", point.name, entry.level, measured)

    def _manifest(self) -> Manifest:
        entry = self._writer.entry
        datasets, pools = zfs.lineages(), zfs.pool_guids()
        return Manifest(
            domain=entry.domain,
            uuid=entry.uuid,
            run=_announced_run(entry) or run_of(self._snapshots[0].name),
            created=entry.created,
            capture=entry.capture,
            level=entry.level,
            reason=entry.reason,
            snapshots=tuple(ref.identified(datasets, pools) for ref in self._snapshots),
            disks=tuple(
                manifest.Disk(
                    disk.target,
                    disk.type,
                    disk.format,
                    disk.base,
                    disk.dataset,
                    disk.path,
                    disk.partition,
                    disk.dataset_guid,
                )
                for disk in entry.disks
            ),
            memory=self._memory,
            host=self._host_description(),
            timing=entry.timing,
            tpm_warning=entry.tpm_warning,
            other_state=entry.other_state,
        )

    def _host_description(self) -> HostDescription:
        definition = self._incoming / DOMAIN_XML
        try:
            domain = domain_xml.parse(definition.read_text(encoding="utf-8"))
        except (domain_xml.ParseError, ValueError) as error:
            self._log.warning(
                "%s is damaged, so the point does not say on what machine it was made: %s",
                definition,
                error,
            )
            domain = domain_xml.parse("<domain/>")
        return HostDescription(
            **self._host.versions(),
            machine=domain.machine,
            arch=domain.arch,
            emulator=domain.emulator,
            cpu_mode=domain.cpu_mode,
            cpu_model=domain.cpu_model,
        )
