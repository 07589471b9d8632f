"""Which guests a moment concerns, and how coherent a point each of them can have. Pure.

| guest   | its writable disks                            | level   |
|---------|-----------------------------------------------|---------|
| any     | none on a covered dataset                     | (not concerned)  |
| off     | at least one covered                          | offline |
| running | all covered, libvirt can freeze each of them  | memory  |
| running | some elsewhere, or of a kind without overlay  | crash   |
| paused or otherwise not running | at least one covered  | crash   |

A RAM image is taken only where *every* writable disk is in the same ZFS moment: RAM that is loaded
over disks of another time destroys file systems.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from zvmsnap import domainxml
from zvmsnap.zfs import Dataset

OFF = "off"
ON = "on"


class Level(StrEnum):
    """How coherent a point is."""

    MEMORY = "memory"
    CRASH = "crash"
    OFFLINE = "offline"


@dataclass(frozen=True)
class Place:
    """Where a disk really lies: dataset and path in it ("" for a volume)."""

    dataset: str
    path: str


@dataclass(frozen=True)
class Seen:
    """A domain as it was found: its definition, its state, and the place of each disk by target."""

    domain: domainxml.Domain
    state: str
    places: Mapping[str, Place]

    @property
    def is_off(self) -> bool:
        """Is there no process of it?"""
        return self.state in ("shut off", "crashed")


@dataclass(frozen=True)
class Placement:
    """What a moment does for one guest; `reason` says why the level is not `memory`."""

    domain: domainxml.Domain
    level: Level
    reason: str | None
    covered: Mapping[str, Place]
    others: tuple[str, ...]

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets that hold this guest's covered disks."""
        return tuple(sorted({place.dataset for place in self.covered.values()}))


def snapshotted_datasets(
    targets: Iterable[str], datasets: Mapping[str, Dataset], takes_recursively: Mapping[str, bool]
) -> frozenset[str]:
    """The datasets that the coming snapshot holds.

    The property zvmsnap:recursive (on, off) overrides what sanoid.conf says of a target.
    """
    found: set[str] = set()
    for target in targets:
        own = datasets.get(target)
        said = own.recursive if own else ""
        recursive = said == ON if said in (ON, OFF) else takes_recursively.get(target, False)
        found.update(
            name
            for name in datasets
            if name == target or (recursive and name.startswith(target + "/"))
        )
    return frozenset(found)


def without_excluded(names: Iterable[str], datasets: Mapping[str, Dataset]) -> frozenset[str]:
    """Those of `names` that are not excluded by the property zvmsnap:mode=off."""
    return frozenset(name for name in names if datasets[name].mode != OFF)


def place(seen: Seen, covered: frozenset[str]) -> Placement | None:
    """Decide for one guest by the table above; None if it has no disk on a covered dataset."""
    writable = [disk for disk in seen.domain.disks if disk.writable]
    inside = {
        disk.target: seen.places[disk.target]
        for disk in writable
        if disk.target in seen.places and seen.places[disk.target].dataset in covered
    }
    if not inside:
        return None
    level, reason = _level(seen, writable, inside)
    return Placement(
        domain=seen.domain,
        level=level,
        reason=reason,
        covered=inside,
        others=tuple(disk.target for disk in seen.domain.disks if disk.target not in inside),
    )


def _level(
    seen: Seen, writable: list[domainxml.Disk], inside: Mapping[str, Place]
) -> tuple[Level, str | None]:
    if seen.is_off:
        return Level.OFFLINE, f"the guest is {seen.state}"
    if seen.state != "running":
        return Level.CRASH, f"the guest is {seen.state}"
    outside = [disk for disk in writable if disk.target not in inside]
    if outside:
        listed = ", ".join(f"{disk.target} ({_where(seen, disk)})" for disk in outside)
        return Level.CRASH, f"not all disks are in this snapshot: {listed}"
    for disk in writable:
        why = domainxml.why_no_overlay(disk)
        if why:
            return Level.CRASH, f"a disk cannot be frozen: {why}"
    return Level.MEMORY, None


def _where(seen: Seen, disk: domainxml.Disk) -> str:
    found = seen.places.get(disk.target)
    return f"on {found.dataset}" if found else disk.source or f"of type {disk.type}"
