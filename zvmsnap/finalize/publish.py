"""Makes the restore point of a run, which names exactly the snapshots that ZFS has; or none.

First it is decided, by what exists (`decision`), and then it is done:

store      the RAM image is stored in the vault: see `store`
publish    manifest, and one rename
close      staging directory and journal entry are removed; with or without a point
"""

from __future__ import annotations

import logging

import msgspec

from zvmsnap.common.errors import LevelMissed
from zvmsnap.common.log import Logger
from zvmsnap.common.safe_files import write_atomic
from zvmsnap.common.snapshot_name import run_of
from zvmsnap.config.settings import Config
from zvmsnap.disks.staging import StagingDir
from zvmsnap.finalize import told
from zvmsnap.finalize.decision import CaptureFiles, NoPoint, announced_run, decide, names_of
from zvmsnap.finalize.store import RamStore
from zvmsnap.journal import snapshot_match
from zvmsnap.journal.journal import EntryWriter
from zvmsnap.notify.event import Kind
from zvmsnap.points import definition, manifest, vault
from zvmsnap.points.manifest import (
    DOMAIN_XML,
    SMALL,
    HostDescription,
    Manifest,
    Memory,
    SnapshotRef,
)
from zvmsnap.virt import domain_xml
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
    existing = snapshot_match.candidates(writer.entry) if writer.entry.has_snapshots else ()
    if others := snapshot_match.of_other_datasets(writer.entry, existing):
        log.error("not of its point, as another dataset has got the name: %s", names_of(others))
        existing = tuple(ref for ref in existing if ref not in others)
    decision = decide(writer.entry, existing, files)
    if isinstance(decision, NoPoint):
        if not decision.error and decision.severity > logging.INFO:
            told.tell(config, writer.entry, Kind.NO_POINT, decision.why)
        _conclude(decision, writer, files, log)
        return
    if decision.too_late:
        log.warning(
            "too late for its point, as it ran on already, or overlays were being merged: %s",
            names_of(decision.too_late),
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
            run=announced_run(entry) or run_of(self._snapshots[0].name),
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
