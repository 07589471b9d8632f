"""Removes a clone: exactly what `zvmsnap clone` made, never anything else."""

from __future__ import annotations

from contextlib import suppress

from zvmsnap.clone.domain_xml import cloned_from
from zvmsnap.clone.identity import ISOLATED_NETWORK
from zvmsnap.common.errors import (
    CloneImpossible,
    DomainGone,
    GuestNotFound,
    LibvirtFailed,
)
from zvmsnap.disks import location
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs import branches, mounts, zfs

CLONE_PROPERTY = "zvmsnap:clone"


def destroy_clone(host: Host, name: str) -> list[str]:
    """Remove a clone: guest, datasets, and the isolated network with its last user.

    Returns the datasets that were destroyed. What libvirt keeps with the guest, such as its
    snapshots and checkpoints, goes with it. Raises GuestNotFound if no clone has that name, and
    CloneImpossible, with nothing touched, if something that zvmsnap did not make is in the way.
    """
    marks = zfs.marked(CLONE_PROPERTY)
    datasets = sorted(dataset for dataset, mark in marks.items() if mark == name)
    guest = next((guest for guest in host.guests() if guest.name == name), None)
    if guest and cloned_from(guest.xml()) is None:
        raise CloneImpossible(
            f"{name}: this guest is no clone that zvmsnap made; nothing is removed"
        )
    if not guest and not datasets:
        raise GuestNotFound(f"{name}: there is no clone of that name")
    _check_nothing_else(datasets)
    _check_no_other_guest(host, name, datasets)
    if guest:
        remove_guest(guest)
    for dataset in reversed(datasets):
        branches.destroy_released(dataset, with_snapshots=False)
    stop_unused_network(host)
    return datasets


def remove_guest(guest: Guest) -> None:
    """End its process and remove its definition. Raises LibvirtFailed."""
    with suppress(DomainGone):  # a guest without a persistent definition goes with its process
        if guest.is_active():
            guest.destroy()
        guest.undefine()


def _check_nothing_else(datasets: list[str]) -> None:
    if not datasets:
        return
    for name in zfs.datasets():
        if name not in datasets and any(name.startswith(f"{own}/") for own in datasets):
            raise CloneImpossible(f"{name}: is below a clone, but is none; move or destroy it")
    for usage in zfs.snapshot_usage(datasets):
        full_name = usage.snapshot.full_name
        if usage.clones:
            raise CloneImpossible(
                f"{full_name}: {usage.clones[0]} depends on it; destroy that first"
            )
        held = f"; it is held: zfs holds {full_name}" if usage.holds else ""
        raise CloneImpossible(
            f"{full_name}: is a snapshot of the clone, not made by zvmsnap: zfs destroy "
            f"{full_name.partition('@')[0]}@% destroys all of them{held}"
        )


def _check_no_other_guest(host: Host, name: str, datasets: list[str]) -> None:
    table = mounts.read_table()
    for guest in host.guests():
        if guest.name == name:
            continue
        try:
            disks = location.locate_disks(host, guest, table)
        except LibvirtFailed:
            continue
        for target, place in disks.places:
            if place.dataset in datasets:
                raise CloneImpossible(
                    f"{place.dataset}: holds {target} of {guest.name}, too: detach that first"
                )


def stop_unused_network(host: Host) -> None:
    """Stop the isolated network if no clone uses it any more."""
    if not host.has_network(ISOLATED_NETWORK):
        return
    for guest in host.guests():
        try:
            if ISOLATED_NETWORK in guest.xml():
                return
        except LibvirtFailed:
            continue
    host.stop_network(ISOLATED_NETWORK)
