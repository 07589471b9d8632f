"""A second machine from a point, beside the original, with its RAM.

    datasets     clones the point's snapshots, and marks them: zvmsnap:clone=NAME
    disks        makes their image files root's, notes the paths, and lets no image name another's
    image        copies the RAM image with another definition in its header; the vault's own stays
    firmware     writes NVRAM and, for a start from the disks, the state of the TPM
    define       defines the clone, with a mark in its metadata
    load         loads the RAM, or starts from the disks; the clone is paused
    check        asks QEMU which disks it has open: the clone's own, or all is undone
    resume       resumes it
    close        removes the copy of the RAM image, and closes the operation

A failure undoes all of them; after a crash `zvmsnap recover` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zvmsnap.clone import datasets, own_places
from zvmsnap.clone.definitions import CloneDefinitions
from zvmsnap.clone.destroy import remove_guest, stop_unused_network
from zvmsnap.clone.identity import ISOLATED_NETWORK, Network
from zvmsnap.clone.own_places import OwnPlaces
from zvmsnap.common import log
from zvmsnap.common.errors import RestoreFailed
from zvmsnap.common.steps import Step, StepFailed, run, take_back
from zvmsnap.config.settings import Config
from zvmsnap.disks import location
from zvmsnap.disks.staging import StagingDir
from zvmsnap.inventory.own_images import OwnImages
from zvmsnap.inventory.reader import resources_of
from zvmsnap.journal.operation import CloneOperation, OperationWriter, StartState
from zvmsnap.points import definition, memory_image, vault
from zvmsnap.points.manifest import NVRAM
from zvmsnap.points.next_start import next_start
from zvmsnap.points.point import RestorePoint, read_point
from zvmsnap.virt import agent, tpm_state
from zvmsnap.virt.domain_xml import Nvram
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs import mounts, volume

_ISOLATED = f"<network><name>{ISOLATED_NETWORK}</name><bridge name='zvmsnap0'/></network>"


class CloneCreation:
    """One clone that is being made, or that a crash has interrupted."""

    def __init__(self, config: Config, host: Host, operation: CloneOperation) -> None:
        self._config = config
        self._host = host
        self._writer = OperationWriter(config.journal_dir, operation)
        self._staging = StagingDir(operation.directory_in_staging(config.staging_dir))
        self._log = log.about(operation.domain, f"clone of {operation.point}")

    def run(self) -> None:
        """Make it. Raises RestoreFailed after everything was undone, or with what was not."""
        self._make([*self._steps(), Step("close", self._close)])

    @contextmanager
    def temporary(self) -> Iterator[None]:
        """Make it for the time of a `with`, and remove it, with all snapshots of it.

        The operation stays open until the clone is gone: if this process dies, or something is in
        the way, `zvmsnap recover` removes it. Raises RestoreFailed, as `run` and `discard` do.
        """
        self._make(self._steps())
        try:
            yield
        finally:
            self._take_back("resume")

    def discard(self) -> None:
        """Undo what a crash interrupted. Raises RestoreFailed with what could not be undone."""
        step = self._operation.step or "datasets"
        if step.startswith("undo ") or step == "close":
            # What could not be undone may be any step before.
            step = "resume"
        self._log.warning("was not finished: removing it")
        self._take_back(step)

    def _take_back(self, step: str) -> None:
        not_undone = take_back(self._steps(), step, self._record)
        if not_undone:
            raise RestoreFailed(
                f"{self._operation.domain}: could not be removed: {'; '.join(not_undone)}"
            )
        self._writer.close()

    def _make(self, steps: list[Step]) -> None:
        try:
            run(steps, self._record)
        except StepFailed as error:
            if not error.not_undone:
                self._writer.close()
            raise RestoreFailed(f"{self._operation.domain} was not made: {error}") from error

    @property
    def _operation(self) -> CloneOperation:
        return self._writer.operation

    def _record(self, step: str) -> None:
        self._writer.note(step=step)

    def _steps(self) -> list[Step]:
        steps = [
            Step(
                "datasets",
                lambda: datasets.make(self._operation),
                lambda: datasets.destroy(self._operation),
            ),
            Step("disks", self._find_disks),
        ]
        if self._operation.memory:
            steps.append(Step("image", self._make_image, self._drop_image))
        return [
            *steps,
            Step("firmware", self._make_firmware, self._drop_firmware),
            Step("define", self._define, self._undefine),
            Step("load", self._load, self._unload),
            Step("check", self._check),
            Step("resume", self._resume),
        ]

    def _find_disks(self) -> None:
        clones = self._clones()
        sources = datasets.sources(self._point.manifest.disks, clones)
        next_sources = datasets.sources(next_start(self._point).disks, clones)
        self._writer.note(sources=sources, next_sources=next_sources)
        own_places.take_over((*sources.values(), *next_sources.values()), self._places())
        self._definitions().refuse_shared()

    def _clones(self) -> dict[str, str]:
        """Its datasets, by those of the point's disks."""
        by_originals = datasets.by_originals(self._point.manifest, self._operation)
        return {original: own for original, (own, _) in by_originals.items()}

    def _places(self) -> OwnPlaces:
        manifest = self._point.manifest
        return own_places.made(manifest, datasets.by_originals(manifest, self._operation))

    def _definitions(self) -> CloneDefinitions:
        return CloneDefinitions(self._point, self._operation, self._places())

    @property
    def _point(self) -> RestorePoint:
        return read_point(Path(self._operation.directory))

    @property
    def _directory(self) -> Path:
        """The point's directory; whoever undoes the work may find it gone."""
        return Path(self._operation.directory)

    @property
    def _image(self) -> Path:
        """The copy: beside the stored one, to clone its blocks; in staging, if it is made anew."""
        memory = self._point.memory
        if memory.is_loadable:
            return vault.loading(self._directory, self._operation.capture)
        return self._staging.memory

    def _make_image(self) -> None:
        memory = self._point.memory
        self._staging.make()
        stored = self._directory / memory.file
        xml = memory_image.xml_of(stored, memory)
        definition.refuse_other(self._point, xml, self._operation.judged)
        clone = self._definitions().of_ram(xml)
        self._check_images(clone.xml)
        memory_image.materialize(stored, memory, self._image, xml=clone.xml)

    def _drop_image(self) -> None:
        if self._operation.memory:
            vault.drop_loading(self._directory, self._operation.capture)
        self._staging.remove()

    def _make_firmware(self) -> None:
        if variables := definition.stored(self._directory, NVRAM):
            for path in self._operation.nvram:
                nvram = Nvram("file", path)
                definition.put_nvram(variables, nvram, definition.firmware_dirs())
        if self._operation.memory:
            return  # the state of its TPM comes with the RAM
        xml = self._definitions().for_next_start().xml
        own = self._operation.uuid
        roots = [*definition.firmware_dirs(), *map(Path, self._places().folders.values())]
        had_state = definition.put_tpm(self._directory, xml, own, roots)
        if not had_state and tpm_state.state_of(xml, own):
            self._log.warning("its TPM is empty: the point does not have the state")

    def _drop_firmware(self) -> None:
        for path in self._operation.nvram:
            Path(path).unlink(missing_ok=True)

    def _define(self) -> None:
        if self._operation.network == Network.ISOLATED and not self._host.has_network(
            ISOLATED_NETWORK
        ):
            self._host.start_network(_ISOLATED)
        judged = definition.definition_of(self._point)
        definition.refuse_other(self._point, judged, self._operation.judged)
        clone = self._definitions().for_next_start()
        for warning in clone.warnings:
            self._log.warning("%s", warning)
        self._check_images(clone.xml)
        self._host.define(clone.xml)

    def _check_images(self, xml: str) -> None:
        """Raises WrongDisk if an image of a point that may come from elsewhere is not its own."""
        if self._operation.confined:
            table = mounts.read_table()
            datasets = [name for name, _ in self._operation.datasets]
            tops = (mounts.mountpoint_of(name, table) for name in datasets)
            volumes = frozenset(map(volume.device_of, datasets))
            original = self._host.find(self._point.manifest.uuid)
            elsewhere = {each.place for each in resources_of(original.xml())} if original else {}
            OwnImages([Path(top) for top in tops if top], volumes, elsewhere).check(xml)

    def _undefine(self) -> None:
        guest = self._guest()
        if guest:
            remove_guest(guest)
        if self._operation.network == Network.ISOLATED:
            stop_unused_network(self._host)

    def _load(self) -> None:
        if self._operation.memory:
            self._host.restore(str(self._image), paused=True)
            self._host.guest(self._operation.uuid).pull_plugs()
        else:
            self._host.guest(self._operation.uuid).create(paused=True)

    def _check(self) -> None:
        has_memory = self._operation.memory
        disks = self._point.manifest.disks if has_memory else next_start(self._point).disks
        clones = self._clones()
        own = {disk.target: disk.location_in(clones[disk.dataset]) for disk in disks}
        location.check_open(self._host, self._host.guest(self._operation.uuid), own)

    def _unload(self) -> None:
        guest = self._guest()
        if guest and guest.is_active():
            guest.destroy()

    def _resume(self) -> None:
        if self._operation.start_state is not StartState.RUNNING:
            return
        guest = self._host.guest(self._operation.uuid)
        guest.resume()
        if self._operation.memory:
            agent.try_clock(guest, self._log)

    def _close(self) -> None:
        self._drop_image()
        self._writer.close()

    def _guest(self) -> Guest | None:
        return self._host.find(self._operation.uuid)
