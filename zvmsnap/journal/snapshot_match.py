"""Which snapshots belong to a run: those that were taken between freeze and release of its guest.

What existed when its disks were frozen is no candidate. Of the candidates:

| noted at release | now                                   | of the run                         |
|------------------|---------------------------------------|------------------------------------|
| some             | some of them, maybe others            | those that were noted: the others  |
|                  |                                       | saw the guest run                  |
| none             | some with announced names             | these, but they saw the guest run  |
| none             | some, and no names were announced     | none: they may be anybody's        |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.common.log import Logger
from zvmsnap.common.snapshot_name import spellings
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter
from zvmsnap.points.liveness import Liveness, complete_names
from zvmsnap.points.manifest import SnapshotRef
from zvmsnap.zfs import marks, zfs


def note(writer: EntryWriter, log: Logger) -> None:
    """Note which snapshots exist, once, before the guest is released or its overlays are merged.

    Never raises ZfsFailed: no guest stays held because ZFS does not answer.
    """
    if writer.entry.snapshots_at_release is not None or not writer.entry.has_snapshots:
        return
    try:
        refs = candidates(writer.entry)
    except ZfsFailed as error:
        log.error("it is released without knowing whether its snapshot was taken: %s", error)
        refs = ()
    guids = tuple(ref.guid for ref in refs)
    writer.note(snapshots_at_release=guids, refs_at_release=refs)


def of(entry: Entry) -> tuple[SnapshotRef, ...]:
    """The snapshots of the run, by the table. Raises ZfsFailed."""
    return among(entry, candidates(entry))


def among(entry: Entry, existing: tuple[SnapshotRef, ...]) -> tuple[SnapshotRef, ...]:
    """The same, of the candidates that exist."""
    if entry.snapshots_at_release:
        return tuple(ref for ref in existing if ref.guid in entry.snapshots_at_release)
    names_were_announced = entry.newest_txg_before is None
    return existing if names_were_announced or entry.snapshots_at_release is None else ()


def of_other_datasets(entry: Entry, refs: Iterable[SnapshotRef]) -> tuple[SnapshotRef, ...]:
    """Those of the snapshots that have none of the guest's disks. Raises ZfsFailed.

    | the dataset that has the snapshot now                    | has the disks                  |
    |----------------------------------------------------------|--------------------------------|
    | is the one in which pre saw the disk, by its guid        | yes                            |
    | has that one as a clone: a restore has promoted it since | yes                            |
    | is another: somebody gave it the name since              | no                             |
    | any, and pre did not note the guid                       | as far as is known             |
    """
    guids = {disk.dataset: disk.dataset_guid for disk in entry.disks if disk.dataset_guid}
    existing = zfs.lineages() if guids else {}
    origins = {lineage.guid: lineage.origin for lineage in existing.values()}

    def is_other(ref: SnapshotRef) -> bool:
        seen_by_pre = guids.get(ref.dataset)
        now = ref.current_dataset or ref.dataset
        if not seen_by_pre or now not in existing:
            return False
        return existing[now].guid != seen_by_pre and origins.get(seen_by_pre) != now

    return tuple(ref for ref in refs if is_other(ref))


def is_whole(entry: Entry) -> bool:
    """Do all its datasets have a snapshot of one name? Raises ZfsFailed."""
    refs = of(entry) if entry.snapshots_at_release else ()
    return bool(complete_names(refs, entry.datasets))


def newest_txg(datasets: Iterable[str]) -> dict[str, int]:
    """The txg of each dataset's newest snapshot, 0 if it has none. Raises ZfsFailed."""
    names = sorted(datasets)
    newest = dict.fromkeys(names, 0)
    return newest | {
        use.snapshot.dataset: use.snapshot.createtxg for use in zfs.snapshot_usage(names)
    }


def before_freeze(entry: Entry) -> tuple[int, ...]:
    """The guids that are no candidates, when the disks of the guest are frozen just now.

    Those that were none, and all that have an announced name by now. A guest that is held waits for
    this, which costs a process only if any has. Raises ZfsFailed.
    """
    if entry.level.holds_guest and not marks.existing(_announced(entry, entry.datasets)):
        return entry.preexisting_guids
    return (*entry.preexisting_guids, *sorted(ref.guid for ref in candidates(entry)))


def candidates(entry: Entry) -> tuple[SnapshotRef, ...]:
    """All snapshots that exist now, and may be of the run. Raises ZfsFailed."""
    existing = _of_datasets(entry)
    guids = {ref.guid for ref in existing}
    missing = [ref for ref in entry.refs_at_release if ref.guid not in guids]
    return (*existing, *_renamed(missing)) if missing else existing


def _renamed(refs: Sequence[SnapshotRef]) -> tuple[SnapshotRef, ...]:
    """Those of the snapshots that exist under other names."""
    liveness = Liveness.by(zfs.all_snapshots({ref.guid for ref in refs}))
    now = ((ref, liveness.now(ref)) for ref in refs)
    return tuple(ref.moved_to(snapshot) for ref, snapshot in now if snapshot)


def _of_datasets(entry: Entry) -> tuple[SnapshotRef, ...]:
    """The candidates in the datasets of the run, under the names that were announced, if any."""
    by_current = {
        entry.relocated_datasets.get(dataset, dataset): dataset for dataset in entry.datasets
    }
    if entry.newest_txg_before is not None:
        return _newer(by_current, entry.newest_txg_before)
    announced = _announced(entry, by_current)
    return tuple(
        SnapshotRef.of(snapshot, by_current[snapshot.dataset])
        for snapshot in sorted(zfs.snapshots(announced).present.values())
        if snapshot.guid not in entry.preexisting_guids
    )


def _announced(entry: Entry, datasets: Iterable[str]) -> set[str]:
    """The full names that the snapshots of these datasets may have."""
    return {
        f"{dataset}@{spelling}"
        for dataset in datasets
        for name in entry.snapshot_names
        for spelling in spellings(name)
    }


def _newer(by_current: dict[str, str], txg_before: dict[str, int]) -> tuple[SnapshotRef, ...]:
    """All snapshots of these datasets (current name: name at the run) that are newer."""
    existing = sorted(by_current.keys() & zfs.datasets().keys())
    refs = [
        SnapshotRef.of(use.snapshot, by_current[use.snapshot.dataset])
        for use in zfs.snapshot_usage(existing)
    ]
    return tuple(ref for ref in refs if ref.createtxg > txg_before.get(ref.dataset, 0))
