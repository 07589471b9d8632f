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

from zvmsnap import zfs
from zvmsnap.errors import RestoreImpossible, ZfsFailed
from zvmsnap.zfs import Dataset, Snapshot

_VOLUME = "volume"
_DEVICE_TIMEOUT_S = 30


class Member(msgspec.Struct, frozen=True):
    """A dataset of a unit: `path` below the top ("" for the top itself), and what it is to hold."""

    path: str
    old_guid: int
    canmount: str
    origin: str
    origin_guid: int
    new_guid: int = 0


class Stray(msgspec.Struct, frozen=True):
    """A dataset below a member that is none itself: it keeps its name."""

    path: str
    guid: int


class Unit(msgspec.Struct, frozen=True):
    """What is switched by one rename. `mounted` are paths of all filesystems that were mounted."""

    top: str
    fresh: str
    former: str
    members: tuple[Member, ...]
    strays: tuple[Stray, ...]
    mounted: tuple[str, ...]


def plan(
    wanted: Mapping[str, Snapshot], datasets: Mapping[str, Dataset], number: str, stamp: str
) -> tuple[Unit, ...]:
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
            Unit(
                top=top,
                fresh=f"{top}.zvmsnap-{number}",
                former=f"{top}.before-{stamp}",
                members=tuple(_member(top, name, wanted[name], datasets) for name in inside),
                strays=tuple(
                    Stray(name.removeprefix(top), datasets[name].guid)
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


def _member(top: str, name: str, origin: Snapshot, datasets: Mapping[str, Dataset]) -> Member:
    return Member(
        path=name.removeprefix(top),
        old_guid=datasets[name].guid,
        canmount=datasets[name].canmount,
        origin=origin.full_name,
        origin_guid=datasets[origin.dataset].guid,
    )


def prepare(units: Iterable[Unit]) -> tuple[Unit, ...]:
    """Make the clones; the units with their guids. Raises ZfsFailed."""
    return tuple(_prepare(unit) for unit in units)


def _prepare(unit: Unit) -> Unit:
    there = zfs.datasets()
    settings = zfs.local_properties([unit.top + member.path for member in unit.members])
    for member in unit.members:
        name = unit.fresh + member.path
        if name in there:
            continue
        noauto = {"canmount": "noauto"} if member.canmount else {}
        zfs.clone(member.origin, name, settings[unit.top + member.path] | noauto)
    there = zfs.datasets()
    return msgspec.structs.replace(
        unit,
        members=tuple(
            msgspec.structs.replace(member, new_guid=there[unit.fresh + member.path].guid)
            for member in unit.members
        ),
    )


def discard(units: Iterable[Unit]) -> None:
    """Destroy the clones that `prepare` made. Raises ZfsFailed."""
    there = zfs.datasets()
    for unit in units:
        for member in reversed(unit.members):
            if unit.fresh + member.path in there:
                # Snapshots of it were taken by a sanoid that came by: nobody's data is in them.
                zfs.destroy(unit.fresh + member.path, with_snapshots=True)


def switch(units: Iterable[Unit]) -> None:
    """Let the names hold the clones. Raises ZfsFailed, as when somebody works in a filesystem."""
    for unit in units:
        _exchange(unit, unit.members[0].old_guid, aside=unit.former, instead=unit.fresh)
        for member in unit.members:
            _set_canmount(unit.former + member.path, member, "noauto")
            _set_canmount(unit.top + member.path, member, member.canmount)
        _mount(unit)


def switch_back(units: Iterable[Unit]) -> None:
    """Let the names hold what they held. Raises ZfsFailed."""
    for unit in reversed(tuple(units)):
        if not unit.members[0].new_guid:
            continue
        _exchange(unit, unit.members[0].new_guid, aside=unit.fresh, instead=unit.former)
        for member in unit.members:
            _set_canmount(unit.top + member.path, member, member.canmount)
        _mount(unit)


def _exchange(unit: Unit, leaving_guid: int, *, aside: str, instead: str) -> None:
    """The dataset of that guid goes from the top to `aside`; what lies at `instead` comes."""
    there = zfs.datasets()
    if unit.top in there and there[unit.top].guid == leaving_guid:
        if instead not in there:
            raise ZfsFailed(f"{instead}: is gone, so {unit.top} stays what it is")
        _unmount(unit.top, there)
        zfs.rename(unit.top, aside)
        there = zfs.datasets()
    if unit.top not in there:
        zfs.rename(instead, unit.top)
        there = zfs.datasets()
    by_guid = {dataset.guid: name for name, dataset in there.items()}
    for stray in unit.strays:
        name = by_guid.get(stray.guid)
        if name == aside + stray.path:
            zfs.rename(name, unit.top + stray.path)


def _unmount(top: str, there: Mapping[str, Dataset]) -> None:
    for name in sorted(there, reverse=True):
        if there[name].mounted and (name == top or name.startswith(f"{top}/")):
            zfs.unmount(name)


def _set_canmount(name: str, member: Member, value: str) -> None:
    if member.canmount:
        zfs.set_property(name, "canmount", value)


def _mount(unit: Unit) -> None:
    there = zfs.datasets()
    for path in unit.mounted:
        if not there[unit.top + path].mounted:
            zfs.mount(unit.top + path)
    for member in unit.members:
        name = unit.top + member.path
        if there[name].type == _VOLUME:
            zfs.wait_device(name, _DEVICE_TIMEOUT_S)


def promote(units: Iterable[Unit]) -> None:
    """Let the new datasets own the snapshots up to theirs. Raises ZfsFailed."""
    for unit in units:
        for member in unit.members:
            _promote(member.new_guid, over={member.old_guid, member.origin_guid})


def demote(units: Iterable[Unit]) -> None:
    """Give the snapshots back to whom they belonged. Raises ZfsFailed."""
    for unit in units:
        for member in unit.members:
            _promote(member.origin_guid, over={member.new_guid})
            _promote(member.old_guid, over={member.new_guid, member.origin_guid})


def _promote(guid: int, over: set[int]) -> None:
    """Promote until the dataset depends on none of `over`; not over a golden image below them."""
    for _attempt in range(1 + len(over)):
        there = zfs.datasets()
        by_guid = {dataset.guid: dataset for dataset in there.values()}
        dataset = by_guid.get(guid)
        origin = there.get(dataset.origin.partition("@")[0]) if dataset else None
        if dataset is None or origin is None or origin.guid not in over - {guid}:
            return
        zfs.promote(dataset.name)


def _parent(name: str) -> str:
    return str(PurePosixPath(name).parent)
