"""Makes a guest of a backup.

    datasets   makes a dataset, and volumes below it if these are wanted; all of them are marked
    disks      writes each disk, without what is zeros
    image      writes the RAM image, with the new definition in its head
    firmware   puts firmware variables, and for a boot the state of the TPM
    define     defines the guest
    start      starts it from its disks, or loads its RAM; it is paused
    check      asks QEMU which disks it has open
    resume     lets it run
    close      removes marks and image: from here on it is a guest as any other

A failure undoes all of them; after a crash `zvmsnap recover` does, and ends what is at `close`.
"""

from __future__ import annotations

import os
from pathlib import Path

from zvmsnap.archive import images
from zvmsnap.backup.import_plan import VOLUME_BLOCK_BYTES, ImportPlan, Start
from zvmsnap.backup.work import ImportWork, WorkWriter
from zvmsnap.clone.destroy import remove_guest
from zvmsnap.common import log
from zvmsnap.common.errors import ImportFailed
from zvmsnap.common.process import Process
from zvmsnap.common.steps import Step, StepFailed, run, take_back
from zvmsnap.config.settings import Config
from zvmsnap.disks import location, qemu_img
from zvmsnap.inventory.reader import resources_of
from zvmsnap.point_disks import temporary
from zvmsnap.points import definition, memory_image
from zvmsnap.points.manifest import NVRAM
from zvmsnap.virt import agent, domain_xml, tpm_state
from zvmsnap.virt.domain_xml import Nvram
from zvmsnap.virt.host import Host
from zvmsnap.zfs import dataset_swap, mounts, volume, zfs

_CLOSE = "close"


class GuestImport:
    """One guest that is being made of a backup, or that a crash has interrupted."""

    def __init__(
        self, config: Config, host: Host, work: ImportWork, plan: ImportPlan | None = None
    ) -> None:
        self._host = host
        self._writer = WorkWriter(config, work)
        self._planned = plan
        self._log = log.about(work.domain, f"import of {work.backup}")

    @classmethod
    def of(cls, config: Config, host: Host, plan: ImportPlan) -> GuestImport:
        """The import that was planned, by this process."""
        targets = [disk.target for disk in plan.backup.manifest.disks]
        volumes = [f"{plan.dataset}/{target}" for target in targets] if plan.volumes else []
        work = ImportWork(
            id=os.urandom(16).hex(),
            domain=plan.domain,
            uuid=plan.uuid,
            owner=Process.of(os.getpid()),
            datasets=(plan.dataset, *volumes),
            backup=plan.backup.name,
            nvram=plan.nvram,
            image=str(plan.image),
        )
        return cls(config, host, work, plan)

    def run(self) -> None:
        """Make it. Raises ImportFailed after everything was undone, or with what was not."""
        try:
            run(self._steps(), self._record)
        except StepFailed as error:
            if error.step == _CLOSE:
                raise ImportFailed(
                    f"{self._work.domain} is made, but not finished: {error}: zvmsnap recover"
                ) from error
            if not error.not_undone:
                self._writer.close()
            raise ImportFailed(f"{self._work.domain} was not made: {error}") from error
        self._writer.close()

    def end(self) -> None:
        """Finish, or undo, what a crash interrupted. Raises ImportFailed with what cannot be."""
        step = self._work.step
        if step == _CLOSE:
            self._close()
        elif step:
            self._log.warning("was not finished: removing it")
            names = [each.name for each in self._steps()]
            last = step if step in names else names[-2]
            if not_undone := take_back(self._steps(), last, self._record):
                raise ImportFailed(
                    f"{self._work.domain}: could not be removed: {'; '.join(not_undone)}"
                )
        self._writer.close()

    @property
    def _work(self) -> ImportWork:
        assert isinstance(self._writer.work, ImportWork)
        return self._writer.work

    @property
    def _plan(self) -> ImportPlan:
        assert self._planned
        return self._planned

    def _record(self, step: str) -> None:
        self._writer.note(step=step)

    def _steps(self) -> list[Step]:
        return [
            Step("datasets", self._make_datasets, self._writer.remove_datasets),
            Step("disks", self._write_disks),
            Step("image", self._make_image),
            Step("firmware", self._put_firmware, self._drop_firmware),
            Step("define", lambda: self._define(), self._undefine),
            Step("start", self._start, self._stop),
            Step("check", self._check),
            Step("resume", self._resume),
            Step(_CLOSE, self._close),
        ]

    def _make_datasets(self) -> None:
        plan = self._plan
        mark = ("-o", f"{temporary.PROPERTY}={self._work.id}")
        zfs.command("create", *mark, plan.dataset)
        if mounts.mountpoint_of(plan.dataset, mounts.read_table()) != str(plan.folder):
            raise ImportFailed(f"{plan.dataset}: is not mounted at {plan.folder}: zfs get canmount")
        for disk in plan.backup.manifest.disks if plan.volumes else ():
            blocks = -(-disk.disk_bytes // VOLUME_BLOCK_BYTES)
            sizes = ("-s", "-b", str(VOLUME_BLOCK_BYTES), "-V", str(blocks * VOLUME_BLOCK_BYTES))
            zfs.command("create", *sizes, *mark, f"{plan.dataset}/{disk.target}")

    def _write_disks(self) -> None:
        plan = self._plan
        for disk in plan.backup.manifest.disks:
            path = plan.path(disk.target)
            if plan.volumes:
                volume.wait_device(f"{plan.dataset}/{disk.target}", dataset_swap.DEVICE_TIMEOUT_S)
            with images.opened(plan.chain, disk.target) as image:
                qemu_img.write_raw(image.name, path, is_device=plan.volumes)
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if not plan.volumes:
                    os.fchmod(descriptor, 0o600)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _make_image(self) -> None:
        memory = self._plan.backup.manifest.memory
        if memory and self._plan.start is Start.RESUME:
            stored = self._plan.backup.directory / memory.file
            xml = self._plan.of_ram()
            memory_image.materialize(stored, memory, self._plan.image, xml=xml)

    def _put_firmware(self) -> None:
        plan = self._plan
        xml = plan.for_next_start()
        variables = definition.stored(plan.backup.directory, NVRAM)
        if variables and domain_xml.parse(xml).nvram:
            nvram = Nvram("file", plan.nvram)
            definition.put_nvram(variables, nvram, definition.firmware_dirs())
        if plan.start is Start.RESUME or not tpm_state.state_of(xml, plan.uuid):
            return  # the state of its TPM comes with the RAM
        roots = definition.firmware_dirs()
        if not definition.put_tpm(plan.backup.directory, xml, plan.uuid, roots):
            self._log.warning("its TPM is empty: the backup does not have the state")

    def _drop_firmware(self) -> None:
        Path(self._work.nvram).unlink(missing_ok=True)

    def _define(self) -> None:
        self._host.define(self._plan.for_next_start())

    def _undefine(self) -> None:
        guest = self._host.find(self._work.uuid)
        if guest is None:
            return
        names = [each.place for each in resources_of(guest.xml())]
        if not any(self._is_own(each) for each in names):
            raise ImportFailed(f"{guest.name}: has other disks than the import gave it: kept")
        remove_guest(guest)

    def _is_own(self, path: str) -> bool:
        top = self._work.datasets[0] if self._work.datasets else ""
        folder = os.path.dirname(self._work.image)
        return path.startswith((f"{folder}/", f"{volume.device_of(top)}/"))

    def _start(self) -> None:
        plan = self._plan
        if plan.start is Start.RESUME:
            self._host.restore(str(plan.image), paused=True)
            self._host.guest(plan.uuid).pull_plugs()
        elif plan.start is Start.BOOT:
            self._host.guest(plan.uuid).create(paused=True)

    def _stop(self) -> None:
        guest = self._host.find(self._work.uuid)
        if guest and guest.is_active():
            guest.destroy()

    def _check(self) -> None:
        plan = self._plan
        if plan.start is not Start.OFF:
            own = {disk.target: plan.location(disk.target) for disk in plan.backup.manifest.disks}
            location.check_open(self._host, self._host.guest(plan.uuid), own)

    def _resume(self) -> None:
        if self._plan.start is Start.OFF:
            return
        guest = self._host.guest(self._plan.uuid)
        guest.resume()
        if self._plan.start is Start.RESUME:
            agent.try_clock(guest, self._log)

    def _close(self) -> None:
        Path(self._work.image).unlink(missing_ok=True)
        marks = zfs.marked(temporary.PROPERTY)
        for name in self._work.datasets:
            if marks.get(name) == self._work.id:
                zfs.command("inherit", temporary.PROPERTY, name)
