"""What each element of a definition names, by libvirt's schema (domaincommon.rng of 12.1).

In `element`, "*" stands for one tag. The parts of a disk's chain (backingStore, dataStore, mirror)
are left out: `devices/disk/source` is any image of a disk. `types` are those of the element or of
its parent for which the row is meant. `place` is made of attributes, `{@name}`, those of a child,
`{child@name}`, those of the parent, `{..@name}`, and text, `{.}`; `{hosts}` are the servers of a
network disk. Nothing is named where one of these is missing, unless it has a "?", or where all are.
With the attribute `unless` at "yes" libvirt chooses another place at each start.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from zvmsnap.inventory.resource import Kind


class Use(Enum):
    """What the guest, or its QEMU, does with it."""

    READS = "only reads it, or shares it with others"
    WRITES = "changes it, or has it alone; RAM does not depend on it"
    STATE = "keeps state in it, unless its device is read-only"


@dataclass(frozen=True)
class Row:
    """One element that names something; `called` has "{}" for the device that it belongs to."""

    element: str
    place: str
    kind: Kind
    use: Use
    types: tuple[str, ...] = ()
    called: str = "{}"
    unless: str = ""
    is_optional: bool = False


_FILE, _DIRECTORY, _BLOCK = Kind.FILE, Kind.DIRECTORY, Kind.BLOCK
_SOCKET, _PORT, _DEVICE = Kind.SOCKET, Kind.PORT, Kind.HOST_DEVICE
_NETWORK, _VOLUME, _REMOTE, _UNKNOWN = Kind.NETWORK, Kind.VOLUME, Kind.REMOTE, Kind.UNKNOWN
_READS, _WRITES, _STATE = Use.READS, Use.WRITES, Use.STATE

# That of a network may be one that libvirt has chosen of it.
_CARDS_WITH_DEVICE = ("direct", "user", "ethernet", "network", "bridge", "vhostuser")
_PCI = "pci {address@domain}:{address@bus}:{address@slot}.{address@function}"


def _storage(source: str) -> tuple[Row, ...]:
    """The rows of a <source> that may be of any kind of storage."""
    return (
        Row(source, "{@file}", _FILE, _STATE),
        Row(source, "{@dev}", _BLOCK, _STATE, ("block",)),
        Row(source, "{@dev}", _DEVICE, _STATE, ("vhostvdpa",)),
        Row(source, "{@dir}", _DIRECTORY, _STATE),
        Row(source, "{@path}", _SOCKET, _STATE, ("vhostuser",)),
        Row(source, "{@pool}/{@volume}", _VOLUME, _STATE),
        Row(source, "{@protocol}:{@name?}{@query?}{hosts?}", _REMOTE, _STATE, ("network",)),
        Row(source, _PCI, _DEVICE, _STATE, ("nvme",)),
        # Somebody who has passed an open file to libvirt: nobody else can open that again.
        Row(source, "fdgroup {@fdgroup}", _UNKNOWN, _STATE),
        Row(f"{source}/host", "{@socket}", _SOCKET, _READS, (), "server of {}"),
        Row(f"{source}/config", "{@file}", _FILE, _READS, (), "settings of {}"),
        Row(f"{source}/knownHosts", "{@path}", _FILE, _READS, (), "known hosts of {}"),
        Row(f"{source}/identity", "{@keyfile}", _FILE, _READS, (), "key of {}"),
        Row(f"{source}/identity", "{@agentsock}", _SOCKET, _READS, (), "ssh agent of {}"),
        Row(f"{source}/reservations/source", "{@path}", _SOCKET, _READS, (), "reservations of {}"),
    )


def _character(device: str) -> tuple[Row, ...]:
    """The rows of a character device. A pty is another one at each start."""
    source = f"{device}/source"
    return (
        Row(source, "{@path}", _FILE, _WRITES, ("file", "pipe")),
        Row(source, "{@path}", _DEVICE, _WRITES, ("dev",)),
        Row(source, "{@path}", _SOCKET, _WRITES, ("unix",)),
        Row(source, "{..@type} {@host?}:{@service}", _PORT, _WRITES, ("tcp", "udp")),
        Row(source, "{@master}", _DEVICE, _WRITES, ("nmdm",)),
        Row(source, "{@slave}", _DEVICE, _WRITES, ("nmdm",)),
        Row(f"{device}/log", "{@file}", _FILE, _WRITES, (), "log of {}"),
    )


ROWS = (
    # What it starts from.
    Row("os/loader", "{.}", _FILE, _STATE),
    Row("os/nvram", "{.}", _FILE, _STATE),
    # A template is read only where there are no variables yet.
    Row("os/nvram", "{@template}", _FILE, _READS, (), "template of {}", is_optional=True),
    *_storage("os/nvram/source"),
    Row("os/varstore", "{@path}", _FILE, _STATE),
    Row("os/varstore", "{@template}", _FILE, _READS, (), "template of {}", is_optional=True),
    Row("os/kernel", "{.}", _FILE, _READS),
    Row("os/initrd", "{.}", _FILE, _READS),
    Row("os/dtb", "{.}", _FILE, _READS),
    Row("os/shim", "{.}", _FILE, _READS),
    Row("os/root", "{.}", _FILE, _READS),
    Row("os/acpi/table", "{.}", _FILE, _READS),
    Row("bootloader", "{.}", _FILE, _READS),
    Row("sysinfo/entry", "{@file}", _FILE, _READS),
    Row("devices/emulator", "{.}", _FILE, _READS),
    # Disks and memory.
    *_storage("devices/disk/source"),
    Row("devices/disk/mirror", "{@file}", _FILE, _STATE, (), "copy of {}"),
    Row("devices/lease/target", "{@path}", _FILE, _WRITES),
    Row("devices/memory/source/path", "{.}", _FILE, _STATE),
    Row("devices/pstore/path", "{.}", _FILE, _STATE),
    Row("devices/shmem", "/dev/shm/{@name}", _FILE, _WRITES),
    Row("devices/shmem/server", "{@path}", _SOCKET, _WRITES),
    # A directory of the host changes at any time, whatever the guest does.
    Row("devices/filesystem/source", "{@dir}", _DIRECTORY, _WRITES),
    Row("devices/filesystem/source", "{@name}", _DIRECTORY, _READS, ("template",)),
    Row("devices/filesystem/source", "{@file}", _FILE, _STATE),
    Row("devices/filesystem/source", "{@dev}", _BLOCK, _STATE),
    Row("devices/filesystem/source", "{@pool}/{@volume}", _VOLUME, _STATE),
    Row("devices/filesystem/source", "{@socket}", _SOCKET, _WRITES),
    Row("devices/filesystem/binary", "{@path}", _FILE, _READS, (), "server of {}"),
    # TPM.
    Row("devices/tpm/backend/device", "{@path}", _DEVICE, _STATE),
    Row("devices/tpm/backend/source", "{@path}", _FILE, _STATE, ("file",)),
    Row("devices/tpm/backend/source", "{@path}", _DIRECTORY, _STATE, ("dir",)),
    Row("devices/tpm/backend/source", "{@path}", _SOCKET, _STATE, ("unix",)),
    # Devices of the host. To the guest, a USB device is plugged in anew when RAM is loaded.
    Row("devices/hostdev/source", _PCI, _DEVICE, _STATE, ("pci",)),
    Row("devices/hostdev/source", "usb {vendor@id}:{product@id}", _DEVICE, _WRITES, ("usb",)),
    Row("devices/hostdev/source", "usb {address@bus}.{address@device}", _DEVICE, _WRITES, ("usb",)),
    Row("devices/hostdev/source", "usb {address@bus}.{address@port}", _DEVICE, _WRITES, ("usb",)),
    Row(
        "devices/hostdev/source",
        "{adapter@name} {address@bus}:{address@target}:{address@unit}",
        _DEVICE,
        _STATE,
        ("scsi",),
    ),
    Row("devices/hostdev/source", "{@protocol}:{@name}{hosts?}", _REMOTE, _STATE, ("scsi",)),
    Row("devices/hostdev/source", "{@wwpn}", _DEVICE, _STATE, ("scsi_host",)),
    Row("devices/hostdev/source", "mdev {address@uuid}", _DEVICE, _STATE, ("mdev",)),
    Row("devices/hostdev/source/block", "{.}", _BLOCK, _STATE),
    Row("devices/hostdev/source/char", "{.}", _DEVICE, _STATE),
    Row("devices/hostdev/source/interface", "{.}", _NETWORK, _STATE),
    Row("devices/hostdev/rom", "{@file}", _FILE, _READS, (), "ROM of {}"),
    Row("devices/input/source", "{@evdev}", _DEVICE, _WRITES),
    Row("devices/input/source", "{@dev}", _DEVICE, _WRITES),
    # Of the network.
    Row("devices/interface/source", "bridge {@bridge}", _NETWORK, _READS),
    Row("devices/interface/source", "network {@network}", _NETWORK, _READS),
    Row("devices/interface/source", "{@dev}", _NETWORK, _READS, _CARDS_WITH_DEVICE),
    Row("devices/interface/source", "internal {@name}", _NETWORK, _READS, ("internal",)),
    Row("devices/interface/source", "switch {@switchid}", _NETWORK, _READS),
    Row("devices/interface/source", "port group {@portgroupid}", _NETWORK, _READS),
    Row("devices/interface/source", "{@dev}", _DEVICE, _WRITES, ("vdpa",)),
    Row("devices/interface/source", "{@path}", _SOCKET, _WRITES, ("vhostuser",)),
    Row("devices/interface/source", _PCI, _DEVICE, _WRITES, ("hostdev",)),
    Row(
        "devices/interface/source",
        "tcp {@address?}:{@port}",
        _PORT,
        _WRITES,
        ("server", "client"),
    ),
    # Any number of machines may be in one group.
    Row("devices/interface/source", "tcp {@address?}:{@port}", _NETWORK, _READS, ("mcast",)),
    Row(
        "devices/interface/source",
        "udp {@address?}:{@port?} {local@address?}:{local@port?}",
        _PORT,
        _WRITES,
        ("udp",),
    ),
    Row("devices/interface/target", "{@dev}", _NETWORK, _WRITES, ("ethernet",)),
    Row("devices/interface/backend", "{@tap}", _DEVICE, _READS),
    Row("devices/interface/backend", "{@vhost}", _DEVICE, _READS),
    Row("devices/interface/backend", "{@logFile}", _FILE, _WRITES, (), "log of {}"),
    Row("devices/interface/script", "{@path}", _FILE, _READS, (), "script of {}"),
    Row("devices/interface/downscript", "{@path}", _FILE, _READS, (), "script of {}"),
    Row("devices/interface/rom", "{@file}", _FILE, _READS, (), "ROM of {}"),
    Row(
        "devices/interface/portForward/range",
        "{..@proto} {..@address?}:{@start}-{@end?}",
        _PORT,
        _WRITES,
    ),
    # A guest has its number for all machines of the host.
    Row("devices/vsock/cid", "vsock {@address}", _PORT, _WRITES, unless="auto"),
    # Consoles, screens and sound.
    *(
        row
        for tag in ("serial", "parallel", "console", "channel", "redirdev", "smartcard")
        for row in _character(f"devices/{tag}")
    ),
    Row("devices/smartcard/database", "{.}", _DIRECTORY, _READS),
    Row("devices/rng/backend", "{.}", _DEVICE, _READS, ("random",)),
    *_character("devices/rng/backend"),
    Row("devices/graphics", "tcp {@listen?}:{@port}", _PORT, _WRITES, unless="autoport"),
    Row(
        "devices/graphics",
        "tcp {@listen?}:{@tlsPort}",
        _PORT,
        _WRITES,
        (),
        "TLS port of {}",
        unless="autoport",
    ),
    Row(
        "devices/graphics",
        "tcp {@listen?}:{@websocket}",
        _PORT,
        _WRITES,
        (),
        "web port of {}",
        unless="autoport",
    ),
    Row("devices/graphics", "{@socket}", _SOCKET, _WRITES),
    Row("devices/graphics/listen", "{@socket}", _SOCKET, _WRITES),
    Row("devices/graphics", "{@address}", _SOCKET, _WRITES, ("dbus",)),
    Row("devices/graphics", "{@display}", _SOCKET, _WRITES, ("sdl",)),
    Row("devices/graphics", "{@xauth}", _FILE, _READS, (), "key of {}"),
    Row("devices/graphics/gl", "{@rendernode}", _DEVICE, _READS),
    Row("devices/video/model/acceleration", "{@rendernode}", _DEVICE, _READS),
    Row("devices/audio", "{@path}", _FILE, _WRITES),
    Row("devices/audio", "{@dev}", _DEVICE, _WRITES),
    Row("devices/audio", "{@serverName}", _SOCKET, _READS),
    Row("devices/audio", "{@runtimeDir}", _DIRECTORY, _READS),
    Row("devices/audio/*", "{@dev}", _DEVICE, _READS),
    Row("devices/audio/*", "{@serverName}", _SOCKET, _READS),
    # Only a weight or limit is set for it.
    Row("blkiotune/device/path", "{.}", _BLOCK, _READS, (), "I/O limit of {}"),
)

# Text of people, and of the guest: nothing of the host is named by it.
PLAIN_BELOW = (
    "name",
    "title",
    "description",
    "metadata",
    "cpu",
    "cputune",
    "clock",
    "resource",
    "seclabel",
    "features",
    "memoryBacking",
    "launchSecurity",
    "os/cmdline",
    "os/type",
    "os/init",
    "os/initarg",
    "os/initdir",
    "os/initenv",
    "os/boot",
    "sysinfo",
    "bootloader_args",
    "throttlegroups",
    "devices/disk/iotune",
    "devices/disk/vendor",
    "devices/disk/product",
    "devices/disk/serial",
    "devices/interface/filterref",
    "devices/interface/guest",
    "devices/interface/route",
    "devices/interface/virtualport",
    "devices/smartcard/certificate",
    "devices/redirfilter",
    "qemu:capabilities",
    "qemu:commandline/qemu:arg",
    "qemu:deprecation",
)
# The same, of these tags in any place: the side of the guest, and addresses in it.
PLAIN_TAGS = frozenset(
    [
        "host",
        "target",
        "address",
        "alias",
        "boot",
        "seclabel",
        "secret",
        "encryption",
        "auth",
        "initiator",
        "cookies",
        "driver",
        "backenddomain",
        "teaming",
        "local",
        "link",
        "readahead",
        "timeout",
        "vlan",
        "bandwidth",
    ]
)
# The same, of these attributes.
PLAIN_ATTRIBUTES = frozenset(
    (
        "devices/console@tty",
        "devices/parallel@tty",
        "devices/serial@tty",
        "devices/interface/portForward@dev",
        "devices/interface/portForward@address",
        "devices/graphics@listen",
        "devices/graphics@passwd",
        "devices/graphics@keymap",
        "devices/graphics@username",
    )
)
# The same, of a source of these types: a pty is another one at each start.
PLAIN_TYPES = frozenset(("pty",))
# By these names an element that the table does not know tells that it names something.
NAMING_ATTRIBUTES = frozenset(
    [
        "file",
        "dev",
        "dir",
        "path",
        "socket",
        "pool",
        "volume",
        "host",
        "port",
        "service",
        "fdgroup",
        "tty",
        "evdev",
        "rendernode",
    ]
)
