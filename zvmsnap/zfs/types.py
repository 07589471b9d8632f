"""Datasets and snapshots, as ZFS lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

import msgspec


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
class Pool:
    """An imported pool; `health` is zpool(8)'s word, as ONLINE; `full_percent` of `size_bytes`."""

    name: str
    health: str
    size_bytes: int
    free_bytes: int
    full_percent: int

    @property
    def is_away(self) -> bool:
        """Would whoever touches it wait without end?"""
        return self.health in ("SUSPENDED", "UNAVAIL", "FAULTED")


# It is read from files, too, which may come from elsewhere.
_Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


@dataclass(frozen=True)
class Partition:
    """A partition of a volume: its number, where it begins in the volume, and its size."""

    number: _Number
    start_bytes: _Number
    size_bytes: _Number

    def __str__(self) -> str:
        return f"partition {self.number} ({self.size_bytes} bytes from {self.start_bytes})"


@dataclass(frozen=True)
class Lineage:
    """The guid of a dataset, and the name of the one that it is a clone of, "" if none."""

    guid: int
    origin: str


class Snapshot(msgspec.Struct, frozen=True, order=True, gc=False):
    """A snapshot that exists; its guid outlives renames and replication, its name does not.

    A struct, as a host may have 100 000: less memory, and nothing for the garbage collector.
    """

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
class NamedSnapshots:
    """Which of the snapshots that were asked for by name exist, by `dataset@name`.

    `pools` are those of them that are imported: absence from another proves nothing.
    """

    present: Mapping[str, Snapshot]
    pools: frozenset[str]


@dataclass(frozen=True)
class SnapshotListing:
    """The snapshots of all imported pools; guids of these pools and of their datasets, by name.

    Absence from a pool that is not imported proves nothing.
    """

    snapshots: Sequence[Snapshot]
    pools: Mapping[str, int]
    datasets: Mapping[str, int]


@dataclass(frozen=True)
class Subtree:
    """A dataset and all below it: datasets, and snapshots by `dataset@name`.

    `interrupted` are the datasets that have received only a part of a stream, and can go on.
    """

    datasets: frozenset[str]
    snapshots: Mapping[str, Snapshot]
    filesystems: frozenset[str] = frozenset()
    interrupted: frozenset[str] = frozenset()

    @cached_property
    def by_guid(self) -> dict[int, Snapshot]:
        """The snapshots, by guid."""
        return {snapshot.guid: snapshot for snapshot in self.snapshots.values()}

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


class Room(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much room a dataset has, uses and reserves: properties, in bytes; 0 for none."""

    available: int = 0
    used: int = 0
    refquota: int = 0
    usedbydataset: int = 0
    usedbysnapshots: int = 0
    reservation: int = 0
    refreservation: int = 0

    @property
    def reserved_again(self) -> int:
        """What its reservations need if they go to a clone of it, beyond what they use. At least.

        What was written to it stays used. Its snapshots go to the clone, and count as used of the
        `reservation` there.
        """
        again = min(self.refreservation, self.usedbydataset)
        if self.reservation:
            after = max(self.usedbysnapshots, self.reservation) + self.used - self.usedbysnapshots
            again += max(0, after - max(self.used, self.reservation))
        return again


# Fixed when a dataset is made, taken over from an origin, or of its keys: `zfs clone` refuses them.
FIXED = {
    "casesensitivity",
    "encryption",
    "keyformat",
    "keylocation",
    "normalization",
    "pbkdf2iters",
    "utf8only",
    "version",
    "volblocksize",
    "volsize",
}

# A clone has its own place, and no claim to room; nor is it shared, read-only or a container's
# because its origin is.
NOT_CLONED = {
    "canmount",
    "filesystem_limit",
    "jailed",
    "mountpoint",
    "quota",
    "readonly",
    "refquota",
    "refreservation",
    "reservation",
    "sharenfs",
    "sharesmb",
    "snapshot_limit",
    "zoned",
}
