"""What is to be sent: which datasets of which guest, and of each what the destination lacks."""

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
    """What is to be sent of one dataset.

    `since` is the newest snapshot that both sides have, as `dataset@name` on this host, "" to send
    the whole dataset; `common` is the same snapshot at the destination.
    """

    dataset: str
    target: str
    newest: Snapshot
    since: str
    size_bytes: int
    raw: bool
    arriving: tuple[Snapshot, ...]
    common: Snapshot | None
    diverged: bool  # the destination has newer snapshots, which this host does not have

    @property
    def is_empty(self) -> bool:
        """Does the destination have the newest snapshot already?"""
        return self.since == self.newest.full_name

    @property
    def since_name(self) -> str:
        """The bare name of the snapshot `since`; "" to send the whole dataset."""
        return self.since.partition("@")[2]


def send_units(
    points: Sequence[RestorePoint], names: Sequence[str], *, every: bool
) -> list[SendUnit]:
    """What these names of guests and datasets stand for; with `every`, all guests with points.

    Raises SendRefused.
    """
    datasets = zfs.datasets()
    guests = {point.manifest.domain for point in points}
    units: list[SendUnit] = []
    for name in sorted(guests) if every else names:
        if name in guests:
            units.append(_guest_unit([p for p in points if p.manifest.domain == name], datasets))
        elif name in datasets:
            below = {each for each in datasets if each == name or each.startswith(f"{name}/")}
            units += _units_below(points, below)
        else:
            raise SendRefused(
                f"{name}: is no guest with points, and no dataset; guests with points: "
                f"{', '.join(sorted(guests)) or 'none'}"
            )
    if not units:
        raise SendRefused("no guest has a point yet: the hooks take them, see zvmsnap list")
    return units


def _guest_unit(points: Sequence[RestorePoint], existing: Mapping[str, Dataset]) -> SendUnit:
    newest = max(points, key=lambda point: point.created).manifest
    datasets = {dataset for point in points for dataset in point.manifest.datasets}
    missing = sorted(newest.datasets - existing.keys())
    if missing:
        raise SendRefused(f"{newest.domain}: {missing[0]} does not exist any more; was it renamed?")
    return SendUnit(newest.domain, newest.uuid, tuple(sorted(datasets & existing.keys())))


def _units_below(points: Sequence[RestorePoint], datasets: set[str]) -> Iterator[SendUnit]:
    """The guests whose disks are all on these datasets, and the datasets that remain."""
    of_guests: dict[tuple[str, str], set[str]] = {}
    for point in points:
        manifest = point.manifest
        if manifest.datasets and manifest.datasets <= datasets:
            guest = (manifest.domain, manifest.uuid)
            of_guests.setdefault(guest, set()).update(manifest.datasets)
    # First, as datasets of no guest may be the parents of the others.
    if others := datasets.difference(*of_guests.values()):
        yield SendUnit("", "", tuple(sorted(others)))
    for (domain, uuid), own in sorted(of_guests.items()):
        yield SendUnit(domain, uuid, tuple(sorted(own)))


def dataset_sends(
    unit: SendUnit, subtree: Subtree, destination: Destination, *, raw: bool
) -> list[DatasetSend]:
    """What is to be sent of a unit. `subtree` is what the destination has.

    Raises SendRefused and ZfsFailed.
    """
    datasets = zfs.datasets()
    snapshots: dict[str, list[Snapshot]] = {dataset: [] for dataset in unit.datasets}
    for usage in zfs.snapshot_usage(unit.datasets):
        snapshots[usage.snapshot.dataset].append(usage.snapshot)
    return [
        _dataset_send(
            datasets[name], own, subtree, destination, raw=raw or datasets[name].encrypted
        )
        for name, own in snapshots.items()
        # A dataset of no guest that was never snapshotted only holds others.
        if own or unit.uuid
    ]


def _dataset_send(
    dataset: Dataset,
    snapshots: Sequence[Snapshot],
    subtree: Subtree,
    destination: Destination,
    *,
    raw: bool,
) -> DatasetSend:
    if not snapshots:
        raise SendRefused(f"{dataset.name}: has no snapshot yet")
    target = destination.of(dataset.name)
    arrived = {snapshot.guid: snapshot for snapshot in subtree.of(target)}
    common = next((each for each in reversed(snapshots) if each.guid in arrived), None)
    send = DatasetSend(
        dataset=dataset.name,
        target=target,
        newest=snapshots[-1],
        since=common.full_name if common else "",
        size_bytes=0,
        raw=raw,
        arriving=tuple(snapshots[snapshots.index(common) + 1 if common else 0 :]),
        common=arrived[common.guid] if common else None,
        diverged=common is not None and subtree.of(target)[-1].guid != common.guid,
    )
    return dataclasses.replace(send, size_bytes=_size_bytes(send))


def _size_bytes(send: DatasetSend) -> int:
    if not send.arriving:
        return 0
    newest = send.newest.full_name
    if send.since:
        return zfs.stream_bytes(newest, send.since, raw=send.raw)
    # As syncoid sends it: the oldest snapshot, and after it all newer ones.
    oldest = send.arriving[0].full_name
    first_bytes = zfs.stream_bytes(oldest, raw=send.raw)
    if oldest == newest:
        return first_bytes
    return first_bytes + zfs.stream_bytes(newest, oldest, raw=send.raw)


def diverged(sends: Sequence[DatasetSend]) -> tuple[list[str], dict[str, Snapshot]]:
    """The targets that have diverged, and the common snapshots of all targets that have one."""
    return (
        [send.target for send in sends if send.diverged],
        {send.target: send.common for send in sends if send.common},
    )


def after(subtree: Subtree, sends: Iterable[DatasetSend]) -> Subtree:
    """The destination as it will be when all these have been sent."""
    arriving = (
        Snapshot(send.target, each.name, each.guid, each.createtxg)
        for send in sends
        for each in send.arriving
    )
    return dataclasses.replace(
        subtree, snapshots={**subtree.snapshots, **{each.full_name: each for each in arriving}}
    )
