"""Plans a restore in place, in three stages: observe the host, check, build the operation.

Nothing is changed. Only the first stage asks libvirt, ZFS and the vault.

| the point has               | asked for | the guest afterwards                            |
|-----------------------------|-----------|-------------------------------------------------|
| RAM                         |           | goes on at that instant; paused, if it was so   |
| RAM                         | --cold    | boots from the disks of that instant            |
| no RAM, of a guest that ran |           | boots, as after a power cut                     |
| no RAM, of one that was off |           | stays off                                       |
| any                         | --paused  | as above, but is paused                         |
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from zvmsnap.common.errors import RestoreImpossible
from zvmsnap.common.process import Process
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks import location
from zvmsnap.disks.staging import StagingDir
from zvmsnap.journal.operation import RestoreOperation, Source, StartState
from zvmsnap.points import compatibility, definition, locate
from zvmsnap.points.liveness import Liveness, guids_of
from zvmsnap.points.manifest import Disk, Manifest
from zvmsnap.points.point import RestorePoint
from zvmsnap.restore import checks, disk_fates, preview, running_sends, stale_metadata
from zvmsnap.restore.observe import Observed, observe
from zvmsnap.restore.running_sends import RunningSends
from zvmsnap.restore.safety_point import safety_entry
from zvmsnap.virt.host import Host
from zvmsnap.virt.save_image import Header
from zvmsnap.zfs import dataset_swap, zfs
from zvmsnap.zfs.dataset_swap import SwapTree
from zvmsnap.zfs.types import Snapshot


@dataclass(frozen=True)
class RestoreOptions:
    """What the operator asked for; `cold` is without RAM, `trust` what is from elsewhere."""

    cold: bool = False
    paused: bool = False
    rollback: bool = False
    safety: bool = True
    trust: bool = False


@dataclass(frozen=True)
class RestoreRequest:
    """What is to be restored; `image` is the header of its RAM image, None without RAM."""

    point: RestorePoint
    options: RestoreOptions
    image: Header | None


@dataclass(frozen=True)
class Names:
    """What names are made of, chosen once: what an operator agrees to is called so in the end.

    `number` is of the clones, `capture` the directory in `staging`.
    """

    now: datetime
    number: str
    staging: str
    capture: str

    @classmethod
    def fresh(cls, config: Config, uuid: str) -> Names:
        """Names that no restore had before."""
        capture = StagingDir.fresh(config.staging_dir, uuid).path.name
        return cls(datetime.now(UTC), secrets.token_hex(4), config.staging, capture)


@dataclass(frozen=True)
class RestorePlan:
    """The operation, the datasets that it changes, and in words what it will do.

    `sends` were in its way when it was made; they may have ended since.
    """

    request: RestoreRequest
    names: Names
    operation: RestoreOperation
    datasets: frozenset[str]
    lines: tuple[str, ...]
    sends: RunningSends

    def refuse_other(self, again: RestorePlan) -> None:
        """Raises RestoreImpossible if `again`, made later of the same names, is another plan.

        How the safety point names the disks does not count: the guest may have been taken off
        overlays between the two.
        """
        if again.lines != self.lines:
            differing = [line.strip() for line in again.lines if line not in self.lines]
            differing = differing or [line.strip() for line in self.lines]
            what = f"now it would be: {'; '.join(differing)}"
        elif self._essence() != again._essence():
            what = "something about the guest or its datasets has changed"
        else:
            return
        raise RestoreImpossible(
            f"{self.operation.domain}: the plan does not fit any more, {what}: look at it again"
        )

    def _essence(self) -> tuple[RestoreOperation, frozenset[str]]:
        return msgspec.structs.replace(self.operation, safety_entry=None), self.datasets


def plan_restore(
    config: Config, host: Host, request: RestoreRequest, names: Names | None = None
) -> RestorePlan:
    """Check everything and plan; `names` are those of an earlier plan, if that is made again.

    Raises RestoreImpossible, SnapshotMissing, and ZfsFailed for a disk that cannot be reached.
    """
    point, options, image = request.point, request.options, request.image
    names = names or Names.fresh(config, point.manifest.uuid)
    observed = observe(
        config,
        host,
        point,
        with_memory=image is not None,
        rollback=options.rollback,
    )
    checks.check_host(point, observed, with_memory=image is not None)
    if options.rollback:
        checks.check_rollback(observed)
    operation = _build(request, names, observed)
    judged = tuple(map(definition.digest, observed.definitions))
    operation = msgspec.structs.replace(operation, judged=judged)
    reached = []
    if not observed.is_made_here:
        reached = checks.reached(operation, observed)
        if not options.trust:
            compatibility.refuse_beyond(point, reached, RestoreImpossible, point.directory)
            checks.check_images(point, operation, observed)
            places = checks.firmware_dirs(operation, observed)
            operation = msgspec.structs.replace(operation, firmware_dirs=places)
    checks.check_names(operation, observed)
    checks.check_directories(operation, observed)
    checks.check_room(operation, point.manifest.memory, observed)
    destroyed = (
        *(f"snapshot {usage.snapshot.full_name}" for usage in observed.newer),
        *(f"point {name}" for name in observed.newer_points),
    )
    fates = disk_fates.of(point.manifest, operation, observed)
    lines = (
        *preview.describe(operation, fates, destroyed, reached),
        *(f"  {line}" for line in _forgotten(point, observed)),
    )
    sends = running_sends.find(operation, observed.datasets, observed.present)
    return RestorePlan(request, names, operation, frozenset(observed.snapshots), lines, sends)


def _forgotten(point: RestorePoint, observed: Observed) -> Iterator[str]:
    if replaced := observed.replaced:
        yield from stale_metadata.foretell(point, replaced.checkpoints, replaced.snapshots)


def newer(point: RestorePoint) -> list[Snapshot]:
    """The snapshots of the point's datasets that are newer than its own.

    Raises SnapshotMissing and ZfsFailed.
    """
    liveness = Liveness.by(zfs.all_snapshots(guids_of([point.manifest])))
    own = {each.dataset: each for each in locate.snapshots_of(point, liveness).values()}
    existing = (usage.snapshot for usage in zfs.snapshot_usage(sorted(own)))
    return [each for each in existing if each.createtxg > own[each.dataset].createtxg]


# -- build


def _build(request: RestoreRequest, names: Names, observed: Observed) -> RestoreOperation:
    """The operation, owned by this process. Raises as `_new_sources` and `_swap_trees` do."""
    point, options, image = request.point, request.options, request.image
    manifest, replaced = point.manifest, observed.replaced
    rollback = [snapshot.full_name for snapshot in observed.snapshots.values()]
    safety = None
    if replaced and options.safety and not options.rollback:
        safety = safety_entry(
            replaced.disks,
            observed.snapshots,
            observed.datasets,
            names.capture,
            names.now,
        )
        safety = msgspec.structs.replace(safety, staging=names.staging)
    was_active = replaced is not None and replaced.is_active
    return RestoreOperation(
        domain=manifest.domain,
        uuid=manifest.uuid,
        point=point.name,
        directory=str(point.directory),
        owner=Process.of(os.getpid()),
        sources=_new_sources(manifest.disks, observed),
        next_sources=_new_sources(observed.next_disks, observed),
        restored_disks={
            disk.target: (observed.current[disk.dataset], disk.path) for disk in manifest.disks
        },
        partitions={disk.target: disk.partition for disk in manifest.disks if disk.partition},
        next_disks={
            disk.target: disk.location_in(observed.current[disk.dataset])
            for disk in observed.next_disks
        },
        replaced_disks=dict(replaced.disks.locations) if replaced else {},
        memory=image is not None,
        start_state=_start_state(manifest, options, image),
        capture=names.capture,
        staging=names.staging,
        swap_trees=() if options.rollback else _swap_trees(observed, names),
        rollback=tuple(rollback) if options.rollback else (),
        guest_existed=replaced is not None and replaced.is_persistent,
        was_active=was_active,
        was_paused=replaced is not None and replaced.is_paused,
        saves_memory=was_active and options.safety,
        safety_entry=safety,
    )


def _start_state(manifest: Manifest, options: RestoreOptions, image: Header | None) -> StartState:
    if manifest.level is ConsistencyLevel.OFFLINE and not options.cold and not image:
        return StartState.OFF
    # The RAM of level paused was written while the guest was paused for the snapshot.
    ran = image is None or image.was_running or manifest.level is ConsistencyLevel.PAUSED
    if options.paused or not ran:
        return StartState.PAUSED
    return StartState.RUNNING


def _swap_trees(observed: Observed, names: Names) -> tuple[SwapTree, ...]:
    """What is swapped. Raises RestoreImpossible for datasets that cannot be swapped."""
    stamp = dataset_swap.stamp_of(names.now)
    trees = dataset_swap.plan(observed.snapshots, observed.datasets, names.number, stamp)
    for tree in trees:
        if tree.replaced_top in observed.datasets:
            raise RestoreImpossible(f"{tree.replaced_top}: exists already; try again in a second")
    return trees


def _new_sources(disks: Iterable[Disk], observed: Observed) -> dict[str, Source]:
    """The disks that get another path, as theirs leads elsewhere now, or may.

    | the disk                             | its path in the manifest | another path |
    |--------------------------------------|--------------------------|--------------|
    | a file                               | leads to it now          | no           |
    | a volume of a libvirt pool           | has none, or leads to it | no           |
    | a volume, or a partition of one      | /dev/zvol/..., of it     | no           |
    | any                                  | any other                | yes          |

    /dev/zd16 may be another volume's tomorrow, and a link by content lead to a clone. Raises
    ZfsFailed if the filesystem of one is not mounted.
    """
    sources = {}
    for disk in disks:
        place = disk.location_in(observed.current[disk.dataset])
        if disk.path and observed.leads_to[disk.source] == place:
            continue
        if disk.type == "volume" and place.dataset == disk.dataset:
            continue
        path = location.current_path(place, observed.mounts)
        if disk.path or disk.source != path:
            sources[disk.target] = ("file" if disk.path else "block", path, disk.format)
    return sources
