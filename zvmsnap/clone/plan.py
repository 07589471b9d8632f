"""Plans a clone, in four stages: observe the host, check, build the operation, check that.

Nothing is changed. The first stage asks libvirt, ZFS and the vault. The last one makes the clone's
definitions as if it existed: what they name must be on this host, and nothing of it may be shared
with the original. Meanwhile the RAM image is read to its end, unless something else refuses it.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from zvmsnap.clone import datasets as clone_datasets
from zvmsnap.clone import own_places
from zvmsnap.clone.definitions import CloneDefinitions, own_nvram
from zvmsnap.clone.identity import ISOLATED_NETWORK, Network
from zvmsnap.common import log, snapshot_name
from zvmsnap.common.errors import CloneImpossible, CloneUntrusted
from zvmsnap.common.process import Process
from zvmsnap.config.settings import Config
from zvmsnap.disks import staging
from zvmsnap.disks.staging import StagingDir
from zvmsnap.journal.operation import CloneOperation, StartState
from zvmsnap.points import compatibility, definition, locate, memory_image
from zvmsnap.points.definition import definition_of
from zvmsnap.points.liveness import Liveness, guids_of
from zvmsnap.points.next_start import next_start
from zvmsnap.points.point import RestorePoint
from zvmsnap.virt import domain_xml
from zvmsnap.virt.host import Host
from zvmsnap.virt.save_image import Header
from zvmsnap.zfs import branches, zfs
from zvmsnap.zfs.types import Dataset, Snapshot

# It becomes part of names of datasets and files.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")


@dataclass(frozen=True)
class CloneOptions:
    """What the operator asked for; `cold` is without RAM, `trust` what is from elsewhere."""

    name: str
    cold: bool = False
    paused: bool = False
    network: Network = Network.NONE
    trust: bool = False


@dataclass(frozen=True)
class _Observed:
    """What the host says, asked once.

    `nvram` is the path of the clone's firmware variables, if it has any, and `taken_nvram` the same
    if it exists; `memory_lack` is why it cannot have its memory.
    """

    guest_names: frozenset[str]
    datasets: Mapping[str, Dataset]
    liveness: Liveness
    nvram: tuple[str, ...]
    taken_nvram: tuple[str, ...]
    memory_lack: tuple[str, ...]


def plan_clone(
    config: Config, host: Host, point: RestorePoint, options: CloneOptions
) -> CloneOperation:
    """Check everything and plan.

    Raises CloneImpossible, RestoreImpossible, SnapshotMissing and ImageUnloadable.
    """
    _check_name(options.name)
    compatibility.refuse_unidentified(point, CloneImpossible)
    with _image_checked(point, options) as check_image:
        observed = _observe(config, host, point, options)
        snapshots = locate.snapshots_of(point, observed.liveness)
        datasets = _new_datasets(point.manifest.domain, options.name, snapshots, observed.datasets)
        _check(point, options, observed, snapshots, datasets)
        operation = _build(config, point, options, datasets, observed.nvram)
        _check_machine(host, point, operation)
        check_image()
    definitions = list(_definitions(point, options))
    judged = tuple(map(definition.digest, definitions))
    operation = msgspec.structs.replace(operation, judged=judged)
    if definition.is_made_here(config, point.directory, point.manifest):
        return operation
    reached = compatibility.reached(host, point, definitions)
    if options.trust:
        for line in compatibility.trusted(reached):
            log.plain().warning("%s: %s", point.name, line.strip())
        return operation
    compatibility.refuse_beyond(point, reached, CloneUntrusted, point.directory)
    return msgspec.structs.replace(operation, confined=True)


@contextmanager
def _image_checked(
    point: RestorePoint, options: CloneOptions
) -> Iterator[Callable[[], Header | None]]:
    """Check its RAM image while the rest is planned; yields what waits for that.

    Its pages are checked when the clone's image is made of them.
    """
    memory = point.manifest.memory
    if memory is None or not _has_memory(point, options):
        yield lambda: None
        return
    with memory_image.checking(point.directory / memory.file, memory, whole=False) as checked:
        yield checked


def _definitions(point: RestorePoint, options: CloneOptions) -> Iterator[str]:
    """By which libvirt would start it: for its next start, and the one inside of its RAM."""
    yield definition_of(point)
    memory = point.manifest.memory
    if memory and _has_memory(point, options):
        yield memory_image.xml_of(point.directory / memory.file, memory)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise CloneImpossible(
            f"{name!r}: no name for a clone, as its datasets are called so too: letters, "
            "digits, and . _ : - within"
        )


def _observe(config: Config, host: Host, point: RestorePoint, options: CloneOptions) -> _Observed:
    memory = _has_memory(point, options)
    xml = definition_of(point, live=memory)
    of_either = (domain_xml.parse(each).nvram for each in (xml, definition_of(point)))
    nvram = (own_nvram(options.name),) if any(of_either) else ()
    return _Observed(
        guest_names=frozenset(guest.name for guest in host.guests()),
        datasets=branches.everything(),
        liveness=Liveness.by(zfs.all_snapshots(guids_of([point.manifest]))),
        nvram=nvram,
        taken_nvram=tuple(filter(os.path.lexists, nvram)),
        memory_lack=(*_lacking_memory(xml), *(_lacking_room(config, point) if memory else ())),
    )


def _lacking_memory(xml: str) -> list[str]:
    needed_bytes = domain_xml.parse(xml).memory_kib << 10
    available_bytes = compatibility.available_memory_bytes()
    if needed_bytes <= available_bytes:
        return []
    return [
        f"it needs {needed_bytes >> 20} MiB of memory, and {available_bytes >> 20} MiB are "
        "available"
    ]


def _lacking_room(config: Config, point: RestorePoint) -> list[str]:
    """Room for the image that is put together in staging, beside the overlays of other guests."""
    memory = point.manifest.memory
    if memory is None or memory.is_loadable:
        return []
    needed_bytes = memory.image_bytes + (config.limits.staging_reserve_mib << 20)
    free_bytes = staging.free_bytes_for(config.staging_dir)
    if needed_bytes <= free_bytes:
        return []
    return [
        f"staging {config.staging_dir} has {free_bytes >> 20} MiB free, and its RAM image may need "
        f"{needed_bytes >> 20} MiB there"
    ]


def _check(
    point: RestorePoint,
    options: CloneOptions,
    observed: _Observed,
    snapshots: Mapping[str, Snapshot],
    datasets: tuple[tuple[str, str], ...],
) -> None:
    """Raises CloneImpossible. Pure."""
    if options.name in observed.guest_names:
        raise CloneImpossible(f"{options.name}: there is a guest of that name already")
    for snapshot in snapshots.values():
        if observed.datasets[snapshot.dataset].locked:
            raise CloneImpossible(
                f"{snapshot.dataset}: its key is not loaded: zfs load-key {snapshot.dataset}"
            )
    if why := snapshot_name.too_long(name for name, _ in datasets):
        raise CloneImpossible(f"{why}: choose a shorter name for the clone")
    taken = [name for name, _ in datasets if name in observed.datasets]
    for name in (*taken, *observed.taken_nvram):
        raise CloneImpossible(f"{name}: exists already; choose another name for the clone")
    compatibility.refuse_misfits(point, observed.memory_lack, CloneImpossible)


def _check_machine(host: Host, point: RestorePoint, operation: CloneOperation) -> None:
    """The clone needs nothing that is not here, and shares nothing. Raises CloneImpossible."""
    by_originals = clone_datasets.by_originals(point.manifest, operation)
    clones = {original: own for original, (own, _) in by_originals.items()}
    planned = msgspec.structs.replace(
        operation,
        sources=clone_datasets.planned_sources(point.manifest.disks, clones),
        next_sources=clone_datasets.planned_sources(next_start(point).disks, clones),
    )
    places = own_places.planned(point.manifest, by_originals)
    definitions = CloneDefinitions(point, planned, places)
    clone = definitions.of_ram() if operation.memory else definitions.for_next_start()
    misfits = compatibility.why_not(
        host,
        clone.xml,
        point.manifest.host,
        cold=not operation.memory,
        made=(ISOLATED_NETWORK, *map(str, places.folders.values())),
    )
    compatibility.refuse_misfits(point, misfits, CloneImpossible)
    definitions.refuse_shared()


def _build(
    config: Config,
    point: RestorePoint,
    options: CloneOptions,
    datasets: tuple[tuple[str, str], ...],
    nvram: tuple[str, ...],
) -> CloneOperation:
    """The operation: a new machine, owned by this process."""
    own_uuid = str(uuid.uuid4())
    return CloneOperation(
        domain=options.name,
        uuid=own_uuid,
        point=point.name,
        directory=str(point.directory),
        owner=Process.of(os.getpid()),
        memory=_has_memory(point, options),
        start_state=StartState.PAUSED if options.paused else StartState.RUNNING,
        capture=StagingDir.fresh(config.staging_dir, own_uuid).path.name,
        staging=config.staging,
        network=options.network,
        datasets=datasets,
        nvram=nvram,
    )


def _has_memory(point: RestorePoint, options: CloneOptions) -> bool:
    return point.manifest.memory is not None and not options.cold


def _new_datasets(
    domain: str, name: str, snapshots: Mapping[str, Snapshot], datasets: Mapping[str, Dataset]
) -> tuple[tuple[str, str], ...]:
    """New dataset and its origin for each of the point's, parents first. Pure.

    Beside the dataset that has the snapshot now, in the same pool; a child of one that is cloned
    becomes a child of its clone.
    """
    names: dict[str, str] = {}
    for dataset in sorted(snapshots):
        parent, _, last = dataset.rpartition("/")
        if parent in names:
            names[dataset] = f"{names[parent]}/{last}"
            continue
        current = snapshots[dataset].dataset
        if parent not in datasets or parent.partition("/")[0] != current.partition("/")[0]:
            parent = current.rpartition("/")[0] or current
        names[dataset] = f"{parent}/{name if last == domain else f'{last}-{name}'}"
    return tuple((names[dataset], snapshots[dataset].full_name) for dataset in sorted(snapshots))
