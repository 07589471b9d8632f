"""What is to be sent: which datasets of which guest, and of each what the destination lacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from zvmsnap.common.errors import SendRefused
from zvmsnap.common.snapshot_name import is_within
from zvmsnap.config.destination import Destination
from zvmsnap.points.point import RestorePoint, in_order
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import Bookmark, Dataset, Snapshot, SnapshotUsage, Subtree

_EXCLUDED = "syncoid:sync"


@dataclass(frozen=True)
class SendUnit:
    """A guest and its datasets, parents first; or datasets of no guest, with no uuid.

    `problem` is why nothing of it can be sent.
    """

    domain: str
    uuid: str
    datasets: tuple[str, ...]
    problem: str = ""


@dataclass(frozen=True)
class DatasetSend:
    """What is to be sent of one dataset.

    `common` is the newest snapshot of the destination that this host had, too, as it is there;
    `since` is on this host: `dataset@name`, or `dataset#name` if only a bookmark of it is left, or
    "" to send the whole dataset. `held` are snapshots that somebody holds on this host.
    """

    dataset: str
    target: str
    newest: Snapshot
    since: str
    size_bytes: int
    raw: bool
    arriving: tuple[Snapshot, ...]
    common: Snapshot | None
    diverged: bool  # the destination has newer snapshots, which this dataset never had
    interrupted: bool  # the destination has a part of a stream, and can go on with it
    bookmarks: tuple[Bookmark, ...]
    held: tuple[Snapshot, ...]

    @property
    def is_empty(self) -> bool:
        """Does the destination have all that is newer than what both sides have?"""
        return not self.arriving

    @property
    def since_bookmark(self) -> bool:
        """Is only a bookmark left on this host of what both sides have?"""
        return "#" in self.since

    @property
    def since_name(self) -> str:
        """The bare name of the snapshot `common`; "" to send the whole dataset."""
        return self.common.name if self.common else ""


def send_units(
    points: Sequence[RestorePoint], names: Sequence[str], *, every: bool
) -> list[SendUnit]:
    """What these names of guests and datasets stand for; with `every`, all guests with points.

    Raises SendRefused.
    """
    datasets = zfs.datasets()
    guests = _by_guest(points)
    domains = {point.manifest.domain for point in points}
    units: list[SendUnit] = []
    if every:
        units = [_guest_unit(own, datasets) for own in guests]
    for name in names:
        if name in domains:
            # Another guest may have had that name: each has a unit, a status and points of its own.
            named = [own for own in guests if any(p.manifest.domain == name for p in own)]
            units += [_guest_unit(own, datasets) for own in named]
        elif name in datasets:
            below = {each for each in datasets if is_within(each, name)}
            # What a restore has set aside; syncoid would pass over it without a word.
            if name in (excluded := _excluded()):
                raise SendRefused(f"{name}: {_EXCLUDED}=false keeps it from being sent")
            units += _units_below(points, below - excluded)
        else:
            raise SendRefused(
                f"{name}: is no guest with points, and no dataset; guests with points: "
                f"{', '.join(sorted(domains)) or 'none'}"
            )
    if not units:
        raise SendRefused("no guest has a point yet: the hooks take them, see zvmsnap list")
    if all(unit.problem for unit in units):
        raise SendRefused("; ".join(unit.problem for unit in units))
    return units


def _by_guest(points: Sequence[RestorePoint]) -> list[list[RestorePoint]]:
    """The points of each guest, oldest first; the guests by name."""
    guests: dict[str, list[RestorePoint]] = {}
    for point in points:
        guests.setdefault(point.manifest.uuid, []).append(point)
    ordered = map(in_order, guests.values())
    return sorted(ordered, key=lambda own: (own[-1].manifest.domain, own[-1].manifest.uuid))


def _excluded() -> set[str]:
    values = zfs.marked(_EXCLUDED, inherited=True)
    return {dataset for dataset, value in values.items() if value == "false"}


def _guest_unit(points: Sequence[RestorePoint], existing: Mapping[str, Dataset]) -> SendUnit:
    newest = points[-1].manifest
    datasets = {dataset for point in points for dataset in point.manifest.datasets}
    missing = sorted(newest.datasets - existing.keys())
    if missing:
        why = f"{newest.domain}: {missing[0]} does not exist any more; was it renamed?"
        return SendUnit(newest.domain, newest.uuid, (), why)
    return SendUnit(newest.domain, newest.uuid, tuple(sorted(datasets & existing.keys())))


def _units_below(points: Sequence[RestorePoint], datasets: set[str]) -> Iterator[SendUnit]:
    """The guests whose disks are all on these datasets, and the datasets that remain."""
    of_guests: dict[str, set[str]] = {}
    domains: dict[str, str] = {}
    for point in chain.from_iterable(_by_guest(points)):
        manifest = point.manifest
        if manifest.datasets and manifest.datasets <= datasets:
            domains[manifest.uuid] = manifest.domain
            of_guests.setdefault(manifest.uuid, set()).update(manifest.datasets)
    # First, as datasets of no guest may be the parents of the others.
    if others := datasets.difference(*of_guests.values()):
        yield SendUnit("", "", tuple(sorted(others)))
    for domain, uuid in sorted((domain, uuid) for uuid, domain in domains.items()):
        yield SendUnit(domain, uuid, tuple(sorted(of_guests[uuid])))


def dataset_sends(
    unit: SendUnit, subtree: Subtree, destination: Destination, *, raw: bool
) -> list[DatasetSend]:
    """What is to be sent of a unit. `subtree` is what the destination has.

    Raises SendRefused and ZfsFailed.
    """
    datasets = zfs.datasets()
    usages: dict[str, list[SnapshotUsage]] = {dataset: [] for dataset in unit.datasets}
    for usage in zfs.snapshot_usage(unit.datasets):
        usages[usage.snapshot.dataset].append(usage)
    bookmarks: dict[str, list[Bookmark]] = {dataset: [] for dataset in unit.datasets}
    for bookmark in zfs.bookmarks(unit.datasets) if unit.datasets else ():
        bookmarks[bookmark.dataset].append(bookmark)
    return [
        _dataset_send(
            datasets[name],
            own,
            bookmarks[name],
            destination.of(name),
            subtree,
            raw=raw or datasets[name].encrypted,
        )
        for name, own in usages.items()
        # A dataset of no guest that was never snapshotted only holds others.
        if own or unit.uuid
    ]


def _dataset_send(
    dataset: Dataset,
    usages: Sequence[SnapshotUsage],
    bookmarks: Sequence[Bookmark],
    target: str,
    subtree: Subtree,
    *,
    raw: bool,
) -> DatasetSend:
    if not usages:
        raise SendRefused(f"{dataset.name}: has no snapshot yet")
    snapshots = [usage.snapshot for usage in usages]
    # Where a bookmark and a snapshot have one guid, the snapshot counts: streams of it hold all
    # that is newer.
    known: dict[int, Bookmark | Snapshot] = {each.guid: each for each in bookmarks}
    known |= {each.guid: each for each in snapshots}
    arrived = subtree.of(target)
    common = next((each for each in reversed(arrived) if each.guid in known), None)
    since = known[common.guid] if common else None
    send = DatasetSend(
        dataset=dataset.name,
        target=target,
        newest=snapshots[-1],
        since=since.full_name if since else "",
        size_bytes=0,
        raw=raw,
        arriving=tuple(each for each in snapshots if not since or each.createtxg > since.createtxg),
        common=common,
        diverged=common is not None and arrived[-1].guid != common.guid,
        interrupted=target in subtree.interrupted,
        bookmarks=tuple(bookmarks),
        held=tuple(usage.snapshot for usage in usages if usage.holds),
    )
    return dataclasses.replace(send, size_bytes=_size_bytes(send))


def _size_bytes(send: DatasetSend) -> int:
    """As it is sent: what is newer than `since`, or than the oldest, after that one itself."""
    if not send.arriving:
        return 0
    newest = send.newest.full_name
    if send.since and not send.since_bookmark:
        return zfs.stream_bytes(newest, send.since, raw=send.raw)
    oldest = send.arriving[0].full_name
    first_bytes = zfs.stream_bytes(oldest, send.since, raw=send.raw)
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
