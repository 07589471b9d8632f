"""What the plan of a restore in place must know of the host: each fact is asked for once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zvmsnap.common.errors import DomainGone, RestoreImpossible
from zvmsnap.config.settings import Config
from zvmsnap.disks import location, staging
from zvmsnap.disks.location import GuestDisks
from zvmsnap.journal.operation import Operations
from zvmsnap.journal.waiting import all_entries
from zvmsnap.points import (
    compatibility,
    definition,
    locate,
    memory_image,
    own_directories,
    vault,
)
from zvmsnap.points.definition import definition_of, refuse_other_guest
from zvmsnap.points.liveness import Liveness
from zvmsnap.points.manifest import Disk
from zvmsnap.points.next_start import next_start
from zvmsnap.points.point import RestorePoint
from zvmsnap.virt import domain_xml
from zvmsnap.virt.domain_xml import Metadata
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs import branches, dataset_swap, mounts, zfs
from zvmsnap.zfs.mounts import DiskLocation, Mount
from zvmsnap.zfs.types import Dataset, Room, Snapshot, SnapshotUsage


@dataclass(frozen=True)
class ObservedGuest:
    """A guest of this host, and where its disks are."""

    name: str
    uuid: str
    is_active: bool
    disks: GuestDisks


@dataclass(frozen=True)
class ObservedReplaced(ObservedGuest):
    """The guest of the point, as it is now.

    `checkpoints` and `snapshots` are those that libvirt keeps with its definition.
    """

    is_persistent: bool
    is_paused: bool
    has_saved_ram: bool
    definitions: tuple[str, ...]
    checkpoints: tuple[Metadata, ...] = ()
    snapshots: tuple[Metadata, ...] = ()


@dataclass(frozen=True)
class OtherDisk:
    """A disk of the point's definition that is no part of the point, and its dataset, if any."""

    disk: domain_xml.Disk
    dataset: str
    is_missing: bool


@dataclass(frozen=True)
class Observed:
    """What the host says, asked once.

    `present` are all snapshots, `other_disks` those that are no part of the
    point, `own_directories` the datasets of our own directories. `rooms` are of the datasets of the
    point, of those above them, and of what earlier restores have set aside. `staging_free_bytes`:
    of the directory that it is, or will be, in.
    `snapshots` are those of the point by the datasets that will hold them, `current` the names of
    these datasets by those in the manifest. `next_disks` are the point's disks of the definition
    for the next start, `next_outside` its other ones. `leads_to` is where the paths of all disks
    lead now. `misfits` is why this host cannot run the machine, `fits_cold` whether it
    can without its RAM. `is_made_here`: no sender can have written the `definitions` of the point.
    `newer` and `newer_points` are what
    a rollback destroys; empty without one.
    """

    datasets: Mapping[str, Dataset]
    mounts: list[Mount]
    present: Sequence[Snapshot]
    snapshots: Mapping[str, Snapshot]
    other_disks: tuple[OtherDisk, ...]
    own_directories: Mapping[str, str]
    rooms: Mapping[str, Room]
    staging_free_bytes: int
    current: Mapping[str, str]
    next_disks: tuple[Disk, ...]
    next_outside: tuple[domain_xml.Disk, ...]
    leads_to: Mapping[str, DiskLocation | None]
    replaced: ObservedReplaced | None
    others: tuple[ObservedGuest, ...]
    misfits: tuple[str, ...]
    fits_cold: bool
    is_made_here: bool
    definitions: tuple[str, ...]
    newer: tuple[SnapshotUsage, ...]
    newer_points: tuple[str, ...]


def observe(
    config: Config, host: Host, point: RestorePoint, *, with_memory: bool, rollback: bool
) -> Observed:
    """Ask libvirt, ZFS and the vault. Raises SnapshotMissing, RestoreImpossible, LibvirtFailed."""
    manifest = point.manifest
    datasets = zfs.datasets()
    table = mounts.read_table()
    listing = zfs.all_snapshots()
    located = locate.snapshots_of(point, Liveness.by(listing))
    current = {name: _current_name(name, located[name], datasets) for name in located}
    snapshots = {current[name]: snapshot for name, snapshot in located.items()}
    guests = host.guests()
    own = next((guest for guest in guests if guest.uuid == manifest.uuid), None)
    newer_snapshots = _newer(snapshots) if rollback else ()
    at_next_start = next_start(point)
    next_disks = at_next_start.disks
    misfits = _misfits(host, point, with_memory=with_memory)
    return Observed(
        datasets=datasets,
        mounts=table,
        present=listing.snapshots,
        snapshots=snapshots,
        other_disks=_other_disks(point, table, with_memory=with_memory),
        own_directories=own_directories.datasets_of(_directories(config), table),
        rooms=branches.rooms(
            {*snapshots, *map(_above, snapshots), *_set_aside(snapshots, datasets)}
        ),
        staging_free_bytes=staging.free_bytes_for(config.staging_dir),
        current=current,
        next_disks=next_disks,
        next_outside=at_next_start.outside,
        leads_to={
            disk.source: location.locate_path(disk.source, table)
            for disk in (*manifest.disks, *next_disks)
        },
        replaced=_observe_replaced(host, own, table) if own else None,
        others=_observe_others(host, [guest for guest in guests if guest is not own], table),
        misfits=misfits,
        fits_cold=not (misfits and _misfits(host, point, with_memory=False)),
        is_made_here=definition.is_made_here(config, point.directory, manifest),
        definitions=tuple(_definitions(point, with_memory=with_memory)),
        newer=newer_snapshots,
        newer_points=_points_of(config.vault_dir, newer_snapshots),
    )


def _current_name(dataset: str, snapshot: Snapshot, datasets: Mapping[str, Dataset]) -> str:
    """The dataset that will hold the snapshot: of the name in the manifest, or of a new name.

    It was renamed, or sent here. A dataset of the old name that is not related to the snapshot is
    another machine's.
    """
    if dataset in datasets and _origins(dataset, datasets) & _origins(snapshot.dataset, datasets):
        return dataset
    return snapshot.dataset


def _origins(dataset: str, datasets: Mapping[str, Dataset]) -> set[str]:
    """A dataset, and what it is a clone of, down to the first one."""
    origins: set[str] = set()
    while dataset in datasets and dataset not in origins:
        origins.add(dataset)
        dataset = datasets[dataset].origin.partition("@")[0]
    return origins


def _above(dataset: str) -> str:
    return dataset.rpartition("/")[0] or dataset


def _set_aside(restored: Iterable[str], datasets: Iterable[str]) -> list[str]:
    """What earlier restores of these datasets have set aside."""
    beginnings = tuple(dataset_swap.name_before(name, "") for name in restored)
    return [name for name in datasets if name.startswith(beginnings)]


def _directories(config: Config) -> dict[str, Path]:
    """Our own, with staging directories of unfinished work from before `staging` was changed."""
    unfinished = [*all_entries(config.journal_dir), *Operations(config.journal_dir).all()]
    older = {f"staging of {work.domain}": Path(work.staging) for work in unfinished if work.staging}
    return own_directories.of(config) | older


def _other_disks(
    point: RestorePoint, table: list[Mount], *, with_memory: bool
) -> tuple[OtherDisk, ...]:
    """Raises RestoreImpossible if the definition cannot be read."""
    own = {disk.target for disk in point.manifest.disks}
    others = []
    for disk in domain_xml.parse(definition_of(point, live=with_memory)).disks:
        if disk.target not in own:
            place = location.locate_path(disk.source, table) if disk.source else None
            is_missing = bool(disk.source) and not os.path.exists(disk.source)
            others.append(OtherDisk(disk, place.dataset if place else "", is_missing))
    return tuple(others)


def _observe_replaced(host: Host, guest: Guest, table: list[Mount]) -> ObservedReplaced:
    is_persistent = guest.is_persistent()
    return ObservedReplaced(
        name=guest.name,
        uuid=guest.uuid,
        is_active=guest.is_active(),
        disks=location.locate_disks(host, guest, table),
        is_persistent=is_persistent,
        is_paused=guest.pause_reason() is not None,
        has_saved_ram=guest.managed_save_xml() is not None,
        checkpoints=tuple(guest.checkpoint_metadata()) if is_persistent else (),
        snapshots=tuple(guest.snapshot_metadata()) if is_persistent else (),
        definitions=tuple(_definitions_of(guest)),
    )


def _definitions_of(guest: Guest) -> Iterator[str]:
    yield guest.xml()
    if guest.is_persistent():
        yield guest.xml(persistent=True)


def _observe_others(
    host: Host, guests: Iterable[Guest], table: list[Mount]
) -> tuple[ObservedGuest, ...]:
    others = []
    for guest in guests:
        try:
            disks = location.locate_disks(host, guest, table)
            others.append(ObservedGuest(guest.name, guest.uuid, guest.is_active(), disks))
        except DomainGone:
            continue
    return tuple(others)


def _misfits(host: Host, point: RestorePoint, *, with_memory: bool) -> tuple[str, ...]:
    # The next start of the guest needs this one, whatever it is restored with.
    definition_of(point)
    xml = definition_of(point, live=with_memory)
    return tuple(compatibility.why_not(host, xml, point.manifest.host, cold=not with_memory))


def _definitions(point: RestorePoint, *, with_memory: bool) -> Iterator[str]:
    """All by which libvirt starts the guest: for its next start, and the one inside of its RAM."""
    yield definition_of(point)
    memory = point.manifest.memory
    if memory and with_memory:
        stored = point.directory / memory.file
        xml = memory_image.xml_of(stored, memory)
        try:
            refuse_other_guest(point, xml)
        except (ValueError, domain_xml.ParseError) as error:
            raise RestoreImpossible(f"{stored}: {error}") from error
        yield xml


def _newer(snapshots: Mapping[str, Snapshot]) -> tuple[SnapshotUsage, ...]:
    return tuple(
        usage
        for usage in zfs.snapshot_usage(list(snapshots))
        if usage.snapshot.createtxg > snapshots[usage.snapshot.dataset].createtxg
    )


def _points_of(vault_dir: Path, usages: tuple[SnapshotUsage, ...]) -> tuple[str, ...]:
    if not usages:
        return ()
    guids = {usage.snapshot.guid for usage in usages}
    return tuple(
        entry.name
        for entry in vault.entries(vault_dir)
        if isinstance(entry, RestorePoint)
        and guids & {ref.guid for ref in entry.manifest.snapshots}
    )
