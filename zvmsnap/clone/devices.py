"""The devices of a clone: what the guest sees stays, what the host has behind it is its own.

What can serve one machine alone is left out of a clone without RAM. With RAM the guest knows of
the device, so such a clone is refused.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass

from zvmsnap.clone.elements import child, drop, drop_attributes, get
from zvmsnap.clone.identity import ISOLATED_NETWORK, Identity, Network, derived, refusal
from zvmsnap.clone.own_places import OwnPlaces

# Where libvirt puts the sockets of channels, by its versions: qemuDomainChrDefDropDefaultPath().
_GENERATED = re.compile(r"/channel/target/|/domain-|/qemu/channel/\d+-")


@dataclass(frozen=True)
class _OwnFiles:
    """Names for what a clone's QEMU writes or listens on, beside that of the original's."""

    clone: str
    places: OwnPlaces

    def name(self, element: ET.Element | None, attribute: str) -> None:
        """Give a path of its own to the element, if it has one."""
        path = element.get(attribute) if element is not None else None
        if element is not None and path and path != os.devnull:
            element.set(attribute, self._own(path))

    def of_qemu(self, devices: ET.Element) -> None:
        """Give paths of their own to what the guest has no image of."""
        for path in devices.findall("pstore/path"):
            path.text = self._own((path.text or "").strip())
        for audio in devices.findall("audio[@type='file']"):
            self.name(audio, "path")

    def _own(self, path: str) -> str:
        if self.places.has(path):
            return path
        folder, name = os.path.split(path)
        return os.path.join(folder, f"{self.clone}-{name}")


def adapt_devices(
    devices: ET.Element, clone: Identity, own: frozenset[str], places: OwnPlaces, *, cold: bool
) -> tuple[str, ...]:
    """Change `devices` to those of `clone`; returns what an operator should know.

    `own` are the targets of the disks that have images of their own; what else the clone has of
    its own is in `places`, and named already. Raises CloneImpossible.
    """
    own_files = _OwnFiles(clone.name, places)
    warnings = (
        *_disks(devices, clone, own, places, cold),
        *_host_devices(devices, clone, places, cold),
        *_interfaces(devices, clone, own_files, cold),
        *_character_devices(devices, own_files),
        *_inputs(devices, clone, cold),
        *_shared(devices, clone, places, cold),
    )
    _tpm(devices, clone, places)
    own_files.of_qemu(devices)
    _vsock(devices)
    return (*warnings, *_graphics(devices))


def _disks(
    devices: ET.Element, clone: Identity, own: frozenset[str], places: OwnPlaces, cold: bool
) -> Iterator[str]:
    # writable  image of its own   what becomes of the disk
    # no        any                is read by both
    # yes       yes                stays
    # yes       no, a floppy       the drive stays, empty
    # yes       no, cold           is left out
    # yes       no                 CloneImpossible: RAM and disk would not fit
    for disk in devices.findall("disk"):
        drop(disk, "mirror")  # no job goes on in a clone
        if any(store.get("type") == "volume" for store in disk.iter("backingStore")):
            drop(disk, "backingStore")  # by a pool it is the original's; headers name the clone's
        target = get(disk, "target", "dev")
        image = get(disk, "source", "file") or get(disk, "source", "dev")
        if disk.find("readonly") is not None or target in own or places.has(image):
            continue
        kind = disk.get("device", "disk")
        if kind == "floppy" and disk.find("source") is not None:
            drop(disk, "source", "backingStore")
            yield f"floppy {target}: the drive is empty, as its image can be in one machine alone"
        elif kind in ("disk", "lun"):
            why = f"disk {target} is not part of the point"
            yield _left_out(devices, disk, why, clone, cold)


def _host_devices(
    devices: ET.Element, clone: Identity, places: OwnPlaces, cold: bool
) -> Iterator[str]:
    for device in devices.findall("hostdev"):
        why = f"hostdev of type {device.get('type', device.get('mode'))} is one device of the host"
        yield _left_out(devices, device, why, clone, cold)
    if cold:
        for device in devices.findall("redirdev"):
            yield _left_out(devices, device, "redirdev serves one machine", clone, cold)
    for memory in devices.findall("memory"):
        path = memory.findtext("source/path", "").strip()
        if path and not places.has(path):
            raise refusal(
                clone, f"its {memory.get('model')} memory is in {path}, for one machine alone"
            )
    drop(devices, "lease")


# Each connects the guest with one peer, or is one port of the host.
_ONE_PEER = ("vhostuser", "vdpa", "server", "client", "udp")

# What the host has behind a network card; the guest sees nothing of it.
_HOST_SIDE = (
    *("source", "virtualport", "vlan", "script", "downscript", "backend", "ip", "route"),
    *("portForward", "filterref", "port", "bandwidth", "coalesce", "tune"),
)


def _interfaces(
    devices: ET.Element, clone: Identity, own_files: _OwnFiles, cold: bool
) -> Iterator[str]:
    # type                              network    what becomes of it
    # hostdev, or of a pool of these    any        left out when cold, else CloneImpossible
    # any other                         isolated   plugged into the isolated network
    # any other                         none       a tap that nothing is plugged into; link down
    # of _ONE_PEER, or port of midonet  keep       CloneImpossible
    # user                              keep       as it was, without ports of the host
    # any other                         keep       as it was
    for interface in devices.findall("interface"):
        called = f"interface {get(interface, 'mac', 'address')}"
        kind = interface.get("type", "")
        # The second of two that the guest takes for one: QEMU has it as a device of the host.
        if kind == "hostdev" or get(interface, "teaming", "type") == "transient":
            yield _left_out(devices, interface, f"{called} is one device of the host", clone, cold)
            continue
        if clone.network is Network.ISOLATED:
            _plug(interface, "network", network=ISOLATED_NETWORK)
        elif clone.network is Network.NONE:
            _plug(interface, "ethernet")
            child(interface, "link").set("state", "down")
        else:
            yield from _keep_plugged(interface, called, clone, own_files)
        _readdress(interface, clone)


def _plug(interface: ET.Element, kind: str, **source: str) -> None:
    """Plug it in elsewhere; only what the guest sees of it stays."""
    drop(interface, *_HOST_SIDE)
    interface.set("type", kind)
    interface.attrib.pop("trustGuestRxFilters", None)
    if source:
        ET.SubElement(interface, "source", source)


def _keep_plugged(
    interface: ET.Element, called: str, clone: Identity, own_files: _OwnFiles
) -> Iterator[str]:
    is_midonet = get(interface, "virtualport", "type") == "midonet"
    kind = "midonet" if is_midonet else interface.get("type", "")
    # libvirt starts a passt for each machine.
    is_passt = get(interface, "backend", "type") == "passt"
    if is_midonet or (kind in _ONE_PEER and not is_passt):
        raise refusal(
            clone,
            f"{called} of type {kind} serves one machine: choose the isolated network, or none",
        )
    own_files.name(interface.find("backend"), "logFile")
    if interface.find("portForward") is not None:
        drop(interface, "portForward")
        yield f"{called} has no ports of the host: these are the original's"


def _readdress(interface: ET.Element, clone: Identity) -> None:
    mac = interface.find("mac")
    if mac is not None:
        digest = derived(clone, mac.get("address", "").lower())
        mac.set("address", "52:54:00:" + digest[:3].hex(":"))
    drop(interface, "target")
    # libvirt makes these anew: two ports of a switch must not have the same.
    drop_attributes(interface, "source", "portid")
    drop_attributes(interface, "virtualport/parameters", "interfaceid", "instanceid")


def _character_devices(devices: ET.Element, own_files: _OwnFiles) -> Iterator[str]:
    for tag in ("serial", "parallel", "console", "channel", "redirdev", "smartcard"):
        for device in devices.findall(tag):
            target = device.find("target")
            name = target.get("name", target.get("port", "")) if target is not None else ""
            warning = _character_device(device, f"{tag} {name}".rstrip(), own_files)
            # The console that mirrors a serial port is the serial port.
            if warning and not (tag == "console" and get(device, "target", "type") == "serial"):
                yield warning
    for backend in devices.findall("rng/backend"):
        if warning := _character_device(backend, "rng", own_files):
            yield warning


def _character_device(device: ET.Element, called: str, own_files: _OwnFiles) -> str | None:
    # type                                what becomes of it
    # pty                                 libvirt takes another terminal
    # unix, bind, path made by libvirt    libvirt makes another
    # unix, bind; file                    a path of its own
    # unix, connect; tcp; udp; dev; pipe  null, with a warning: the host has the other side once
    # any other                           as it was
    kind = device.get("type")
    own_files.name(device.find("log"), "file")
    if kind == "pty":
        device.attrib.pop("tty", None)
        drop(device, "source")
    elif kind == "unix" and get(device, "source", "mode") != "connect":
        if _is_generated(device):
            drop_attributes(device, "source", "path")
        own_files.name(device.find("source"), "path")
    elif kind == "file":
        own_files.name(device.find("source"), "path")
    elif kind in ("unix", "tcp", "udp", "dev", "pipe"):
        device.set("type", "null")
        drop(device, "source", "protocol")
        return f"{called} of type {kind} is not connected: the host has its other side only once"
    return None


def _is_generated(channel: ET.Element) -> bool:
    path = get(channel, "source", "path")
    return get(channel, "target", "type") == "virtio" and bool(_GENERATED.search(path))


def _tpm(devices: ET.Element, clone: Identity, places: OwnPlaces) -> None:
    for tpm in devices.findall("tpm"):
        kind = get(tpm, "backend", "type")
        if kind != "emulator":
            raise refusal(clone, f"its TPM of type {kind} serves one machine alone")
        path = get(tpm, "backend/source", "path")
        if get(tpm, "backend/source", "type") != "file":
            # Without a path libvirt keeps its state by the UUID.
            for backend in tpm.findall("backend"):
                drop(backend, "source")
        elif not places.has(path):
            raise refusal(
                clone, f"the state of its TPM is in {path}, which is in no dataset of the point"
            )


def _inputs(devices: ET.Element, clone: Identity, cold: bool) -> Iterator[str]:
    for device in devices.findall("input"):
        # The guest does not see evdev: its own keyboard and mouse are fed by it.
        if device.get("type") == "evdev":
            devices.remove(device)
            yield f"evdev {get(device, 'source', 'dev')} is one device of the host: left out"
        elif device.get("type") == "passthrough":
            yield _left_out(devices, device, "passed-through input serves one machine", clone, cold)


def _shared(devices: ET.Element, clone: Identity, places: OwnPlaces, cold: bool) -> Iterator[str]:
    # a share                      what becomes of it
    # of a socket                  left out when cold, else CloneImpossible
    # in a dataset of the point    is the clone's own
    # that is read-only            is read by both
    # any other                    left out when cold, else CloneImpossible
    for share in devices.findall("filesystem"):
        called = f"filesystem {get(share, 'target', 'dir')}"
        if socket := get(share, "source", "socket"):
            why = f"{called}: the server at {socket} serves one machine"
            yield _left_out(devices, share, why, clone, cold)
        elif share.find("readonly") is None and not places.has(get(share, "source", "dir")):
            why = f"{called} would be shared: both machines would write to the same directory"
            yield _left_out(devices, share, why, clone, cold)
    for memory in devices.findall("shmem"):
        why = f"shmem {memory.get('name')} would be shared by both machines"
        yield _left_out(devices, memory, why, clone, cold)


def _graphics(devices: ET.Element) -> Iterator[str]:
    # type               what becomes of it
    # vnc, spice, rdp    libvirt takes another port, or makes another socket
    # dbus               libvirt starts another bus
    # sdl                is left out: no second window on somebody's desktop
    # any other          as it was
    for graphics in devices.findall("graphics"):
        kind = graphics.get("type")
        if kind == "sdl":
            devices.remove(graphics)
            yield "graphics of type sdl: left out, as its window is the original's"
        if kind == "dbus":
            graphics.attrib.pop("address", None)
        if kind in ("vnc", "spice", "rdp"):
            _reset_ports(graphics)


def _reset_ports(graphics: ET.Element) -> None:
    """Remove ports and sockets, so that libvirt chooses others."""
    for attribute in ("tlsPort", "websocket", "socket", "port", "autoport"):
        graphics.attrib.pop(attribute, None)
    for listen in graphics.findall("listen"):
        listen.attrib.pop("socket", None)
    if get(graphics, "listen", "type") not in ("socket", "none"):
        graphics.set("port", "-1")
        graphics.set("autoport", "yes")


def _vsock(devices: ET.Element) -> None:
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
