"""Where the disks of guests are: in which datasets, and at which paths they can be opened."""

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


@dataclass(frozen=True)
class GuestDisks:
    """One guest as it is now: definition, state, and the location of each disk by its target.

    Disks that are not on ZFS have no location.
    """

    domain: domain_xml.Domain
    state: str
    locations: Mapping[str, DiskLocation]

    @property
    def is_off(self) -> bool:
        """Has the guest no QEMU process?"""
        return self.state in ("shut off", "crashed")


def locate_disks(host: Host, guest: Guest, table: list[mounts.Mount]) -> GuestDisks:
    """Look up the disks that the live XML of a guest names. Raises LibvirtFailed."""
    state = guest.state()
    domain = domain_xml.parse(guest.xml())
    chains = overlay_chain.of(domain)
    locations = {}
    for disk in domain.disks:
        # A disk on an overlay of zvmsnap counts as where its base is.
        chain = chains.get(disk.target)
        path = chain.base if chain and chain.base else _path(host, disk)
        disk_location = locate_path(path, table) if path else None
        if disk_location:
            locations[disk.target] = disk_location
    return GuestDisks(domain, state, locations)


def locate_path(path: str, table: list[mounts.Mount]) -> DiskLocation | None:
    """The location of a path or device, symlinks followed; None if it is not on ZFS."""
    real = os.path.realpath(path)
    if real.startswith("/dev/"):
        dataset = volume.volume_of(real)
        return DiskLocation(dataset, "") if dataset else None
    dataset_and_path = mounts.dataset_of_path(real, table)
    return DiskLocation(*dataset_and_path) if dataset_and_path else None


def current_path(where: DiskLocation, table: list[mounts.Mount]) -> str:
    """The path at which a disk can be opened now; of a volume its device.

    Raises ZfsFailed if its filesystem is not mounted.
    """
    if not where.path:
        return volume.device_of(where.dataset)
    mountpoint = mounts.mountpoint_of(where.dataset, table)
    if mountpoint is None:
        raise ZfsFailed(
            f"{where.dataset}: is not mounted, so {where.path} in it cannot be reached: "
            f"zfs mount {where.dataset}"
        )
    return os.path.join(mountpoint, where.path)


def _path(host: Host, disk: domain_xml.Disk) -> str:
    if disk.volume:
        try:
            return host.volume_path(*disk.volume)
        except LibvirtFailed:
            # For instance of an inactive pool: its location is unknown, so no run covers it.
            return ""
    return disk.source
