"""What is checked before a restore stops anything. It judges what was observed.

Pure, but for `check_images`, which reads images of the snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from zvmsnap.common import snapshot_name
from zvmsnap.common.errors import RestoreImpossible, WrongDisk
from zvmsnap.inventory.beyond import beyond, is_in
from zvmsnap.inventory.own_images import OwnImages
from zvmsnap.inventory.resource import Resource
from zvmsnap.journal.operation import RestoreOperation
from zvmsnap.points import compatibility, definition
from zvmsnap.points.manifest import Manifest, Memory
from zvmsnap.points.point import RestorePoint
from zvmsnap.restore.observe import Observed
from zvmsnap.virt import domain_xml
from zvmsnap.zfs import dataset_swap, mounts, volume
from zvmsnap.zfs.dataset_swap import SwapTree


def check_host(point: RestorePoint, observed: Observed, *, with_memory: bool) -> None:
    """The guest and its disks can be put back on this host. Raises RestoreImpossible."""
    compatibility.refuse_unidentified(point, RestoreImpossible)
    _check_identity(point.manifest, observed)
    _check_keys(observed)
    _check_other_guests(observed)
    _check_other_disks(point, observed)
    hint = "; --cold boots from the disks" if with_memory and observed.fits_cold else ""
    _check_other_state(point.manifest, observed)
    compatibility.refuse_misfits(point, observed.misfits, RestoreImpossible, hint)


def _check_identity(manifest: Manifest, observed: Observed) -> None:
    """The name and the UUID belong together. Raises RestoreImpossible."""
    for other in observed.others:
        if other.name == manifest.domain:
            raise RestoreImpossible(
                f"{other.name}: another guest has this name now (UUID {other.uuid}): rename it, "
                "or zvmsnap clone the point under another name"
            )
    replaced = observed.replaced
    if replaced and replaced.name != manifest.domain:
        raise RestoreImpossible(
            f"{manifest.domain}: the guest is called {replaced.name} now: virsh domrename "
            f"{replaced.name} {manifest.domain}, or zvmsnap clone the point"
        )
    if replaced and replaced.has_saved_ram:
        raise RestoreImpossible(
            f"{replaced.name}: has RAM in a managed save image, which would be loaded over "
            f"the restored disks: start it, or virsh managedsave-remove {replaced.name}"
        )


def _check_keys(observed: Observed) -> None:
    for name in observed.snapshots:
        if observed.datasets[name].locked:
            raise RestoreImpossible(f"{name}: its key is not loaded: zfs load-key {name}")


def _check_other_guests(observed: Observed) -> None:
    """No other guest's disk may be restored with it. Raises RestoreImpossible."""
    restored = observed.snapshots.keys()
    for other in observed.others:
        for target, place in other.disks.places:
            if place.dataset in restored:
                raise RestoreImpossible(
                    f"{place.dataset} also holds {target} of {other.name}, which would be "
                    "restored too: zvmsnap clone makes a machine of its own"
                )
            if other.is_active and any(place.dataset.startswith(f"{top}/") for top in restored):
                raise RestoreImpossible(
                    f"{other.name} runs on {place.dataset}, which is below a dataset that is "
                    "renamed: stop it, or zvmsnap clone"
                )


def check_rollback(observed: Observed) -> None:
    """Nothing prevents `zfs rollback -r`. Raises RestoreImpossible."""
    for name, snapshot in observed.snapshots.items():
        if snapshot.dataset != name:
            raise RestoreImpossible(
                f"{snapshot.full_name} is no snapshot of {name} any more: restore without "
                "--rollback"
            )
    for usage in observed.newer:
        if usage.clones or usage.holds:
            why = f"has the clone {usage.clones[0]}" if usage.clones else "is held (zfs holds)"
            raise RestoreImpossible(
                f"{usage.snapshot.full_name} is newer, and {why}: end that, or restore without "
                "--rollback"
            )


def _check_other_disks(point: RestorePoint, observed: Observed) -> None:
    """The disks that are no part of the point are still there: it does not start without them."""
    # Of the next start alone, but in datasets that are restored.
    come_back = {disk.source for disk in observed.next_disks}
    for disk in observed.other_disks:
        if disk.is_missing and disk.disk.writable and disk.disk.source not in come_back:
            raise RestoreImpossible(
                f"{point.name}: its disk {disk.disk.target} is no part of the point, and "
                f"{disk.disk.source} does not exist any more: zvmsnap clone"
            )


def _check_other_state(manifest: Manifest, observed: Observed) -> None:
    """State that is no disk is found where the definition, or an image, names it.

    A disk gets the path of its dataset of now. What has the data of an image is named in that.
    """
    for state in manifest.other_state:
        current = state.dataset if state.why else observed.current[state.dataset]
        if current != state.dataset:
            raise RestoreImpossible(
                f"{current}: has the {state.called}, which the guest opens as {state.place}: "
                f"zfs rename {current} {state.dataset} first"
            )


def reached(operation: RestoreOperation, observed: Observed) -> list[str]:
    """What the definitions, with its restored disks, reach of the host beyond what the guest has.

    Beyond its own is not what the guest that is replaced has already.
    """
    is_own = _owner(operation, observed)
    definitions = _restored_definitions(operation, observed)
    replaced = observed.replaced.definitions if observed.replaced else ()
    has = {what for xml in replaced for what in beyond(xml, is_own)}
    wanted = dict.fromkeys(what for xml in definitions for what in beyond(xml, is_own))
    return [what for what in wanted if what not in has]


def _restored_definitions(operation: RestoreOperation, observed: Observed) -> Iterator[str]:
    next_sources = operation.sources if operation.next_sources is None else operation.next_sources
    changed = (next_sources, operation.sources)
    return map(domain_xml.with_sources, observed.definitions, changed)


def check_images(point: RestorePoint, operation: RestoreOperation, observed: Observed) -> None:
    """The images of a point that may come from elsewhere name no others than the guest's own.

    As far as that can be seen before they are restored: in volumes, and in filesystems that are not
    mounted, it cannot, and all is undone if they do. Raises RestoreImpossible.
    """
    not_ours = f"{point.name}: was not made on this host, as far as it knows"
    is_stopped = observed.replaced is not None and observed.replaced.is_active
    if operation.rollback and (is_stopped or observed.newer):
        raise RestoreImpossible(
            f"{not_ours}, and a rollback cannot be undone if its disks name files of this host: "
            "restore without --rollback, or say --trust"
        )
    seen_in = {}
    for name, snapshot in observed.snapshots.items():
        if observed.datasets[name].type == "filesystem":
            mountpoint = mounts.mountpoint_of(name, observed.mounts)
            directory = mounts.snapshot_directory(snapshot, observed.mounts)
            if mountpoint is None or directory is None:
                return
            seen_in[Path(mountpoint)] = directory
    # What is in a filesystem that is mounted below another one is not in that one's snapshot.
    # What was just fetched is rolled back to what it is already, so its volumes can be looked at.
    volumes = tuple(map(volume.device_of, observed.snapshots)) if operation.rollback else ()
    inner_first = sorted(seen_in, key=lambda path: len(path.parts), reverse=True)
    images = OwnImages(inner_first, volumes, seen_in={top: seen_in[top] for top in inner_first})
    try:
        for xml in _restored_definitions(operation, observed):
            images.check(xml)
    except WrongDisk as error:
        raise RestoreImpossible(
            f"{not_ours}, and {error}; if that is right, say --trust"
        ) from error


def _owner(operation: RestoreOperation, observed: Observed) -> Callable[[Resource], bool]:
    """Says of an image, or of firmware, whether it is the restored guest's own."""
    is_firmware = definition.own_firmware(operation.domain, operation.uuid)
    directories = mountpoints(observed)
    places = (*operation.restored_locations.values(), *(operation.next_disks or {}).values())
    devices = {volume.device_of(each.dataset, each.partition) for each in places if not each.path}

    return is_in(directories, devices, is_firmware)


def mountpoints(observed: Observed) -> list[Path]:
    """Of the datasets that are restored."""
    found = (mounts.mountpoint_of(name, observed.mounts) for name in observed.snapshots)
    return [Path(mountpoint) for mountpoint in found if mountpoint]


def firmware_dirs(operation: RestoreOperation, observed: Observed) -> tuple[str, ...]:
    """Where the firmware of a point that may come from elsewhere can be put."""
    replaced = observed.replaced.definitions if observed.replaced else ()
    known = (definition.firmware_dirs_of(xml, operation.uuid) for xml in replaced)
    directories = (*definition.firmware_dirs(), *mountpoints(observed), *chain(*known))
    return tuple(dict.fromkeys(map(str, directories)))


def check_directories(operation: RestoreOperation, observed: Observed) -> None:
    """None of our own directories moves with the restored datasets. Raises RestoreImpossible."""
    rolled_back = {snapshot.partition("@")[0] for snapshot in operation.rollback}
    for name, dataset in observed.own_directories.items():
        # All that is below a swapped dataset is unmounted for a while.
        moves = any(snapshot_name.is_within(dataset, tree.top) for tree in operation.swap_trees)
        if moves or dataset in rolled_back:
            raise RestoreImpossible(
                f"{name} is on {dataset}, which would be restored, too: move it to another "
                "dataset first, or zvmsnap clone the point"
            )


def check_room(operation: RestoreOperation, memory: Memory | None, observed: Observed) -> None:
    """There is room for what is known to be needed. Raises RestoreImpossible.

    In staging for the RAM of the replaced guest, and for the image that is made of stored pages, or
    unpacked. In the pool for reservations: what is set aside has none, but what was written stays
    used, and is reserved once more for the restored dataset.
    """
    replaced, needed_bytes = observed.replaced, 0
    if replaced and operation.saves_memory:
        needed_bytes += replaced.disks.domain.memory_kib << 10
    if memory and operation.memory and not memory.is_loadable:
        needed_bytes += memory.image_bytes
    if needed_bytes > observed.staging_free_bytes:
        raise RestoreImpossible(
            f"staging has {observed.staging_free_bytes >> 20} MiB free, and the RAM needs "
            f"{needed_bytes >> 20} MiB: free space there, or set `staging` to another file system"
        )
    for tree in operation.swap_trees:
        needed_bytes = sum(
            observed.rooms[tree.top + dataset.path].reserved_again for dataset in tree.datasets
        )
        parent = tree.top.rpartition("/")[0]
        above = observed.rooms.get(parent)
        # A refquota hides how much room those below have.
        if above is None or above.refquota or needed_bytes <= above.available:
            continue
        raise RestoreImpossible(
            f"{tree.top}: its reservations need {_mib(needed_bytes)} MiB once more, for what is "
            f"set aside is kept, and {parent} has {_mib(above.available)} MiB left: free that, "
            "raise its quota, or restore with --rollback, which needs none"
            + _reserving(tree, observed)
        )


def _reserving(tree: SwapTree, observed: Observed) -> str:
    """What older versions have set aside, and left its reservations: how to free these."""
    names = [
        name
        for name, room in observed.rooms.items()
        if name.startswith(dataset_swap.name_before(tree.top, ""))
        and (room.reservation or room.refreservation)
    ]
    if not names:
        return ""
    return (
        "; what an earlier restore has set aside needs no reservation: zfs set reservation=none "
        f"refreservation=none {' '.join(sorted(names))}"
    )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f}"


def check_names(operation: RestoreOperation, observed: Observed) -> None:
    """No name that will be made is too long for ZFS. Raises RestoreImpossible."""
    if why := snapshot_name.too_long(_new_names(operation, observed)):
        raise RestoreImpossible(
            f"{why}: zfs rename its dataset to a shorter name, or restore with --rollback"
        )


def _new_names(operation: RestoreOperation, observed: Observed) -> Iterator[str]:
    """All names that datasets and snapshots get, also for a while."""
    for tree in operation.swap_trees:
        yield from (tree.clone_top + swapped.path for swapped in tree.datasets)
        # All that is below is renamed with it, and its snapshots, too.
        for name in (*observed.datasets, *(each.full_name for each in observed.present)):
            if snapshot_name.is_within(name.partition("@")[0], tree.top):
                yield tree.replaced_top + name.removeprefix(tree.top)
    if safety := operation.safety_entry:
        tops = {tree.top: tree.replaced_top for tree in operation.swap_trees}
        for dataset in safety.request_datasets:
            yield f"{dataset}@{safety.run}"
            for top, replaced_top in tops.items():
                if snapshot_name.is_within(dataset, top):
                    yield f"{replaced_top}{dataset.removeprefix(top)}@{safety.run}"
