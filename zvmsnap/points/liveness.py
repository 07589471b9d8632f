"""Which snapshots of a restore point still exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from zvmsnap.points.manifest import Manifest, SnapshotRef
from zvmsnap.zfs.types import Snapshot


class Life(Enum):
    """What has become of a snapshot."""

    ALIVE = auto()
    GONE = auto()
    UNKNOWN = auto()


@dataclass(frozen=True)
class Liveness:
    """Which snapshots ZFS has now.

    Nothing is known of pools that are not imported, nor of `homeless` names, whose datasets may
    have been renamed.
    """

    present: Mapping[str, Snapshot]
    imported_pools: frozenset[str]
    homeless: frozenset[str] = frozenset()

    def of(self, tie: SnapshotRef) -> Life:
        """A snapshot of the same name but another guid is another snapshot: this one is gone."""
        imported = (tie.current_dataset or tie.dataset).partition("/")[0] in self.imported_pools
        if not imported or tie.full_name in self.homeless:
            return Life.UNKNOWN
        found = self.present.get(tie.full_name)
        return Life.ALIVE if found and found.guid == tie.guid else Life.GONE

    def alive(self, manifest: Manifest) -> list[SnapshotRef]:
        """The ties of a point that still exist."""
        return [tie for tie in manifest.snapshots if self.of(tie) is Life.ALIVE]

    def orphaned(self, manifest: Manifest) -> bool:
        """Is every snapshot of the point known to be gone?"""
        return all(self.of(tie) is Life.GONE for tie in manifest.snapshots)

    def complete_names(self, manifest: Manifest) -> list[str]:
        """The names that all datasets of the point still have: sets of disks its RAM fits."""
        by_name: dict[str, set[str]] = {}
        for tie in self.alive(manifest):
            by_name.setdefault(tie.name, set()).add(tie.dataset)
        return [name for name, datasets in by_name.items() if datasets >= manifest.datasets]
