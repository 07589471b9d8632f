"""A restore point: what a run left for one guest, as its directory and manifest say."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from zvmsnap.common import json_file, snapshot_name
from zvmsnap.common.errors import ImageUnloadable, VaultDamaged
from zvmsnap.common.json_file import Unreadable
from zvmsnap.config import capture_name
from zvmsnap.points.manifest import MANIFEST, MEMORY_FILES, SCHEMA, Decode, Manifest, Memory
from zvmsnap.ram.page_image import REST


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """A manifest, and the directory that it is in."""

    directory: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """`DOMAIN@RUN`; with a number, if the guest has several points of the run."""
        return f"{self.manifest.domain}@{self.directory.name}"

    @property
    def memory(self) -> Memory:
        """Its RAM image. Raises ImageUnloadable if it has none, or none any more."""
        if memory := self.manifest.memory:
            return memory
        raise ImageUnloadable(f"{self.name}: has no RAM: {self.manifest.reason or 'say --cold'}")

    @property
    def created(self) -> datetime:
        """When it was created: each manifest says it with the offset of its host."""
        return datetime.fromisoformat(self.manifest.created)

    def answers_to(self, name: str) -> bool:
        """Is `name` its run, or one of its snapshot names?"""
        names = {self.directory.name, self.manifest.run}
        return name in names or any(name == ref.name for ref in self.manifest.snapshots)


def vault_of(directory: Path) -> Path:
    """The vault, or what is laid out as one, that a point's directory is in."""
    return directory.parent.parent


def read_point(directory: Path) -> RestorePoint:
    """Read a point. Raises VaultDamaged with the path, and what is wrong with it."""
    return read_listed(directory, directory.is_symlink())


def read_listed(directory: Path, is_link: bool, decode: Decode | None = None) -> RestorePoint:
    """The same, of a directory that was listed: that says whether it is a symlink."""
    path = f"{directory}/{MANIFEST}"
    if is_link:
        raise VaultDamaged(f"{path}: is a symlink, or is reached through one; not followed")
    try:
        manifest = json_file.read(path, Manifest, SCHEMA, follow_symlinks=False, by=decode)
    except FileNotFoundError:
        raise VaultDamaged(f"{directory}: has no {MANIFEST}") from None
    except Unreadable as error:
        raise VaultDamaged(str(error)) from error
    if why := _why_invalid(manifest):
        raise VaultDamaged(f"{path}: {why}")
    return RestorePoint(directory, manifest)


def _why_invalid(manifest: Manifest) -> str | None:
    """What the types alone do not tell."""
    if manifest.memory and (why := _why_not_ours(manifest.memory)):
        return why
    for ref in manifest.snapshots:
        names = [ref.full_name]
        if ref.current_dataset:
            names.append(f"{ref.dataset}@{ref.name}")
        if not all(map(snapshot_name.is_safe, names)):
            return "names a snapshot that ZFS cannot know"
    if capture_name.uuid_of(manifest.capture) != manifest.uuid:
        return "its capture is of another guest"
    if not is_time(manifest.created):
        return f"{manifest.created!r} is no time at which it was taken"
    if not manifest.snapshots:
        return "names no snapshot"
    return None


def _why_not_ours(memory: Memory) -> str | None:
    if memory.file not in MEMORY_FILES or memory.file == REST:
        return f"its memory file {memory.file!r} is none of ours"
    if memory.rest_file != (REST if memory.is_paged else ""):
        return f"its memory file {memory.rest_file!r} does not belong to {memory.file}"
    if memory.is_paged and memory.compression != "none":
        return f"its {memory.file} is compressed by {memory.compression!r}, which none of ours is"
    return None


def is_time(text: str) -> bool:
    """Is that an ISO time with an offset?"""
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


# -- the order in which the points of a guest were taken
#
# Within a pool by createtxg, which only grows: a clock may have stood in 2031 for a day. Between
# points that have no pool in common the clock decides; a time that is later than that of a point
# taken after it in the same pool was wrong, and counts as that one.

_Pool = int | str  # its guid; its name, where a point does not say the guid


def in_order(points: Iterable[RestorePoint]) -> list[RestorePoint]:
    """The points of one guest, the oldest first."""
    histories = _histories(points)
    if len(histories) == 1:
        return histories[0]
    timed = (_timed(history) for history in histories)
    return [point for _, point in heapq.merge(*timed, key=lambda each: each[0])]


def is_by_clock(points: Iterable[RestorePoint]) -> bool:
    """Are the points of this guest in several pools, so that only the clock can order them?"""
    return len(_histories(points)) > 1


def _histories(points: Iterable[RestorePoint]) -> list[list[RestorePoint]]:
    """The points by pools, each list in order. One of several pools is in the largest list."""
    remaining = [(_txgs(point), point) for point in points]
    histories = []
    while remaining:
        counts = Counter(pool for txgs, _ in remaining for pool in txgs)
        pool = counts.most_common(1)[0][0]
        own = [(txgs[pool], *_clock(point), point) for txgs, point in remaining if pool in txgs]
        histories.append([each[-1] for each in sorted(own, key=lambda each: each[:-1])])
        remaining = [each for each in remaining if pool not in each[0]]
    return histories


def _txgs(point: RestorePoint) -> dict[_Pool, int]:
    """The newest transaction group of its snapshots in each of its pools."""
    txgs: dict[_Pool, int] = {}
    for ref in point.manifest.snapshots:
        pool = ref.pool_guid or ref.pool
        txgs[pool] = max(ref.createtxg, txgs.get(pool, 0))
    return txgs


def _clock(point: RestorePoint) -> tuple[datetime, str]:
    return point.created, point.directory.name


def _timed(history: Sequence[RestorePoint]) -> list[tuple[datetime, RestorePoint]]:
    """Each with its time, or the earliest of those taken after it."""
    timed: list[tuple[datetime, RestorePoint]] = []
    for point in reversed(history):
        earliest = min(point.created, timed[-1][0]) if timed else point.created
        timed.append((earliest, point))
    return timed[::-1]
