"""Which snapshots of restore points exist, and where each is now.

By guid, within its pool, as names change: snapshots and datasets are renamed, and pools imported
under other names.

| the pool of a snapshot                           | has its guid | the snapshot  |
|--------------------------------------------------|--------------|---------------|
| is imported, under any name                      | yes          | exists        |
| is imported, under any name                      | no           | is gone       |
| is not imported; another one has its name        | yes, that    | exists: moved |
| is not imported                                  | no           | is not known  |

A replica in a pool of another name is not what the guest runs on. Of a point that does not say the
guid of its pool, the name counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import Enum, auto

from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.zfs.types import Snapshot, SnapshotListing, Subtree


class Life(Enum):
    """What has become of a snapshot."""

    ALIVE = auto()
    GONE = auto()
    UNKNOWN = auto()


class Liveness:
    """Which snapshots ZFS has now; guids of pools and datasets by name, pools with 0 if unknown."""

    def __init__(
        self,
        snapshots: Iterable[Snapshot],
        pools: Mapping[str, int],
        datasets: Mapping[str, int] | None = None,
    ) -> None:
        self._by_guid: dict[int, Snapshot] = {}
        self._replicas: dict[int, list[Snapshot]] = {}
        for snapshot in snapshots:
            if self._by_guid.setdefault(snapshot.guid, snapshot) is not snapshot:
                self._replicas.setdefault(snapshot.guid, []).append(snapshot)
        self._pools = pools
        self._pool_names = {guid: name for name, guid in pools.items()}
        self._datasets = datasets or {}

    @classmethod
    def by(cls, listing: SnapshotListing) -> Liveness:
        """What a listing says."""
        return cls(listing.snapshots, listing.pools, listing.datasets)

    @classmethod
    def below(cls, root: str, subtree: Subtree) -> Liveness:
        """What the listing of a destination's root says; nothing of other pools than its own."""
        return cls(subtree.snapshots.values(), {_pool(root): 0})

    def of(self, ref: SnapshotRef) -> Life:
        """What has become of a snapshot, by the table."""
        if self._copies(ref):
            return Life.ALIVE
        return Life.UNKNOWN if self._pool_of(ref) is None else Life.GONE

    def now(self, ref: SnapshotRef) -> Snapshot | None:
        """The snapshot as it is now; None if it does not exist.

        Also None if its pool has several copies, and nothing tells which is the guest's.
        """
        return self._nearest(ref, self._copies(ref))

    def existing(self, manifest: Manifest) -> list[tuple[SnapshotRef, Snapshot]]:
        """The snapshots of a point that still exist, as they are now; of several copies, one."""
        copies = ((ref, self._copies(ref)) for ref in manifest.snapshots)
        return [(ref, self._nearest(ref, own) or own[0]) for ref, own in copies if own]

    def alive(self, manifest: Manifest) -> list[SnapshotRef]:
        """The snapshots of a point that still exist."""
        return [ref for ref, _ in self.existing(manifest)]

    def orphaned(self, manifest: Manifest) -> bool:
        """Is every snapshot of the point known to be gone?"""
        return all(self.of(ref) is Life.GONE for ref in manifest.snapshots)

    def complete_names(self, manifest: Manifest) -> list[str]:
        """The names that all datasets of the point still have: sets of disks that fit its RAM."""
        return complete_names(self.alive(manifest), manifest.datasets)

    def replicas(self, ref: SnapshotRef) -> list[Snapshot]:
        """All snapshots with its guid, in any pool."""
        known = self._by_guid.get(ref.guid)
        return [known, *self._replicas.get(ref.guid, ())] if known else []

    def _copies(self, ref: SnapshotRef) -> list[Snapshot]:
        known = self._by_guid.get(ref.guid)
        if known is None:
            return []
        pool = self._pool_of(ref) or ref.pool
        if ref.guid not in self._replicas:
            return [known] if _pool(known.dataset) == pool else []
        return [each for each in self.replicas(ref) if _pool(each.dataset) == pool]

    def _nearest(self, ref: SnapshotRef, copies: list[Snapshot]) -> Snapshot | None:
        if len(copies) < 2:
            return copies[0] if copies else None
        nearest, second = sorted(copies, key=lambda each: self._distance(ref, each))[:2]
        is_clear = self._distance(ref, nearest) < self._distance(ref, second)
        return nearest if is_clear else None

    def _pool_of(self, ref: SnapshotRef) -> str | None:
        """The name of its pool now; None if it is not imported."""
        if ref.pool_guid:
            return self._pool_names.get(ref.pool_guid)
        return ref.pool if ref.pool in self._pools else None

    def _distance(self, ref: SnapshotRef, snapshot: Snapshot) -> tuple[bool, ...]:
        """How far it is from where the point has it; the first difference counts."""
        dataset = ref.current_dataset or ref.dataset
        return (
            snapshot.full_name != ref.full_name,
            self._datasets.get(snapshot.dataset) != ref.dataset_guid,
            snapshot.dataset != dataset,
            # Its pool may have another name.
            snapshot.dataset.partition("/")[2] != dataset.partition("/")[2],
        )


def guids_of(manifests: Iterable[Manifest]) -> frozenset[int]:
    """The guids of all snapshots of these points: what a listing is needed for."""
    return frozenset(ref.guid for manifest in manifests for ref in manifest.snapshots)


def complete_names(refs: Iterable[SnapshotRef], datasets: Collection[str]) -> list[str]:
    """The snapshot names that all of these datasets have, in the order of `refs`."""
    by_name: dict[str, set[str]] = {}
    for ref in refs:
        by_name.setdefault(ref.name, set()).add(ref.dataset)
    wanted = set(datasets)
    return [name for name, having in by_name.items() if having >= wanted]


def _pool(dataset: str) -> str:
    return dataset.partition("/")[0]
