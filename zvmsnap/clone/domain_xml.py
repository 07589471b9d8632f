"""The definition of a clone: the same machine, which can run beside the one that it comes from.

It is applied to the definition in the RAM image and to the persistent one alike, so everything
new is derived: the same input gives the same output. With a RAM image the guest must find each of
its devices again; only what the host has behind them may change. Pure text, no libvirt calls.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from zvmsnap.common.errors import CloneImpossible
from zvmsnap.virt import domain_xml

ISOLATED_NETWORK = "zvmsnap-isolated"
_MARK = "urn:zvmsnap:clone"
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("zvmsnap", _MARK)
ET.register_namespace("qemu", _QEMU)

# Where libvirt puts the sockets of channels, by its versions: qemuDomainChrDefDropDefaultPath().
_GENERATED = re.compile(r"/channel/target/|/domain-|/qemu/channel/\d+-")


class Network(StrEnum):
    """What a clone's interfaces are plugged into."""

    NONE = "none"
    KEEP = "keep"
    ISOLATED = "isolated"


@dataclass(frozen=True)
class Identity:
    """Who the clone is, and the point that it comes from.

    `nvram` is the path of its firmware variables; None lets libvirt choose one by its name.
    """

    name: str
    uuid: str
    point: str
    nvram: str | None
    network: Network


@dataclass(frozen=True)
class CloneXml:
    """A definition, and what an operator should know of it."""

    xml: str
    warnings: tuple[str, ...]


def as_clone(
    xml: str, clone: Identity, sources: Mapping[str, tuple[str, str, str]], *, cold: bool = False
) -> CloneXml:
    """The definition of `clone`; `sources` are its own images, as in domainxml.with_sources.

    `cold`: without RAM, so that what cannot exist twice may be left out, with a warning.
    Raises CloneImpossible with the device and what to do.
    """
    try:
        root = ET.fromstring(domain_xml.with_sources(xml, sources))
        devices = root.find("devices")
        if devices is None:
            raise _refusal(clone, "its definition has no devices")
        warnings = (
            *_disks(devices, clone, frozenset(sources), cold),
            *_host_devices(devices, clone, cold),
            *_interfaces(devices, clone, cold),
            *_character_devices(devices, clone),
            *_tpm(devices, clone, cold),
            *_shared(root, devices),
        )
        _firmware(root, clone)
        _own_files(devices, clone)
        _free_numbers(root, devices)
        _name(root, clone)
        return CloneXml(ET.tostring(root, encoding="unicode"), warnings)
    except (domain_xml.ParseError, RecursionError) as error:
        raise _refusal(clone, f"its definition cannot be read: {error}") from error


def cloned_from(xml: str) -> str | None:
    """The point that a domain was cloned from; None if it is no clone of ours.

    Raises domainxml.ParseError.
    """
    mark = ET.fromstring(xml).find(f"metadata/{{{_MARK}}}clone")
    return mark.get("point") if mark is not None else None


def _name(root: ET.Element, clone: Identity) -> None:
    root.attrib.pop("id", None)
    _child(root, "name").text = clone.name
    _child(root, "uuid").text = clone.uuid
    for entry in root.findall("sysinfo/system/entry[@name='uuid']"):
        # libvirt refuses one that differs.
        entry.text = clone.uuid
    for genid in root.findall("genid"):
        if genid.text:
            genid.text = str(uuid.UUID(bytes=_derived(clone, genid.text)[:16]))
    for seclabel in root.findall("seclabel[@type='dynamic']"):
        _drop(seclabel, "label", "imagelabel")
    metadata = _child(root, "metadata")
    _drop(metadata, f"{{{_MARK}}}clone")
    ET.SubElement(metadata, f"{{{_MARK}}}clone", point=clone.point)


def _firmware(root: ET.Element, clone: Identity) -> None:
    """Variables of its own: loading a RAM image writes them back to the file."""
    for loader in root.findall("os/loader[@readonly='no'][@type='pflash']"):
        raise _refusal(clone, f"it writes to its firmware {loader.text}: give it an <nvram> first")
    for store in root.findall("os/varstore"):
        store.attrib.pop("path", None)
    for nvram in root.findall("os/nvram"):
        source = nvram.find("source")
        if source is None:
            nvram.text = clone.nvram
        elif clone.nvram is None:
            nvram.remove(source)
            nvram.attrib.pop("type", None)
        else:
            source.clear()
            source.set("file", clone.nvram)
            nvram.set("type", "file")


def _disks(devices: ET.Element, clone: Identity, own: frozenset[str], cold: bool) -> Iterator[str]:
    # writable  image of its own   what becomes of the disk
    # no        any                is read by both
    # yes       yes                stays
    # yes       no, a floppy       the drive stays, empty
    # yes       no, cold           is left out
    # yes       no                 CloneImpossible: RAM and disk would not fit
    for disk in devices.findall("disk"):
        target = _get(disk, "target", "dev")
        if disk.find("readonly") is not None or target in own:
            continue
        kind = disk.get("device", "disk")
        if kind == "floppy" and disk.find("source") is not None:
            _drop(disk, "source", "backingStore")
            yield f"floppy {target}: the drive is empty, as its image can be in one machine alone"
        elif kind in ("disk", "lun"):
            why = f"disk {target} is not part of the point"
            yield _left_out(devices, disk, why, clone, cold)


def _host_devices(devices: ET.Element, clone: Identity, cold: bool) -> Iterator[str]:
    for device in devices.findall("hostdev"):
        why = f"hostdev of type {device.get('type', device.get('mode'))} is one device of the host"
        yield _left_out(devices, device, why, clone, cold)
    if cold:
        for device in devices.findall("redirdev"):
            yield _left_out(devices, device, "redirdev serves one machine", clone, cold)
    for memory in devices.findall("memory"):
        path = memory.findtext("source/path")
        if path:
            raise _refusal(
                clone, f"its {memory.get('model')} memory lies in {path}, for one machine alone"
            )
    _drop(devices, "lease")


def _interfaces(devices: ET.Element, clone: Identity, cold: bool) -> Iterator[str]:
    # type                           network             what becomes of it
    # hostdev                        any                 left out when cold, else CloneImpossible
    # any other                      isolated            plugged into our isolated network
    # vhostuser, vdpa, server, udp   none, keep          CloneImpossible: one peer or port each
    # any other                      none                link down
    # any other                      keep                as it was
    for interface in devices.findall("interface"):
        called = f"interface {_get(interface, 'mac', 'address')}"
        kind = interface.get("type", "")
        if kind == "hostdev":
            yield _left_out(devices, interface, f"{called} is one device of the host", clone, cold)
            continue
        if clone.network is Network.ISOLATED:
            _isolate(interface)
        elif kind in ("vhostuser", "vdpa", "server", "udp"):
            raise _refusal(
                clone,
                f"{called} of type {kind} serves one machine: choose the isolated network",
            )
        elif clone.network is Network.NONE:
            _child(interface, "link").set("state", "down")
        _readdress(interface, clone)


def _isolate(interface: ET.Element) -> None:
    """Only what the guest sees of it stays."""
    host_side = ("source", "virtualport", "vlan", "script", "downscript", "backend")
    _drop(interface, *host_side, "ip", "route", "portForward")
    interface.set("type", "network")
    interface.attrib.pop("trustGuestRxFilters", None)
    ET.SubElement(interface, "source", network=ISOLATED_NETWORK)


def _readdress(interface: ET.Element, clone: Identity) -> None:
    mac = interface.find("mac")
    if mac is not None:
        digest = _derived(clone, mac.get("address", "").lower())
        mac.set("address", "52:54:00:" + digest[:3].hex(":"))
    _drop(interface, "target")
    # libvirt makes these anew: two ports of a switch must not have the same.
    _drop_attributes(interface, "source", "portid")
    _drop_attributes(interface, "virtualport/parameters", "interfaceid", "instanceid")


def _character_devices(devices: ET.Element, clone: Identity) -> Iterator[str]:
    for tag in ("serial", "parallel", "console", "channel", "redirdev", "smartcard"):
        for device in devices.findall(tag):
            target = device.find("target")
            name = target.get("name", target.get("port", "")) if target is not None else ""
            warning = _character_device(device, f"{tag} {name}".rstrip(), clone)
            # The console that mirrors a serial port is the serial port.
            if warning and not (tag == "console" and _get(device, "target", "type") == "serial"):
                yield warning
    for backend in devices.findall("rng/backend"):
        if warning := _character_device(backend, "rng", clone):
            yield warning


def _character_device(device: ET.Element, called: str, clone: Identity) -> str | None:
    # type                                what becomes of it
    # pty                                 libvirt takes another terminal
    # unix, path made by libvirt          libvirt makes another
    # unix, bind; file                    a path of its own
    # unix, connect; tcp; udp; dev; pipe  null, with a warning: the other side is there once
    # any other                           as it was
    kind = device.get("type")
    _own_path(device.find("log"), "file", clone)
    if kind == "pty":
        device.attrib.pop("tty", None)
        _drop(device, "source")
    elif kind == "unix" and _is_generated(device):
        _drop_attributes(device, "source", "path")
    elif kind == "file" or (kind == "unix" and _get(device, "source", "mode") != "connect"):
        _own_path(device.find("source"), "path", clone)
    elif kind in ("unix", "tcp", "udp", "dev", "pipe"):
        device.set("type", "null")
        _drop(device, "source", "protocol")
        return f"{called} of type {kind} is not connected: the host has its other side only once"
    return None


def _is_generated(channel: ET.Element) -> bool:
    path = _get(channel, "source", "path")
    return _get(channel, "target", "type") == "virtio" and bool(_GENERATED.search(path))


def _own_files(devices: ET.Element, clone: Identity) -> None:
    for path in devices.findall("pstore/path"):
        path.text = _beside((path.text or "").strip(), clone)


def _own_path(source: ET.Element | None, attribute: str, clone: Identity) -> None:
    path = source.get(attribute) if source is not None else None
    if source is not None and path and path != os.devnull:
        source.set(attribute, _beside(path, clone))


def _beside(path: str, clone: Identity) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f"{clone.name}-{name}")


def _tpm(devices: ET.Element, clone: Identity, cold: bool) -> Iterator[str]:
    for tpm in devices.findall("tpm"):
        kind = _get(tpm, "backend", "type")
        if kind != "emulator":
            raise _refusal(clone, f"its TPM of type {kind} serves one machine alone")
        # Without a path libvirt keeps its state by the UUID.
        for backend in tpm.findall("backend"):
            _drop(backend, "source")
        if cold:
            yield "tpm is empty: its state is in the RAM image alone"


def _shared(root: ET.Element, devices: ET.Element) -> Iterator[str]:
    for share in devices.findall("filesystem"):
        if share.find("readonly") is None:
            target = _get(share, "target", "dir")
            yield f"filesystem {target} is shared: both machines write to the same directory"
    for memory in devices.findall("shmem"):
        yield f"shmem {memory.get('name')} is shared by both machines"
    if root.find(f"{{{_QEMU}}}commandline") is not None:
        yield "qemu:commandline is kept as it is: see that it names nothing that is there only once"


def _free_numbers(root: ET.Element, devices: ET.Element) -> None:
    """Ports, sockets and addresses that libvirt chooses again."""
    for graphics in devices.findall("graphics"):
        if graphics.get("type") not in ("vnc", "spice", "rdp"):
            continue
        for attribute in ("tlsPort", "websocket", "socket", "port", "autoport"):
            graphics.attrib.pop(attribute, None)
        for listen in graphics.findall("listen"):
            listen.attrib.pop("socket", None)
        if _get(graphics, "listen", "type") not in ("socket", "none"):
            graphics.set("port", "-1")
            graphics.set("autoport", "yes")
    for cid in root.findall("devices/vsock/cid"):
        cid.attrib.pop("address", None)
        cid.set("auto", "yes")


def _left_out(
    devices: ET.Element, device: ET.Element, why: str, clone: Identity, cold: bool
) -> str:
    """Take a device away and say so. Raises CloneImpossible if RAM still knows of it."""
    if not cold:
        raise _refusal(clone, f"{why}; a clone without its RAM (--cold) can do without it")
    devices.remove(device)
    return f"{why}: left out"


def _refusal(clone: Identity, why: str) -> CloneImpossible:
    return CloneImpossible(f"{clone.point} cannot be cloned as {clone.name}: {why}")


def _derived(clone: Identity, old: str) -> bytes:
    return hashlib.sha256(f"{clone.uuid} {old}".encode()).digest()


def _child(parent: ET.Element, tag: str) -> ET.Element:
    found = parent.find(tag)
    return found if found is not None else ET.SubElement(parent, tag)


def _get(element: ET.Element, path: str, attribute: str) -> str:
    found = element.find(path)
    return found.get(attribute, "") if found is not None else ""


def _drop(parent: ET.Element, *tags: str) -> None:
    for tag in tags:
        for child in parent.findall(tag):
            parent.remove(child)


def _drop_attributes(element: ET.Element, path: str, *names: str) -> None:
    for found in element.findall(path):
        for name in names:
            found.attrib.pop(name, None)
