"""What an operator's command was about to do when it died: one file per guest that it makes.

Beside the journal of moments, as a restore takes a moment itself: the safety point.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import msgspec

from zvmsnap.common import log
from zvmsnap.common.atomic_file import private_dir, remove_durably, write_atomic
from zvmsnap.common.process import Process
from zvmsnap.journal.entry import Entry
from zvmsnap.zfs.dataset_swap import SwapTree

SCHEMA = 2
_UUID = r"\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z"
_CAPTURE = _UUID.removesuffix(r"\Z") + r"\.[0-9a-f]{8}\Z"
_FOLDER = "operations"

# These become words of command lines: nothing in them may be taken for something else.
_Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][^\x00-\x1f\x7f]*\Z")]

Source = tuple[str, str, str]  # type, path and format of a disk


class StartState(StrEnum):
    """What the guest does when all is done."""

    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"


class Operation(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What both kinds have. `domain` and `uuid` are of the guest that is brought (back) to life."""

    schema: Annotated[int, msgspec.Meta(ge=SCHEMA, le=SCHEMA)] = SCHEMA
    domain: Annotated[str, msgspec.Meta(min_length=1)]
    uuid: Annotated[str, msgspec.Meta(pattern=_UUID)]
    point: str
    directory: str
    owner: Process
    step: str = ""
    sources: dict[str, Source] = {}
    memory: bool  # from its RAM, else from its disks alone
    start_state: StartState
    capture: Annotated[str, msgspec.Meta(pattern=_CAPTURE)]  # a directory in staging, ours alone


class RestoreOperation(Operation, frozen=True, kw_only=True, tag="restore"):
    """A restore in place: datasets that switch, or snapshots that are rolled back to."""

    kind: ClassVar[str] = "restore"

    restored_disks: dict[
        str, tuple[str, str]
    ] = {}  # dataset and path of each disk of then, by target
    written_bytes: dict[str, int] = {}  # what ZFS tells as written to each dataset as put back
    swap_trees: tuple[SwapTree, ...] = ()
    rollback: tuple[_Name, ...] = ()
    guest_existed: bool  # was there such a guest before?
    was_active: bool
    was_paused: bool
    saves_memory: bool  # the RAM of the former machine is saved when it is stopped
    safety_entry: Entry | None = None
    rollback_begun: bool = False  # the rollback has begun: what was there is gone


class CloneOperation(Operation, frozen=True, kw_only=True, tag="clone"):
    """A clone: the datasets that are made for it, parents first, and the snapshots they show."""

    kind: ClassVar[str] = "clone"

    network: str
    datasets: tuple[tuple[_Name, _Name], ...] = ()


class Operations:
    """The directory of tasks."""

    def __init__(self, journal: Path) -> None:
        self._directory = journal / _FOLDER

    def write(self, task: RestoreOperation | CloneOperation) -> None:
        """Write `task` down, durably, in place of the guest's former one."""
        private_dir(self._directory)
        write_atomic(self._path(task.uuid), msgspec.json.format(msgspec.json.encode(task)))

    def read(self, uuid: str) -> RestoreOperation | CloneOperation | None:
        """The open task of a guest. A damaged one is set aside and counts as none."""
        path = self._path(uuid)
        try:
            task = msgspec.json.decode(path.read_bytes(), type=RestoreOperation | CloneOperation)
            if task.uuid != uuid or not task.capture.startswith(f"{uuid}."):
                raise msgspec.ValidationError("it is of another guest")
            return task
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            aside = path.with_suffix(".damaged")
            log.plain().error(
                "%s cannot be read; set aside as %s: see `zfs list` for datasets named "
                "*.zvmsnap-* or *.before-*",
                path,
                aside.name,
            )
            os.replace(path, aside)
            return None

    def all(self) -> list[RestoreOperation | CloneOperation]:
        """All open tasks."""
        if not self._directory.is_dir():
            return []
        found = (self.read(path.stem) for path in sorted(self._directory.glob("*.json")))
        return [task for task in found if task]

    def close(self, uuid: str) -> None:
        """The task is done."""
        remove_durably(self._path(uuid))

    def _path(self, uuid: str) -> Path:
        return self._directory / f"{uuid}.json"


Kind = TypeVar("Kind", RestoreOperation, CloneOperation)


class OperationWriter(Generic[Kind]):
    """A task that is being worked on: every change of it is written down."""

    def __init__(self, journal: Path, task: Kind) -> None:
        self._tasks = Operations(journal)
        self.task: Kind = task

    def note(self, **changes: Any) -> None:
        """Write changes of the task down."""
        task = msgspec.structs.replace(self.task, **changes)
        self._tasks.write(task)
        self.task = task

    def close(self) -> None:
        """The task is done."""
        self._tasks.close(self.task.uuid)
