"""A clone goes: exactly what `zvmsnap clone` made, never anything else."""

from __future__ import annotations

import time

from zvmsnap.clone import domain_xml as clone_xml
from zvmsnap.common.errors import CloneImpossible, GuestNotFound, LibvirtFailed, ZfsFailed
from zvmsnap.virt.host import Host
from zvmsnap.zfs import zfs

CLONE_PROPERTY = "zvmsnap:clone"
_RELEASED_AFTER_S = 15
_LOOK_EVERY_S = 0.3


def destroy_clone(hypervisor: Host, name: str, *, with_snapshots: bool = False) -> list[str]:
    """Remove a clone: exactly what `clone` made. Returns the datasets that are gone.

    Raises GuestNotFound if there is no clone of that name, CloneImpossible, with nothing touched,
    if something that `clone` did not make is in the way.
    """
    datasets = sorted(each for each, value in zfs.marked(CLONE_PROPERTY).items() if value == name)
    guest = next((guest for guest in hypervisor.guests() if guest.name == name), None)
    if guest and clone_xml.cloned_from(guest.xml()) is None:
        raise CloneImpossible(
            f"{name}: this guest is no clone that zvmsnap made; nothing is removed"
        )
    if not guest and not datasets:
        raise GuestNotFound(f"{name}: there is no clone of that name")
    _check_nothing_else(datasets, with_snapshots=with_snapshots)
    if guest:
        if guest.is_active():
            guest.destroy()
        guest.undefine()
    for dataset in reversed(datasets):
        destroy_dataset(dataset, with_snapshots=with_snapshots)
    _leave_network(hypervisor)
    return datasets


def _check_nothing_else(datasets: list[str], *, with_snapshots: bool) -> None:
    if not datasets:
        return
    for each in zfs.datasets():
        if each not in datasets and any(each.startswith(f"{own}/") for own in datasets):
            raise CloneImpossible(f"{each}: lies below a clone, but is none; move or destroy it")
    for use in zfs.snapshot_usage(datasets):
        full_name = use.snapshot.full_name
        if use.clones:
            raise CloneImpossible(f"{full_name}: {use.clones[0]} depends on it; destroy that first")
        if not with_snapshots:
            raise CloneImpossible(
                f"{full_name}: is a snapshot of the clone, not made by zvmsnap: zfs destroy "
                f"{full_name.partition('@')[0]}@% destroys all of them"
            )


def destroy_dataset(dataset: str, *, with_snapshots: bool) -> None:
    """Destroy a dataset that QEMU or udev may hold for a moment still. Raises ZfsFailed."""
    deadline_s = time.monotonic() + _RELEASED_AFTER_S
    while True:
        try:
            zfs.destroy(dataset, with_snapshots=with_snapshots)
            return
        except ZfsFailed:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_LOOK_EVERY_S)


def _leave_network(hypervisor: Host) -> None:
    """The isolated network goes with the last clone that uses it."""
    if not hypervisor.has_network(clone_xml.ISOLATED_NETWORK):
        return
    for guest in hypervisor.guests():
        try:
            if clone_xml.ISOLATED_NETWORK in guest.xml():
                return
        except LibvirtFailed:
            continue
    hypervisor.stop_network(clone_xml.ISOLATED_NETWORK)
