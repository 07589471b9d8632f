"""Which guests a run concerns, and how coherent a point each of them can have. Pure.

| guest                       | its writable disks          | cannot be              |
|-----------------------------|-----------------------------|------------------------|
| any                         | none on a covered dataset   | (not concerned)        |
| off                         | at least one covered        | anything but offline   |
| off                         | by a link that a clone      | anything               |
|                             | shares                      |                        |
| paused, or otherwise not    | at least one covered        | anything but crash     |
| running                     |                             |                        |
| running                     | some on other datasets      | memory, paused         |
| running                     | or other state, as          | memory, paused         |
|                             | inventory/coverage says     |                        |
| running                     | not surely what QEMU has    | memory, paused         |
|                             | open                        |                        |
| running                     | of a kind without overlay   | memory                 |
| running, with a device that | any                         | memory, paused         |
| cannot be migrated, or a    |                             |                        |
| transient disk              |                             |                        |
| running, without an agent   | any                         | quiesced               |
| that is connected           |                             |                        |

A RAM image is taken only where *every* writable disk is snapshotted with it: RAM that is loaded
over disks of another time destroys file systems.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass

from zvmsnap.common.errors import ModeInvalid
from zvmsnap.common.snapshot_name import is_within
from zvmsnap.config import mode
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.mode import OFF, Mode, ModeSet, parse_mode
from zvmsnap.config.properties import ON
from zvmsnap.disks.location import GuestDisks
from zvmsnap.inventory import coverage
from zvmsnap.inventory.coverage import Fate, Judged
from zvmsnap.journal.round import Expected
from zvmsnap.virt import domain_xml
from zvmsnap.zfs.mounts import DiskLocation
from zvmsnap.zfs.types import Dataset

_NOWHERE = DiskLocation("", "")  # no dataset


@dataclass(frozen=True)
class Eligibility:
    """What a run can do for one guest.

    `obstacles`: why it cannot have a level; `covered`: its disks on covered datasets, by target;
    of a backup these may be on none. `others`: the targets of its other disks. `no_overlay`: why
    one of the covered disks must not be put on an overlay, "" if all may. `other_state`: what a
    point tells of its other state.
    """

    domain: domain_xml.Domain
    is_off: bool
    obstacles: Mapping[ConsistencyLevel, str]
    covered: Mapping[str, DiskLocation]
    others: tuple[str, ...]
    no_overlay: str = ""
    other_state: tuple[Judged, ...] = ()

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets that have this guest's covered disks and other state."""
        state = [each.location for each in self.other_state if each.location and not each.why]
        return tuple(sorted({place.dataset for place in (*self.covered.values(), *state)} - {""}))


def recursion(
    targets: Iterable[str],
    datasets: Mapping[str, Dataset],
    takes_recursively: Callable[[str], bool],
) -> dict[str, Expected]:
    """For each target with datasets below it: is it snapshotted with these?

    The property zvmsnap:recursive (on, off) says so, else the caller is asked.
    """
    recursion = {}
    for target in targets:
        witness = next((name for name in datasets if name.startswith(f"{target}/")), None)
        if witness:
            own = datasets.get(target)
            value = own.recursive if own else ""
            recursive = value == ON if value in (ON, OFF) else takes_recursively(target)
            recursion[target] = Expected(recursive, witness)
    return recursion


def snapshotted_datasets(
    targets: Iterable[str], datasets: Iterable[str], recursion: Mapping[str, Expected]
) -> frozenset[str]:
    """The datasets that are snapshotted when a caller snapshots `targets`."""
    tops = {target: target in recursion and recursion[target].recursive for target in targets}
    return frozenset(
        name
        for name in datasets
        if name in tops or any(tops[top] and is_within(name, top) for top in tops)
    )


def without_excluded(
    names: Iterable[str], datasets: Mapping[str, Dataset], types: tuple[str, ...] = ()
) -> frozenset[str]:
    """Those of `names` that are not excluded by the property zvmsnap:mode=off.

    A run of several types excludes a dataset only if it is off for each of them.
    """
    return frozenset(
        name
        for name in names
        if any(mode_property(datasets[name], each) != OFF for each in types or ("",))
    )


def mode_property(dataset: Dataset, snapshot_type: str) -> str:
    """What the properties of a dataset say for that type of snapshot, "" if nothing."""
    return dataset.modes.get(snapshot_type, "") or dataset.mode


def modes_for(
    covered: Iterable[str],
    datasets: Mapping[str, Dataset],
    types: tuple[str, ...],
    default: Mapping[str, str],
) -> ModeSet:
    """Which levels are wanted of a guest with disks on these datasets. Raises ModeInvalid.

    `default` has the configuration's mode for each type, and for all others that of "".
    """
    modes: list[Mode] = []
    for name in sorted(covered):
        for each in types:
            text = mode_property(datasets[name], each) or default.get(each, "") or default[""]
            if text == OFF:
                continue
            try:
                modes.append(parse_mode(text))
            except ModeInvalid as error:
                raise ModeInvalid(f"{name}: zvmsnap:mode {error}; {OFF!r} leaves it out") from error
    return mode.mode_set(modes)


def assess(disks: GuestDisks, covered: frozenset[str]) -> Eligibility | None:
    """Decide for one guest by the table above; None if it has no disk on a covered dataset."""
    writable = _writable(disks)
    judged = [coverage.judge(resource, place, covered) for resource, place in disks.others]
    # Its image without its data, or with that of another time, is no disk.
    torn = {each.resource.target for each in judged if each.fate is Fate.OBSTACLE} - {""}
    inside = {
        disk.target: disks.locations[disk.target]
        for disk in writable
        if disk.target not in torn
        and disk.target in disks.locations
        and disks.locations[disk.target].dataset in covered
    }
    if not inside:
        return None
    # Of what a disk needs only where the disk is there.
    own = [each for each in judged if each.resource.target in {"", *inside}]
    return Eligibility(
        domain=disks.domain,
        is_off=disks.is_off,
        obstacles=_obstacles(disks, writable, inside, judged),
        covered=inside,
        others=tuple(disk.target for disk in disks.domain.disks if disk.target not in inside),
        no_overlay=_why_no_overlay(disks, [disk for disk in writable if disk.target in inside]),
        other_state=tuple(each for each in own if each.is_told),
    )


def assess_for_backup(disks: GuestDisks, targets: Container[str]) -> Eligibility:
    """Decide the same for a backup of the disks with these targets, wherever they are.

    What images of theirs need, as a data file, is read with them.
    """
    writable = _writable(disks)
    inside = {
        disk.target: disks.locations.get(disk.target, _NOWHERE)
        for disk in writable
        if disk.target in targets
    }
    others = [each for each in disks.others if each[0].target not in inside]
    return Eligibility(
        domain=disks.domain,
        is_off=disks.is_off,
        obstacles=_obstacles(
            disks, writable, inside, [coverage.judge(*each, snapshotted=()) for each in others]
        ),
        covered=inside,
        others=tuple(disk.target for disk in disks.domain.disks if disk.target not in inside),
        no_overlay=_why_no_overlay(disks, [disk for disk in writable if disk.target in inside]),
    )


def doubts_of(disks: GuestDisks) -> list[str]:
    """Why a writable disk may not be what its path leads to."""
    return [
        f"{disk.target}: {disks.doubts[disk.target]}"
        for disk in _writable(disks)
        if disk.target in disks.doubts
    ]


def _writable(disks: GuestDisks) -> list[domain_xml.Disk]:
    return [disk for disk in disks.domain.disks if disk.writable]


def _obstacles(
    disks: GuestDisks,
    writable: list[domain_xml.Disk],
    inside: Mapping[str, DiskLocation],
    judged: list[Judged],
) -> dict[ConsistencyLevel, str]:
    obstacles = {}
    if disks.is_off and (doubts := doubts_of(disks)):
        obstacles[ConsistencyLevel.OFFLINE] = "; ".join(doubts)
    if disks.state != "running":
        why = f"the guest is {disks.state}"
        return obstacles | dict.fromkeys(
            (ConsistencyLevel.MEMORY, ConsistencyLevel.PAUSED, ConsistencyLevel.QUIESCED), why
        )
    if disks.domain.agent != "connected":
        obstacles[ConsistencyLevel.QUIESCED] = (
            "its agent is not connected" if disks.domain.agent else "it has no channel for an agent"
        )
    if reason := _why_no_memory(disks, writable, inside, judged):
        return obstacles | dict.fromkeys((ConsistencyLevel.MEMORY, ConsistencyLevel.PAUSED), reason)
    loose = [each for each in judged if each.is_told and not coverage.is_frozen(each.resource)]
    if why_not := _why_no_overlay(disks, writable):
        obstacles[ConsistencyLevel.MEMORY] = f"a disk cannot be frozen: {why_not}"
    elif loose:
        what = f"{loose[0].resource.called} ({loose[0].resource.place})"
        obstacles[ConsistencyLevel.MEMORY] = f"{what} cannot be frozen: libvirt does not know of it"
    return obstacles


def _why_no_overlay(disks: GuestDisks, writable: list[domain_xml.Disk]) -> str:
    for disk in writable:
        if known := disks.doubts.get(disk.target) or disks.no_overlays.get(disk.target):
            return f"{disk.target}: {known}"
        if why_not := domain_xml.why_no_overlay(disk):
            return why_not
    return ""


def _why_no_memory(
    disks: GuestDisks,
    writable: list[domain_xml.Disk],
    inside: Mapping[str, DiskLocation],
    judged: list[Judged],
) -> str | None:
    obstacles = [each for each in judged if each.fate is Fate.OBSTACLE]
    torn = {each.resource.target: str(each) for each in obstacles if each.resource.target}
    outside = [disk for disk in writable if disk.target not in inside]
    if outside:
        listed = ", ".join(
            f"{disk.target} ({torn.get(disk.target) or _where(disks, disk)})" for disk in outside
        )
        return f"not all disks are in this snapshot: {listed}"
    if doubts := doubts_of(disks):
        return f"its disks are not surely known: {'; '.join(doubts)}"
    if disks.domain.unmigratable:
        return f"its RAM cannot be saved because of {disks.domain.unmigratable}"
    for disk in writable:
        if disk.transient:
            return f"its RAM cannot be saved because {disk.target} is transient"
    if obstacles:
        return f"not all of its state is in this snapshot: {', '.join(map(str, obstacles))}"
    return None


def _where(disks: GuestDisks, disk: domain_xml.Disk) -> str:
    place = disks.locations.get(disk.target)
    if doubt := disks.doubts.get(disk.target):
        return doubt
    return f"on {place.dataset}" if place else disk.source or f"of type {disk.type}"
