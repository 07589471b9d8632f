"""Can this host be the machine of a point? Everything that is in the way is told at once."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from zvmsnap.points.manifest import HostDescription
from zvmsnap.virt.host import Host

_PASSED_THROUGH = ("host-passthrough", "maximum")


def why_not(hypervisor: Host, xml: str, made_on: HostDescription, *, cold: bool) -> list[str]:
    """Reasons why a machine of that definition cannot run here; none if it can.

    For its RAM (not `cold`) machine type and CPU must be those that it was made on; a newer QEMU
    mostly loads what an older one has written, an older one never. Raises LibvirtFailed.
    """
    root = ET.fromstring(xml)
    reasons = [*_missing_files(root), *_missing_networks(root, hypervisor)]
    machine = _no_machine(root, hypervisor)
    if machine:
        return [*reasons, machine]
    if not cold:
        reasons += _other_cpu(root, hypervisor, made_on)
    return reasons


def _missing_files(root: ET.Element) -> Iterator[str]:
    for tag in ("os/loader", "os/kernel", "os/initrd"):
        path = root.findtext(tag, "").strip()
        if path and not os.path.exists(path):
            yield f"{path} is not here ({tag.partition('/')[2]})"
    emulator = root.findtext("devices/emulator", "")
    if emulator and not os.path.exists(emulator):
        yield f"{emulator} is not here: install the QEMU of that architecture"
    for disk in root.findall("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        if target is None or source is None or disk.find("readonly") is None:
            continue
        path = source.get("file") or source.get("dev") or ""
        if path and not os.path.exists(path):
            yield f"{path} is not here ({disk.get('device', 'disk')} {target.get('dev')})"


def _missing_networks(root: ET.Element, hypervisor: Host) -> Iterator[str]:
    for source in root.findall("devices/interface/source"):
        network, bridge = source.get("network"), source.get("bridge")
        if network and not hypervisor.has_network(network):
            yield f"libvirt's network {network} is not up: virsh net-start {network}"
        elif not network and bridge and not Path(f"/sys/class/net/{bridge}").exists():
            yield f"the bridge {bridge} is not here"


def _no_machine(root: ET.Element, hypervisor: Host) -> str | None:
    why = hypervisor.why_no_machine(*_kind_of(root))
    return f"QEMU here cannot be that machine: {why}" if why else None


def _kind_of(root: ET.Element) -> tuple[str, str, str, str]:
    kind = root.find("os/type")
    return (
        root.findtext("devices/emulator", ""),
        kind.get("arch", "") if kind is not None else "",
        kind.get("machine", "") if kind is not None else "",
        root.get("type", ""),
    )


def _other_cpu(root: ET.Element, hypervisor: Host, made_on: HostDescription) -> Iterator[str]:
    now = hypervisor.versions()
    if _number(now["qemu"]) < _number(made_on.qemu):
        yield f"its RAM was written by QEMU {made_on.qemu}; {now['qemu']} here is older"
    cpu = root.find("cpu")
    if cpu is None or cpu.get("check") == "none":  # then libvirt does not care either
        return
    if cpu.get("mode") in _PASSED_THROUGH:
        if made_on.host_cpu != now["host_cpu"]:
            yield f"it saw a CPU {made_on.host_cpu} as it is; here is {now['host_cpu']}"
    elif cpu.find("model") is not None and not hypervisor.has_cpu(
        *_kind_of(root), ET.tostring(cpu, encoding="unicode")
    ):
        yield f"its CPU ({cpu.findtext('model')}) has features that a guest here cannot have"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,9}", version)[:3])


def available_memory_bytes(table: Path = Path("/proc/meminfo")) -> int:
    """What a new guest may take without pushing others out."""
    for line in table.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0
