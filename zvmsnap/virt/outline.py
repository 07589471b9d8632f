"""All that guests may have as disks, told with modules that load fast.

For hooks/idle, which asks before anything else is loaded. It is more than disks/location finds:
there which of all these are disks does not matter.
"""

from __future__ import annotations

import os
import stat

import libvirt

_PROC = "/proc"
_PID_FILES = "/run/libvirt/qemu"  # as virt/qemu_process
_OFF = -1  # a guest that is off has no number
_MARK = ".zvmsnap."  # of overlays (disks/staging): what is below one, its path does not say
# As libvirt writes them in a value; the last one is what the others begin with.
_ESCAPED = (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&apos;", "'"), ("&amp;", "&"))


def used(uri: str) -> tuple[set[str], set[int]] | None:
    """All paths in the definitions of all guests, and the block devices that QEMUs have open.

    Of a guest that runs the definition is the one by which it runs. None if a disk may be at a path
    that its definition does not name, or a QEMU cannot be looked at. Raises libvirtError and
    OSError.
    """
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    connection = libvirt.open(uri)
    try:
        domains = connection.listAllDomains()
        definitions = [domain.XMLDesc() for domain in domains]
        running = [(each.name(), each.UUIDString()) for each in domains if each.ID() != _OFF]
    finally:
        connection.close()
    paths: set[str] = set()
    devices: set[int] = set()
    for definition in definitions:
        own = _paths_in(definition)
        if own is None:
            return None
        paths |= own
    for name, uuid in running:
        opened = _devices_of(name, uuid)
        if opened is None:
            return None
        devices |= opened
    return paths, devices


def _paths_in(definition: str) -> set[str] | None:
    # libvirt escapes both quotes in values, and `<`: so each value stands between two of them.
    values = definition.replace('"', "'").split("'")
    named = {value for value in values if value.startswith("/") and "<" not in value}
    has_volume = any(value.endswith(" pool=") for value in values)
    # A line break or a tab in a value is read as a blank: only so much is certain.
    is_odd = any(_MARK in value or "&#" in value or not value.isprintable() for value in named)
    if has_volume or is_odd:
        return None
    return set(map(_unescaped, named))


def _devices_of(name: str, uuid: str) -> set[int] | None:
    """The block devices that its QEMU has open; None if that is not where libvirt notes it."""
    try:
        with open(f"{_PID_FILES}/{name}.pid") as file:
            process = f"{_PROC}/{int(file.read())}"
        with open(f"{process}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
        if uuid.encode() not in words:
            return None
        descriptors = os.listdir(f"{process}/fd")
    except (OSError, ValueError):
        return None
    devices = set()
    for each in descriptors:
        path = f"{process}/fd/{each}"
        try:
            # To ask for a file may take for ever, if its file system hangs.
            status = os.stat(path) if os.readlink(path).startswith("/dev/") else None
        except FileNotFoundError:
            continue  # it was closed meanwhile
        if status and stat.S_ISBLK(status.st_mode):
            devices.add(status.st_rdev)
    return devices


def _unescaped(value: str) -> str:
    for escaped, character in _ESCAPED:
        value = value.replace(escaped, character)
    return value
