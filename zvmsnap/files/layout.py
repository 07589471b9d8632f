"""Where the file systems of a guest are put. Pure.

| what libguestfs finds                  | what is there                                       |
|----------------------------------------|-----------------------------------------------------|
| one Windows                            | /C:, /D: ..., as its registry has them              |
| one other system                       | its own mountpoints, from / on                      |
| none or several, or devices are wanted | each file system by its device: /vda1, /vg-root ... |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

_WINDOWS = "windows"
_NO_FILES = frozenset(("", "swap", "unknown", "crypto_LUKS", "BitLocker", "LVM2_member"))
_DISK = re.compile(r"/dev/[hsv]d[a-z]+")


@dataclass(frozen=True)
class System:
    """One operating system of the guest, as libguestfs inspects it.

    `mountpoints` and `drives` are what it mounts where; drives are letters.
    """

    root: str
    kind: str
    mountpoints: Mapping[str, str] = field(default_factory=dict)
    drives: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """What is mounted where, parents first.

    `made`: the directories do not exist in the guest. `needed` are those without which the rest is
    worth nothing. `is_windows`: names do not differ by case.
    """

    places: tuple[tuple[str, str], ...]
    made: bool
    needed: frozenset[str] = frozenset()
    is_windows: bool = False


def layout(
    systems: Sequence[System],
    file_systems: Callable[[], Mapping[str, str]],
    name_of: Callable[[str], str],
    *,
    by_device: bool,
) -> Layout:
    """By the table above; `name_of` names a disk's device.

    `file_systems` has the kinds of all: libguestfs takes its time, so it is asked only if need be.
    """
    if len(systems) != 1 or by_device:
        return _by_device(file_systems(), name_of)
    (system,) = systems
    if system.kind == _WINDOWS:
        drives = dict(system.drives)
        if system.root not in drives.values():
            drives["C"] = system.root
        places = [(f"/{letter.upper()}:", device) for letter, device in sorted(drives.items())]
        return Layout(tuple(places), made=True, is_windows=True)
    mountpoints = dict(system.mountpoints) or {"/": system.root}
    ordered = sorted(mountpoints.items(), key=lambda each: (len(each[0]), each[0]))
    return Layout(tuple(ordered), made=False, needed=frozenset("/"))


def _by_device(file_systems: Mapping[str, str], name_of: Callable[[str], str]) -> Layout:
    places: dict[str, str] = {}
    for device, kind in sorted(file_systems.items()):
        if kind in _NO_FILES:
            continue
        named = _DISK.sub(lambda disk: f"/dev/{name_of(disk[0])}", device, count=1)
        # As of btrfsvol:/dev/sda2/@home, or /dev/vg/root.
        name = named.partition("/dev/")[2].replace("/", "-") or "disk"
        while f"/{name}" in places:
            name += "_"
        places[f"/{name}"] = device
    return Layout(tuple(places.items()), made=True)
