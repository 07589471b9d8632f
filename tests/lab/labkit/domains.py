"""Domains of the lab: their XML and their disks.

Part of how the state `guests` is made: a change here makes it anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from xml.sax.saxutils import quoteattr

from labkit import bootsector
from labkit.shell import Completed

SERIAL_DIR = "/var/lib/libvirt/serial"
NVRAM_DIR = "/var/lib/libvirt/qemu/nvram"
OVMF_CODE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
OVMF_VARS = "/usr/share/OVMF/OVMF_VARS_4M.fd"
DISK_MIB = 16


class Host(Protocol):
    """What is needed of a lab here."""

    def run(self, command: str, *, timeout_s: float = 120.0,
            stdin: str | bytes | None = None) -> Completed:
        """Run a command in the lab."""

    def get(self, path: str) -> bytes:
        """Read a file of the lab."""


@dataclass(frozen=True)
class Disk:
    """One disk of a domain: an image file, or a block device below /dev."""

    path: str
    format: str = "raw"
    cache: str = "none"
    target: str = ""
    extra: str = ""

    @property
    def is_block(self) -> bool:
        """Whether it is a block device."""
        return self.path.startswith("/dev/")

    def xml(self, index: int) -> str:
        """Its element. Each disk is bootable, or the BIOS would not offer it to the guest."""
        kind, attribute = ("block", "dev") if self.is_block else ("file", "file")
        target = self.target or f"vd{chr(ord('a') + index)}"
        cache = f" cache='{self.cache}'" if self.cache else ""
        return (f"<disk type='{kind}' device='disk'>"
                f"<driver name='qemu' type='{self.format}'{cache}/>"
                f"<source {attribute}={quoteattr(self.path)}/>"
                f"<target dev='{target}' bus='virtio'/><boot order='{index + 1}'/>"
                f"{self.extra}</disk>")


def domain_xml(name: str, disks: Sequence[Disk], *, memory_mib: int = 64, machine: str = "pc",
               uefi: bool = False, uuid: str = "", tpm: bool = False, devices: str = "",
               extra: str = "", boot: str = "") -> str:
    """A domain as an operator would have it.

    `devices` is laid inside <devices>, `extra` inside <domain>, `boot` inside <os>. A UEFI
    guest has flash and NVRAM of its own, but does not count: the counter needs a BIOS.
    """
    firmware = ""
    if uefi:
        machine = "q35"
        firmware = (f"<loader readonly='yes' type='pflash'>{OVMF_CODE}</loader>"
                    f"<nvram template='{OVMF_VARS}'>{NVRAM_DIR}/{name}_VARS.fd</nvram>")
    return (
        "<domain type='qemu'>"
        f"<name>{name}</name>{f'<uuid>{uuid}</uuid>' if uuid else ''}"
        f"<memory unit='MiB'>{memory_mib}</memory><vcpu>1</vcpu>"
        f"<os><type arch='x86_64' machine='{machine}'>hvm</type>{firmware}{boot}</os>"
        "<features><acpi/><apic/></features><clock offset='utc'/>"
        "<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot>"
        "<on_crash>destroy</on_crash>"
        "<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>"
        f"{''.join(disk.xml(index) for index, disk in enumerate(disks))}"
        f"<serial type='file'><source path='{SERIAL_DIR}/{name}.log' append='on'/>"
        "<target port='0'/></serial>"
        "<graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1'/>"
        "<video><model type='vga'/></video><memballoon model='virtio'/>"
        f"{'''<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>''' * tpm}"
        f"{devices}</devices>{extra}</domain>")


def make_disk(lab: Host, disk: Disk, *, size_mib: int = DISK_MIB, fill_mib: int = 0,
              dirty_mib: int = 0, memory_mib: int = 64) -> Disk:
    """Create a disk with the boot code on it: raw, qcow2, or a zvol by its /dev/zvol path."""
    code = bootsector.boot_code(fill_mib=fill_mib, dirty_mib=dirty_mib, memory_mib=memory_mib)
    path = disk.path
    if disk.is_block:
        volume = path.removeprefix("/dev/zvol/")
        if volume != path:
            lab.run(f"zfs create -p -s -V {size_mib}M {volume} && udevadm settle -E {path}")
        lab.run(f"dd of={path} conv=fsync,notrunc status=none", stdin=code)
    elif disk.format == "raw":
        lab.run(f"truncate -s {size_mib}M {path} && dd of={path} conv=fsync,notrunc status=none",
                stdin=code)
    else:
        lab.run(f"cat > {path}.raw && truncate -s {size_mib}M {path}.raw && "
                f"qemu-img convert -f raw -O {disk.format} {path}.raw {path} && rm {path}.raw",
                stdin=code)
    return disk


def define(lab: Host, xml: str) -> None:
    """Define a domain, with a place for its serial log."""
    lab.run(f"install -d {SERIAL_DIR} && virsh -q define /dev/stdin", stdin=xml)
