"""The manifest of a restore point, as it stands in manifest.json."""

from __future__ import annotations

import msgspec

from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.zfs.types import Snapshot

SCHEMA = 2
MANIFEST = "manifest.json"
DOMAIN_XML = "domain.xml"
PERSISTENT_XML = "persistent.xml"
NVRAM = "nvram.fd"
TPM = "tpm.tar"
MEMORY = "memory.img"
MEMORY_ZSTD = "memory.img.zst"


class SnapshotRef(msgspec.Struct, frozen=True):
    """A snapshot that the point belongs to; the guid is what counts.

    `dataset` is where it was taken, `home` where a restore has moved it since ("" if none has).
    """

    dataset: str
    name: str
    guid: int
    createtxg: int
    current_dataset: str = ""

    @classmethod
    def of(cls, snapshot: Snapshot, taken_of: str) -> SnapshotRef:
        """The tie to a snapshot, as it lies now, that was taken of the dataset `taken_of`."""
        home = "" if snapshot.dataset == taken_of else snapshot.dataset
        return cls(taken_of, snapshot.name, snapshot.guid, snapshot.createtxg, home)

    @property
    def full_name(self) -> str:
        """`dataset@name`, as it is now."""
        return f"{self.current_dataset or self.dataset}@{self.name}"


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


class HostDescription(msgspec.Struct, frozen=True):
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
    run: str
    created: str
    capture: str
    level: ConsistencyLevel
    reason: str | None
    snapshots: tuple[SnapshotRef, ...]
    disks: tuple[Disk, ...]
    memory: Memory | None
    host: HostDescription
    timing: Timing
    tpm_warning: str | None = (
        None  # why its state is not coherent with the disks; also None without a TPM
    )

    @property
    def datasets(self) -> frozenset[str]:
        """The datasets of the point's disks; a snapshot name is complete if all of them have it."""
        return frozenset(disk.dataset for disk in self.disks)

    def with_snapshots(self, ties: tuple[SnapshotRef, ...]) -> Manifest:
        """The same, tied to these."""
        return msgspec.structs.replace(self, snapshots=ties)
