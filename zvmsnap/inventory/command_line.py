"""What arguments for QEMU itself (<qemu:commandline>), and its environment, name.

Libvirt passes them on unread.

| option                | what its value names                            | it is                 |
|-----------------------|-------------------------------------------------|-----------------------|
| of _NAMES_NOTHING     | nothing; but a path is not known                | no resource; UNKNOWN  |
| of _READS             | a file that QEMU reads                          | only read             |
| of _WRITES            | a file that QEMU writes                         | writable              |
| of _CONNECTS          | a socket, port, file or card, or nothing        | writable; no resource |
| -fsdev, -virtfs       | a directory                                     | writable              |
| -drive, -hda ...      | an image                                        | state, or only read   |
| -blockdev             | an image, if it is not on another node          | state, or only read   |
| -device               | a device of the host, by _HOST_DRIVERS          | state                 |
| -device               | no such device; but a path is not known         | no resource; UNKNOWN  |
| -usbdevice            | nothing, if it is one of QEMU, without a colon  | no resource; UNKNOWN  |
| -object input-linux   | a device of the host                            | writable              |
| any other -object     | a file or device, if a value is a path          | state, or only read   |
| any other             | cannot be told                                  | UNKNOWN               |
| environment           | a path; or what the loader is to do (LD_...)    | UNKNOWN, only read    |
| any other environment | nothing                                         | no resource           |
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from zvmsnap.inventory.resource import Kind, Resource

ELEMENT = "qemu:commandline"
ENVIRONMENT = f"{ELEMENT}/qemu:env"
# Without a value.
_FLAGS = frozenset(
    [
        "S",
        "s",
        "no-reboot",
        "no-shutdown",
        "no-acpi",
        "no-hpet",
        "no-fd-bootchk",
        "nodefaults",
        "no-user-config",
        "nographic",
        "enable-kvm",
        "only-migratable",
        "usb",
        "snapshot",
        "mem-prealloc",
        "daemonize",
        "singlestep",
        "win2k-hack",
        "alt-grab",
        "no-quit",
        "localtime",
    ]
)
_NAMES_NOTHING = frozenset(
    [
        "cpu",
        "smp",
        "m",
        "machine",
        "M",
        "accel",
        "overcommit",
        "global",
        "boot",
        "rtc",
        "name",
        "uuid",
        "k",
        "vga",
        "display",
        "full-screen",
        "rotate",
        "watchdog",
        "watchdog-action",
        "append",
        "set",
        "icount",
        "sandbox",
        "msg",
        "compat",
        "numa",
        "balloon",
        "action",
        "mon",
        "seed",
        "d",
        "soundhw",
    ]
) | (_FLAGS - {"s"})
_READS = frozenset(
    [
        "smbios",
        "fw_cfg",
        "acpitable",
        "bios",
        "kernel",
        "initrd",
        "dtb",
        "L",
        "readconfig",
        "option-rom",
    ]
)
_WRITES = frozenset(["D", "pidfile", "writeconfig", "trace", "audiodev"])
# What is at the other end of a character device, a card or a screen: no state, but QEMU's alone.
_CONNECTS = frozenset(
    [
        "chardev",
        "serial",
        "parallel",
        "monitor",
        "qmp",
        "qmp-pretty",
        "debugcon",
        "gdb",
        "vnc",
        "spice",
        "net",
        "nic",
        "netdev",
    ]
)
_CONNECTED_TO_NOTHING = re.compile(
    r"(none|null|stdio|pty|vc|mon|ringbuf|spicevmc|spiceport|user|tap|bridge|hubport|chardev)\b"
)
_SEEN_FROM_OUTSIDE = re.compile(r"hostfwd|guestfwd|smb|=/")
_IMAGES = frozenset(["hda", "hdb", "hdc", "hdd", "fda", "fdb", "mtdblock", "sd", "pflash"])
# Drivers that need a device or a process of the host.
_HOST_DRIVERS = re.compile(r"vfio|vhost|ivshmem|usb-host|usb-redir|scsi-(block|generic)|nvme-pass")
_INPUT_OBJECT = "input-linux"
# Objects that QEMU only reads.
_READ_OBJECTS = re.compile(r"rng-|secret|tls-|iothread|throttle-group|cryptodev|authz-|can-|colo-")
_PATH = re.compile(r"(^|:)/")


def of_environment(name: str, value: str) -> Iterator[Resource]:
    """What a variable of QEMU's environment names."""
    if "/" in value or name.startswith("LD_"):
        place = f"{name}={value}"
        yield Resource("environment", Kind.UNKNOWN, place, False, False, ENVIRONMENT)


def resources_of(arguments: Iterable[str]) -> Iterator[Resource]:
    """What these arguments name, in their order."""
    words = list(arguments)
    while words:
        word = words.pop(0)
        option = word.lstrip("-")
        if not word.startswith("-"):
            yield _unknown(word, word)
        elif option in _FLAGS:
            if option == "s":
                yield _resource("-s", Kind.PORT, "tcp 127.0.0.1:1234", writable=True)
        else:
            yield from _of_option(option, words.pop(0) if words else "")


def _of_option(option: str, value: str) -> Iterator[Resource]:
    called = f"QEMU argument -{option}"
    values = _parsed(value)
    paths = [each for each in values.values() if _PATH.search(each)]
    if option in _NAMES_NOTHING:
        # For instance a machine's firmware, or a log that -icount replays.
        yield from (_unknown(called, path) for path in paths)
    elif option in _READS:
        yield from (_resource(called, Kind.FILE, path) for path in paths)
    elif option in _WRITES:
        yield from (_resource(called, Kind.FILE, path, writable=True) for path in paths)
    elif option in _CONNECTS:
        if not _CONNECTED_TO_NOTHING.match(value) or _SEEN_FROM_OUTSIDE.search(value):
            yield _resource(called, Kind.SOCKET, value, writable=True)
    elif option in ("fsdev", "virtfs"):
        yield from (_resource(called, Kind.DIRECTORY, path, writable=True) for path in paths)
    elif option == "cdrom":
        yield _resource(called, Kind.FILE, value)
    elif option in _IMAGES:
        yield _resource(called, Kind.FILE, value, writable=True, is_state=True)
    elif option in ("drive", "blockdev"):
        yield from _drive(called, value, values)
    elif option == "device":
        if _HOST_DRIVERS.match(values.get("", values.get("driver", ""))):
            yield _resource(called, Kind.HOST_DEVICE, value, writable=True, is_state=True)
        else:
            yield from (_unknown(called, path) for path in paths)
    elif option == "object":
        yield from _object(called, values.get("", values.get("qom-type", "")), paths)
    elif option == "usbdevice" and ":" not in value:
        return  # one that QEMU has itself, such as a tablet
    else:
        yield _unknown(called, value)


def _object(called: str, kind: str, paths: Iterable[str]) -> Iterator[Resource]:
    is_read = bool(_READ_OBJECTS.match(kind))
    for path in paths:
        if kind == _INPUT_OBJECT:
            yield _resource(called, Kind.HOST_DEVICE, path, writable=True)
        else:
            yield _resource(called, Kind.FILE, path, writable=not is_read, is_state=not is_read)


def _drive(called: str, value: str, values: dict[str, str]) -> Iterator[Resource]:
    driver = values.get("driver", values.get("", ""))
    file = next(
        (values[key] for key in ("file.filename", "filename", "file") if values.get(key)), ""
    )
    on = ("on", "true", "yes")
    is_read_only = (
        values.get("readonly") in on
        or values.get("read-only") in on
        or values.get("media") == "cdrom"
    )
    if driver.startswith("null-") or (called.endswith("blockdev") and not _names_image(values)):
        return  # on another node, which is an argument of its own
    if not _PATH.search(file) or ":" in file:
        yield _unknown(called, value)
    elif file.startswith("/dev/"):
        yield _resource(
            called, Kind.BLOCK, file, writable=not is_read_only, is_state=not is_read_only
        )
    else:
        yield _resource(
            called, Kind.FILE, file, writable=not is_read_only, is_state=not is_read_only
        )


def _names_image(values: dict[str, str]) -> bool:
    """Has this node an image of its own, or is it on a node of another argument?"""
    own = set(values) - {"", "driver", "node-name", "read-only", "discard", "detect-zeroes", "file"}
    is_image = bool(own & {"filename", "file.filename", "file.driver"}) or "file" not in values
    return is_image or bool(_PATH.search(values["file"]))


def _parsed(value: str) -> dict[str, str]:
    """Its keys and values; the one without a key is "". JSON is flattened: "file.filename"."""
    if value.startswith("{"):
        try:
            return dict(_flat(json.loads(value)))
        except (ValueError, RecursionError):
            return {"": value}
    parsed: dict[str, str] = {}
    for each in value.replace(",,", "\0").split(","):
        key, equals, rest = each.replace("\0", ",").partition("=")
        parsed.setdefault(*((key, rest) if equals else ("" if not parsed else key, key)))
    return parsed


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _flat(below, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _flat(below, f"{key}.{index}")
    else:
        yield key, str(value).lower() if isinstance(value, bool) else str(value)


def _resource(
    called: str, kind: Kind, place: str, *, writable: bool = False, is_state: bool = False
) -> Resource:
    return Resource(called, kind, place, writable, is_state, ELEMENT)


def _unknown(called: str, place: str) -> Resource:
    return Resource(called, Kind.UNKNOWN, place, True, True, ELEMENT)
