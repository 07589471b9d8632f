"""Can this host run the guest of a point? Everything that prevents it is told at once."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from zvmsnap.common.errors import ZvmsnapError
from zvmsnap.inventory.beyond import beyond
from zvmsnap.inventory.reader import resources_of
from zvmsnap.inventory.resource import Kind
from zvmsnap.points.manifest import DOMAIN_XML, PERSISTENT_XML, HostDescription
from zvmsnap.points.next_start import owner_by
from zvmsnap.points.point import RestorePoint
from zvmsnap.virt.host import Host
from zvmsnap.zfs.volume import device_of

_NUMBERED = re.compile(r"/dev/zd\d+\Z")
_PASSED_THROUGH = ("host-passthrough", "maximum")


def refuse_misfits(
    point: RestorePoint, reasons: Iterable[str], refused: type[ZvmsnapError], hint: str = ""
) -> None:
    """Raises `refused` if there are reasons why this host cannot run the guest, as of `why_not`.

    `hint` says what may be done about it.
    """
    text = "; ".join(reasons)
    if text:
        raise refused(f"{point.name} does not fit this host: {text}{hint}")


def reached(host: Host, point: RestorePoint, definitions: Iterable[str]) -> list[str]:
    """What definitions of a point reach of this host, beyond what the guest has here already.

    By what the manifest says of its images: whoever starts it looks at these again.
    """
    is_own = owner_by(point.manifest)
    guest = host.find(point.manifest.uuid)
    has = set(beyond(guest.xml(persistent=guest.is_persistent()), is_own)) if guest else set()
    wanted = dict.fromkeys(what for xml in definitions for what in beyond(xml, is_own))
    return [what for what in wanted if what not in has]


def refuse_beyond(
    point: RestorePoint, reached: Iterable[str], refused: type[ZvmsnapError], where: object
) -> None:
    """Raises `refused` if a point that was not made here reaches anything of this host.

    The message says what to look at; `where` is the directory of its definitions.
    """
    text = "; ".join(reached)
    if text:
        raise refused(
            f"{point.name}: was not made on this host, as far as it knows, and reaches more of it "
            f"than disks of its own: {text}. Look at {DOMAIN_XML} and {PERSISTENT_XML} in "
            f"{where}; if that is right, say --trust"
        )


def trusted(reached: Iterable[str]) -> Iterator[str]:
    """The lines of a plan that say what is trusted."""
    return (f"  TRUSTED, as it was not made on this host: {what}" for what in reached)


def refuse_unidentified(point: RestorePoint, refused: type[ZvmsnapError]) -> None:
    """Raises `refused` if the point does not say which part of a volume a disk of it was.

    Versions that did not ask the kernel took a partition, or whatever a link led to, for its
    volume. Their points are good for disks that were named as the volume itself.
    """
    for disk in point.manifest.disks:
        is_whole = disk.source in ("", device_of(disk.dataset)) or _NUMBERED.match(disk.source)
        if not (disk.dataset_guid or disk.path or is_whole):
            raise refused(
                f"{point.name}: {disk.target} was {disk.source}, and the point does not say which "
                f"part of {disk.dataset} that was, as an older version made it: zfs clone "
                "its snapshot, and look"
            )


def why_not(
    host: Host, xml: str, made_on: HostDescription, *, cold: bool, made: Collection[str] = ()
) -> list[str]:
    """Reasons why this host cannot run a guest of that definition; none if it can.

    `made` are networks, and directories, that will be made for it. To load its RAM (not `cold`),
    machine type and CPU must be those that the RAM was written with. A newer QEMU mostly loads what
    an older one has written, an older one never does.
    Raises LibvirtFailed.
    """
    root = ET.fromstring(xml)
    reasons = [
        *_missing_files(xml, root, made, cold=cold),
        *_missing_networks(root, host, made),
        *_missing_secrets(root, host),
    ]
    if why := host.why_no_machine(*_machine(root)):
        return [*reasons, f"QEMU here cannot be that machine: {why}"]
    if not cold:
        reasons += _other_cpu(root, host, made_on)
    return reasons


def _missing_files(
    xml: str, root: ET.Element, made: Collection[str], *, cold: bool
) -> Iterator[str]:
    """What it only reads, and does not start without: firmware, a kernel, a ROM, a CD."""
    dispensable = set(_dispensable(root, cold=cold))
    for named in resources_of(xml):
        is_optional = named.target in dispensable if named.target else named.is_optional
        is_made = any(named.place.startswith(f"{directory}/") for directory in made)
        if named.kind not in (Kind.FILE, Kind.BLOCK) or named.writable or named.is_state:
            continue
        if is_optional or is_made or not named.place.startswith("/"):
            continue
        if os.path.exists(named.place):
            continue
        if named.element == "devices/emulator":
            yield f"{named.place} is not here: install the QEMU of that architecture"
        else:
            yield f"{named.place} is not here ({named.called})"


def _dispensable(root: ET.Element, *, cold: bool) -> Iterator[str]:
    for disk in root.findall("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        if target is not None and source is not None and _is_dispensable(disk, source, cold=cold):
            yield target.get("dev", "")


def _is_dispensable(disk: ET.Element, source: ET.Element, *, cold: bool) -> bool:
    """Does libvirt start the guest without that image, if it is missing?"""
    # startupPolicy  starts with RAM              starts from its disks
    # optional       yes, with an empty drive     yes
    # requisite      yes, with an empty drive     no
    # any other      no                           no
    # qemuDomainCheckDiskStartupPolicy(): RAM knows of a disk that is no drive.
    policy = source.get("startupPolicy", "")
    if cold:
        return policy == "optional"
    return policy in ("optional", "requisite") and disk.get("device") in ("cdrom", "floppy")


def _missing_networks(root: ET.Element, host: Host, made: Collection[str]) -> Iterator[str]:
    for source in root.findall("devices/interface/source"):
        network, bridge = source.get("network"), source.get("bridge")
        if network in made:
            continue
        if network and not host.has_network(network):
            yield f"libvirt's network {network} is not up: virsh net-start {network}"
        elif not network and bridge and not Path(f"/sys/class/net/{bridge}").exists():
            yield f"the bridge {bridge} is not here"


def _missing_secrets(root: ET.Element, host: Host) -> Iterator[str]:
    """Keys of encrypted disks and of the state of a TPM; passwords of servers that have disks."""
    wanted = {
        (secret.get("uuid", ""), secret.get("type", ""), secret.get("usage", ""))
        for secret in root.iter("secret")
    } | {
        (encryption.get("secret", ""), "", "")
        for encryption in root.findall("devices/tpm/backend/encryption")
    }
    for uuid, kind, usage in sorted(wanted):
        if why := host.why_no_secret(uuid, kind, usage):
            yield (
                f"its secret {uuid or usage} cannot be used here: {why}: virsh secret-define it, "
                "and give it its value: virsh secret-set-value"
            )


def _machine(root: ET.Element) -> tuple[str, str, str, str]:
    """Emulator, architecture, machine type and hypervisor, as libvirt asks for them."""
    kind = root.find("os/type")
    return (
        root.findtext("devices/emulator", ""),
        kind.get("arch", "") if kind is not None else "",
        kind.get("machine", "") if kind is not None else "",
        root.get("type", ""),
    )


def _other_cpu(root: ET.Element, host: Host, made_on: HostDescription) -> Iterator[str]:
    versions = host.versions()
    if _number(versions["qemu"]) < _number(made_on.qemu):
        yield f"its RAM was written by QEMU {made_on.qemu}; {versions['qemu']} here is older"
    cpu = root.find("cpu")
    if cpu is None or cpu.get("check") == "none":  # libvirt does not compare it either
        return
    if cpu.get("mode") in _PASSED_THROUGH:
        if made_on.host_cpu != versions["host_cpu"]:
            yield f"it saw a CPU {made_on.host_cpu} as it is; here is {versions['host_cpu']}"
    elif cpu.find("model") is not None and not host.has_cpu(
        *_machine(root), ET.tostring(cpu, encoding="unicode")
    ):
        yield f"its CPU ({cpu.findtext('model')}) has features that a guest here cannot have"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,9}", version)[:3])


def available_memory_bytes(table: Path = Path("/proc/meminfo")) -> int:
    """Memory that a new guest can have without swapping."""
    for line in table.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0
