"""A second machine from a point, beside the original, with its RAM.

    datasets     clones of the point's snapshots, marked by the property zvmsnap:clone=NAME
    disks        mounted, of nobody, and their paths known
    image        the RAM image with another definition in its head; the one in the vault stays as is
    firmware     NVRAM and, for a start from the disks, the TPM's state
    define       with a mark in its metadata
    load         it stands still
    resume       it goes on

Any failure undoes all of it; `zvmsnap recover` does so after a crash.
"""

from __future__ import annotations

from pathlib import Path

from zvmsnap.clone import domain_xml as clone_xml
from zvmsnap.clone.destroy import CLONE_PROPERTY, destroy_dataset
from zvmsnap.clone.domain_xml import CloneXml, Identity, Network
from zvmsnap.clone.plan import own_nvram
from zvmsnap.common import log
from zvmsnap.common.errors import RestoreFailed
from zvmsnap.common.steps import Step, StepFailed, run, take_back
from zvmsnap.config.settings import Config
from zvmsnap.disks import location
from zvmsnap.disks.staging import StagingDir
from zvmsnap.journal.operation import CloneOperation, OperationWriter, StartState
from zvmsnap.points import definition, memory_image, vault
from zvmsnap.points.definition import definition_of
from zvmsnap.points.manifest import NVRAM, TPM
from zvmsnap.points.point import RestorePoint, read_point
from zvmsnap.virt import agent, domain_xml, security_labels, tpm_state
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs import dataset_swap, mounts, volume, zfs
from zvmsnap.zfs.mounts import DiskLocation

_MOUNTED_AT = Path("/var/lib/zvmsnap/clones")
_ISOLATED = f"<network><name>{clone_xml.ISOLATED_NETWORK}</name><bridge name='zvmsnap0'/></network>"


class CloneCreation:
    """One clone in the making, or what a crash has left of it."""

    def __init__(self, config: Config, hypervisor: Host, task: CloneOperation) -> None:
        self._config = config
        self._hypervisor = hypervisor
        self._work = OperationWriter(config.journal_dir, task)
        self._capture = StagingDir(config.staging_dir / task.capture)
        self._log = log.about(task.domain, f"clone of {task.point}")

    def run(self) -> None:
        """Make it. Raises RestoreFailed after everything was undone, or with what was not."""
        try:
            run(self._steps(), self._record)
        except StepFailed as error:
            if not error.not_undone:
                self._work.close()
            raise RestoreFailed(f"{self._task.domain} was not made: {error}") from error

    def discard(self) -> None:
        """Undo what a crash interrupted. Raises RestoreFailed with what could not be."""
        step = self._task.step or "datasets"
        if step.startswith("undo "):
            # What could not be undone may be any step before.
            step = "resume"
        self._log.warning("was not finished: removing what there is of it")
        left = take_back(self._steps(), step, self._record)
        if left:
            raise RestoreFailed(f"{self._task.domain}: could not be removed: {'; '.join(left)}")
        self._work.close()

    @property
    def _task(self) -> CloneOperation:
        return self._work.task

    def _record(self, step: str) -> None:
        self._work.note(step=step)

    def _steps(self) -> list[Step]:
        steps = [
            Step("datasets", self._make_datasets, self._destroy_datasets),
            Step("disks", self._find_disks),
        ]
        if self._task.memory:
            steps.append(Step("image", self._make_image, self._drop_image))
        return [
            *steps,
            Step("firmware", self._make_firmware, self._drop_firmware),
            Step("define", self._define, self._undefine),
            Step("load", self._load, self._unload),
            Step("resume", self._resume),
            Step("close", self._close),
        ]

    def _make_datasets(self) -> None:
        for name, origin in self._task.datasets:
            zfs.clone(origin, name, {CLONE_PROPERTY: self._task.domain})
        there = zfs.datasets()
        for name, _ in self._task.datasets:
            mountpoint = there[name].mountpoint
            if mountpoint and not mountpoint.startswith("/"):
                # As inherited, it could not be reached.
                zfs.set_property(name, "mountpoint", str(_MOUNTED_AT / name))

    def _destroy_datasets(self) -> None:
        own = {
            name for name, value in zfs.marked(CLONE_PROPERTY).items() if value == self._task.domain
        }
        for name, _ in reversed(self._task.datasets):
            if name in own:
                destroy_dataset(name, with_snapshots=True)

    def _find_disks(self) -> None:
        manifest = self._point.manifest
        new = dict(zip(sorted(manifest.datasets), self._task.datasets, strict=True))
        table = mounts.read_table()
        sources = {}
        for disk in manifest.disks:
            name = new[disk.dataset][0]
            if disk.path:
                path = location.path_of(DiskLocation(name, disk.path), table)
                security_labels.give_back(path)
            else:
                volume.wait_device(name, dataset_swap.DEVICE_TIMEOUT_S)
                path = volume.device_of(name)
            sources[disk.target] = ("file" if disk.path else "block", path, disk.format)
        self._work.note(sources=sources)

    @property
    def _point(self) -> RestorePoint:
        return read_point(Path(self._task.directory))

    @property
    def _image(self) -> Path:
        """In the vault's own file system, which may clone blocks; unpacked, in staging."""
        memory = self._point.manifest.memory
        assert memory
        if memory.compression == "none":
            return vault.loading(self._point, self._task.capture)
        return self._capture.memory

    def _make_image(self) -> None:
        memory = self._point.manifest.memory
        assert memory
        self._capture.make()
        stored = self._point.directory / memory.file
        cloned = self._as_clone(memory_image.xml_of(stored, memory))
        memory_image.materialize(stored, memory, self._image, xml=cloned.xml)

    def _drop_image(self) -> None:
        if self._task.memory:
            vault.drop_loading(self._point, self._task.capture)
        self._capture.remove()

    def _as_clone(self, xml: str) -> CloneXml:
        nvram = domain_xml.parse(xml).nvram
        return clone_xml.as_clone(
            xml,
            Identity(
                name=self._task.domain,
                uuid=self._task.uuid,
                point=self._task.point,
                nvram=own_nvram(nvram, self._task.domain) if nvram else None,
                network=Network(self._task.network),
            ),
            self._task.sources,
            cold=not self._task.memory,
        )

    def _make_firmware(self) -> None:
        xml = definition_of(self._point)
        nvram = domain_xml.parse(xml).nvram
        stored = self._point.directory / NVRAM
        if nvram and stored.exists():
            definition.put_nvram(stored, Path(own_nvram(nvram, self._task.domain)))
        archive = self._point.directory / TPM
        if archive.exists() and not self._task.memory:
            tpm_state.put_back(archive, self._as_clone(xml).xml, self._task.uuid)

    def _drop_firmware(self) -> None:
        nvram = domain_xml.parse(definition_of(self._point)).nvram
        if nvram:
            Path(own_nvram(nvram, self._task.domain)).unlink(missing_ok=True)

    def _define(self) -> None:
        if self._task.network == Network.ISOLATED and not self._hypervisor.has_network(
            clone_xml.ISOLATED_NETWORK
        ):
            self._hypervisor.start_network(_ISOLATED)
        cloned = self._as_clone(definition_of(self._point))
        for warning in cloned.warnings:
            self._log.warning("%s", warning)
        self._hypervisor.define(cloned.xml)

    def _undefine(self) -> None:
        guest = self._guest()
        if guest:
            guest.undefine()

    def _load(self) -> None:
        if self._task.memory:
            self._hypervisor.restore(str(self._image), paused=True)
            self._hypervisor.guest(self._task.uuid).pull_plugs()
        else:
            self._hypervisor.guest(self._task.uuid).create(paused=True)

    def _unload(self) -> None:
        guest = self._guest()
        if guest and guest.is_active():
            guest.destroy()

    def _resume(self) -> None:
        if self._task.start_state is not StartState.RUNNING:
            return
        guest = self._hypervisor.guest(self._task.uuid)
        guest.resume()
        if self._task.memory:
            agent.try_clock(guest, self._log)

    def _close(self) -> None:
        self._drop_image()
        self._work.close()

    def _guest(self) -> Guest | None:
        return self._hypervisor.find(self._task.uuid)
