"""Swap datasets: a name comes to hold a clone, and the dataset that held it gets another name.

For each swap tree, a dataset with those below it that hold disks of the same guest:

    make_clones   clones of the snapshots, as <top>.zvmsnap-<id>, with the properties of the
                  replaced datasets
    swap          <top> becomes <top>.before-<time>, the clones become <top>; other datasets below
                  it keep their names; filesystems that were mounted are mounted again; what belongs
                  to the name goes with it (belongings)
    promote       the clones own the snapshots up to theirs, so that history stays with the name,
                  and so do reservations

Each may be repeated after any interruption, and undone: the guids of datasets, which outlive
renames, tell where everything is now. Newer snapshots stay with the replaced datasets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import PurePosixPath

import msgspec

from zvmsnap.common.errors import RestoreImpossible, ZfsFailed
from zvmsnap.common.snapshot_name import FullName, is_within
from zvmsnap.zfs import belongings, branches, volume, zfs
from zvmsnap.zfs.belongings import Belongings
from zvmsnap.zfs.branches import Fresh, Properties
from zvmsnap.zfs.types import Dataset, Snapshot

_VOLUME = "volume"
DEVICE_TIMEOUT_S = 30


class SwapDataset(msgspec.Struct, frozen=True):
    """A dataset of a swap tree: `path` below the top ("" for the top itself), and its new content.

    `origin` is the snapshot that becomes the content. `ancestor_guids` are of the datasets from
    which its dataset was cloned, one from the other, down to the one that is replaced: earlier
    restores. None if it does not come from that one, but from a golden image for instance.
    `belongings` are of the name, when the clone was made.
    """

    path: str
    old_guid: int
    canmount: str
    origin: FullName
    origin_guid: int
    new_guid: int = 0
    ancestor_guids: tuple[int, ...] = ()
    belongings: Belongings = Belongings()

    @property
    def promoted_over(self) -> tuple[int, ...]:
        """Guids of the datasets over which the clone is promoted, in this order."""
        return (self.origin_guid, *self.ancestor_guids)


class Bystander(msgspec.Struct, frozen=True):
    """A dataset below swapped ones that is not swapped itself: it keeps its name."""

    path: str
    guid: int


class SwapTree(msgspec.Struct, frozen=True):
    """Datasets that are swapped by one rename of their top.

    The clones are made as `clone_top`; the replaced datasets end as `replaced_top`. `mounted` are
    paths below the top of all filesystems that were mounted, in the order in which they can be.
    """

    top: FullName
    clone_top: FullName
    replaced_top: FullName
    datasets: tuple[SwapDataset, ...]
    bystanders: tuple[Bystander, ...]
    mounted: tuple[str, ...]


def stamp_of(now: datetime) -> str:
    """The time of a replacement, as names have it; local time."""
    return f"{now.astimezone():%Y%m%dT%H%M%S}"


def name_before(dataset: str, stamp: str) -> str:
    """The name that a replaced dataset gets; `stamp` is the time of the replacement."""
    return f"{dataset}.before-{stamp}"


def plan(
    wanted: Mapping[str, Snapshot], datasets: Mapping[str, Dataset], number: str, stamp: str
) -> tuple[SwapTree, ...]:
    """Swap trees that let each dataset of `wanted` hold its snapshot. Pure.

    Raises RestoreImpossible for datasets that cannot be swapped.
    """
    tops = sorted(name for name in wanted if _parent(name) not in wanted)
    return tuple(_plan_tree(top, wanted, datasets, number, stamp) for top in tops)


def _plan_tree(
    top: str,
    wanted: Mapping[str, Snapshot],
    datasets: Mapping[str, Dataset],
    number: str,
    stamp: str,
) -> SwapTree:
    if "/" not in top:
        raise RestoreImpossible(
            f"{top} is a whole pool, which cannot be renamed: zvmsnap clone, or --rollback"
        )
    below = [name for name in datasets if is_within(name, top)]
    swapped = _connected(top, wanted)
    for name in below:
        if datasets[name].mounted and datasets[name].mountpoint == "legacy":
            raise RestoreImpossible(
                f"{name} is mounted by /etc/fstab (mountpoint=legacy), which only you can "
                "do again: zvmsnap clone, or --rollback"
            )
    return SwapTree(
        top=top,
        clone_top=f"{top}.zvmsnap-{number}",
        replaced_top=name_before(top, stamp),
        datasets=tuple(_plan_dataset(top, name, wanted[name], datasets) for name in swapped),
        bystanders=tuple(
            Bystander(name.removeprefix(top), datasets[name].guid)
            for name in below
            if name not in swapped and _parent(name) in swapped
        ),
        mounted=tuple(
            name.removeprefix(top)
            for name in sorted(below, key=lambda name: (datasets[name].mountpoint, name))
            if datasets[name].mounted
        ),
    )


def _connected(top: str, wanted: Iterable[str]) -> list[str]:
    """`top`, and the wanted ones below it without a gap, parents first."""
    connected = [top]
    for name in sorted(wanted):
        if _parent(name) in connected:
            connected.append(name)
    return connected


def _plan_dataset(
    top: str, name: str, origin: Snapshot, datasets: Mapping[str, Dataset]
) -> SwapDataset:
    return SwapDataset(
        path=name.removeprefix(top),
        old_guid=datasets[name].guid,
        canmount=datasets[name].canmount,
        origin=origin.full_name,
        origin_guid=datasets[origin.dataset].guid,
        ancestor_guids=_ancestor_guids(datasets[origin.dataset], datasets[name].guid, datasets),
    )


def _ancestor_guids(
    dataset: Dataset, old_guid: int, datasets: Mapping[str, Dataset]
) -> tuple[int, ...]:
    guids: list[int] = []
    while dataset.guid != old_guid:
        origin = datasets.get(_dataset(dataset.origin))
        if origin is None:
            return ()
        guids.append(origin.guid)
        dataset = origin
    return tuple(guids)


def make_clones(trees: Iterable[SwapTree]) -> tuple[tuple[SwapTree, ...], dict[str, int]]:
    """Make the clones.

    Returns the trees with the clones' guids, and for each name how many bytes of its clone are its
    own already. Raises ZfsFailed.
    """
    trees = tuple(trees)
    clones = {
        tree.top + each.path: tree.clone_top + each.path for tree in trees for each in tree.datasets
    }
    properties = branches.properties(list(clones))
    of_names = belongings.of(properties)
    for tree in trees:
        _make_clones(tree, properties)
    made = branches.fresh(list(clones.values()))
    written_bytes = {name: made[clone].written_bytes for name, clone in clones.items()}
    return tuple(_known_clones(tree, made, of_names) for tree in trees), written_bytes


def _make_clones(tree: SwapTree, properties: Mapping[str, Properties]) -> None:
    for each in tree.datasets:
        noauto = {"canmount": "noauto"} if each.canmount else {}
        own = belongings.without(properties[tree.top + each.path].own) | noauto
        # Set on received datasets; a guest writes to its disks.
        own.pop("readonly", None)
        name = tree.clone_top + each.path
        try:
            zfs.clone(each.origin, name, own)
        except ZfsFailed:
            if name not in branches.below([name]):  # else it was made before
                raise


def _known_clones(
    tree: SwapTree, made: Mapping[str, Fresh], of_names: Mapping[str, Belongings]
) -> SwapTree:
    return msgspec.structs.replace(
        tree,
        datasets=tuple(
            msgspec.structs.replace(
                each,
                new_guid=made[tree.clone_top + each.path].guid,
                belongings=of_names[tree.top + each.path],
            )
            for each in tree.datasets
        ),
    )


def destroy_clones(trees: Iterable[SwapTree]) -> None:
    """Destroy the clones that `make_clones` made.

    Raises ZfsFailed, also for one that still owns the snapshots that `promote` gave it.
    """
    existing = zfs.datasets()
    for tree in trees:
        for each in reversed(tree.datasets):
            name = tree.clone_top + each.path
            if name not in existing:
                continue
            origin = existing.get(_dataset(existing[name].origin))
            if origin is None or origin.guid != each.origin_guid:
                raise ZfsFailed(f"{name}: is kept, as it owns snapshots of {tree.top}{each.path}")
            # A sanoid that came by may have taken snapshots of it: nobody's data is in them.
            branches.destroy_released(name, with_snapshots=True)


def swap(trees: Iterable[SwapTree]) -> None:
    """Let the names hold the clones. Raises ZfsFailed, as when somebody works in a filesystem."""
    trees = tuple(trees)
    existing = _existing(trees)
    for tree in trees:
        top = tree.datasets[0]
        guids = (top.old_guid, top.new_guid)
        _exchange(tree, existing, guids, out_to=tree.replaced_top, in_from=tree.clone_top)
    outs = {tree.top: tree.replaced_top for tree in trees}
    _mount(trees, existing, outs)
    belongings.take_from(
        {outs[tree.top] + each.path: each.belongings for tree in trees for each in tree.datasets}
    )
    for tree in trees:
        for each in tree.datasets:
            belongings.give_to(tree.top + each.path, each.belongings)


def swap_back(trees: Iterable[SwapTree]) -> None:
    """Let the names hold the replaced datasets again. Raises ZfsFailed."""
    cloned = [tree for tree in trees if tree.datasets[0].new_guid]
    existing = _existing(cloned)
    for tree in reversed(cloned):
        top = tree.datasets[0]
        guids = (top.new_guid, top.old_guid)
        # If neither name exists, it is below the renamed top of the tree above, which comes next.
        if {tree.top, tree.replaced_top} & existing.keys():
            _exchange(tree, existing, guids, out_to=tree.clone_top, in_from=tree.replaced_top)
    _mount(cloned, existing, {tree.top: tree.clone_top for tree in cloned})
    for tree in cloned:
        for each in tree.datasets:
            belongings.give_back(tree.top + each.path, each.belongings)


def _existing(trees: Sequence[SwapTree]) -> dict[str, Dataset]:
    tops = (each for tree in trees for each in (tree.top, tree.clone_top, tree.replaced_top))
    existing = branches.below(tops)
    if trees and not existing:
        raise ZfsFailed(f"{trees[0].top}: zfs lists neither it nor its clone: zpool status -x")
    return existing


def _exchange(
    tree: SwapTree,
    existing: dict[str, Dataset],
    guids: tuple[int, int],
    *,
    out_to: str,
    in_from: str,
) -> None:
    """Rename one dataset from the top to `out_to`, the other from `in_from` to the top.

    `guids` are theirs. What is known as `existing` follows.
    """
    out_guid, in_guid = guids
    at_top = existing[tree.top].guid if tree.top in existing else None
    if at_top not in (None, out_guid, in_guid):
        raise ZfsFailed(f"{tree.top}: is a dataset that somebody has made meanwhile; rename it")
    if at_top == out_guid and in_from not in existing:
        raise ZfsFailed(f"{in_from}: is gone, so {tree.top} stays what it is")
    # A host that booted between two of these steps has mounted datasets that are not at the top.
    if at_top == out_guid or _mounted(existing, out_to, in_from):
        _unmount(existing, _mounted(existing, tree.top, out_to, in_from))
    if at_top == out_guid:
        _rename(existing, tree.top, out_to)
    if at_top != in_guid:
        _rename(existing, in_from, tree.top)
    names = {dataset.guid: name for name, dataset in existing.items()}
    for bystander in tree.bystanders:
        name = names.get(bystander.guid)
        if name == out_to + bystander.path:
            _rename(existing, name, tree.top + bystander.path)


def _rename(existing: dict[str, Dataset], name: str, new_name: str) -> None:
    zfs.rename(name, new_name)
    for each in [each for each in existing if is_within(each, name)]:
        existing[new_name + each.removeprefix(name)] = existing.pop(each)


def _mounted(existing: Mapping[str, Dataset], *tops: str) -> list[str]:
    return [
        name
        for name, dataset in existing.items()
        if dataset.mounted and any(is_within(name, top) for top in tops)
    ]


def _unmount(existing: dict[str, Dataset], mounted: Iterable[str]) -> None:
    """One mountpoint may be inside another, whatever the datasets' names are."""
    for name in sorted(mounted, key=lambda name: existing[name].mountpoint, reverse=True):
        zfs.unmount(name)
        existing[name] = replace(existing[name], mounted=False)


def _mount(
    trees: Sequence[SwapTree], existing: dict[str, Dataset], outs: Mapping[str, str]
) -> None:
    """Mount again what was mounted at the tops, and let no boot mount the datasets at `outs`."""
    swapped = [(tree, each) for tree in trees for each in tree.datasets]
    out_names = (outs[tree.top] + each.path for tree, each in swapped if each.canmount)
    branches.set_on((name for name in out_names if name in existing), {"canmount": "noauto"})
    for value in sorted({each.canmount for _, each in swapped} - {""}):
        names = (tree.top + each.path for tree, each in swapped if each.canmount == value)
        branches.set_on(names, {"canmount": value})
    for tree in trees:
        for path in tree.mounted:
            name = tree.top + path
            if name in existing and not existing[name].mounted:
                zfs.mount(name)
                existing[name] = replace(existing[name], mounted=True)
    for tree, each in swapped:
        name = tree.top + each.path
        if existing[name].type == _VOLUME:
            volume.wait_device(name, DEVICE_TIMEOUT_S)
            volume.rename_partitions(name)
            volume.rename_partitions(outs[tree.top] + each.path)


def promote(trees: Iterable[SwapTree]) -> None:
    """Let the clones own the snapshots up to theirs, and reservations. Raises ZfsFailed."""
    trees = tuple(trees)
    clones = branches.Clones()
    for dataset in _datasets(trees):
        for guid in dataset.promoted_over:
            clones.promote(dataset.new_guid, over=guid)
    # Only now, as what a dataset's snapshots use counts as used of its reservation.
    for tree in trees:
        for each in tree.datasets:
            belongings.reserve(tree.top + each.path, each.belongings)


def demote(trees: Iterable[SwapTree]) -> None:
    """Give the snapshots back to the datasets that owned them. Raises ZfsFailed."""
    trees = tuple(trees)
    for tree in trees:
        for each in tree.datasets:
            belongings.drop_reservations(tree.top + each.path, each.belongings)
    clones = branches.Clones()
    for dataset in reversed(_datasets(trees)):
        for guid in reversed(dataset.promoted_over):
            clones.promote(guid, over=dataset.new_guid)


def _datasets(trees: Iterable[SwapTree]) -> list[SwapDataset]:
    return [dataset for tree in trees for dataset in tree.datasets]


def _dataset(snapshot: str) -> str:
    return snapshot.partition("@")[0]


def _parent(name: str) -> str:
    return str(PurePosixPath(name).parent)
