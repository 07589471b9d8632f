"""What a restore must know of its datasets, in as few processes as possible; and how they go.

The guest stands still meanwhile, and a host may have 10 000 datasets: only these are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.common.waiting import wait_until
from zvmsnap.zfs import mounts, programs, volume, zfs
from zvmsnap.zfs.types import FIXED, NOT_CLONED, Dataset, Room

_COLUMNS = ("name", "type", "guid", "origin", "mounted", "canmount", "encryption", "keystatus")
_OWN = ("local", "received")
_SOURCES = "local,received,inherited"
_RELEASED_WITHIN_S = 15
_POLL_S = 0.3


def below(tops: Iterable[str]) -> dict[str, Dataset]:
    """These datasets, as far as they exist, and all below them. Raises ZfsFailed.

    As of `zfs.datasets`, but without our properties, and mountpoints are the kernel's, of what is
    mounted. A dataset that is missing here may exist all the same, if its pool does not answer:
    ZFS refuses what is done to it then.
    """
    asked = sorted(set(tops))
    return _listed("-r", *asked, partial=True) if asked else {}  # without names, zfs lists all


def everything() -> dict[str, Dataset]:
    """All datasets of all imported pools, as of `below`. Raises ZfsFailed."""
    return _listed(partial=False)


def _listed(*arguments: str, partial: bool) -> dict[str, Dataset]:
    options = ("-Hp", "-t", "filesystem,volume", "-o", ",".join(_COLUMNS))
    printed = programs.output("zfs", "list", *options, *arguments, partial=partial)
    mountpoints = {mount.dataset: mount.mountpoint for mount in reversed(mounts.read_table())}
    lines = programs.lines(programs.text(printed), len(_COLUMNS))
    return {
        name: Dataset(
            name=name,
            type=kind,
            compressed=False,
            guid=int(guid),
            origin=_value(origin),
            mounted=mounted == "yes",
            mountpoint=mountpoints.get(name, ""),
            canmount=_value(canmount),
            encrypted=encryption not in ("off", "-"),
            locked=key == "unavailable",
        )
        for name, kind, guid, origin, mounted, canmount, encryption, key in lines
    }


def _value(text: str) -> str:
    return "" if text == "-" else text


def snapshot(datasets: Iterable[str], name: str) -> None:
    """Take a snapshot of that name of all these datasets; those of a pool at one instant, or none.

    By a process: to import libzfs_core takes longer. Raises ZfsFailed.
    """
    by_pool: dict[str, list[str]] = {}
    for dataset in sorted(datasets):
        by_pool.setdefault(dataset.partition("/")[0], []).append(f"{dataset}@{name}")
    for full_names in by_pool.values():
        zfs.command("snapshot", *full_names)


@dataclass(frozen=True)
class Fresh:
    """A dataset that was just made: its guid, and how many bytes of it are its own already."""

    guid: int
    written_bytes: int


def fresh(names: Sequence[str]) -> dict[str, Fresh]:
    """What ZFS says of these datasets. Raises ZfsFailed."""
    if not names:
        return {}
    printed = zfs.command("list", "-Hp", "-o", "name,guid,written", *names)
    return {
        name: Fresh(int(guid), int(written))
        for name, guid, written in programs.lines(printed, columns=3)
    }


@dataclass(frozen=True)
class Properties:
    """The properties of a dataset that a clone lacks, and where they come from.

    `own` were set on it itself, or `received` with a stream; `inherited` are set above it.
    """

    own: Mapping[str, str] = field(default_factory=dict)
    received: frozenset[str] = frozenset()
    inherited: frozenset[str] = frozenset()


def properties(names: Sequence[str]) -> dict[str, Properties]:
    """Those of each of these datasets, without those that are fixed. Raises ZfsFailed."""
    if not names:
        return {}
    columns = ("-s", _SOURCES, "-o", "name,property,source")
    printed = zfs.command("get", "-Hp", *columns, "all", *names)
    sources: dict[str, dict[str, str]] = {name: {} for name in names}
    for dataset, name, source in programs.lines(printed, columns=3):
        if name not in FIXED:
            sources[dataset][name] = source
    values: dict[str, dict[str, str]] = {name: {} for name in names}
    asked = {name for own in sources.values() for name in own if own[name] in _OWN}
    for each in programs.properties(sorted(asked), names) if asked else ():
        if sources[each.dataset].get(each.name) in _OWN:
            values[each.dataset][each.name] = each.value
    return {
        dataset: Properties(
            values[dataset],
            frozenset(name for name in own if own[name] == "received"),
            frozenset(name for name in own if own[name] not in _OWN),
        )
        for dataset, own in sources.items()
    }


def cloned_properties(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Those that a clone which lives beside its origin has, too, of each of these datasets.

    No user properties: by these, tools would snapshot and replicate the clone. Raises ZfsFailed.
    """
    return {
        dataset: {
            name: value
            for name, value in each.own.items()
            if name not in NOT_CLONED and ":" not in name
        }
        for dataset, each in properties(names).items()
    }


def set_on(datasets: Iterable[str], values: Mapping[str, str]) -> None:
    """Set these properties on all of these datasets. Raises ZfsFailed."""
    named = tuple(datasets)
    if named and values:
        zfs.command("set", *(f"{name}={value}" for name, value in values.items()), *named)


def rooms(datasets: Iterable[str]) -> dict[str, Room]:
    """The room of each of these datasets. Raises ZfsFailed."""
    asked = sorted(set(datasets))
    if not asked:
        return {}
    names = ",".join(Room.__struct_fields__)
    numbers: dict[str, dict[str, int]] = {dataset: {} for dataset in asked}
    printed = zfs.command("get", "-Hp", "-o", "value,property,name", names, *asked)
    for value, name, dataset in programs.lines(printed, columns=3):
        numbers[dataset][name] = int(value) if value.isdigit() else 0
    return {dataset: Room(**fields) for dataset, fields in numbers.items()}


class Clones:
    """Which dataset is a clone of which, by guids; what is known follows each promotion."""

    def __init__(self) -> None:
        self._taken_by: dict[int, int] = {}
        self._list()

    def _list(self) -> None:
        listed = zfs.lineages()
        self._names = {each.guid: name for name, each in listed.items()}
        guids = {name: each.guid for name, each in listed.items()}
        self._origins = {each.guid: guids.get(each.origin) for each in listed.values()}

    def promote(self, guid: int, over: int) -> None:
        """Promote the dataset, if it is a clone of a snapshot of the other one."""
        if self._taken_by.setdefault(over, guid) != guid:
            self._list()  # snapshots went to another dataset, and with them any clones of these
        if self._origins.get(guid) == over:
            zfs.promote(self._names[guid])
            self._origins[guid], self._origins[over] = self._origins[over], guid


def destroy_released(dataset: str, *, with_snapshots: bool) -> None:
    """Destroy a dataset, waiting until nobody uses it any more. Raises ZfsFailed.

    QEMU and udev may have it open a little longer.
    """
    failure: ZfsFailed | None = None

    def destroyed() -> bool:
        nonlocal failure
        try:
            zfs.destroy(dataset, with_snapshots=with_snapshots)
            return True
        except ZfsFailed as error:
            failure = error
            return False

    if wait_until(destroyed, _RELEASED_WITHIN_S, _POLL_S) or not failure:
        return
    if held := volume.held_by(dataset):
        raise ZfsFailed(
            f"{dataset}: this host has it open itself, as {', '.join(held)}: deactivate that "
            "(vgchange -an GROUP), and keep LVM away from volumes: global_filter in lvm.conf"
        ) from failure
    raise failure
