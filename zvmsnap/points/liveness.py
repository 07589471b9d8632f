"""Which snapshots of a restore point still exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.zfs.types import Snapshot, SnapshotListing, Subtree


class Life(Enum):
    """What has become of a snapshot."""

    ALIVE = auto()
    GONE = auto()
    UNKNOWN = auto()


@dataclass(frozen=True)
class Liveness:
    """Which snapshots ZFS has now.

    Nothing is known of pools that are not imported, nor of names `without_dataset`: their datasets
    may have been renamed.
    """

    present: Mapping[str, Snapshot]
    imported_pools: frozenset[str]
    without_dataset: frozenset[str] = frozenset()

    @classmethod
    def by(cls, listing: SnapshotListing, *, only_names: bool = False) -> Liveness:
        """What a listing says.

        `only_names`: nobody looks for renamed datasets by guid as well, so a snapshot of a dataset
        that does not exist is not known to be gone.
        """
        without_dataset = listing.without_dataset if only_names else frozenset()
        return cls(listing.present, listing.pools, without_dataset)

    @classmethod
    def below(cls, root: str, subtree: Subtree) -> Liveness:
        """What the listing of a destination's root says; nothing of other pools than its own."""
        return cls(subtree.snapshots, frozenset({root.partition("/")[0]}))

    def of(self, ref: SnapshotRef) -> Life:
        """A snapshot of the same name with another guid is another snapshot: this one is gone."""
        if ref.pool not in self.imported_pools or ref.full_name in self.without_dataset:
            return Life.UNKNOWN
        snapshot = self.present.get(ref.full_name)
        return Life.ALIVE if snapshot and snapshot.guid == ref.guid else Life.GONE

    def alive(self, manifest: Manifest) -> list[SnapshotRef]:
        """The snapshots of a point that still exist."""
        return [ref for ref in manifest.snapshots if self.of(ref) is Life.ALIVE]

    def orphaned(self, manifest: Manifest) -> bool:
        """Is every snapshot of the point known to be gone?"""
        return all(self.of(ref) is Life.GONE for ref in manifest.snapshots)

    def complete_names(self, manifest: Manifest) -> list[str]:
        """The names that all datasets of the point still have: sets of disks that fit its RAM."""
        return complete_names(self.alive(manifest), manifest.datasets)


def complete_names(refs: Iterable[SnapshotRef], datasets: Iterable[str]) -> list[str]:
    """The snapshot names that all of these datasets have, in the order of `refs`."""
    by_name: dict[str, set[str]] = {}
    for ref in refs:
        by_name.setdefault(ref.name, set()).add(ref.dataset)
    wanted = set(datasets)
    return [name for name, having in by_name.items() if having >= wanted]
