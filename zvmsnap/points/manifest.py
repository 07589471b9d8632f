"""The manifest of a restore point.

A command may have 10 000 of them in memory. Nothing in one leads back to it, so the garbage
collector need not look at them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import msgspec

from zvmsnap.common import json_file
from zvmsnap.common.foreign import LINE_MAX, printable
from zvmsnap.common.snapshot_name import DatasetName, MaybeDatasetName, SnapshotName
from zvmsnap.config.capture_name import CaptureName, GuestUuid
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.inventory.coverage import Judged
from zvmsnap.ram.page_image import PAGES, REST
from zvmsnap.zfs.mounts import DiskLocation
from zvmsnap.zfs.types import Lineage, Partition, Snapshot

SCHEMA = 2
MANIFEST = "manifest.json"
DOMAIN_XML = "domain.xml"
PERSISTENT_XML = "persistent.xml"
NVRAM = "nvram.fd"
TPM = "tpm.tar"
# The files of a point beside manifest and RAM.
SMALL = (DOMAIN_XML, PERSISTENT_XML, NVRAM, TPM)
MEMORY = "memory.img"
MEMORY_ZSTD = "memory.img.zst"
# All that a file with RAM may be called in a point: what the manifest does not name is left over
# there, and `zvmsnap prune` removes it.
MEMORY_FILES = (MEMORY, MEMORY_ZSTD, PAGES, REST)

# What a manifest says may come from elsewhere: it becomes part of paths, command lines and
# definitions, so nothing but what we write there ourselves is taken. Only texts for people may say
# anything.
_Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # no file is larger
_Number = Annotated[int, msgspec.Meta(ge=0)]
_Name = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f]+\Z", max_length=255)]
_Word = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9._:-]*\Z", max_length=64)]
_Text = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f]*\Z", max_length=1024)]
_Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]*\Z", max_length=64)]
_Path = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00]*\Z", max_length=4096)]
_COMPONENT = r"(?!\.{1,2}(?:/|\Z))[^/\x00-\x1f\x7f]+"
_PathInside = Annotated[
    str, msgspec.Meta(pattern=rf"\A(?:{_COMPONENT}(?:/{_COMPONENT})*)?\Z", max_length=4096)
]


class SnapshotRef(msgspec.Struct, frozen=True, gc=False):
    """A snapshot that the point belongs to; the guid is what counts.

    `dataset` is what was snapshotted, `name` how the snapshot was called; `current_dataset` has
    the snapshot now, if a restore or a send has moved it, and is empty if not. The guids are of
    the dataset that has it, and of the pool, which may be imported under any name; 0 is unknown.
    """

    dataset: DatasetName
    name: SnapshotName
    guid: _Number
    createtxg: _Number
    current_dataset: MaybeDatasetName = ""
    dataset_guid: _Number = 0
    pool_guid: _Number = 0

    @classmethod
    def of(cls, snapshot: Snapshot, dataset: str) -> SnapshotRef:
        """The reference to a snapshot that was taken of `dataset`, as it is now."""
        current = "" if snapshot.dataset == dataset else snapshot.dataset
        return cls(dataset, snapshot.name, snapshot.guid, snapshot.createtxg, current)

    def moved_to(self, snapshot: Snapshot) -> SnapshotRef:
        """The reference to the same snapshot, where it is now."""
        current = "" if snapshot.dataset == self.dataset else snapshot.dataset
        return msgspec.structs.replace(self, createtxg=snapshot.createtxg, current_dataset=current)

    def identified(self, datasets: Mapping[str, Lineage], pools: Mapping[str, int]) -> SnapshotRef:
        """With the guids of its dataset and pool, as far as they are listed by these names."""
        dataset = datasets.get(self.current_dataset or self.dataset)
        return msgspec.structs.replace(
            self,
            dataset_guid=dataset.guid if dataset else 0,
            pool_guid=pools.get(self.pool, 0),
        )

    @property
    def full_name(self) -> str:
        """`dataset@name`, where it was when this was written."""
        return f"{self.current_dataset or self.dataset}@{self.name}"

    @property
    def pool(self) -> str:
        """The name that its pool had when this was written."""
        return (self.current_dataset or self.dataset).partition("/")[0]


class Disk(msgspec.Struct, frozen=True, gc=False):
    """A disk of the point; `path` is its path in its dataset ("" for a volume).

    What it was: the dataset by its guid, and the partition of a volume. `source` is how the
    definition named it. Points of older versions have neither, and the guid is 0.
    """

    target: _Word
    type: _Word
    format: _Word
    source: _Path
    dataset: DatasetName
    path: _PathInside
    partition: Partition | None = None
    dataset_guid: _Number = 0

    def location_in(self, dataset: str) -> DiskLocation:
        """Where the disk is in `dataset`, which holds the content of its own now."""
        return DiskLocation(dataset, self.path, self.partition)


class OtherState(msgspec.Struct, frozen=True, gc=False):
    """State of the guest that is no disk: it was at `place`, at `path` in `dataset`.

    `why` says why the point does not have it; "" if the snapshot of its dataset has it.
    """

    called: _Text
    place: _Text
    dataset: MaybeDatasetName = ""
    path: _PathInside = ""
    why: _Text = ""

    @classmethod
    def of(cls, judged: Judged) -> OtherState:
        """What the point of a run says of a resource of its guest."""
        named, place = judged.resource, judged.location
        dataset, path = (place.dataset, place.path) if place else ("", "")
        called = printable(named.called, LINE_MAX)
        where = printable(named.place, LINE_MAX)
        return cls(called, where, dataset, path, judged.why)


def datasets_of(state: Iterable[OtherState]) -> frozenset[str]:
    """The datasets of which the snapshots have such state."""
    return frozenset(each.dataset for each in state if each.dataset and not each.why)


class Memory(msgspec.Struct, frozen=True, gc=False):
    """The RAM image: libvirt's `format`, how long libvirt's file is, and how it is stored.

    | stored as   | `file`           | `compression` | `rest_file`   | `stored_bytes`             |
    |-------------|------------------|---------------|---------------|----------------------------|
    | plain image | `memory.img`     | none          |               | of the file                |
    | compressed  | `memory.img.zst` | zstd          |               | of the file                |
    | page image  | `memory.pages`   | none          | `memory.rest` | of both, without the holes |

    `sha256` is of `file`; but of pages it is the digest of ram/page_image, which leaves out holes.
    `why_plain` says why it is no page image; points of older versions do not say it.
    """

    file: _Word
    format: _Word
    compression: _Word
    image_bytes: _Bytes
    stored_bytes: _Bytes
    sha256: _Digest
    rest_file: _Word = ""
    rest_sha256: _Digest = ""
    why_plain: _Text = ""

    @property
    def is_paged(self) -> bool:
        """Is it a page image?"""
        return self.file == PAGES

    @property
    def is_loadable(self) -> bool:
        """Can libvirt load the stored file as it is?"""
        return self.compression == "none" and not self.is_paged

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all its files, in the directory of the point; the largest first."""
        return (self.file, self.rest_file) if self.is_paged else (self.file,)

    @property
    def identity(self) -> str:
        """By which it is known from any other: its checksum, or one of both."""
        if not self.is_paged:
            return self.sha256
        return hashlib.sha256(f"{self.sha256} {self.rest_sha256}".encode()).hexdigest()


class HostDescription(msgspec.Struct, frozen=True, gc=False):
    """What the RAM image was made on; it loads only on a host that is like it."""

    libvirt: _Text
    qemu: _Text
    host_cpu: _Text
    machine: _Text
    arch: _Text
    emulator: _Text
    cpu_mode: _Text
    cpu_model: _Text


class PauseParts(msgspec.Struct, frozen=True, gc=False):
    """What a guest was held for, in seconds, in this sequence; 0: nothing, or it cannot be told.

    | part         | from                              | until                                     |
    |--------------|-----------------------------------|-------------------------------------------|
    | `freeze_s`   | its agent is told to freeze       | its file systems are frozen               |
    | `ram_s`      | it was paused                     | libvirt's job for its RAM ended           |
    | `flush_s`    | that                              | its RAM image was complete, and on disk   |
    | `overlays_s` | that, or the freeze               | the last of its overlays was labelled     |
    | `snapshot_s` | that, if it has no overlays       | its snapshots were seen, or it went on    |
    | `resume_s`   | they were seen, or labelled       | it went on                                |

    What the pause has beyond the sum of them cannot be told apart.
    """

    freeze_s: float = 0.0
    ram_s: float = 0.0
    flush_s: float = 0.0
    overlays_s: float = 0.0
    snapshot_s: float = 0.0
    resume_s: float = 0.0

    @property
    def sum_s(self) -> float:
        """All that can be told of the pause."""
        return float(sum(msgspec.structs.astuple(self)))


class Timing(msgspec.Struct, frozen=True, gc=False):
    """Seconds: guest held, the whole dump, guest on its overlay, merging that.

    `last_ram_s` is what libvirt's job says of the pause for the last RAM alone. Points of older
    versions do not have the parts of the pause.
    """

    pause_s: float = 0.0
    dump_s: float = 0.0
    overlay_s: float = 0.0
    commit_s: float = 0.0
    last_ram_s: float = 0.0
    pause_parts: PauseParts = PauseParts()


class Manifest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What manifest.json of a restore point says."""

    schema: int = SCHEMA
    domain: _Name
    uuid: GuestUuid
    run: SnapshotName
    created: _Text
    capture: CaptureName
    level: ConsistencyLevel
    reason: str | None
    snapshots: tuple[SnapshotRef, ...]
    disks: tuple[Disk, ...]
    memory: Memory | None
    host: HostDescription
    timing: Timing
    # Why the TPM's state is not coherent with the disks, or it or firmware variables are missing.
    tpm_warning: str | None = None
    other_state: tuple[OtherState, ...] = ()
    # By which this host knows that it has made the point; older versions have made none.
    seal: _Digest = ""
    # The identity of the RAM image that the point was made with, if that is not here (any more).
    absent_memory: _Digest = ""
    # At a destination that may not read the point: all but this manifest is encrypted there.
    encrypted: bool = False

    @property
    def memory_sha256(self) -> str:
        """By which the RAM image is known that the point was made with; "" if it had none."""
        return self.memory.identity if self.memory else self.absent_memory

    @property
    def datasets(self) -> frozenset[str]:
        """Those of its disks and other state; a name is complete if all have a snapshot of it."""
        return frozenset(disk.dataset for disk in self.disks) | datasets_of(self.other_state)

    def with_snapshots(self, refs: tuple[SnapshotRef, ...]) -> Manifest:
        """The same manifest, with these snapshots."""
        return msgspec.structs.replace(self, snapshots=refs)

    def without_memory(self, reason: str) -> Manifest:
        """The manifest of the same point, of its disks alone; `reason` says why it has no RAM."""
        return msgspec.structs.replace(
            self,
            memory=None,
            absent_memory=self.memory_sha256,
            level=ConsistencyLevel.CRASH if self.level.has_memory else self.level,
            reason=reason,
        )


# -- many of them

Decode = Callable[[bytes], Manifest]


class Alike:
    """Decodes many manifests: what they have in common is checked once, and kept once.

    A command may read 40 000 of them, and most of the time goes into the checks of their texts.
    """

    # Most points of a guest say the same of these, byte for byte.
    _SAME = ("disks", "host", "other_state")

    def __init__(self) -> None:
        texts = json_file.Texts()
        self._snapshot = texts.of(SnapshotRef)
        self._memory = texts.of(Memory)
        self._manifest = texts.of(
            Manifest,
            snapshots=tuple[self._snapshot.unchecked, ...],  # type: ignore[name-defined]
            memory=self._memory.unchecked | None,
            **dict.fromkeys(self._SAME, msgspec.Raw),
        )
        self._types = {each.name: each.type for each in msgspec.structs.fields(Manifest)}
        self._parts: dict[tuple[str, bytes], Any] = {}

    def decode(self, data: bytes) -> Manifest:
        """As `json_file.decode`, which says what is wrong with a manifest."""
        try:
            said = self._manifest.fields(json_file.decode(data, self._manifest.unchecked))
            said["snapshots"] = tuple(map(self._snapshot.checked, said["snapshots"]))
            if said["memory"]:
                said["memory"] = self._memory.checked(said["memory"])
            for name in self._SAME:
                said[name] = self._part(name, bytes(said[name]))
            return Manifest(**said)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            decoded: Manifest = json_file.decode(data, Manifest)
            return decoded

    def _part(self, name: str, raw: bytes) -> Any:
        part = self._parts.get((name, raw))
        if part is None:
            # Of an older version, which did not know the field.
            part = json_file.decode(raw, self._types[name]) if raw else ()
            self._parts[name, raw] = part
        return part
