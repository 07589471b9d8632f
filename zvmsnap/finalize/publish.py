"""A moment becomes a point that names exactly the snapshots that ZFS has; or nothing, without any.

stow       the RAM image goes into the vault, hashed, and compressed if need be
publish    manifest, and one rename
close      staging directory and journal entry go
"""

from __future__ import annotations

from pathlib import Path

from zvmsnap.common.atomic_file import write_atomic
from zvmsnap.common.errors import ImageUnloadable, LevelMissed, SnapshotMissing
from zvmsnap.common.log import Logger
from zvmsnap.common.snapshot_name import run_of
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks.staging import StagingDir
from zvmsnap.journal import snapshot_match
from zvmsnap.journal.journal import EntryWriter
from zvmsnap.points import manifest, memory_image, vault
from zvmsnap.points.manifest import (
    DOMAIN_XML,
    MEMORY,
    NVRAM,
    PERSISTENT_XML,
    TPM,
    HostDescription,
    Manifest,
    Memory,
    SnapshotRef,
    Timing,
)
from zvmsnap.virt import domain_xml, save_image
from zvmsnap.virt.host import Host
from zvmsnap.zfs import mounts, zfs


def publish(config: Config, hypervisor: Host, work: EntryWriter, log: Logger) -> None:
    """Publish and close.

    May be repeated after any interruption. Raises, after closing, SnapshotMissing if ZFS has no
    snapshot of this moment, and LevelMissed if a point of the level that was reached is not wanted;
    VaultDamaged, VaultMissing and OSError leave it open, for the next run.
    """
    entry = work.entry
    directory = StagingDir(config.staging_dir / entry.capture)
    directory.check()
    if not entry.snapshot_names:
        _close(work, directory)
        return
    found = snapshot_match.candidates(entry)
    own = snapshot_match.among(entry, found)
    if not own:
        _close(work, directory)
        raise SnapshotMissing(
            f"none of {', '.join(entry.snapshot_names)} exists: the RAM image is discarded; "
            "what kept sanoid from taking the snapshot stands in its own log"
            if entry.newest_txg_before is None
            else "no snapshot was taken since pre: the RAM image is discarded"
        )
    if entry.released_early:
        # A merge writes in an order of its own: what a snapshot sees of it is less than a crash.
        log.error(
            "no point: its overlays were merged before its snapshots were known to be taken. They "
            "may hold disks in the middle of a merge: %s",
            ", ".join(tie.full_name for tie in found),
        )
        _close(work, directory)
        return
    if entry.newest_txg_before is None and (late := set(found) - set(own)):
        log.warning(
            "too late for its point, as it ran on already, or overlays were being merged: %s",
            ", ".join(sorted(tie.full_name for tie in late)),
        )
    vault.claim(config)
    if vault.published(config.vault_dir, entry.domain, entry.capture):
        log.debug("was published already")
    elif not (directory.point / DOMAIN_XML).exists():
        log.warning("no point: pre was killed before it had stored anything")
    else:
        incoming = vault.incoming(config.vault_dir, entry.domain, entry.capture)
        if why := _why_less(work, directory, incoming):
            work.note(level=ConsistencyLevel.CRASH, reason=why)
        if not work.entry.reaches_minimum:
            vault.drop_incoming(incoming)
            _close(work, directory)
            raise LevelMissed(
                f"no point, as less than {entry.minimum_level} is not good enough: "
                f"{work.entry.reason}"
            )
        _Publication(config, hypervisor, work, directory, own, log).run(incoming)
    _close(work, directory)


def _close(work: EntryWriter, directory: StagingDir) -> None:
    def close() -> None:
        if not directory.overlays():
            directory.remove()
        work.close()

    work.step("close", close)


def _why_less(work: EntryWriter, directory: StagingDir, incoming: Path) -> str | None:
    """Why the point is not of the level that was begun."""
    if work.entry.snapshots_at_release == () and work.entry.level not in (
        ConsistencyLevel.CRASH,
        ConsistencyLevel.OFFLINE,
    ):
        return "it went on before its snapshot was known to be taken"
    if work.entry.level is ConsistencyLevel.QUIESCED and not work.entry.disks_frozen_at_s:
        return "pre was killed before its file systems were frozen"
    return _why_no_memory(work, directory, incoming) if work.entry.level.has_memory else None


def _why_no_memory(work: EntryWriter, directory: StagingDir, incoming: Path) -> str | None:
    if not work.entry.disks_frozen_at_s:
        # The image may be complete, but it is of a later instant than the snapshot.
        return "pre was killed before the disks were frozen"
    image = directory.memory
    if not image.exists() and not (incoming / MEMORY).exists():
        return f"its RAM image is gone from {image}"
    if not work.entry.memory_format:
        try:
            work.note(memory_format=save_image.read_header(image).format)
        except ImageUnloadable as error:
            return str(error)
    return None


class _Publication:
    """One point on its way from staging into the vault."""

    def __init__(
        self,
        config: Config,
        hypervisor: Host,
        work: EntryWriter,
        directory: StagingDir,
        own: tuple[SnapshotRef, ...],
        log: Logger,
    ) -> None:
        self._config = config
        self._hypervisor = hypervisor
        self._work = work
        self._directory = directory
        self._ties = own
        self._log = log
        self._memory: Memory | None = None

    def run(self, incoming: Path) -> None:
        """stow, publish."""
        self._work.step("store", lambda: self._stow(incoming))
        self._work.step("publish", lambda: self._publish(incoming))

    def _stow(self, incoming: Path) -> None:
        for name in (DOMAIN_XML, PERSISTENT_XML, NVRAM, TPM):
            source = self._directory.point / name
            if source.exists():
                write_atomic(incoming / name, source.read_bytes())
        if self._work.entry.level.has_memory:
            image_format = self._work.entry.memory_format
            self._memory = memory_image.store(
                self._directory.memory,
                incoming,
                image_format,
                zstd_level=self._zstd_level(incoming, image_format),
            )

    def _zstd_level(self, incoming: Path, image_format: str) -> int | None:
        image = self._config.image
        plain = image.compression == "none" or (
            image.compression == "auto"
            and (
                incoming.stat().st_dev == self._directory.point.stat().st_dev
                or self._is_compressed_already(image_format)
            )
        )
        return None if plain else image.zstd_level

    def _is_compressed_already(self, image_format: str) -> bool:
        if image_format != "raw":
            return True
        found = mounts.dataset_of_path(str(self._config.vault_dir.resolve()), mounts.read_table())
        return found is not None and zfs.datasets()[found[0]].compressed

    def _publish(self, incoming: Path) -> None:
        entry = self._work.entry
        record = Manifest(
            domain=entry.domain,
            uuid=entry.uuid,
            run=entry.run if entry.newest_txg_before is None else run_of(self._ties[0].name),
            created=entry.created,
            capture=entry.capture,
            level=entry.level,
            reason=entry.reason,
            snapshots=self._ties,
            disks=tuple(
                manifest.Disk(d.target, d.type, d.format, d.base, d.dataset, d.path)
                for d in entry.disks
            ),
            memory=self._memory,
            host=self._host(incoming / DOMAIN_XML),
            timing=Timing(
                entry.pause_s, entry.dump_s, entry.overlay_s, entry.commit_s, entry.last_ram_s
            ),
            tpm_warning=entry.tpm_warning,
        )
        published = vault.publish(incoming, record)
        measured = ""
        if self._memory:
            stored_mib = self._memory.stored_bytes >> 20
            measured = f", {stored_mib} MiB of RAM stored, " + (
                f"on its overlay for {entry.overlay_s:.1f} s"
                if entry.overlay_s
                else f"paused for {entry.pause_s:.2f} s"
            )
        self._log.info("point %s: level %s%s", published.name, record.level, measured)

    def _host(self, definition: Path) -> HostDescription:
        try:
            domain = domain_xml.parse(definition.read_text())
        except (domain_xml.ParseError, ValueError) as error:
            self._log.warning(
                "%s is damaged, so what it was made on is not told: %s", definition, error
            )
            domain = domain_xml.parse("<domain/>")
        return HostDescription(
            **self._hypervisor.versions(),
            machine=domain.machine,
            arch=domain.arch,
            emulator=domain.emulator,
            cpu_mode=domain.cpu_mode,
            cpu_model=domain.cpu_model,
        )
