"""An operator's command that is under way: one file for each guest that it restores or makes.

Apart from the entries of runs, as a restore has an entry of its own inside: the safety point's.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import msgspec

from zvmsnap.common import log
from zvmsnap.common.process import Process
from zvmsnap.common.snapshot_name import FullName
from zvmsnap.config.capture_name import CaptureName, GuestUuid
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.guest_files import OPERATIONS, GuestFiles, OtherVersionsFile, check_guest
from zvmsnap.zfs.dataset_swap import SwapTree
from zvmsnap.zfs.mounts import DiskLocation
from zvmsnap.zfs.types import Partition

# An operation holds an entry: when the entry's schema changes, this one does, too.
SCHEMA = 2

Source = tuple[str, str, str]  # type, path and format of a disk


class StartState(StrEnum):
    """What the guest does when the command has succeeded."""

    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"


class Operation(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What both kinds have. `domain` and `uuid` are of the guest that is restored or made."""

    schema: Annotated[int, msgspec.Meta(ge=SCHEMA, le=SCHEMA)] = SCHEMA
    domain: Annotated[str, msgspec.Meta(min_length=1)]
    uuid: GuestUuid
    point: str
    directory: str
    owner: Process
    step: str = ""
    sources: dict[str, Source] = {}  # of the guest's disks, by target
    next_sources: dict[str, Source] | None = None  # for the next start; None: as `sources`
    judged: tuple[str, ...] = ()  # digests of the definitions that were looked at; (): any
    memory: bool  # the RAM is loaded; else the guest boots from its disks
    start_state: StartState
    capture: CaptureName  # a directory in staging, for this operation alone
    staging: str = ""  # the directory of all captures at that time; "": the configured one

    def directory_in_staging(self, configured: Path) -> Path:
        """The operation's own directory, also if `staging` was changed since."""
        return Path(self.staging or configured) / self.capture


class RestoreOperation(Operation, frozen=True, kw_only=True, tag="restore"):
    """A restore in place: by swapping datasets, or by rolling back to snapshots."""

    kind: ClassVar[str] = "restore"

    restored_disks: dict[str, tuple[str, str]] = {}  # dataset and path of each, by target
    partitions: dict[str, Partition] = {}  # those of them that are partitions of their dataset
    # The point's disks of the definition for the next start, by target.
    next_disks: dict[str, DiskLocation] | None = None
    replaced_disks: dict[str, DiskLocation] = {}  # of the replaced guest, by target
    written_bytes: dict[str, int] = {}  # ZFS's `written` of each restored dataset, when restored
    swap_trees: tuple[SwapTree, ...] = ()
    rollback: tuple[FullName, ...] = ()  # snapshots
    # Where its firmware may be put, in a point that may come from elsewhere; None: anywhere.
    firmware_dirs: tuple[str, ...] | None = None
    guest_existed: bool
    was_active: bool
    was_paused: bool
    saves_memory: bool  # the RAM of the replaced guest is saved when it is stopped
    safety_entry: Entry | None = None
    # What libvirt keeps of checkpoints and snapshots that the restored disks do not have.
    stale_checkpoints: tuple[str, ...] = ()
    stale_snapshots: tuple[str, ...] = ()
    rollback_begun: bool = False  # the replaced guest's disks cannot be had back any more

    @property
    def restored_locations(self) -> dict[str, DiskLocation]:
        """Where the restored disks are, by target."""
        return {
            target: DiskLocation(dataset, path, self.partitions.get(target))
            for target, (dataset, path) in self.restored_disks.items()
        }

    @property
    def restored_datasets(self) -> set[str]:
        """All that hold snapshots of the point in the end, also those without a disk."""
        swapped = {tree.top + each.path for tree in self.swap_trees for each in tree.datasets}
        return swapped | {snapshot.partition("@")[0] for snapshot in self.rollback}


class CloneOperation(Operation, frozen=True, kw_only=True, tag="clone"):
    """A clone: each dataset that is made for it, with its snapshot, parents first."""

    kind: ClassVar[str] = "clone"

    network: str
    datasets: tuple[tuple[FullName, FullName], ...] = ()
    confined: bool = False  # the point may come from elsewhere: no image leads out of its datasets
    nvram: tuple[str, ...] = ()  # paths of its firmware variables, which did not exist before


class Operations:
    """The directory of operations."""

    def __init__(self, journal: Path) -> None:
        self._files: GuestFiles[RestoreOperation | CloneOperation] = GuestFiles(
            journal / OPERATIONS,
            RestoreOperation | CloneOperation,
            SCHEMA,
            check=check_guest,
            tell_damaged=_tell_damaged,
        )

    def write(self, operation: RestoreOperation | CloneOperation) -> None:
        """Write `operation`, durably, in place of the guest's earlier one.

        Raises WorkOfOtherVersion.
        """
        self._files.write(operation.uuid, operation)

    def read(self, uuid: str) -> RestoreOperation | CloneOperation | None:
        """The open operation of a guest; none if it is damaged or of another version.

        Raises Unreadable.
        """
        return self._files.read(uuid)

    def all(self) -> list[RestoreOperation | CloneOperation]:
        """All open operations. Raises Unreadable."""
        return self._files.all()

    def of_other_version(self, uuid: str) -> OtherVersionsFile | None:
        """The guest's operation, if another version has written it."""
        return self._files.of_other_version(uuid)

    def of_other_versions(self) -> list[OtherVersionsFile]:
        """All operations that another version has written."""
        return self._files.of_other_versions()

    def close(self, uuid: str) -> None:
        """The operation is done."""
        self._files.remove(uuid)


Kind = TypeVar("Kind", RestoreOperation, CloneOperation)


class OperationWriter(Generic[Kind]):
    """An operation that is being worked on: every change of it is written down."""

    def __init__(self, journal: Path, operation: Kind) -> None:
        self._operations = Operations(journal)
        self.operation: Kind = operation

    def note(self, **changes: Any) -> None:
        """Write changes of the operation down."""
        changed = msgspec.structs.replace(self.operation, **changes)
        self._operations.write(changed)
        self.operation = changed

    def close(self) -> None:
        """The operation is done."""
        self._operations.close(self.operation.uuid)


def _tell_damaged(path: Path, renamed: Path) -> None:
    log.plain().error(
        "%s cannot be read; renamed to %s: see `zfs list` for datasets named *.zvmsnap-* or "
        "*.before-*",
        path,
        renamed.name,
    )
