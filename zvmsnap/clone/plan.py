"""What a clone will be: every check that needs no change of the host."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zvmsnap.clone.domain_xml import Network
from zvmsnap.common.errors import CloneImpossible
from zvmsnap.common.process import Process
from zvmsnap.config.settings import Config
from zvmsnap.disks.staging import StagingDir
from zvmsnap.journal.operation import CloneOperation, StartState
from zvmsnap.points import compatibility, locate, memory_image
from zvmsnap.points.definition import definition_of
from zvmsnap.points.point import RestorePoint
from zvmsnap.virt import domain_xml
from zvmsnap.virt.host import Host
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import Dataset, Snapshot

# It becomes part of names of datasets and files.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")


@dataclass(frozen=True)
class CloneOptions:
    """What was asked for."""

    name: str
    cold: bool = False
    paused: bool = False
    network: Network = Network.NONE


def plan(
    config: Config, hypervisor: Host, point: RestorePoint, wish: CloneOptions
) -> CloneOperation:
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
    snapshots = locate.snapshots_of(point, zfs.all_snapshots().present)
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
    nvram = domain_xml.parse(xml).nvram
    if nvram and os.path.exists(own_nvram(nvram, wish.name)):
        raise CloneImpossible(
            f"{own_nvram(nvram, wish.name)}: exists already; choose another name for the clone"
        )
    if memory and manifest.memory:
        memory_image.check(point.directory / manifest.memory.file, manifest.memory)
    no_memory = []
    needed_bytes = domain_xml.parse(xml).memory_kib << 10
    available_bytes = compatibility.available_memory_bytes()
    if needed_bytes > available_bytes:
        no_memory.append(
            f"it needs {needed_bytes >> 20} MiB of memory, and {available_bytes >> 20} MiB are "
            "available"
        )
    compatibility.require_fit(
        hypervisor, point, xml, CloneImpossible, cold=not memory, also=no_memory
    )
    own = str(uuid.uuid4())
    return CloneOperation(
        domain=wish.name,
        uuid=own,
        point=point.name,
        directory=str(point.directory),
        owner=Process.of(os.getpid()),
        memory=memory,
        start_state=StartState.PAUSED if wish.paused else StartState.RUNNING,
        capture=StagingDir.fresh(config.staging_dir, own).path.name,
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


def own_nvram(nvram: str, name: str) -> str:
    """Where the clone's own firmware variables lie."""
    return str(Path(nvram).with_name(f"{name}_VARS.fd"))
