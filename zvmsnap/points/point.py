"""A point: what a moment left for one domain, and which of its snapshots still live."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from zvmsnap.common.errors import VaultDamaged
from zvmsnap.points.manifest import MANIFEST, MEMORY, MEMORY_ZSTD, SCHEMA, Manifest


@dataclass(frozen=True)
class RestorePoint:
    """A manifest and the directory where it lies."""

    directory: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """`DOMAIN@MOMENT`."""
        return f"{self.manifest.domain}@{self.directory.name}"

    @property
    def created(self) -> datetime:
        """When it was taken: manifests write it with the offsets of their hosts."""
        return datetime.fromisoformat(self.manifest.created)

    def answers_to(self, name: str) -> bool:
        """Is `name` its moment, or one of its snapshot names?"""
        names = {self.directory.name, self.manifest.run}
        return name in names or any(name == tie.name for tie in self.manifest.snapshots)


def read_point(directory: Path) -> RestorePoint:
    """Read a point. Raises VaultDamaged with the path and what is wrong with it."""
    path = directory / MANIFEST
    try:
        if directory.is_symlink() or path.is_symlink():
            raise VaultDamaged(f"{path}: is a symlink, or lies behind one; not followed")
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise VaultDamaged(f"{directory}: has no {MANIFEST}") from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise VaultDamaged(f"{path}: {error}") from error
    if manifest.schema != SCHEMA:
        raise VaultDamaged(f"{path}: schema {manifest.schema} is not one this version reads")
    if manifest.memory and manifest.memory.file not in (MEMORY, MEMORY_ZSTD):
        raise VaultDamaged(f"{path}: its memory file {manifest.memory.file!r} is none of ours")
    if not all(
        _may_exist(f"{dataset}@{tie.name}")
        for tie in manifest.snapshots
        for dataset in (tie.dataset, tie.current_dataset or tie.dataset)
    ):
        raise VaultDamaged(f"{path}: names a snapshot that ZFS cannot know")
    if not (_is_plain(manifest.uuid) and _is_plain(manifest.capture)):
        raise VaultDamaged(f"{path}: its uuid or capture is none of ours")
    if not is_time(manifest.created):
        raise VaultDamaged(f"{path}: {manifest.created!r} is no time at which it was taken")
    if not manifest.snapshots:
        raise VaultDamaged(f"{path}: names no snapshot")
    return RestorePoint(directory, manifest)


def _may_exist(full_name: str) -> bool:
    """Not exactly zfs(8): only that no command line can take it for something else."""
    dataset, _, name = full_name.partition("@")
    return dataset[:1].isalnum() and bool(name) and full_name.isprintable()


def _is_plain(name: str) -> bool:
    """It becomes part of file names, and may come from another machine."""
    return bool(name) and "/" not in name and not name.startswith(".") and name.isprintable()


def is_time(text: str) -> bool:
    """Is that an ISO time that names its offset?"""
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
