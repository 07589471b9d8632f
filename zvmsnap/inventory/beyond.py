"""What a definition reaches of the host, beyond what every guest has. Pure.

A definition that was made elsewhere is its sender's, and what it names is opened by QEMU, or by
libvirt as root: a serial port may write to any file, a kernel be read from any. Not beyond are:

| what                                        | if it is                                           |
|---------------------------------------------|----------------------------------------------------|
| disks, and images below them                | the guest's own, of a format that names no others  |
| firmware variables, the state of a TPM      | the guest's own                                    |
| emulator                                    | /usr/bin/qemu-system-*, and as such is called      |
| firmware, and templates of its variables    | below /usr/share, and only read                    |
| network cards                               | on a network, bridge or card of the host           |
| screens                                     | on a port, or the socket that libvirt gives them   |
| their rendering                             | by a render node of the host                       |
| a channel                                   | on the socket that libvirt gives to its guest      |
| random numbers                              | the kernel's                                       |
| vsock                                       | any number                                         |

All else is, and what the table of the inventory does not know. So are arguments for QEMU itself,
raw access to disks, and labels by which libvirt would not confine QEMU as it does by itself.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection, Container, Iterator
from pathlib import PurePath

from zvmsnap.inventory.reader import resources_of
from zvmsnap.inventory.resource import Kind, Resource

# Of the guest's own: what may be in its datasets, or where libvirt keeps it.
_OWN = ("devices/disk/", "os/nvram", "os/varstore", "devices/tpm/backend/source")
_EMULATOR = re.compile(r"/usr/bin/(qemu-system-[a-z0-9_]+|kvm|qemu-kvm)|/usr/libexec/qemu-kvm")
_READ_ONLY = PurePath("/usr/share")
_FIRMWARE = ("os/loader", "os/nvram@template", "os/varstore@template")
# Where libvirt makes them, by its versions: with the guest's number, and the beginning of its name
# (virDomainDefGetShortName). It forgets such a path, and makes another at each start.
_CHANNELS = r"(/var/lib|/run|/var/run)/libvirt/qemu/channel/(target/)?(domain-)?\d+-"
_SCREENS = r"/var/lib/libvirt/qemu/domain-\d+-"
_SCREEN_SOCKETS = ("vnc.sock", "spice.sock")
_SHORT_NAME = 20
_RENDER_NODE = re.compile(r"/dev/dri/renderD\d+")
# Of others nobody here looks into the image for what it names.
_FORMATS = ("raw", "qcow2")
_RANDOM = ("/dev/random", "/dev/urandom", "/dev/hwrng")
_QEMU = re.compile(r"\{http://libvirt\.org/schemas/domain/qemu/[^}]*\}(?!capabilities|deprecation)")


def beyond(xml: str, is_own: Callable[[Resource], bool]) -> tuple[str, ...]:
    """What it reaches, each in words; `is_own` says it of an image or of firmware.

    Raises ParseError.
    """
    root = ET.fromstring(xml)
    sockets = _channels(root) | _screens(root)
    named = (
        f"{each.called}: {each.kind.value} {each.place}"
        for each in resources_of(xml)
        if not _is_ordinary(each, is_own, sockets)
    )
    return tuple(dict.fromkeys((*named, *_privileges(root))))


def is_in(
    directories: Collection[PurePath],
    devices: Container[str],
    is_firmware: Callable[[str], bool],
) -> Callable[[Resource], bool]:
    """The `is_own` of a guest whose images are below these directories, or on these devices."""

    def is_own(resource: Resource) -> bool:
        path = PurePath(resource.place)
        if resource.kind is Kind.BLOCK:
            return resource.place in devices
        below = any(path.is_relative_to(directory) for directory in directories)
        return (below and ".." not in path.parts) or is_firmware(resource.place)

    return is_own


def _channels(root: ET.Element) -> frozenset[str]:
    """The sockets that libvirt has made for channels of this guest."""
    short_name = _short_name(root)
    made: set[str] = set()
    others: set[str] = set()
    for channel in root.findall("devices/channel"):
        targets = [(each.get("type"), each.get("name")) for each in channel.findall("target")]
        for source in channel.findall("source"):
            path = source.get("path", "")
            folder, _, name = path.rpartition("/")
            is_made = (
                channel.get("type") == "unix"
                and source.get("mode") == "bind"
                and targets == [("virtio", name)]
                and re.fullmatch(_CHANNELS + short_name, folder)
            )
            (made if is_made else others).add(path)
    return frozenset(made - others)


def _screens(root: ET.Element) -> frozenset[str]:
    """Likewise, for screens."""
    made = re.compile(_SCREENS + _short_name(root))
    screens = (*root.findall("devices/graphics"), *root.findall("devices/graphics/listen"))
    paths = (each.get("socket", "").rpartition("/") for each in screens)
    return frozenset(
        f"{folder}/{name}"
        for folder, _, name in paths
        if name in _SCREEN_SOCKETS and made.fullmatch(folder)
    )


def _short_name(root: ET.Element) -> str:
    return re.escape(root.findtext("name", "")[:_SHORT_NAME])


def _is_ordinary(
    resource: Resource, is_own: Callable[[Resource], bool], sockets: frozenset[str]
) -> bool:
    element, place = resource.element, resource.place
    path = PurePath(place)
    if element in _FIRMWARE and not resource.writable and _READ_ONLY in path.parents:
        return ".." not in path.parts
    if resource.kind is Kind.NETWORK:
        return element.startswith("devices/interface/")
    if element == "devices/emulator":
        return bool(_EMULATOR.fullmatch(place))
    if element == "devices/graphics/gl@rendernode":
        return bool(_RENDER_NODE.fullmatch(place))
    if element.startswith("devices/graphics"):
        return resource.kind is Kind.PORT or (resource.kind is Kind.SOCKET and place in sockets)
    if element.startswith("devices/channel/source"):
        return place in sockets and ".." not in path.parts
    if element.startswith("devices/rng/backend"):
        return place in _RANDOM
    if element.startswith("devices/vsock/"):
        return True
    is_file = resource.kind in (Kind.FILE, Kind.BLOCK, Kind.DIRECTORY)
    return is_file and element.startswith(_OWN) and is_own(resource)


def _privileges(root: ET.Element) -> Iterator[str]:
    """What the definition asks of libvirt, without naming anything of the host."""
    for element in root:
        if _QEMU.match(element.tag):
            yield "arguments for QEMU itself (qemu:commandline)"
    for disk in root.findall("devices/disk"):
        for each in (*disk.iter("driver"), *disk.iter("format")):
            if each.get("type", "raw") not in _FORMATS:
                yield f"an image of format {each.get('type')}, which may name others"
    for device in root.findall("devices/*"):
        if device.get("rawio") == "yes":
            yield f"raw access to a {device.tag} (rawio)"
        if device.get("sgio") == "unfiltered":
            yield f"unfiltered SCSI commands to a {device.tag} (sgio)"
    ordinary = root.findall("seclabel")
    for label in root.iter("seclabel"):
        is_dynamic = label in ordinary and label.get("type", "dynamic") == "dynamic"
        keeps = label.get("relabel", "yes") == "yes" and label.find("baselabel") is None
        if not (is_dynamic and keeps):
            model = label.get("model", "")
            yield f"a security label of its own (seclabel {model})".replace(" )", ")")
