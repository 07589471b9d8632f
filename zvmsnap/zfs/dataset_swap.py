"""A dataset's name comes to hold what a snapshot holds; what it held lives on under another name.

For each unit, a dataset with those below it that hold disks of the same guest:

    prepare   clones of the snapshots, as <top>.zvmsnap-<id>, with the properties of the originals
    switch    <top> becomes <top>.before-<time>, the clones become <top>; other datasets below it
              keep their names; what was mounted is mounted again
    promote   the clones take over the snapshots up to theirs, so that history stays with the name

Each may be repeated after any interruption, and taken back: where everything is now is told by the
datasets' guids, which outlive renames. Newer snapshots stay with what they are snapshots of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

import msgspec

from zvmsnap.common.errors import RestoreImpossible, ZfsFailed
from zvmsnap.common.snapshot_name import FullName
from zvmsnap.zfs import volume, zfs
from zvmsnap.zfs.types import Dataset, Snapshot

_VOLUME = "volume"
DEVICE_TIMEOUT_S = 30


class SwapDataset(msgspec.Struct, frozen=True):
    """A dataset of a unit: `path` below the top ("" for the top itself), and what it is to hold.

    `below` are the datasets that the one of `origin` is a clone of, from clone to clone down to the
    old one: former machines. None if it does not come from the old one: below is a golden image.
    """

    path: str
    old_guid: int
    canmount: str
    origin: FullName
    origin_guid: int
    new_guid: int = 0
    below: tuple[int, ...] = ()

    @property
    def line(self) -> tuple[int, ...]:
        """What the new dataset is promoted over, one after the other."""
        return (self.origin_guid, *self.below)


class Bystander(msgspec.Struct, frozen=True):
    """A dataset below a member that is none itself: it keeps its name."""

    path: str
    guid: int


class SwapTree(msgspec.Struct, frozen=True):
    """What is switched by one rename. `mounted` are paths of all filesystems that were mounted."""

    top: FullName
    fresh: FullName
    set_aside: FullName
    datasets: tuple[SwapDataset, ...]
    bystanders: tuple[Bystander, ...]
    mounted: tuple[str, ...]


def name_before(dataset: str, stamp: str) -> str:
    """The name that a replaced dataset gets; `stamp` is the time of the replacement."""
    return f"{dataset}.before-{stamp}"


def plan(
    wanted: Mapping[str, Snapshot], datasets: Mapping[str, Dataset], number: str, stamp: str
) -> tuple[SwapTree, ...]:
    """Units that let each dataset of `wanted` hold its snapshot. Pure.

    Raises RestoreImpossible for what cannot be switched so.
    """
    units = []
    for top in sorted(name for name in wanted if _parent(name) not in wanted):
        if "/" not in top:
            raise RestoreImpossible(
                f"{top} is a whole pool, which cannot be renamed: zvmsnap clone, or --rollback"
            )
        below = [name for name in datasets if name == top or name.startswith(f"{top}/")]
        inside = _connected(top, wanted)
        legacy = [n for n in below if datasets[n].mounted and datasets[n].mountpoint == "legacy"]
        if legacy:
            raise RestoreImpossible(
                f"{legacy[0]} is mounted by /etc/fstab (mountpoint=legacy), which only you can "
                "do again: zvmsnap clone, or --rollback"
            )
        units.append(
            SwapTree(
                top=top,
                fresh=f"{top}.zvmsnap-{number}",
                set_aside=name_before(top, stamp),
                datasets=tuple(_member(top, name, wanted[name], datasets) for name in inside),
                bystanders=tuple(
                    Bystander(name.removeprefix(top), datasets[name].guid)
                    for name in below
                    if name not in inside and _parent(name) in inside
                ),
                mounted=tuple(n.removeprefix(top) for n in sorted(below) if datasets[n].mounted),
            )
        )
    return tuple(units)


def _connected(top: str, wanted: Iterable[str]) -> list[str]:
    """`top`, and the wanted ones that hang on it without a gap, parents first."""
    found = [top]
    for name in sorted(wanted):
        if _parent(name) in found:
            found.append(name)
    return found


def _member(top: str, name: str, origin: Snapshot, datasets: Mapping[str, Dataset]) -> SwapDataset:
    return SwapDataset(
        path=name.removeprefix(top),
        old_guid=datasets[name].guid,
        canmount=datasets[name].canmount,
        origin=origin.full_name,
        origin_guid=datasets[origin.dataset].guid,
        below=_below(datasets[origin.dataset], datasets[name].guid, datasets),
    )


def _below(dataset: Dataset, old_guid: int, datasets: Mapping[str, Dataset]) -> tuple[int, ...]:
    found: list[int] = []
    while dataset.guid != old_guid:
        origin = datasets.get(_dataset(dataset.origin))
        if origin is None:
            return ()
        found.append(origin.guid)
        dataset = origin
    return tuple(found)


def materialize(units: Iterable[SwapTree]) -> tuple[SwapTree, ...]:
    """Make the clones; the units with their guids. Raises ZfsFailed."""
    return tuple(_prepare(unit) for unit in units)


def _prepare(unit: SwapTree) -> SwapTree:
    there = zfs.datasets()
    settings = zfs.local_properties([unit.top + member.path for member in unit.datasets])
    for member in unit.datasets:
        name = unit.fresh + member.path
        if name in there:
            continue
        noauto = {"canmount": "noauto"} if member.canmount else {}
        own = settings[unit.top + member.path] | noauto
        # Set on what is received; a machine writes to its disks.
        own.pop("readonly", None)
        zfs.clone(member.origin, name, own)
    there = zfs.datasets()
    return msgspec.structs.replace(
        unit,
        datasets=tuple(
            msgspec.structs.replace(member, new_guid=there[unit.fresh + member.path].guid)
            for member in unit.datasets
        ),
    )


def discard(units: Iterable[SwapTree]) -> None:
    """Destroy the clones that `prepare` made.

    Raises ZfsFailed, also for one that still owns the snapshots that `promote` gave it.
    """
    there = zfs.datasets()
    for unit in units:
        for member in reversed(unit.datasets):
            name = unit.fresh + member.path
            if name not in there:
                continue
            origin = there.get(_dataset(there[name].origin))
            if origin is None or origin.guid != member.origin_guid:
                raise ZfsFailed(f"{name}: is kept, as it owns snapshots of {unit.top}{member.path}")
            # Snapshots of it were taken by a sanoid that came by: nobody's data is in them.
            zfs.destroy(name, with_snapshots=True)


def swap(units: Iterable[SwapTree]) -> None:
    """Let the names hold the clones. Raises ZfsFailed, as when somebody works in a filesystem."""
    every = tuple(units)
    for unit in every:
        top = unit.datasets[0]
        _exchange(unit, top.old_guid, top.new_guid, aside=unit.set_aside, instead=unit.fresh)
    for unit in every:
        _mount(unit, aside=unit.set_aside)


def swap_back(units: Iterable[SwapTree]) -> None:
    """Let the names hold what they held. Raises ZfsFailed."""
    prepared = [unit for unit in units if unit.datasets[0].new_guid]
    for unit in reversed(prepared):
        top = unit.datasets[0]
        # Without both names it is away with the unit above it, which comes next.
        if {unit.top, unit.set_aside} & zfs.datasets().keys():
            _exchange(unit, top.new_guid, top.old_guid, aside=unit.fresh, instead=unit.set_aside)
    for unit in prepared:
        _mount(unit, aside=unit.fresh)


def _exchange(unit: SwapTree, leaving: int, coming: int, *, aside: str, instead: str) -> None:
    """One dataset (guids) goes from the top to `aside`; the other comes there from `instead`."""
    there = zfs.datasets()
    leaves = unit.top in there and there[unit.top].guid == leaving
    if unit.top in there and there[unit.top].guid not in (leaving, coming):
        raise ZfsFailed(f"{unit.top}: is a dataset that somebody has made meanwhile; rename it")
    if leaves and instead not in there:
        raise ZfsFailed(f"{instead}: is gone, so {unit.top} stays what it is")
    # A host that came up between two of these steps has mounted what is not at the top.
    if leaves or _mounted(there, aside, instead):
        _unmount(_mounted(there, unit.top, aside, instead))
    if leaves:
        zfs.rename(unit.top, aside)
        there = zfs.datasets()
    if unit.top not in there:
        zfs.rename(instead, unit.top)
        there = zfs.datasets()
    by_guid = {dataset.guid: name for name, dataset in there.items()}
    for stray in unit.bystanders:
        name = by_guid.get(stray.guid)
        if name == aside + stray.path:
            zfs.rename(name, unit.top + stray.path)


def _mounted(there: Mapping[str, Dataset], *tops: str) -> list[Dataset]:
    return [
        dataset
        for name, dataset in there.items()
        if dataset.mounted and any(name == top or name.startswith(f"{top}/") for top in tops)
    ]


def _unmount(mounted: Iterable[Dataset]) -> None:
    for dataset in sorted(mounted, key=_mountpoint, reverse=True):
        zfs.unmount(dataset.name)


def _mount(unit: SwapTree, *, aside: str) -> None:
    """What was mounted at the top is mounted again, and nothing aside when the host comes up."""
    there = zfs.datasets()
    for member in unit.datasets:
        if aside + member.path in there:
            _set_canmount(aside + member.path, member, "noauto")
        _set_canmount(unit.top + member.path, member, member.canmount)
    found = [there[unit.top + path] for path in unit.mounted if unit.top + path in there]
    for dataset in sorted(found, key=_mountpoint):
        if not dataset.mounted:
            zfs.mount(dataset.name)
    for member in unit.datasets:
        name = unit.top + member.path
        if there[name].type == _VOLUME:
            volume.wait_device(name, DEVICE_TIMEOUT_S)


def _set_canmount(name: str, member: SwapDataset, value: str) -> None:
    if member.canmount:
        zfs.set_property(name, "canmount", value)


def promote(units: Iterable[SwapTree]) -> None:
    """Let the new datasets own the snapshots up to theirs. Raises ZfsFailed."""
    for member in _members(units):
        for guid in member.line:
            _promote(member.new_guid, over=guid)


def demote(units: Iterable[SwapTree]) -> None:
    """Give the snapshots back to whom they belonged. Raises ZfsFailed."""
    for member in reversed(_members(units)):
        for guid in reversed(member.line):
            _promote(guid, over=member.new_guid)


def _members(units: Iterable[SwapTree]) -> list[SwapDataset]:
    return [member for unit in units for member in unit.datasets]


def _promote(guid: int, over: int) -> None:
    """Promote the dataset, if it is a clone of a snapshot of the other one (guids)."""
    there = zfs.datasets()
    dataset = next((each for each in there.values() if each.guid == guid), None)
    origin = there.get(_dataset(dataset.origin)) if dataset else None
    if dataset and origin and origin.guid == over:
        zfs.promote(dataset.name)


def _dataset(snapshot: str) -> str:
    return snapshot.partition("@")[0]


def _mountpoint(dataset: Dataset) -> str:
    """One mountpoint may lie in another, whatever the names of the datasets are."""
    return dataset.mountpoint


def _parent(name: str) -> str:
    return str(PurePosixPath(name).parent)
