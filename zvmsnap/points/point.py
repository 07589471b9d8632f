"""A restore point: what a run left for one guest, as its directory and manifest say."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from zvmsnap.common import json_file, snapshot_name
from zvmsnap.common.errors import VaultDamaged
from zvmsnap.common.json_file import Unreadable
from zvmsnap.points.manifest import MANIFEST, MEMORY, MEMORY_ZSTD, SCHEMA, Manifest


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
    def created(self) -> datetime:
        """When it was created: each manifest says it with the offset of its host."""
        return datetime.fromisoformat(self.manifest.created)

    def answers_to(self, name: str) -> bool:
        """Is `name` its run, or one of its snapshot names?"""
        names = {self.directory.name, self.manifest.run}
        return name in names or any(name == ref.name for ref in self.manifest.snapshots)


def read_point(directory: Path) -> RestorePoint:
    """Read a point. Raises VaultDamaged with the path, and what is wrong with it."""
    path = directory / MANIFEST
    if directory.is_symlink():
        raise VaultDamaged(f"{path}: is a symlink, or is reached through one; not followed")
    try:
        manifest = json_file.read(path, Manifest, SCHEMA, follow_symlinks=False)
    except FileNotFoundError:
        raise VaultDamaged(f"{directory}: has no {MANIFEST}") from None
    except Unreadable as error:
        raise VaultDamaged(str(error)) from error
    if why := _why_invalid(manifest):
        raise VaultDamaged(f"{path}: {why}")
    return RestorePoint(directory, manifest)


def _why_invalid(manifest: Manifest) -> str | None:
    """What the types alone do not tell."""
    if manifest.memory and manifest.memory.file not in (MEMORY, MEMORY_ZSTD):
        return f"its memory file {manifest.memory.file!r} is none of ours"
    if not all(
        snapshot_name.is_safe(f"{dataset}@{ref.name}")
        for ref in manifest.snapshots
        for dataset in {ref.dataset, ref.current_dataset or ref.dataset}
    ):
        return "names a snapshot that ZFS cannot know"
    if not (_is_plain(manifest.uuid) and _is_plain(manifest.capture)):
        return "its uuid or capture is none of ours"
    if not is_time(manifest.created):
        return f"{manifest.created!r} is no time at which it was taken"
    if not manifest.snapshots:
        return "names no snapshot"
    return None


def _is_plain(name: str) -> bool:
    """It becomes part of file names, and may come from another machine."""
    return bool(name) and "/" not in name and not name.startswith(".") and name.isprintable()


def is_time(text: str) -> bool:
    """Is that an ISO time with an offset?"""
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
