"""Datasets and snapshots, as ZFS lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Dataset:
    """A filesystem or volume; `mode` and `recursive` are our user properties, "" if unset.

    `modes` has the values of zvmsnap:mode:TYPE, where set. The guid outlives renames. `origin` is
    the snapshot of which it is a clone, "" if none. `mountpoint` is the property: `none` and
    `legacy` are no paths, "" for a volume.
    """

    name: str
    type: str
    compressed: bool
    mode: str = ""
    recursive: str = ""
    guid: int = 0
    origin: str = ""
    mounted: bool = False
    mountpoint: str = ""
    canmount: str = ""
    encrypted: bool = False
    locked: bool = False  # encrypted, and its key is not loaded
    modes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Partition:
    """A partition of a volume: its number, where it begins in the volume, and its size."""

    number: int
    start_bytes: int
    size_bytes: int

    def __str__(self) -> str:
        return f"partition {self.number} ({self.size_bytes} bytes from {self.start_bytes})"


@dataclass(frozen=True, order=True)
class Snapshot:
    """A snapshot that exists; its guid outlives renames and replication, its name does not."""

    dataset: str
    name: str
    guid: int
    createtxg: int

    @property
    def full_name(self) -> str:
        """`dataset@name`."""
        return f"{self.dataset}@{self.name}"


@dataclass(frozen=True, order=True)
class Bookmark:
    """A bookmark: the guid and createtxg are those of its snapshot, which may be gone."""

    dataset: str
    name: str
    guid: int
    createtxg: int

    @property
    def full_name(self) -> str:
        """`dataset#name`."""
        return f"{self.dataset}#{self.name}"


@dataclass(frozen=True)
class SnapshotListing:
    """Which snapshots exist, by `dataset@name`, and which pools are imported.

    Absence from a pool that is not imported proves nothing. `without_dataset` are the names asked
    for whose dataset does not exist: it was destroyed, or renamed, which a name cannot tell.
    """

    present: Mapping[str, Snapshot]
    pools: frozenset[str]
    without_dataset: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Subtree:
    """A dataset and all below it: datasets, and snapshots by `dataset@name`.

    `interrupted` are the datasets that have received only a part of a stream, and can go on.
    """

    datasets: frozenset[str]
    snapshots: Mapping[str, Snapshot]
    filesystems: frozenset[str] = frozenset()
    interrupted: frozenset[str] = frozenset()

    def of(self, dataset: str) -> list[Snapshot]:
        """The snapshots of one dataset, oldest first."""
        return self._by_dataset.get(dataset, [])

    @cached_property
    def _by_dataset(self) -> dict[str, list[Snapshot]]:
        by_dataset: dict[str, list[Snapshot]] = {}
        for snapshot in sorted(self.snapshots.values(), key=lambda each: each.createtxg):
            by_dataset.setdefault(snapshot.dataset, []).append(snapshot)
        return by_dataset


@dataclass(frozen=True)
class SnapshotUsage:
    """A snapshot, and why it cannot be destroyed: clones of it, and the number of holds on it."""

    snapshot: Snapshot
    clones: tuple[str, ...]
    holds: int
