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

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import PurePosixPath

import msgspec

from zvmsnap.common.errors import RestoreImpossible, ZfsFailed
from zvmsnap.common.snapshot_name import FullName, is_within
from zvmsnap.zfs import belongings, volume, zfs
from zvmsnap.zfs.belongings import Belongings
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
    paths below the top of all filesystems that were mounted.
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
        mounted=tuple(n.removeprefix(top) for n in sorted(below) if datasets[n].mounted),
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


def make_clones(trees: Iterable[SwapTree]) -> tuple[SwapTree, ...]:
    """Make the clones; returns the trees with the clones' guids. Raises ZfsFailed."""
    return tuple(_make_clones(tree) for tree in trees)


def _make_clones(tree: SwapTree) -> SwapTree:
    existing = zfs.datasets()
    names = [tree.top + each.path for each in tree.datasets]
    properties = zfs.local_properties(names)
    of_names = belongings.observe(names)
    for each in tree.datasets:
        name = tree.clone_top + each.path
        if name in existing:
            continue
        noauto = {"canmount": "noauto"} if each.canmount else {}
        own = belongings.without(properties[tree.top + each.path]) | noauto
        # Set on received datasets; a guest writes to its disks.
        own.pop("readonly", None)
        zfs.clone(each.origin, name, own)
    existing = zfs.datasets()
    return msgspec.structs.replace(
        tree,
        datasets=tuple(
            msgspec.structs.replace(
                each,
                new_guid=existing[tree.clone_top + each.path].guid,
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
            zfs.destroy(name, with_snapshots=True)


def swap(trees: Iterable[SwapTree]) -> None:
    """Let the names hold the clones. Raises ZfsFailed, as when somebody works in a filesystem."""
    trees = tuple(trees)
    for tree in trees:
        top = tree.datasets[0]
        _exchange(
            tree, top.old_guid, top.new_guid, out_to=tree.replaced_top, in_from=tree.clone_top
        )
    for tree in trees:
        _mount(tree, out=tree.replaced_top)
        for each in tree.datasets:
            belongings.take_from(tree.replaced_top + each.path, each.belongings)
            belongings.give_to(tree.top + each.path, each.belongings)


def swap_back(trees: Iterable[SwapTree]) -> None:
    """Let the names hold the replaced datasets again. Raises ZfsFailed."""
    cloned = [tree for tree in trees if tree.datasets[0].new_guid]
    for tree in reversed(cloned):
        top = tree.datasets[0]
        # If neither name exists, it is below the renamed top of the tree above, which comes next.
        if {tree.top, tree.replaced_top} & zfs.datasets().keys():
            _exchange(
                tree, top.new_guid, top.old_guid, out_to=tree.clone_top, in_from=tree.replaced_top
            )
    for tree in cloned:
        _mount(tree, out=tree.clone_top)
        for each in tree.datasets:
            belongings.give_back(tree.top + each.path, each.belongings)


def _exchange(tree: SwapTree, out_guid: int, in_guid: int, *, out_to: str, in_from: str) -> None:
    """Rename one dataset from the top to `out_to`, the other from `in_from` to the top."""
    existing = zfs.datasets()
    at_top = existing[tree.top].guid if tree.top in existing else None
    if at_top not in (None, out_guid, in_guid):
        raise ZfsFailed(f"{tree.top}: is a dataset that somebody has made meanwhile; rename it")
    if at_top == out_guid and in_from not in existing:
        raise ZfsFailed(f"{in_from}: is gone, so {tree.top} stays what it is")
    # A host that booted between two of these steps has mounted datasets that are not at the top.
    if at_top == out_guid or _mounted(existing, out_to, in_from):
        _unmount(_mounted(existing, tree.top, out_to, in_from))
    if at_top == out_guid:
        zfs.rename(tree.top, out_to)
    if at_top != in_guid:
        zfs.rename(in_from, tree.top)
    names = {dataset.guid: name for name, dataset in zfs.datasets().items()}
    for bystander in tree.bystanders:
        name = names.get(bystander.guid)
        if name == out_to + bystander.path:
            zfs.rename(name, tree.top + bystander.path)


def _mounted(existing: Mapping[str, Dataset], *tops: str) -> list[Dataset]:
    return [
        dataset
        for name, dataset in existing.items()
        if dataset.mounted and any(is_within(name, top) for top in tops)
    ]


def _unmount(mounted: Iterable[Dataset]) -> None:
    for dataset in sorted(mounted, key=_mountpoint, reverse=True):
        zfs.unmount(dataset.name)


def _mount(tree: SwapTree, *, out: str) -> None:
    """Mount again what was mounted at the top, and let no boot mount the datasets at `out`."""
    existing = zfs.datasets()
    for each in tree.datasets:
        if out + each.path in existing:
            _set_canmount(out + each.path, each, "noauto")
        _set_canmount(tree.top + each.path, each, each.canmount)
    were_mounted = [
        existing[tree.top + path] for path in tree.mounted if tree.top + path in existing
    ]
    for dataset in sorted(were_mounted, key=_mountpoint):
        if not dataset.mounted:
            zfs.mount(dataset.name)
    for each in tree.datasets:
        name = tree.top + each.path
        if existing[name].type == _VOLUME:
            volume.wait_device(name, DEVICE_TIMEOUT_S)
            volume.rename_partitions(name)
            volume.rename_partitions(out + each.path)


def _set_canmount(name: str, dataset: SwapDataset, value: str) -> None:
    if dataset.canmount:
        zfs.set_property(name, "canmount", value)


def promote(trees: Iterable[SwapTree]) -> None:
    """Let the clones own the snapshots up to theirs, and reservations. Raises ZfsFailed."""
    trees = tuple(trees)
    for dataset in _datasets(trees):
        for guid in dataset.promoted_over:
            _promote(dataset.new_guid, over=guid)
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
    for dataset in reversed(_datasets(trees)):
        for guid in reversed(dataset.promoted_over):
            _promote(guid, over=dataset.new_guid)


def _datasets(trees: Iterable[SwapTree]) -> list[SwapDataset]:
    return [dataset for tree in trees for dataset in tree.datasets]


def _promote(guid: int, over: int) -> None:
    """Promote the dataset, if it is a clone of a snapshot of the other one (guids)."""
    existing = zfs.datasets()
    dataset = next((each for each in existing.values() if each.guid == guid), None)
    origin = existing.get(_dataset(dataset.origin)) if dataset else None
    if dataset and origin and origin.guid == over:
        zfs.promote(dataset.name)


def _dataset(snapshot: str) -> str:
    return snapshot.partition("@")[0]


def _mountpoint(dataset: Dataset) -> str:
    """The sort key: one mountpoint may be inside another, whatever the datasets' names are."""
    return dataset.mountpoint


def _parent(name: str) -> str:
    return str(PurePosixPath(name).parent)
