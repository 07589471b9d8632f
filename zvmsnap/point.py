"""A point: what a moment left for one domain, and which of its snapshots still live."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from pathlib import Path

import msgspec

from zvmsnap.errors import VaultDamaged
from zvmsnap.levels import Level
from zvmsnap.zfs import Snapshot

SCHEMA = 1
MANIFEST = "manifest.json"
DOMAIN_XML = "domain.xml"
PERSISTENT_XML = "persistent.xml"
NVRAM = "nvram.fd"
TPM = "tpm.tar"
MEMORY = "memory.img"
MEMORY_ZSTD = "memory.img.zst"


class Tie(msgspec.Struct, frozen=True):
    """A snapshot that the point belongs to; the guid is what counts.

    `dataset` is where it was taken, `home` where a restore has moved it since ("" if none has).
    """

    dataset: str
    name: str
    guid: int
    createtxg: int
    home: str = ""

    @classmethod
    def of(cls, snapshot: Snapshot, taken_of: str) -> Tie:
        """The tie to a snapshot, as it lies now, that was taken of the dataset `taken_of`."""
        home = "" if snapshot.dataset == taken_of else snapshot.dataset
        return cls(taken_of, snapshot.name, snapshot.guid, snapshot.createtxg, home)

    @property
    def full_name(self) -> str:
        """`dataset@name`, as it is now."""
        return f"{self.home or self.dataset}@{self.name}"


class Disk(msgspec.Struct, frozen=True):
    """A disk of the point: `path` is where it lies in its dataset ("" for a volume)."""

    target: str
    type: str
    format: str
    source: str
    dataset: str
    path: str


class Memory(msgspec.Struct, frozen=True):
    """The RAM image: libvirt's format in it, our compression around it, checksum of the file."""

    file: str
    format: str
    compression: str
    image_bytes: int
    stored_bytes: int
    sha256: str


class Host(msgspec.Struct, frozen=True):
    """Where the RAM image was made; it loads only on what fits."""

    libvirt: str
    qemu: str
    host_cpu: str
    machine: str
    arch: str
    emulator: str
    cpu_mode: str
    cpu_model: str


class Timing(msgspec.Struct, frozen=True):
    """Seconds: guest standing still, the whole dump, guest on its overlay, merging it back.

    `last_ram_s` is what libvirt's job tells of the pause, for the last of RAM alone.
    """

    pause_s: float = 0.0
    dump_s: float = 0.0
    overlay_s: float = 0.0
    commit_s: float = 0.0
    last_ram_s: float = 0.0


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of a point, as it stands in manifest.json."""

    schema: int = SCHEMA
    domain: str
    uuid: str
    moment: str
    taken: str
    capture: str
    level: Level
    reason: str | None
    snapshots: tuple[Tie, ...]
    disks: tuple[Disk, ...]
    memory: Memory | None
    host: Host
    timing: Timing
    tpm: str | None = None  # why its state is not coherent with the disks; also None without a TPM

    @property
    def datasets(self) -> frozenset[str]:
        """The datasets of the point's disks; a snapshot name is complete if all of them have it."""
        return frozenset(disk.dataset for disk in self.disks)

    def with_snapshots(self, ties: tuple[Tie, ...]) -> Manifest:
        """The same, tied to these."""
        return msgspec.structs.replace(self, snapshots=ties)


@dataclass(frozen=True)
class Point:
    """A manifest and the directory where it lies."""

    directory: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """`DOMAIN@MOMENT`."""
        return f"{self.manifest.domain}@{self.directory.name}"

    @property
    def taken(self) -> datetime:
        """When it was taken: manifests write it with the offsets of their hosts."""
        return datetime.fromisoformat(self.manifest.taken)

    def answers_to(self, name: str) -> bool:
        """Is `name` its moment, or one of its snapshot names?"""
        names = {self.directory.name, self.manifest.moment}
        return name in names or any(name == tie.name for tie in self.manifest.snapshots)


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

    def of(self, tie: Tie) -> Life:
        """A snapshot of the same name but another guid is another snapshot: this one is gone."""
        imported = (tie.home or tie.dataset).partition("/")[0] in self.imported_pools
        if not imported or tie.full_name in self.homeless:
            return Life.UNKNOWN
        found = self.present.get(tie.full_name)
        return Life.ALIVE if found and found.guid == tie.guid else Life.GONE

    def alive(self, manifest: Manifest) -> list[Tie]:
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


def read(directory: Path) -> Point:
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
        for dataset in (tie.dataset, tie.home or tie.dataset)
    ):
        raise VaultDamaged(f"{path}: names a snapshot that ZFS cannot know")
    if not (_is_plain(manifest.uuid) and _is_plain(manifest.capture)):
        raise VaultDamaged(f"{path}: its uuid or capture is none of ours")
    if not is_time(manifest.taken):
        raise VaultDamaged(f"{path}: {manifest.taken!r} is no time at which it was taken")
    if not manifest.snapshots:
        raise VaultDamaged(f"{path}: names no snapshot")
    return Point(directory, manifest)


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
