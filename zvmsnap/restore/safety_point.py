"""The safety point: the restore point of the guest that a restore replaces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from zvmsnap.common.process import Process
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.disks.location import GuestDisks
from zvmsnap.inventory import coverage
from zvmsnap.inventory.coverage import Fate
from zvmsnap.journal.entry import Disk, Entry
from zvmsnap.points.manifest import OtherState, datasets_of
from zvmsnap.zfs.types import Dataset


def safety_entry(
    guest: GuestDisks,
    restored: Iterable[str],
    datasets: Mapping[str, Dataset],
    capture: str,
    now: datetime,
) -> Entry:
    """The journal entry of a run that captures the guest at the instant at which it is stopped.

    It covers the datasets of the guest's disks and other state, and all that are `restored`.
    `datasets` are those that exist. Pure.
    """
    # All that is on ZFS is snapshotted, whatever is restored.
    judged = [coverage.judge(named, place, datasets) for named, place in guest.others]
    lost = [each for each in judged if each.fate is Fate.OBSTACLE]
    torn = {each.resource.target for each in lost} - {""}
    writable = {disk.target: disk for disk in guest.domain.disks if disk.writable}
    # Of a guest that is off, nothing but the path says what its disk is.
    unknown = guest.doubts if guest.is_off else {}
    places = {
        target: guest.locations[target]
        for target in writable
        if target in guest.locations and target not in unknown and target not in torn
    }
    # Of what a disk needs only where the disk is there.
    told = [each for each in judged if each.is_told and each.resource.target in {"", *places}]
    state = tuple(map(OtherState.of, told))
    disk_datasets = {place.dataset for place in places.values()}
    elsewhere = [target for target in writable if target not in places]
    lost_state = [each.resource.called for each in lost if not each.resource.target]
    level, reason = _level(guest, elsewhere, lost_state)
    name = f"zvmsnap_{now.astimezone():%Y-%m-%d_%H:%M:%S}_safety"
    return Entry(
        domain=guest.domain.name,
        uuid=guest.domain.uuid,
        run=name,
        request_datasets=tuple(sorted({*restored, *disk_datasets, *datasets_of(state)})),
        snapshot_names=(name,),
        preexisting_guids=(),
        owner=Process.none(),
        capture=capture,
        level=level,
        reason=reason,
        disks=tuple(
            Disk.of(writable[target], place, dataset_guid=datasets[place.dataset].guid)
            for target, place in places.items()
        ),
        other_state=state,
        created=now.isoformat(timespec="milliseconds"),
    )


def _level(
    guest: GuestDisks, elsewhere: list[str], lost_state: list[str]
) -> tuple[ConsistencyLevel, str | None]:
    """The level, and why it is not `memory`; the lists are of disks and state not on ZFS."""
    if guest.is_off:
        return ConsistencyLevel.OFFLINE, f"the guest was {guest.state}"
    if elsewhere:
        return ConsistencyLevel.CRASH, f"not all disks are on ZFS: {', '.join(elsewhere)}"
    if lost_state:
        return ConsistencyLevel.CRASH, f"not all of its state is on ZFS: {', '.join(lost_state)}"
    return ConsistencyLevel.MEMORY, None
