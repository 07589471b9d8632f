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

import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zvmsnap import (
    agent,
    clonexml,
    definition,
    domainxml,
    fits,
    home,
    labels,
    loadable,
    log,
    mounttable,
    survey,
    switch,
    tpm,
    vault,
    zfs,
)
from zvmsnap import point as points
from zvmsnap.clonexml import Cloned, Identity, Network
from zvmsnap.config import Config
from zvmsnap.errors import CloneImpossible, RestoreFailed
from zvmsnap.hypervisor import Guest, Hypervisor
from zvmsnap.journal import Process
from zvmsnap.placement import Place
from zvmsnap.point import Point
from zvmsnap.restoreplan import definition_of
from zvmsnap.staging import CaptureDir
from zvmsnap.steps import Step, StepFailed, run, take_back
from zvmsnap.tasks import Begin, Clone, Work
from zvmsnap.unclone import MARK, destroy_dataset
from zvmsnap.zfs import Dataset, Snapshot

_MOUNTED_AT = Path("/var/lib/zvmsnap/clones")
# It becomes part of names of datasets and files.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")
_ISOLATED = f"<network><name>{clonexml.ISOLATED_NETWORK}</name><bridge name='zvmsnap0'/></network>"


@dataclass(frozen=True)
class Wish:
    """What was asked for."""

    name: str
    cold: bool = False
    paused: bool = False
    network: Network = Network.NONE


def plan(config: Config, hypervisor: Hypervisor, point: Point, wish: Wish) -> Clone:
    """Check everything and plan. Raises CloneImpossible, SnapshotMissing, ImageUnloadable."""
    if not _NAME.fullmatch(wish.name):
        raise CloneImpossible(
            f"{wish.name!r}: no name for a clone, as its datasets are called so too: letters, "
            "digits, and . _ : - within"
        )
    if any(guest.name == wish.name for guest in hypervisor.guests()):
        raise CloneImpossible(f"{wish.name}: there is a guest of that name already")
    manifest = point.manifest
    memory = manifest.memory is not None and not wish.cold
    there = zfs.datasets()
    snapshots = home.of(point, zfs.all_snapshots().present)
    for snapshot in snapshots.values():
        if there[snapshot.dataset].locked:
            raise CloneImpossible(
                f"{snapshot.dataset}: its key is not loaded: zfs load-key {snapshot.dataset}"
            )
    datasets = _names(manifest.domain, wish.name, snapshots, there)
    for name, _ in datasets:
        if name in there:
            raise CloneImpossible(f"{name}: exists already; choose another name for the clone")
    xml = definition_of(point, live=memory)
    nvram = domainxml.parse(xml).nvram
    if nvram and os.path.exists(_own_nvram(nvram, wish.name)):
        raise CloneImpossible(
            f"{_own_nvram(nvram, wish.name)}: exists already; choose another name for the clone"
        )
    if memory and manifest.memory:
        loadable.check(point.directory / manifest.memory.file, manifest.memory)
    reasons = fits.why_not(hypervisor, xml, manifest.host, cold=not memory)
    needed_bytes = domainxml.parse(xml).memory_kib << 10
    available_bytes = fits.available_memory_bytes()
    if needed_bytes > available_bytes:
        reasons.append(
            f"it needs {needed_bytes >> 20} MiB of memory, and {available_bytes >> 20} MiB are "
            "available"
        )
    if reasons:
        raise CloneImpossible(f"{point.name} does not fit this host: {'; '.join(reasons)}")
    own = str(uuid.uuid4())
    return Clone(
        domain=wish.name,
        uuid=own,
        point=point.name,
        directory=str(point.directory),
        owner=Process.of(os.getpid()),
        memory=memory,
        begin=Begin.PAUSED if wish.paused else Begin.RUNNING,
        capture=CaptureDir.fresh(config.staging_dir, own).path.name,
        network=wish.network,
        datasets=datasets,
    )


def _names(
    domain: str, name: str, snapshots: Mapping[str, Snapshot], there: Mapping[str, Dataset]
) -> tuple[tuple[str, str], ...]:
    """New dataset and its origin for each of the point's, parents first."""
    found: dict[str, str] = {}
    for dataset in sorted(snapshots):
        parent, _, last = dataset.rpartition("/")
        if parent in found:
            found[dataset] = f"{found[parent]}/{last}"
            continue
        now = snapshots[dataset].dataset
        if parent not in there or parent.partition("/")[0] != now.partition("/")[0]:
            parent = now.rpartition("/")[0] or now
        found[dataset] = f"{parent}/{name if last == domain else f'{last}-{name}'}"
    return tuple((found[each], snapshots[each].full_name) for each in sorted(snapshots))


def _own_nvram(nvram: str, name: str) -> str:
    return str(Path(nvram).with_name(f"{name}_VARS.fd"))


class Cloning:
    """One clone in the making, or what a crash has left of it."""

    def __init__(self, config: Config, hypervisor: Hypervisor, task: Clone) -> None:
        self._config = config
        self._hypervisor = hypervisor
        self._work = Work(config.journal_dir, task)
        self._capture = CaptureDir(config.staging_dir / task.capture)
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
    def _task(self) -> Clone:
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
            zfs.clone(origin, name, {MARK: self._task.domain})
        there = zfs.datasets()
        for name, _ in self._task.datasets:
            mountpoint = there[name].mountpoint
            if mountpoint and not mountpoint.startswith("/"):
                # As inherited, it could not be reached.
                zfs.set_property(name, "mountpoint", str(_MOUNTED_AT / name))

    def _destroy_datasets(self) -> None:
        own = {name for name, value in zfs.marked(MARK).items() if value == self._task.domain}
        for name, _ in reversed(self._task.datasets):
            if name in own:
                destroy_dataset(name, with_snapshots=True)

    def _find_disks(self) -> None:
        manifest = self._point.manifest
        new = dict(zip(sorted(manifest.datasets), self._task.datasets, strict=True))
        table = mounttable.mounts()
        sources = {}
        for disk in manifest.disks:
            name = new[disk.dataset][0]
            if disk.path:
                path = survey.path_of(Place(name, disk.path), table)
                labels.give_back(path)
            else:
                zfs.wait_device(name, switch.DEVICE_TIMEOUT_S)
                path = zfs.device_of(name)
            sources[disk.target] = ("file" if disk.path else "block", path, disk.format)
        self._work.note(sources=sources)

    @property
    def _point(self) -> Point:
        return points.read(Path(self._task.directory))

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
        cloned = self._as_clone(loadable.xml_of(stored, memory))
        loadable.prepare(stored, memory, self._image, xml=cloned.xml)

    def _drop_image(self) -> None:
        if self._task.memory:
            vault.drop_loading(self._point, self._task.capture)
        self._capture.remove()

    def _as_clone(self, xml: str) -> Cloned:
        nvram = domainxml.parse(xml).nvram
        return clonexml.as_clone(
            xml,
            Identity(
                name=self._task.domain,
                uuid=self._task.uuid,
                point=self._task.point,
                nvram=_own_nvram(nvram, self._task.domain) if nvram else None,
                network=Network(self._task.network),
            ),
            self._task.sources,
            cold=not self._task.memory,
        )

    def _make_firmware(self) -> None:
        xml = definition_of(self._point)
        nvram = domainxml.parse(xml).nvram
        stored = self._point.directory / points.NVRAM
        if nvram and stored.exists():
            definition.put_nvram(stored, Path(_own_nvram(nvram, self._task.domain)))
        archive = self._point.directory / points.TPM
        if archive.exists() and not self._task.memory:
            tpm.put_back(archive, self._as_clone(xml).xml, self._task.uuid)

    def _drop_firmware(self) -> None:
        nvram = domainxml.parse(definition_of(self._point)).nvram
        if nvram:
            Path(_own_nvram(nvram, self._task.domain)).unlink(missing_ok=True)

    def _define(self) -> None:
        if self._task.network == Network.ISOLATED and not self._hypervisor.has_network(
            clonexml.ISOLATED_NETWORK
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
        if self._task.begin is not Begin.RUNNING:
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
