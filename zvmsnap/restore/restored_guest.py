"""The guest that a restore brings back: defined, loaded and resumed on its restored disks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path

from zvmsnap.common import log
from zvmsnap.common.errors import DomainGone, WrongDisk
from zvmsnap.common.process import Process
from zvmsnap.disks import apparmor, changes, location
from zvmsnap.inventory.own_images import OwnImages
from zvmsnap.journal.operation import (
    OperationWriter,
    RestoreOperation,
    Source,
    StartState,
)
from zvmsnap.points import definition, memory_image
from zvmsnap.points.definition import definition_of
from zvmsnap.points.manifest import PERSISTENT_XML
from zvmsnap.points.point import RestorePoint, read_point
from zvmsnap.restore import stale_metadata
from zvmsnap.restore.replaced_guest import ReplacedGuest
from zvmsnap.virt import agent, domain_xml, save_image
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs import mounts, volume
from zvmsnap.zfs.dataset_swap import DEVICE_TIMEOUT_S
from zvmsnap.zfs.mounts import DiskLocation

_UNPACKED = "loading.img"


class RestoredGuest:
    """The guest as the point describes it. All methods may be repeated."""

    def __init__(
        self, host: Host, writer: OperationWriter[RestoreOperation], replaced: ReplacedGuest
    ) -> None:
        self._host = host
        self._writer = writer
        self._replaced = replaced
        self._log = log.about(writer.operation.domain, "restore")
        self._is_loaded = False

    @property
    def _operation(self) -> RestoreOperation:
        return self._writer.operation

    @cached_property
    def _point(self) -> RestorePoint:
        return read_point(Path(self._operation.directory))

    def unpack(self) -> None:
        """Make an image that libvirt can load in staging, unless the stored one is such an image.

        Durably: after a power cut the restore goes on with it. Raises ImageUnloadable, also if the
        point has no RAM any more, and OSError.
        """
        memory = self._point.memory
        if memory.is_loadable:
            return
        self._image().unlink(missing_ok=True)
        stored = self._point.directory / memory.file
        memory_image.materialize(stored, memory, self._image(), xml=None, durable=True)

    def _image(self) -> Path:
        memory = self._point.memory
        if not memory.is_loadable:
            return self._replaced.kept.path / _UNPACKED
        return self._point.directory / memory.file

    def define(self) -> None:
        """Put its definition, with the present paths of its disks, its NVRAM and TPM state back.

        Raises ZfsFailed for a partition to which its path does not lead.
        """
        for place in self._operation.restored_locations.values():
            if place.partition:
                volume.wait_partition(place.dataset, place.partition, DEVICE_TIMEOUT_S)
        directory = self._point.directory
        is_persistent = definition.stored(directory, PERSISTENT_XML) is not None
        sources = self._operation.next_sources
        if sources is None:
            sources = self._operation.sources
        xml = self._judged(definition_of(self._point), sources)
        self._give_back(xml)
        if is_persistent or not self._operation.memory:
            self._host.define(xml)
        definition.put_firmware(directory, xml, self._operation.uuid, self._firmware_dirs)
        self._note_stale_metadata(xml)

    def _note_stale_metadata(self, xml: str) -> None:
        """Before QEMU has the disks open: then no bitmap can be judged any more."""
        guest = self._replaced.guest()
        if guest is None or not guest.is_persistent():
            return
        if self._operation.memory:
            own = save_image.xml_of(self._image())
            xml = domain_xml.with_sources(own, self._operation.sources)
        disks = domain_xml.parse(xml).disks
        checkpoints = stale_metadata.checkpoints(
            guest, self._point, disks, partial(location.path_of, self._host)
        )
        snapshots = stale_metadata.snapshots(guest, self._point)
        if checkpoints or snapshots:
            self._writer.note(stale_checkpoints=checkpoints, stale_snapshots=snapshots)

    def forget_stale_metadata(self) -> None:
        """Let libvirt forget checkpoints and snapshots that the restored disks do not have."""
        operation = self._operation
        if guest := self._replaced.guest():
            stale_metadata.forget(
                guest, operation.stale_checkpoints, operation.stale_snapshots, self._log
            )

    @property
    def _firmware_dirs(self) -> list[Path] | None:
        confined = self._operation.firmware_dirs
        return None if confined is None else [Path(each) for each in confined]

    def load(self, *, after_crash: bool) -> None:
        """Load its RAM, or start it from its disks; it is paused."""
        if self._replaced.is_active():
            # By zvmsnap before a crash, or by somebody: also a paused guest may have run since.
            self._log.warning("was started meanwhile, so its RAM is not loaded")
        elif not self._operation.memory:
            if self._operation.start_state is not StartState.OFF:
                self._guest().create(paused=True)
        elif after_crash and (used := self._used_disks()):
            self._log.warning("its RAM is not loaded, as %s went on without it", ", ".join(used))
        else:
            self._load_memory()
        guest = self._guest()
        if guest.is_active():
            apparmor.allow_below(guest, self._log)

    def check(self) -> None:
        """Ask QEMU which disks it has open, before the guest runs. Raises WrongDisk."""
        guest = self._replaced.guest()
        if guest and guest.is_active():
            location.check_open(self._host, guest, *self._own_disks())

    def _own_disks(self) -> tuple[Mapping[str, DiskLocation], ...]:
        """What its disks must be, by the definition with which it was started.

        | started                                   | with the definition                       |
        |-------------------------------------------|-------------------------------------------|
        | by us, from its RAM                       | of the RAM                                |
        | without RAM                               | for the next start                        |
        | by somebody, or by us before a crash      | either: only disks of both tell anything  |
        """
        of_memory, of_next = self._operation.restored_locations, self._next_disks
        if self._is_loaded:
            return (of_memory,)
        if not self._operation.memory:
            return (of_next,)
        return {target: of_memory[target] for target in of_memory if target in of_next}, of_next

    @property
    def _next_disks(self) -> Mapping[str, DiskLocation]:
        operation = self._operation
        if operation.next_disks is None:
            return operation.restored_locations
        return operation.next_disks

    def _load_memory(self) -> None:
        own = save_image.xml_of(self._image())
        xml = self._judged(own, self._operation.sources)
        self._give_back(xml)
        changed = xml if self._operation.sources else None
        self._host.restore(str(self._image()), changed, paused=True)
        self._is_loaded = True

    def _judged(self, own: str, sources: Mapping[str, Source]) -> str:
        """A definition that the plan has looked at, with the paths of the restored disks.

        Raises RestoreImpossible, and WrongDisk if an image of a point that may come from elsewhere
        is not its own.
        """
        definition.refuse_other(self._point, own, self._operation.judged)
        xml = domain_xml.with_sources(own, sources)
        if self._operation.firmware_dirs is None:
            return xml
        table = mounts.read_table()
        datasets = self._operation.restored_datasets
        tops = (mounts.mountpoint_of(dataset, table) for dataset in datasets)
        volumes = frozenset(map(volume.device_of, datasets))
        # What is in other places, as the guest that is replaced has it, the plan has judged.
        try:
            OwnImages([Path(top) for top in tops if top], volumes).check(xml)
        except WrongDisk as error:
            raise WrongDisk(
                f"{error}; the point was not made on this host, as far as it knows: if that is "
                "right, say --trust"
            ) from error
        return xml

    def _give_back(self, xml: str) -> None:
        """Give the restored image files of a definition to their owners."""
        restored = {dataset for dataset, _ in self._operation.restored_disks.values()}
        table = mounts.read_table()
        for disk in domain_xml.parse(xml).disks:
            place = location.locate_path(disk.source, table) if disk.type == "file" else None
            # A file that the snapshot does not have is missed by whoever starts the guest with it.
            exists = disk.writable and os.path.isfile(disk.source)
            if exists and place and place.dataset in restored:
                location.give_back(place, table)

    def _used_disks(self) -> list[str]:
        """The restored disks that somebody has written to since they were restored."""
        swapped = [
            f"{tree.top}{dataset.path}@{dataset.origin.partition('@')[2]}"
            for tree in self._operation.swap_trees
            for dataset in tree.datasets
        ]
        return changes.written_to(
            self._operation.restored_locations,
            [*swapped, *self._operation.rollback],
            self._operation.written_bytes,
        )

    def unload(self) -> None:
        """Destroy its process, so that the replaced guest can be brought back."""
        if self._replaced.is_active():
            self._guest().destroy()

    def resume(self) -> None:
        """Let it go on, if it is to run in the end."""
        if self._operation.start_state is StartState.OFF:
            return
        guest = self._guest()
        if not guest.is_active():
            # It ran, but the host has gone down since: it boots, as any guest does after that.
            if self._operation.owner.boot != Process.of(self._operation.owner.pid).boot:
                guest.create(paused=True)
                location.stop_unless_on(self._host, guest, self._next_disks)
                apparmor.allow_below(guest, self._log)
                guest.resume()
        elif self._operation.start_state is StartState.RUNNING and guest.state() == "paused":
            guest.resume()

    def set_clock(self) -> None:
        """Tell its agent the time, if it has one."""
        if self._operation.start_state is not StartState.RUNNING or not self._operation.memory:
            return
        try:
            agent.try_clock(self._guest(), self._log)
        except DomainGone as error:
            self._log.warning("its clock is not set: %s", error)

    def _guest(self) -> Guest:
        return self._host.guest(self._operation.uuid)
