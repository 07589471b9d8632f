"""Asks both seams where each guest's disks really lie, for placement to decide on."""

from __future__ import annotations

import os

from zvmsnap import domainxml, mounttable, stacks, zfs
from zvmsnap.errors import LibvirtFailed, ZfsFailed
from zvmsnap.hypervisor import Guest, Hypervisor
from zvmsnap.placement import Place, Seen


def look(hypervisor: Hypervisor, guest: Guest, table: list[mounttable.Mount]) -> Seen:
    """See one guest as it is: its live XML tells what it writes to. Raises LibvirtFailed."""
    state = guest.state()
    domain = domainxml.parse(guest.xml())
    ours = stacks.of(domain)
    places = {}
    for disk in domain.disks:
        # A disk that is still on our overlay belongs where its base lies: the guest is concerned.
        stack = ours.get(disk.target)
        path = stack.base if stack and stack.base else _path(hypervisor, disk)
        found = place_of(path, table) if path else None
        if found:
            places[disk.target] = found
    return Seen(domain, state, places)


def path_of(place: Place, table: list[mounttable.Mount]) -> str:
    """Where a place can be opened now: a path, or the device of a volume.

    Raises ZfsFailed if its filesystem is not mounted.
    """
    if not place.path:
        return zfs.device_of(place.dataset)
    mountpoint = mounttable.mountpoint_of(place.dataset, table)
    if mountpoint is None:
        raise ZfsFailed(
            f"{place.dataset}: is not mounted, so {place.path} in it cannot be reached: "
            f"zfs mount {place.dataset}"
        )
    return os.path.join(mountpoint, place.path)


def _path(hypervisor: Hypervisor, disk: domainxml.Disk) -> str:
    if disk.volume:
        try:
            return hypervisor.volume_path(*disk.volume)
        except LibvirtFailed:
            # Of an inactive pool, say: where it lies cannot be told, so no moment covers it.
            return ""
    return disk.source


def place_of(path: str, table: list[mounttable.Mount]) -> Place | None:
    """Where a path or device really lies; None if that is not on ZFS."""
    real = os.path.realpath(path)
    if real.startswith("/dev/"):
        dataset = zfs.volume_of(real)
        return Place(dataset, "") if dataset else None
    found = mounttable.dataset_of_path(real, table)
    return Place(*found) if found else None
