"""Where the disks of guests are: in which datasets, and at which paths they can be opened.

The disk of a guest that runs is what its QEMU has open, whatever its path leads to by now:

| QEMU has open           | its path leads to        | location | doubt                      |
|-------------------------|--------------------------|----------|----------------------------|
| the device or file      | the same                 | that     | none                       |
| the device              | another, or none         | that     | the path leads elsewhere   |
| another device, or file | a device, or file        | none     | QEMU has another one open  |
| cannot be looked at     | a device, or file        | its path | nothing says what is open  |
| any                     | LVM, device mapper, loop | none     | it lies on a dataset, if   |
|                         |                          |          | it does                    |

Without a process only the path is left. Links below /dev/disk are made by the content of a disk:
where there is a clone of it, they may lead to that.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from zvmsnap.common import safe_files
from zvmsnap.common.errors import LibvirtFailed, WrongDisk, ZfsFailed
from zvmsnap.disks import overlay_chain
from zvmsnap.inventory import coverage, qcow2, reader
from zvmsnap.inventory.resource import Kind, Resource
from zvmsnap.virt import domain_xml, security_labels
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.virt.qemu_process import QemuProcess
from zvmsnap.zfs import mounts, volume
from zvmsnap.zfs.mounts import DiskLocation

DATA_FILE = "dataStore"
_DISK = "devices/disk/source"
_OFF = ("shut off", "crashed")
_LINKS_MAX = 40
_UNKNOWN = "something else"
_BY_CONTENT = (
    "is a link by the content of the disk, which may lead to a clone of it: let the definition "
    "name it /dev/zvol/..."
)


@dataclass(frozen=True)
class GuestDisks:
    """One guest as it is now: definition, state, and the location of each disk by its target.

    Disks that are not on ZFS have no location. `doubts` says why a disk may not be what its path
    leads to, `no_overlays` why else a disk must not be put on an overlay; by target. `others` is
    all other state that the guest writes, and its location.
    """

    domain: domain_xml.Domain
    state: str
    locations: Mapping[str, DiskLocation]
    doubts: Mapping[str, str] = field(default_factory=dict)
    no_overlays: Mapping[str, str] = field(default_factory=dict)
    others: tuple[tuple[Resource, DiskLocation | None], ...] = ()

    @property
    def is_off(self) -> bool:
        """Has the guest no QEMU process?"""
        return self.state in _OFF

    @property
    def places(self) -> list[tuple[str, DiskLocation]]:
        """What the guest has on ZFS: disks by their targets, and other state as it is called."""
        others = [
            (named.called, place)
            for named, place in self.others
            if place and not coverage.is_stored(named)
        ]
        return [*self.locations.items(), *others]


def locate_disks(host: Host, guest: Guest, table: list[mounts.Mount]) -> GuestDisks:
    """Look up the disks that the live XML of a guest names. Raises LibvirtFailed."""
    state = guest.state()
    xml = guest.xml()
    domain = domain_xml.parse(xml)
    others = [each for each in reader.resources_of(xml) if _is_other_state(each)]
    is_off = state in _OFF
    process = None if is_off else guest.process()
    chains = overlay_chain.of(domain)
    locations, doubts, no_overlays = {}, {}, {}
    for disk in domain.disks:
        # A disk on an overlay of zvmsnap counts as where its base is.
        chain = chains.get(disk.target)
        path = chain.base if chain and chain.base else path_of(host, disk)
        if not path:
            continue
        where, doubt = _locate(path, table, process, is_off=is_off)
        if where:
            locations[disk.target] = where
        if doubt:
            doubts[disk.target] = doubt
        elif _is_by_content(path) and not (process and process.has_own_names):
            no_overlays[disk.target] = f"{path} {_BY_CONTENT}"
        if disk.writable and not chain and not _names_data_file(others, disk.target):
            others += _data_file(disk, path)
    located = tuple((each, _place_of(host, each, table)) for each in others)
    return GuestDisks(domain, state, locations, doubts, no_overlays, located)


def _is_other_state(resource: Resource) -> bool:
    """Is it state that the guest writes, and no image that a <disk> names itself?"""
    is_disk = resource.element.partition("@")[0] == _DISK and resource.kind is not Kind.UNKNOWN
    return resource.is_state and resource.writable and not is_disk


def _names_data_file(resources: Iterable[Resource], target: str) -> bool:
    return any(each.target == target and DATA_FILE in each.element for each in resources)


def _data_file(disk: domain_xml.Disk, path: str) -> list[Resource]:
    """The file with the data of a qcow2 image that does not have it itself, by its header."""
    if disk.format != "qcow2":
        return []
    try:
        data = qcow2.data_file(path)
    except OSError:
        return []  # of a guest that is off: whoever starts it will hear of that
    except ValueError as error:
        data = str(error)
    kind = Kind.FILE if data.startswith("/") else Kind.UNKNOWN
    called = f"data file of disk {disk.target}"
    element = f"{_DISK}/{DATA_FILE}/source"
    return [Resource(called, kind, data, True, True, element, disk.target)] if data else []


def _place_of(host: Host, resource: Resource, table: list[mounts.Mount]) -> DiskLocation | None:
    place = resource.place
    if resource.kind is Kind.VOLUME:
        pool, _, name = place.partition("/")
        place = _volume_path(host, pool, name)
    return locate_path(place, table) if place.startswith("/") else None


def check_open(host: Host, guest: Guest, *definitions: Mapping[str, DiskLocation]) -> None:
    """Raises WrongDisk unless the QEMU of this guest has its disks open, as one of these says.

    They are by target. A target that none of them knows is no matter of this.
    """
    table = mounts.read_table()
    seen = locate_disks(host, guest, table)
    wrong = []
    for disk in seen.domain.disks:
        own = [each[disk.target] for each in definitions if disk.target in each]
        is_open = seen.locations.get(disk.target)
        if own and not any(_is(is_open, each, table) for each in own):
            wrong.append(f"{disk.target} is {is_open or _UNKNOWN}, not {own[0]}")
    if wrong:
        raise WrongDisk(f"{guest.name}: QEMU has opened another disk: {'; '.join(wrong)}")


def stop_unless_on(host: Host, guest: Guest, *definitions: Mapping[str, DiskLocation]) -> None:
    """As `check_open`, of a guest that was just started, paused: on other disks it is stopped."""
    try:
        check_open(host, guest, *definitions)
    except WrongDisk:
        guest.destroy()
        raise


def _is(is_open: DiskLocation | None, own: DiskLocation, table: list[mounts.Mount]) -> bool:
    """Is it that disk, or the file of the same dataset to which a link in its place leads?"""
    if is_open is None or is_open.dataset != own.dataset or not (own.path and is_open.path):
        return is_open == own
    return is_open in (own, locate_path(current_path(own, table), table))


def locate_path(path: str, table: list[mounts.Mount]) -> DiskLocation | None:
    """The location of a path or device, symlinks followed; None if it is not on ZFS."""
    real = os.path.realpath(path)
    if real.startswith("/dev/"):
        return volume.location_of(real)
    dataset_and_path = mounts.dataset_of_path(real, table)
    return DiskLocation(*dataset_and_path) if dataset_and_path else None


def give_back(where: DiskLocation, table: list[mounts.Mount]) -> None:
    """Give an image file of a dataset to its owner, as libvirt has noted that. Raises OSError.

    No symlink in the dataset is followed: its guest's owner may put one there at any time.
    """
    mountpoint = mounts.mountpoint_of(where.dataset, table)
    if mountpoint is None:
        raise FileNotFoundError(f"{where.dataset} is not mounted")
    folder, name = os.path.split(where.path)
    with safe_files.opened(folder, mountpoint) as directory:
        descriptor = safe_files.open_file(name, directory)
    try:
        security_labels.give_back(descriptor)
    finally:
        os.close(descriptor)


def current_path(where: DiskLocation, table: list[mounts.Mount]) -> str:
    """The path at which a disk can be opened now; of a volume, or its partition, the device.

    Raises ZfsFailed if its filesystem is not mounted.
    """
    if not where.path:
        return volume.device_of(where.dataset, where.partition)
    mountpoint = mounts.mountpoint_of(where.dataset, table)
    if mountpoint is None:
        raise ZfsFailed(
            f"{where.dataset}: is not mounted, so {where.path} in it cannot be reached: "
            f"zfs mount {where.dataset}"
        )
    return os.path.join(mountpoint, where.path)


def path_of(host: Host, disk: domain_xml.Disk) -> str:
    """The path at which the definition names a disk; "" if there is none, or it is unknown."""
    if disk.volume and not disk.source:
        return _volume_path(host, *disk.volume)
    return disk.source


def _volume_path(host: Host, pool: str, name: str) -> str:
    try:
        return host.volume_path(pool, name)
    except LibvirtFailed:
        # For instance of an inactive pool: its location is unknown, so no run covers it.
        return ""


def _locate(
    path: str, table: list[mounts.Mount], process: QemuProcess | None, *, is_off: bool
) -> tuple[DiskLocation | None, str]:
    """By the table above: the location of a disk, and the doubt, "" if there is none."""
    leads_to = locate_path(path, table)
    number = volume.device_number(path)
    if leads_to is None and number is not None and (dataset := _dataset_below(number, table)):
        return None, f"{path} lies on {dataset}, and no snapshot of that brings it back"
    if is_off:
        return leads_to, f"{path} {_BY_CONTENT}" if leads_to and _is_by_content(path) else ""
    if process is None:
        return leads_to, "its QEMU process cannot be looked at" if leads_to else ""
    if leads_to and leads_to.path:
        if process.has_file(path):
            return leads_to, ""
        return None, f"QEMU has another file open than {path} is now"
    if not path.startswith("/dev/") and leads_to is None:
        return None, ""  # a file that is not on ZFS
    opened = process.device(path)
    if opened is None:
        return None, f"QEMU has another device open than {path} is now" if leads_to else ""
    is_open = volume.location_at(opened)
    if opened == number:
        return is_open, ""
    elsewhere, own = leads_to or _UNKNOWN, is_open or _UNKNOWN
    return is_open, f"{path} leads to {elsewhere} now, but its disk is {own}"


def _dataset_below(number: int, table: list[mounts.Mount]) -> str:
    """The dataset on which a device of another kind lies, "" if none is known."""
    for path in volume.below(number):
        if where := locate_path(path, table):
            return str(where)
        deeper = volume.device_number(path)
        if deeper is not None and (dataset := _dataset_below(deeper, table)):
            return dataset
    return ""


def _is_by_content(path: str) -> bool:
    """Is one of the links by which a path leads to a device made by what is on the device?"""
    for _ in range(_LINKS_MAX):
        if path.startswith("/dev/disk/"):
            return True
        try:
            path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
        except OSError:
            break
    return False
