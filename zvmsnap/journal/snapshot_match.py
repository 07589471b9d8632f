"""Which snapshots are of a moment: those that there were before its guest went on.

| when it was let go | now                                | of the moment are                    |
|--------------------|------------------------------------|--------------------------------------|
| some were there    | some of them, and maybe others     | some of them: others have seen it run |
| none               | some that were announced           | these, but they have seen it run     |
| none               | some, where no names are announced | none: they may be anybody's          |
"""

from __future__ import annotations

from collections.abc import Iterable

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.common.log import Logger
from zvmsnap.common.snapshot_name import spellings
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter
from zvmsnap.points.manifest import SnapshotRef
from zvmsnap.zfs import zfs


def note(work: EntryWriter, log: Logger) -> None:
    """Write down what there is, once, before the guest is let go or its overlays are merged.

    Never raises ZfsFailed: nobody stands still because ZFS does not answer.
    """
    if work.entry.snapshots_at_release is not None or not work.entry.snapshot_names:
        return
    try:
        seen = tuple(tie.guid for tie in candidates(work.entry))
    except ZfsFailed as error:
        log.error("it is let go without knowing whether its snapshot was taken: %s", error)
        seen = ()
    work.note(snapshots_at_release=seen)


def of(entry: Entry) -> tuple[SnapshotRef, ...]:
    """Follow the table. Raises ZfsFailed."""
    return among(entry, candidates(entry))


def among(entry: Entry, found: tuple[SnapshotRef, ...]) -> tuple[SnapshotRef, ...]:
    """Follow the table, when `found` are there."""
    if entry.snapshots_at_release:
        return tuple(tie for tie in found if tie.guid in entry.snapshots_at_release)
    return found if entry.newest_txg_before is None or entry.snapshots_at_release is None else ()


def is_whole(entry: Entry) -> bool:
    """Are there snapshots of one name of all its disks? Raises ZfsFailed."""
    by_name: dict[str, set[str]] = {}
    for tie in of(entry) if entry.snapshots_at_release else ():
        by_name.setdefault(tie.name, set()).add(tie.dataset)
    return any(datasets >= set(entry.datasets) for datasets in by_name.values())


def newest_txg(datasets: Iterable[str]) -> dict[str, int]:
    """The txg of each dataset's newest snapshot, 0 if it has none. Raises ZfsFailed."""
    names = sorted(datasets)
    newest = dict.fromkeys(names, 0)
    return newest | {
        use.snapshot.dataset: use.snapshot.createtxg for use in zfs.snapshot_usage(names)
    }


def candidates(entry: Entry) -> tuple[SnapshotRef, ...]:
    """All that there are now and could be meant. Raises ZfsFailed."""
    homes = {entry.relocated_datasets.get(dataset, dataset): dataset for dataset in entry.datasets}
    if entry.newest_txg_before is not None:
        since = entry.newest_txg_before
        own = [
            use.snapshot for use in zfs.snapshot_usage(sorted(homes.keys() & zfs.datasets().keys()))
        ]
        return tuple(
            SnapshotRef.of(each, homes[each.dataset])
            for each in own
            if each.createtxg > since.get(homes[each.dataset], 0)
        )
    wanted = {
        f"{home}@{spelling}"
        for home in homes
        for name in entry.snapshot_names
        for spelling in spellings(name)
    }
    return tuple(
        SnapshotRef.of(snapshot, homes[snapshot.dataset])
        for snapshot in sorted(zfs.snapshots(wanted).present.values())
        if snapshot.guid not in entry.preexisting_guids
    )
