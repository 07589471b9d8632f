"""Asks both seams where each guest's disks really lie, for placement to decide on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from zvmsnap.common.errors import LibvirtFailed, ZfsFailed
from zvmsnap.disks import overlay_chain
from zvmsnap.virt import domain_xml
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs import mounts, volume
from zvmsnap.zfs.mounts import DiskLocation


def locate_disks(hypervisor: Host, guest: Guest, table: list[mounts.Mount]) -> GuestDisks:
    """See one guest as it is: its live XML tells what it writes to. Raises LibvirtFailed."""
    state = guest.state()
    domain = domain_xml.parse(guest.xml())
    ours = overlay_chain.of(domain)
    places = {}
    for disk in domain.disks:
        # A disk that is still on our overlay belongs where its base lies: the guest is concerned.
        stack = ours.get(disk.target)
        path = stack.base if stack and stack.base else _path(hypervisor, disk)
        found = place_of(path, table) if path else None
        if found:
            places[disk.target] = found
    return GuestDisks(domain, state, places)


def path_of(place: DiskLocation, table: list[mounts.Mount]) -> str:
    """Where a place can be opened now: a path, or the device of a volume.

    Raises ZfsFailed if its filesystem is not mounted.
    """
    if not place.path:
        return volume.device_of(place.dataset)
    mountpoint = mounts.mountpoint_of(place.dataset, table)
    if mountpoint is None:
        raise ZfsFailed(
            f"{place.dataset}: is not mounted, so {place.path} in it cannot be reached: "
            f"zfs mount {place.dataset}"
        )
    return os.path.join(mountpoint, place.path)


def _path(hypervisor: Host, disk: domain_xml.Disk) -> str:
    if disk.volume:
        try:
            return hypervisor.volume_path(*disk.volume)
        except LibvirtFailed:
            # Of an inactive pool, say: where it lies cannot be told, so no moment covers it.
            return ""
    return disk.source


def place_of(path: str, table: list[mounts.Mount]) -> DiskLocation | None:
    """Where a path or device really lies; None if that is not on ZFS."""
    real = os.path.realpath(path)
    if real.startswith("/dev/"):
        dataset = volume.volume_of(real)
        return DiskLocation(dataset, "") if dataset else None
    found = mounts.dataset_of_path(real, table)
    return DiskLocation(*found) if found else None


@dataclass(frozen=True)
class GuestDisks:
    """A domain as it was found: its definition, its state, and the place of each disk by target."""

    domain: domain_xml.Domain
    state: str
    places: Mapping[str, DiskLocation]

    @property
    def is_off(self) -> bool:
        """Is there no process of it?"""
        return self.state in ("shut off", "crashed")
