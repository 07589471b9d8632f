"""The guest that a restore replaces: stopped so that it can go on, and kept as a point."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from zvmsnap.common import log
from zvmsnap.common.errors import (
    ImageUnloadable,
    RestoreFailed,
    SnapshotMissing,
    WrongDisk,
    ZfsFailed,
)
from zvmsnap.common.process import Process
from zvmsnap.common.safe_files import sync_dir
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks import apparmor, location, unused_overlay
from zvmsnap.disks.jobs import wait_idle
from zvmsnap.disks.staging import StagingDir, StagingSpace
from zvmsnap.finalize.publish import publish
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter, Journal
from zvmsnap.journal.operation import OperationWriter, RestoreOperation, Source
from zvmsnap.points import definition
from zvmsnap.points.manifest import PERSISTENT_XML
from zvmsnap.virt import domain_xml, save_image
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs import branches, mounts, volume, zfs
from zvmsnap.zfs.dataset_swap import DEVICE_TIMEOUT_S


class ReplacedGuest:
    """The replaced guest, and what is kept of it in staging until the restore is over.

    All methods may be repeated.
    """

    def __init__(
        self, config: Config, host: Host, writer: OperationWriter[RestoreOperation]
    ) -> None:
        self._config = config
        self._host = host
        self._writer = writer
        self._log = log.about(writer.operation.domain, "restore")
        self.kept = StagingDir(writer.operation.directory_in_staging(config.staging_dir))

    @property
    def _operation(self) -> RestoreOperation:
        return self._writer.operation

    def guest(self) -> Guest | None:
        """The guest, replaced or restored: they have one UUID; None if it is not defined."""
        return self._host.find(self._operation.uuid)

    def is_active(self) -> bool:
        """Does a QEMU process of it exist?"""
        guest = self.guest()
        return guest is not None and guest.is_active()

    def keep(self) -> None:
        """Store definition, NVRAM and TPM state in staging, and reserve space for its RAM.

        Raises NoSpace.
        """
        self.kept.make()
        guest = self.guest()
        if guest is None:
            return
        definition.store(guest, self.kept.point, (), [])
        if self._operation.saves_memory:
            ram_bytes = domain_xml.parse(guest.xml()).memory_kib << 10
            StagingSpace(self._config.staging_dir, 0).reserve(guest.uuid, ram_bytes)

    def forget(self) -> None:
        """Remove what `keep` stored. Raises RestoreFailed if its RAM is nowhere else."""
        if self._operation.was_active and not self.is_active() and self.saved():
            raise RestoreFailed(f"kept, as it holds the RAM of its guest: {self.kept.memory}")
        self.kept.remove()

    def saved(self) -> bool:
        """Is its RAM saved completely, and not loaded since?"""
        try:
            save_image.xml_of(self.kept.memory)
            return True
        except (OSError, ImageUnloadable):
            return False

    def stop(self) -> None:
        """Save its RAM and stop it, at one instant; or only stop it."""
        guest = self.guest()
        if guest is None or not guest.is_active():
            return
        wait_idle(guest, self._config.limits.busy_timeout_s)
        if self._operation.saves_memory:
            self.kept.memory.unlink(missing_ok=True)
            unused_overlay.close_in_qemu(guest)
            guest.save(str(self.kept.memory))
        else:
            guest.destroy()

    def bring_back(self) -> None:
        """Let it go on as it was, on its own disks.

        Its RAM is loaded once: the image is removed before the guest runs and changes its disks.
        Raises RestoreFailed, and WrongDisk if QEMU opened others: it does not run on these.
        """
        operation = self._operation
        if not self.is_active():
            if operation.rollback_begun:
                raise RestoreFailed(
                    f"{operation.domain} is off, and disks of it were rolled back already"
                )
            if not self.saved():
                self._start()
                return
            self._load()
        guest = self._host.guest(operation.uuid)
        is_stopped = guest.pause_reason() is not None and not operation.was_paused
        if is_stopped:
            # By zvmsnap, now or before a crash: then nobody has looked yet.
            self._check_not_on_clones(guest)
        self.kept.memory.unlink(missing_ok=True)
        sync_dir(self.kept.point)
        if is_stopped:
            guest.resume()

    def _load(self) -> None:
        self._await_partitions()
        self._host.restore(str(self.kept.memory), self._xml_with_devices(), paused=True)
        guest = self._host.guest(self._operation.uuid)
        location.stop_unless_on(self._host, guest, self._operation.replaced_disks)
        apparmor.allow_below(guest, self._log)

    def _await_partitions(self) -> None:
        for place in self._operation.replaced_disks.values():
            if place.partition:
                volume.wait_partition(place.dataset, place.partition, DEVICE_TIMEOUT_S)

    def _xml_with_devices(self) -> str | None:
        """The definition in the saved RAM, where it names a volume otherwise than ZFS does.

        A link by content may lead to the clone of the disk that was to replace it.
        """
        xml = save_image.xml_of(self.kept.memory)
        sources = self._devices_of(domain_xml.parse(xml).disks)
        return domain_xml.with_sources(xml, sources) if sources else None

    def _devices_of(self, disks: Iterable[domain_xml.Disk]) -> dict[str, Source]:
        """The devices of its volumes, for those of these disks that are named otherwise."""
        sources = {}
        for disk in disks:
            place = self._operation.replaced_disks.get(disk.target)
            if place and not place.path and disk.type == "block":
                device = volume.device_of(place.dataset, place.partition)
                if device != disk.source:
                    sources[disk.target] = ("block", device, disk.format)
        return sources

    def _start(self) -> None:
        operation = self._operation
        if operation.owner.boot != Process.of(operation.owner.pid).boot:
            self._log.warning("is off: the host went down before its RAM was saved")
            return
        guest = self.guest()
        if guest is None:
            raise RestoreFailed(f"{operation.domain} is off, and was transient: start it again")
        self._log.warning("its RAM was not saved: it boots from its disks")
        self._await_partitions()
        self._rename_disks(guest)
        guest.create(paused=True)
        try:
            self._check_not_on_clones(guest)
        except WrongDisk:
            guest.destroy()
            raise
        apparmor.allow_below(guest, self._log)
        guest.resume()

    def _rename_disks(self, guest: Guest) -> None:
        """Let its definition name its volumes, where its links lead to the clones of them."""
        wrong = self._on_clones(guest)
        disks = domain_xml.parse(guest.xml(persistent=True)).disks
        sources = self._devices_of(disk for disk in disks if disk.target in wrong)
        if sources:
            xml = guest.xml(persistent=True, secure=True)
            self._host.define(domain_xml.with_sources(xml, sources))

    def _check_not_on_clones(self, guest: Guest) -> None:
        if targets := ", ".join(self._on_clones(guest)):
            raise WrongDisk(f"{guest.name}: QEMU has opened a clone of its disk {targets}")

    def _on_clones(self, guest: Guest) -> list[str]:
        """The targets of its disks that are clones, which were to replace its disks."""
        clones = {
            tree.clone_top + dataset.path
            for tree in self._operation.swap_trees
            for dataset in tree.datasets
        }
        locations = location.locate_disks(self._host, guest, mounts.read_table()).locations
        return [target for target, place in locations.items() if place.dataset in clones]

    def define(self) -> None:
        """Put its definition, NVRAM and TPM state back."""
        operation = self._operation
        if operation.guest_existed:
            xml = (self.kept.point / PERSISTENT_XML).read_text(encoding="utf-8")
            self._host.define(xml)
            definition.put_firmware(self.kept.point, xml, operation.uuid)
            return
        guest = self.guest()
        if guest and guest.is_persistent() and not operation.was_active:
            guest.undefine()

    def take_safety(self) -> None:
        """Snapshot its disks, where they are not yet."""
        self._note_instant()
        wanted = self._safety.request_datasets
        try:
            branches.snapshot(wanted, self._safety.run)
        except ZfsFailed:
            # A run that died may have taken those of one pool, and not of another.
            done = {each.dataset for each in zfs.snapshots(self._snapshots()).present.values()}
            if not done:
                raise
            branches.snapshot(set(wanted) - done, self._safety.run)

    def _note_instant(self) -> None:
        """The point is of now: its name, which was shown and agreed to, may be minutes older."""
        changes: dict[str, Any] = {"created": datetime.now(UTC).isoformat(timespec="milliseconds")}
        if self._operation.was_active:
            changes["disks_frozen_at_s"] = time.time()
            try:
                changes["memory_format"] = save_image.read_header(self.kept.memory).format
            except ImageUnloadable as error:
                changes |= {"level": ConsistencyLevel.CRASH, "reason": str(error)}
        self._writer.note(safety_entry=msgspec.structs.replace(self._safety, **changes))

    def drop_safety(self) -> None:
        """Destroy these snapshots again."""
        for full_name in zfs.snapshots(self._snapshots()).present:
            zfs.destroy(full_name)

    def publish(self) -> None:
        """Publish the safety point: its snapshots, and what is kept in staging."""
        relocated = {
            tree.top + dataset.path: tree.replaced_top + dataset.path
            for tree in self._operation.swap_trees
            for dataset in tree.datasets
        }
        safety = msgspec.structs.replace(self._safety, relocated_datasets=relocated)
        journal = Journal(self._config.journal_dir)
        try:
            publish(self._config, self._host, EntryWriter(journal, safety), self._log)
        except SnapshotMissing as error:
            self._log.warning("no safety point: %s", error)

    @property
    def _safety(self) -> Entry:
        assert self._operation.safety_entry
        return self._operation.safety_entry

    def _snapshots(self) -> list[str]:
        return [f"{dataset}@{self._safety.run}" for dataset in self._safety.request_datasets]
