"""The devices of a clone: what the guest sees stays, what the host has behind it is its own.

What can serve one machine alone is left out of a clone without RAM. With RAM the guest knows of
the device, so such a clone is refused.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from zvmsnap.clone.elements import child, drop, drop_attributes, get
from zvmsnap.clone.identity import ISOLATED_NETWORK, Identity, Network, derived, refusal

# Where libvirt puts the sockets of channels, by its versions: qemuDomainChrDefDropDefaultPath().
_GENERATED = re.compile(r"/channel/target/|/domain-|/qemu/channel/\d+-")


def adapt_devices(
    devices: ET.Element, clone: Identity, own: frozenset[str], *, cold: bool
) -> tuple[str, ...]:
    """Change `devices` to those of `clone`; returns what an operator should know.

    `own` are the targets of the disks that have images of their own. Raises CloneImpossible.
    """
    warnings = (
        *_disks(devices, clone, own, cold),
        *_host_devices(devices, clone, cold),
        *_interfaces(devices, clone, cold),
        *_character_devices(devices, clone),
        *_shared(devices),
    )
    _tpm(devices, clone)
    _own_pstore(devices, clone)
    _reset_numbers(devices)
    return warnings


def _disks(devices: ET.Element, clone: Identity, own: frozenset[str], cold: bool) -> Iterator[str]:
    # writable  image of its own   what becomes of the disk
    # no        any                is read by both
    # yes       yes                stays
    # yes       no, a floppy       the drive stays, empty
    # yes       no, cold           is left out
    # yes       no                 CloneImpossible: RAM and disk would not fit
    for disk in devices.findall("disk"):
        target = get(disk, "target", "dev")
        if disk.find("readonly") is not None or target in own:
            continue
        kind = disk.get("device", "disk")
        if kind == "floppy" and disk.find("source") is not None:
            drop(disk, "source", "backingStore")
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
            raise refusal(
                clone, f"its {memory.get('model')} memory is in {path}, for one machine alone"
            )
    drop(devices, "lease")


def _interfaces(devices: ET.Element, clone: Identity, cold: bool) -> Iterator[str]:
    # type                           network             what becomes of it
    # hostdev                        any                 left out when cold, else CloneImpossible
    # any other                      isolated            plugged into the isolated network
    # vhostuser, vdpa, server, udp   none, keep          CloneImpossible: one peer or port each
    # any other                      none                link down
    # any other                      keep                as it was
    for interface in devices.findall("interface"):
        called = f"interface {get(interface, 'mac', 'address')}"
        kind = interface.get("type", "")
        if kind == "hostdev":
            yield _left_out(devices, interface, f"{called} is one device of the host", clone, cold)
            continue
        if clone.network is Network.ISOLATED:
            _isolate(interface)
        elif kind in ("vhostuser", "vdpa", "server", "udp"):
            raise refusal(
                clone,
                f"{called} of type {kind} serves one machine: choose the isolated network",
            )
        elif clone.network is Network.NONE:
            child(interface, "link").set("state", "down")
        _readdress(interface, clone)


def _isolate(interface: ET.Element) -> None:
    """Plug it into the isolated network; only what the guest sees of it stays."""
    host_side = ("source", "virtualport", "vlan", "script", "downscript", "backend")
    drop(interface, *host_side, "ip", "route", "portForward")
    interface.set("type", "network")
    interface.attrib.pop("trustGuestRxFilters", None)
    ET.SubElement(interface, "source", network=ISOLATED_NETWORK)


def _readdress(interface: ET.Element, clone: Identity) -> None:
    mac = interface.find("mac")
    if mac is not None:
        digest = derived(clone, mac.get("address", "").lower())
        mac.set("address", "52:54:00:" + digest[:3].hex(":"))
    drop(interface, "target")
    # libvirt makes these anew: two ports of a switch must not have the same.
    drop_attributes(interface, "source", "portid")
    drop_attributes(interface, "virtualport/parameters", "interfaceid", "instanceid")


def _character_devices(devices: ET.Element, clone: Identity) -> Iterator[str]:
    for tag in ("serial", "parallel", "console", "channel", "redirdev", "smartcard"):
        for device in devices.findall(tag):
            target = device.find("target")
            name = target.get("name", target.get("port", "")) if target is not None else ""
            warning = _character_device(device, f"{tag} {name}".rstrip(), clone)
            # The console that mirrors a serial port is the serial port.
            if warning and not (tag == "console" and get(device, "target", "type") == "serial"):
                yield warning
    for backend in devices.findall("rng/backend"):
        if warning := _character_device(backend, "rng", clone):
            yield warning


def _character_device(device: ET.Element, called: str, clone: Identity) -> str | None:
    # type                                what becomes of it
    # pty                                 libvirt takes another terminal
    # unix, path made by libvirt          libvirt makes another
    # unix, bind; file                    a path of its own
    # unix, connect; tcp; udp; dev; pipe  null, with a warning: the host has the other side once
    # any other                           as it was
    kind = device.get("type")
    _own_path(device.find("log"), "file", clone)
    if kind == "pty":
        device.attrib.pop("tty", None)
        drop(device, "source")
    elif kind == "unix" and _is_generated(device):
        drop_attributes(device, "source", "path")
    elif kind == "file" or (kind == "unix" and get(device, "source", "mode") != "connect"):
        _own_path(device.find("source"), "path", clone)
    elif kind in ("unix", "tcp", "udp", "dev", "pipe"):
        device.set("type", "null")
        drop(device, "source", "protocol")
        return f"{called} of type {kind} is not connected: the host has its other side only once"
    return None


def _is_generated(channel: ET.Element) -> bool:
    path = get(channel, "source", "path")
    return get(channel, "target", "type") == "virtio" and bool(_GENERATED.search(path))


def _own_pstore(devices: ET.Element, clone: Identity) -> None:
    for path in devices.findall("pstore/path"):
        path.text = _beside((path.text or "").strip(), clone)


def _own_path(source: ET.Element | None, attribute: str, clone: Identity) -> None:
    path = source.get(attribute) if source is not None else None
    if source is not None and path and path != os.devnull:
        source.set(attribute, _beside(path, clone))


def _beside(path: str, clone: Identity) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f"{clone.name}-{name}")


def _tpm(devices: ET.Element, clone: Identity) -> None:
    for tpm in devices.findall("tpm"):
        kind = get(tpm, "backend", "type")
        if kind != "emulator":
            raise refusal(clone, f"its TPM of type {kind} serves one machine alone")
        # Without a path libvirt keeps its state by the UUID.
        for backend in tpm.findall("backend"):
            drop(backend, "source")


def _shared(devices: ET.Element) -> Iterator[str]:
    for share in devices.findall("filesystem"):
        if share.find("readonly") is None:
            target = get(share, "target", "dir")
            yield f"filesystem {target} is shared: both machines write to the same directory"
    for memory in devices.findall("shmem"):
        yield f"shmem {memory.get('name')} is shared by both machines"


def _reset_numbers(devices: ET.Element) -> None:
    """Remove ports, sockets and addresses, so that libvirt chooses others."""
    for graphics in devices.findall("graphics"):
        if graphics.get("type") not in ("vnc", "spice", "rdp"):
            continue
        for attribute in ("tlsPort", "websocket", "socket", "port", "autoport"):
            graphics.attrib.pop(attribute, None)
        for listen in graphics.findall("listen"):
            listen.attrib.pop("socket", None)
        if get(graphics, "listen", "type") not in ("socket", "none"):
            graphics.set("port", "-1")
            graphics.set("autoport", "yes")
    for cid in devices.findall("vsock/cid"):
        cid.attrib.pop("address", None)
        cid.set("auto", "yes")


def _left_out(
    devices: ET.Element, device: ET.Element, why: str, clone: Identity, cold: bool
) -> str:
    """Remove a device and say so. Raises CloneImpossible if the RAM knows of it."""
    if not cold:
        raise refusal(clone, f"{why}; a clone without its RAM (--cold) can do without it")
    devices.remove(device)
    return f"{why}: left out"
