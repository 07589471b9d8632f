"""Which guests a moment concerns, and how coherent a point each of them can have. Pure.

| guest   | its writable disks                            | cannot be              |
|---------|-----------------------------------------------|------------------------|
| any     | none on a covered dataset                     | (not concerned)        |
| off     | at least one covered                          | anything but offline   |
| paused or otherwise not running | at least one covered  | anything but crash     |
| running | some elsewhere                                | memory, paused         |
| running | of a kind without overlay                     | memory                 |
| running, with a device that cannot be migrated, or a transient disk | any  | memory, paused |
| running, without an agent that is connected | any       | quiesced               |

A RAM image is taken only where *every* writable disk is in the same ZFS moment: RAM that is loaded
over disks of another time destroys file systems.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from zvmsnap.common.errors import ModeInvalid
from zvmsnap.config import mode
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.mode import OFF, Mode, ModeSet, parse_mode
from zvmsnap.disks.location import GuestDisks
from zvmsnap.virt import domain_xml
from zvmsnap.zfs.mounts import DiskLocation
from zvmsnap.zfs.types import Dataset

ON = "on"


@dataclass(frozen=True)
class Eligibility:
    """What a moment can do for one guest; `obstacles` says why a level is out of its reach."""

    domain: domain_xml.Domain
    is_off: bool
    obstacles: Mapping[ConsistencyLevel, str]
    covered: Mapping[str, DiskLocation]
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


def without_excluded(
    names: Iterable[str], datasets: Mapping[str, Dataset], types: tuple[str, ...] = ()
) -> frozenset[str]:
    """Those of `names` that are not excluded by the property zvmsnap:mode=off.

    Of a moment of several types only where it is off for each of them.
    """
    return frozenset(
        name
        for name in names
        if any(mode_of(datasets[name], each) != OFF for each in types or ("",))
    )


def mode_of(dataset: Dataset, snapshot_type: str) -> str:
    """What the properties say for that type of snapshot, "" if nothing."""
    return dataset.modes.get(snapshot_type, "") or dataset.mode


def modes_for(
    covered: Iterable[str],
    datasets: Mapping[str, Dataset],
    types: tuple[str, ...],
    default: Mapping[str, str],
) -> ModeSet:
    """What is demanded of a guest with disks on these datasets. Raises ModeInvalid.

    `default` is the configuration's order for each type, "" for all others.
    """
    orders: list[Mode] = []
    for name in sorted(covered):
        for each in types:
            said = mode_of(datasets[name], each) or default.get(each, "") or default[""]
            if said == OFF:
                continue
            try:
                orders.append(parse_mode(said))
            except ModeInvalid as error:
                raise ModeInvalid(f"{name}: zvmsnap:mode {error}; {OFF!r} leaves it out") from error
    return mode.mode_set(orders)


def judge_guest(seen: GuestDisks, covered: frozenset[str]) -> Eligibility | None:
    """Decide for one guest by the table above; None if it has no disk on a covered dataset."""
    writable = [disk for disk in seen.domain.disks if disk.writable]
    inside = {
        disk.target: seen.places[disk.target]
        for disk in writable
        if disk.target in seen.places and seen.places[disk.target].dataset in covered
    }
    if not inside:
        return None
    return Eligibility(
        domain=seen.domain,
        is_off=seen.is_off,
        obstacles=_obstacles(seen, writable, inside),
        covered=inside,
        others=tuple(disk.target for disk in seen.domain.disks if disk.target not in inside),
    )


def _obstacles(
    seen: GuestDisks, writable: list[domain_xml.Disk], inside: Mapping[str, DiskLocation]
) -> dict[ConsistencyLevel, str]:
    if seen.state != "running":
        why = f"the guest is {seen.state}"
        return dict.fromkeys(
            (ConsistencyLevel.MEMORY, ConsistencyLevel.PAUSED, ConsistencyLevel.QUIESCED), why
        )
    found = {}
    if seen.domain.agent != "connected":
        found[ConsistencyLevel.QUIESCED] = (
            "its agent is not connected" if seen.domain.agent else "it has no channel for an agent"
        )
    if reason := _why_no_memory(seen, writable, inside):
        return found | dict.fromkeys((ConsistencyLevel.MEMORY, ConsistencyLevel.PAUSED), reason)
    for disk in writable:
        if why_not := domain_xml.why_no_overlay(disk):
            found[ConsistencyLevel.MEMORY] = f"a disk cannot be frozen: {why_not}"
    return found


def _why_no_memory(
    seen: GuestDisks, writable: list[domain_xml.Disk], inside: Mapping[str, DiskLocation]
) -> str | None:
    outside = [disk for disk in writable if disk.target not in inside]
    if outside:
        listed = ", ".join(f"{disk.target} ({_where(seen, disk)})" for disk in outside)
        return f"not all disks are in this snapshot: {listed}"
    if seen.domain.unmigratable:
        return f"its RAM cannot be saved because of {seen.domain.unmigratable}"
    for disk in writable:
        if disk.transient:
            return f"its RAM cannot be saved because {disk.target} is transient"
    return None


def _where(seen: GuestDisks, disk: domain_xml.Disk) -> str:
    found = seen.places.get(disk.target)
    return f"on {found.dataset}" if found else disk.source or f"of type {disk.type}"
