"""The machine of then: defined, loaded and resumed, once its disks are back at their place."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from zvmsnap.common import log
from zvmsnap.common.errors import DomainGone
from zvmsnap.common.process import Process
from zvmsnap.disks import changes
from zvmsnap.journal.operation import OperationWriter, RestoreOperation, StartState
from zvmsnap.points import definition, memory_image
from zvmsnap.points.manifest import DOMAIN_XML, PERSISTENT_XML
from zvmsnap.points.point import RestorePoint, read_point
from zvmsnap.restore.replaced_guest import ReplacedGuest
from zvmsnap.virt import agent, domain_xml, save_image, security_labels
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs.mounts import DiskLocation

_UNPACKED = "loading.img"


class RestoredGuest:
    """What a point tells of its guest, brought to life. Every verb may be repeated."""

    def __init__(
        self, hypervisor: Host, work: OperationWriter[RestoreOperation], former: ReplacedGuest
    ) -> None:
        self._hypervisor = hypervisor
        self._work = work
        self._former = former
        self._log = log.about(work.task.domain, "restore")

    @property
    def _task(self) -> RestoreOperation:
        return self._work.task

    @cached_property
    def _point(self) -> RestorePoint:
        return read_point(Path(self._task.directory))

    def unpack(self) -> None:
        """A compressed RAM image comes into staging. Raises ImageUnloadable and OSError."""
        memory = self._point.manifest.memory
        if memory is None or memory.compression == "none":
            return
        self._image().unlink(missing_ok=True)
        stored = self._point.directory / memory.file
        memory_image.materialize(stored, memory, self._image(), xml=None)

    def _image(self) -> Path:
        memory = self._point.manifest.memory
        assert memory
        if memory.compression != "none":
            return self._former.kept.path / _UNPACKED
        return self._point.directory / memory.file

    def define(self) -> None:
        """Its definition, with the paths of now, its NVRAM and the state of its TPM."""
        directory = self._point.directory
        persistent = directory / PERSISTENT_XML
        source = persistent if persistent.exists() else directory / DOMAIN_XML
        xml = domain_xml.with_sources(source.read_text(), self._task.sources)
        for disk in domain_xml.parse(xml).disks:
            if disk.type == "file" and disk.writable:
                security_labels.give_back(disk.source)
        if persistent.exists() or not self._task.memory:
            self._hypervisor.define(xml)
        definition.put_firmware(directory, xml, self._task.uuid)

    def load(self, *, after_crash: bool) -> None:
        """Its RAM, or a start from its disks; it stands still."""
        if self._former.is_active():
            # By us, before a crash, or by somebody: who stands still may have run since.
            self._log.warning("was started meanwhile, so its RAM is not loaded")
        elif not self._task.memory:
            if self._task.start_state is not StartState.OFF:
                self._guest().create(paused=True)
        elif after_crash and (used := self._used()):
            self._log.warning("its RAM is not loaded, as %s went on without it", ", ".join(used))
        else:
            self._load_memory()

    def _load_memory(self) -> None:
        image = str(self._image())
        xml = None
        if self._task.sources:
            xml = domain_xml.with_sources(save_image.xml_of(self._image()), self._task.sources)
        self._hypervisor.restore(image, xml, paused=True)

    def _used(self) -> list[str]:
        """The disks of then that somebody has used since they were put back."""
        put_back = [
            f"{unit.top}{member.path}@{member.origin.partition('@')[2]}"
            for unit in self._task.swap_trees
            for member in unit.datasets
        ]
        places = {
            target: DiskLocation(*place) for target, place in self._task.restored_disks.items()
        }
        snapshots = [*put_back, *self._task.rollback]
        return changes.written_to(places, snapshots, self._task.written_bytes)

    def unload(self) -> None:
        """It is gone again."""
        if self._former.is_active():
            self._guest().destroy()

    def resume(self) -> None:
        """It goes on, if it is to."""
        if self._task.start_state is StartState.OFF:
            return
        guest = self._guest()
        if not guest.is_active():
            # It ran, and then the host went down: it boots, as it would have anyway.
            if self._task.owner.boot != Process.of(self._task.owner.pid).boot:
                guest.create()
        elif self._task.start_state is StartState.RUNNING and guest.state() == "paused":
            guest.resume()

    def set_clock(self) -> None:
        """Its agent, if it has one, is told the time."""
        if self._task.start_state is not StartState.RUNNING or not self._task.memory:
            return
        try:
            agent.try_clock(self._guest(), self._log)
        except DomainGone as error:
            self._log.warning("its clock is not set: %s", error)

    def _guest(self) -> Guest:
        return self._hypervisor.guest(self._task.uuid)
