"""What a restore in place would do, and everything that is in its way. Nothing is touched here.

| the point has       | asked for | the guest afterwards                            |
|---------------------|-----------|-------------------------------------------------|
| RAM                 |           | goes on at that instant; paused, if it was then |
| RAM                 | --cold    | boots from the disks of that instant            |
| no RAM, of one that ran |       | boots, as after a power cut                     |
| no RAM, of one that was off | | stays off                                     |
| any                 | --paused  | as above, but stands still                      |
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from zvmsnap.common.errors import DomainGone, RestoreImpossible
from zvmsnap.common.process import Process
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks import location
from zvmsnap.disks.location import GuestDisks
from zvmsnap.disks.staging import StagingDir
from zvmsnap.journal.entry import Disk, Entry
from zvmsnap.journal.operation import RestoreOperation, Source, StartState
from zvmsnap.points import compatibility, locate
from zvmsnap.points.definition import definition_of
from zvmsnap.points.manifest import Manifest
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import entries
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.virt.save_image import Header
from zvmsnap.zfs import dataset_swap, mounts, zfs
from zvmsnap.zfs.mounts import DiskLocation, Mount
from zvmsnap.zfs.types import Dataset, Snapshot


@dataclass(frozen=True)
class RestoreOptions:
    """What was asked for."""

    cold: bool = False
    paused: bool = False
    rollback: bool = False
    safety: bool = True


@dataclass(frozen=True)
class RestorePlan:
    """The task, the datasets that it changes, and in words what it will do."""

    task: RestoreOperation
    datasets: frozenset[str]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Host:
    """What was asked of the host, once."""

    datasets: Mapping[str, Dataset]
    snapshots: Mapping[str, Snapshot]
    mounts: list[Mount]
    guests: list[Guest]


def plan(
    config: Config,
    hypervisor: Host,
    point: RestorePoint,
    wish: RestoreOptions,
    image: Header | None,
) -> RestorePlan:
    """Check everything and plan; `image` is what loadable.check said, None without RAM.

    Raises RestoreImpossible and SnapshotMissing.
    """
    host = _Host(
        zfs.datasets(), zfs.all_snapshots().present, mounts.read_table(), hypervisor.guests()
    )
    manifest = point.manifest
    guest = _guest(manifest, host)
    snapshots = locate.snapshots_of(point, host.snapshots)
    names = {dataset: _name_now(dataset, found, host) for dataset, found in snapshots.items()}
    _check_keys(names.values(), host)
    wanted = {names[dataset]: found for dataset, found in snapshots.items()}
    sources = _sources(manifest, names, host)
    memory = image is not None
    _check_fits(hypervisor, point, memory=memory)
    _check_others(hypervisor, host, manifest.uuid, wanted)
    now = datetime.now(UTC)
    number = secrets.token_hex(4)
    stamp = f"{now.astimezone():%Y%m%dT%H%M%S}"
    units = () if wish.rollback else dataset_swap.plan(wanted, host.datasets, number, stamp)
    for unit in units:
        if unit.set_aside in host.datasets:
            raise RestoreImpossible(f"{unit.set_aside}: exists already; try again in a second")
    seen = location.locate_disks(hypervisor, guest, host.mounts) if guest else None
    capture = StagingDir.fresh(config.staging_dir, manifest.uuid).path.name
    was_active = guest.is_active() if guest else False
    save = was_active and wish.safety
    task = RestoreOperation(
        domain=manifest.domain,
        uuid=manifest.uuid,
        point=point.name,
        directory=str(point.directory),
        owner=Process.of(os.getpid()),
        sources=sources,
        restored_disks={disk.target: (names[disk.dataset], disk.path) for disk in manifest.disks},
        memory=memory,
        start_state=_begin(manifest, wish, image),
        capture=capture,
        swap_trees=units,
        rollback=tuple(s.full_name for s in wanted.values()) if wish.rollback else (),
        guest_existed=guest is not None and guest.is_persistent(),
        was_active=was_active,
        was_paused=guest is not None and guest.pause() is not None,
        saves_memory=save,
        safety_entry=_safety(seen, wanted, capture, now)
        if wish.safety and not wish.rollback
        else None,
    )
    return RestorePlan(task, frozenset(wanted), tuple(_lines(task, config, wanted)))


def newer(point: RestorePoint, present: Mapping[str, Snapshot]) -> list[Snapshot]:
    """The snapshots of the point's datasets that are newer than its own. Raises SnapshotMissing."""
    own = {snapshot.dataset: snapshot for snapshot in locate.snapshots_of(point, present).values()}
    return [
        snapshot
        for snapshot in present.values()
        if snapshot.dataset in own and snapshot.createtxg > own[snapshot.dataset].createtxg
    ]


def _guest(manifest: Manifest, host: _Host) -> Guest | None:
    """The guest that is to be brought back, as it is now; None if it was undefined."""
    for guest in host.guests:
        if guest.name == manifest.domain and guest.uuid != manifest.uuid:
            raise RestoreImpossible(
                f"{guest.name}: another guest has this name now (UUID {guest.uuid}): rename it, "
                f"or zvmsnap clone the point under another name"
            )
        if guest.uuid == manifest.uuid and guest.name != manifest.domain:
            raise RestoreImpossible(
                f"{manifest.domain}: the guest is called {guest.name} now: virsh domrename "
                f"{guest.name} {manifest.domain}, or zvmsnap clone the point"
            )
    for guest in host.guests:
        if guest.uuid == manifest.uuid:
            if guest.managed_save_xml() is not None:
                raise RestoreImpossible(
                    f"{guest.name}: has RAM in a managed save image, which would be loaded over "
                    f"the restored disks: start it, or virsh managedsave-remove {guest.name}"
                )
            return guest
    return None


def _name_now(dataset: str, found: Snapshot, host: _Host) -> str:
    """A dataset of then by its own name, or as it is called now: renamed, or sent here.

    What has the name of then where this was sent to is of another machine.
    """
    if dataset in host.datasets and _line(dataset, host) & _line(found.dataset, host):
        return dataset
    return found.dataset


def _line(dataset: str, host: _Host) -> set[str]:
    """A dataset, and what it is a clone of, down to the first one."""
    line: set[str] = set()
    while dataset in host.datasets and dataset not in line:
        line.add(dataset)
        dataset = host.datasets[dataset].origin.partition("@")[0]
    return line


def _check_keys(names: Iterable[str], host: _Host) -> None:
    for name in names:
        if host.datasets[name].locked:
            raise RestoreImpossible(f"{name}: its key is not loaded: zfs load-key {name}")


def _sources(manifest: Manifest, names: Mapping[str, str], host: _Host) -> dict[str, Source]:
    """The disks whose paths of then do not lead to their datasets of now."""
    found = {}
    for disk in manifest.disks:
        place = DiskLocation(names[disk.dataset], disk.path)
        if location.place_of(disk.source, host.mounts) == place and not _is_numbered(disk.source):
            continue
        if disk.type == "volume" and place.dataset == disk.dataset:
            continue
        kind = "file" if disk.path else "block"
        found[disk.target] = (kind, location.path_of(place, host.mounts), disk.format)
    return found


def _is_numbered(source: str) -> bool:
    """/dev/zd16 is another volume's tomorrow."""
    return source.startswith("/dev/zd")


def _check_fits(hypervisor: Host, point: RestorePoint, *, memory: bool) -> None:
    definition_of(point)
    xml = definition_of(point, live=memory)
    hint = "; --cold boots from the disks" if memory else ""
    compatibility.require_fit(hypervisor, point, xml, RestoreImpossible, cold=not memory, hint=hint)


def _check_others(hypervisor: Host, host: _Host, uuid: str, wanted: Mapping[str, Snapshot]) -> None:
    """Nobody else's disk may travel in time."""
    for other in host.guests:
        if other.uuid == uuid:
            continue
        try:
            seen = location.locate_disks(hypervisor, other, host.mounts)
        except DomainGone:
            continue
        for target, place in seen.places.items():
            if place.dataset in wanted:
                raise RestoreImpossible(
                    f"{place.dataset} also holds {target} of {other.name}, which would be put "
                    "back too: zvmsnap clone makes a machine of its own"
                )
            if other.is_active() and any(place.dataset.startswith(f"{top}/") for top in wanted):
                raise RestoreImpossible(
                    f"{other.name} runs on {place.dataset}, which is below a dataset that is "
                    "renamed: stop it, or zvmsnap clone"
                )


def _begin(manifest: Manifest, wish: RestoreOptions, image: Header | None) -> StartState:
    if manifest.level is ConsistencyLevel.OFFLINE and not wish.cold and not image:
        return StartState.OFF
    # That of level paused was written while the guest stood still for the snapshot.
    ran = image is None or image.was_running or manifest.level is ConsistencyLevel.PAUSED
    if wish.paused or not ran:
        return StartState.PAUSED
    return StartState.RUNNING


def _safety(
    seen: GuestDisks | None, wanted: Mapping[str, Snapshot], capture: str, now: datetime
) -> Entry | None:
    """The moment of what is there now; its RAM is of the instant at which the guest stops."""
    if seen is None:
        return None
    places = {
        disk.target: seen.places[disk.target]
        for disk in seen.domain.disks
        if disk.writable and disk.target in seen.places
    }
    outside = [d.target for d in seen.domain.disks if d.writable and d.target not in places]
    by_target = {disk.target: disk for disk in seen.domain.disks}
    if seen.is_off:
        level, reason = ConsistencyLevel.OFFLINE, f"the guest was {seen.state}"
    elif outside:
        level, reason = ConsistencyLevel.CRASH, f"not all disks are on ZFS: {', '.join(outside)}"
    else:
        level, reason = ConsistencyLevel.MEMORY, None
    name = f"zvmsnap_{now.astimezone():%Y-%m-%d_%H:%M:%S}_safety"
    return Entry(
        domain=seen.domain.name,
        uuid=seen.domain.uuid,
        run=name,
        request_datasets=tuple(sorted({*wanted, *(place.dataset for place in places.values())})),
        snapshot_names=(name,),
        preexisting_guids=(),
        owner=Process.none(),
        capture=capture,
        level=level,
        reason=reason,
        disks=tuple(Disk.of(by_target[target], place) for target, place in places.items()),
        created=now.isoformat(timespec="milliseconds"),
    )


_MEANING = {
    (True, StartState.RUNNING): "goes on from its RAM",
    (True, StartState.PAUSED): "has its RAM of then, and stands still",
    (False, StartState.RUNNING): "boots from its disks of then",
    (False, StartState.PAUSED): "is started from its disks of then, and stands still",
    (False, StartState.OFF): "stays off, as it was then",
}


def _lines(task: RestoreOperation, config: Config, wanted: Mapping[str, Snapshot]) -> Iterator[str]:
    yield f"restore {task.point}:"
    if task.was_active:
        yield f"  {task.domain} is stopped" + (
            ", its RAM and disks of now are kept" if task.safety_entry else ""
        )
    if task.safety_entry:
        yield f"  what is there now becomes the point {task.domain}@{task.safety_entry.run}"
    else:
        yield "  what is there now is NOT kept as a point"
    for unit in task.swap_trees:
        for member in unit.datasets:
            yield f"  {unit.top}{member.path} holds {member.origin} again"
        yield f"  what it holds now, and newer snapshots, are called {unit.set_aside} then"
    for name, snapshot in wanted.items():
        if task.rollback:
            yield f"  {name} is rolled back to {snapshot.full_name}"
    if task.rollback:
        yield from _destroyed(config, wanted)
    for target, (_, path, _) in task.sources.items():
        yield f"  disk {target} lies at {path} now"
    yield f"  {task.domain} {_MEANING[task.memory, task.start_state]}"


def _destroyed(config: Config, wanted: Mapping[str, Snapshot]) -> Iterator[str]:
    """What a rollback destroys. Raises RestoreImpossible for clones and holds in its way."""
    doomed: set[int] = set()
    for name, snapshot in wanted.items():
        if snapshot.dataset != name:
            raise RestoreImpossible(
                f"{snapshot.full_name} is no snapshot of {name} any more: restore without "
                "--rollback"
            )
    for use in zfs.snapshot_usage(list(wanted)):
        snapshot = use.snapshot
        if snapshot.createtxg <= wanted[snapshot.dataset].createtxg:
            continue
        if use.clones or use.holds:
            why = f"has the clone {use.clones[0]}" if use.clones else "is held (zfs holds)"
            raise RestoreImpossible(
                f"{snapshot.full_name} is newer, and {why}: end that, or restore without --rollback"
            )
        doomed.add(snapshot.guid)
        yield f"  DESTROYS snapshot {snapshot.full_name}"
    for entry in entries(config.vault_dir):
        if isinstance(entry, RestorePoint) and doomed & {
            tie.guid for tie in entry.manifest.snapshots
        }:
            yield f"  DESTROYS point {entry.name}"
