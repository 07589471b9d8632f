"""What is to be sent: of which guest which datasets, and of each what the destination lacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from zvmsnap.common.errors import SendRefused
from zvmsnap.config.destination import Destination
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import Dataset, Snapshot, Subtree


@dataclass(frozen=True)
class SendUnit:
    """A guest and its datasets, parents first; or datasets of no guest, with no uuid."""

    domain: str
    uuid: str
    datasets: tuple[str, ...]


@dataclass(frozen=True)
class DatasetSend:
    """What is to be sent of one dataset; `since` is the snapshot both have, "" for all of it."""

    dataset: str
    target: str
    newest: Snapshot
    since: str
    size_bytes: int
    raw: bool
    arriving: tuple[Snapshot, ...]
    common: Snapshot | None  # that of `since`, as it is there
    diverged: bool  # the destination has newer ones, which are not here

    @property
    def is_empty(self) -> bool:
        """Does the destination have the newest snapshot already?"""
        return self.since == self.newest.full_name


def send_units(
    points: Sequence[RestorePoint], names: Sequence[str], *, every: bool
) -> list[SendUnit]:
    """What is meant by these names of guests and datasets; `every` guest that has points.

    Raises SendRefused.
    """
    there = zfs.datasets()
    guests = {point.manifest.domain for point in points}
    found: list[SendUnit] = []
    for name in sorted(guests) if every else names:
        if name in guests:
            found.append(_of_guest([p for p in points if p.manifest.domain == name], there))
        elif name in there:
            below = {each for each in there if each == name or each.startswith(f"{name}/")}
            found += _of_datasets(points, below)
        else:
            raise SendRefused(
                f"{name}: is no guest with points, and no dataset; guests with points: "
                f"{', '.join(sorted(guests)) or 'none'}"
            )
    if not found:
        raise SendRefused("no guest has a point yet: the hooks take them, see zvmsnap list")
    return found


def _of_guest(points: Sequence[RestorePoint], there: Mapping[str, Dataset]) -> SendUnit:
    newest = max(points, key=lambda point: point.created).manifest
    datasets = {dataset for point in points for dataset in point.manifest.datasets}
    missing = sorted(newest.datasets - there.keys())
    if missing:
        raise SendRefused(f"{newest.domain}: {missing[0]} is not there any more; was it renamed?")
    return SendUnit(newest.domain, newest.uuid, tuple(sorted(datasets & there.keys())))


def _of_datasets(points: Sequence[RestorePoint], datasets: set[str]) -> Iterator[SendUnit]:
    """The guests whose disks all lie there, and what is left."""
    left = set(datasets)
    mine: dict[tuple[str, str], set[str]] = {}
    for point in points:
        manifest = point.manifest
        if manifest.datasets and manifest.datasets <= datasets:
            mine.setdefault((manifest.domain, manifest.uuid), set()).update(manifest.datasets)
    for own in mine.values():
        left -= own
    # First, as what lies between belongs to nobody, and holds the others.
    if left:
        yield SendUnit("", "", tuple(sorted(left)))
    for (domain, uuid), own in sorted(mine.items()):
        yield SendUnit(domain, uuid, tuple(sorted(own)))


def dataset_sends(
    load: SendUnit, branch: Subtree, destination: Destination, *, raw: bool
) -> list[DatasetSend]:
    """What is to be sent of a load, by what is here now and, as `branch` says, there.

    Raises SendRefused and ZfsFailed.
    """
    here = zfs.datasets()
    own: dict[str, list[Snapshot]] = {dataset: [] for dataset in load.datasets}
    for use in zfs.snapshot_usage(load.datasets):
        own[use.snapshot.dataset].append(use.snapshot)
    return [
        _stream(here[dataset], snapshots, branch, destination, raw=raw or here[dataset].encrypted)
        for dataset, snapshots in own.items()
        # Of no guest, and never snapshotted: it only holds others.
        if snapshots or load.uuid
    ]


def _stream(
    dataset: Dataset,
    snapshots: Sequence[Snapshot],
    branch: Subtree,
    destination: Destination,
    *,
    raw: bool,
) -> DatasetSend:
    if not snapshots:
        raise SendRefused(f"{dataset.name}: has no snapshot yet")
    target = destination.of(dataset.name)
    there = {snapshot.guid: snapshot for snapshot in branch.of(target)}
    newest = snapshots[-1]
    common = next((each for each in reversed(snapshots) if each.guid in there), None)
    stream = DatasetSend(
        dataset=dataset.name,
        target=target,
        newest=newest,
        since=common.full_name if common else "",
        size_bytes=0,
        raw=raw,
        arriving=tuple(snapshots[snapshots.index(common) + 1 if common else 0 :]),
        common=there[common.guid] if common else None,
        diverged=common is not None and branch.of(target)[-1].guid != common.guid,
    )
    return dataclasses.replace(stream, size_bytes=_size_bytes(stream))


def _size_bytes(stream: DatasetSend) -> int:
    if not stream.arriving:
        return 0
    newest = stream.newest.full_name
    if stream.since:
        return zfs.stream_bytes(newest, stream.since, raw=stream.raw)
    # As syncoid sends it: the oldest one, and then all that came after it.
    oldest = stream.arriving[0].full_name
    first_bytes = zfs.stream_bytes(oldest, raw=stream.raw)
    if oldest == newest:
        return first_bytes
    return first_bytes + zfs.stream_bytes(newest, oldest, raw=stream.raw)


def diverged(found: Iterable[DatasetSend]) -> tuple[list[str], dict[str, Snapshot]]:
    """Targets that went another way, and what both sides have of all of them."""
    every = list(found)
    return (
        [stream.target for stream in every if stream.diverged],
        {stream.target: stream.common for stream in every if stream.common},
    )
