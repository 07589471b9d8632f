"""Backups and imports that are under way: one file for each, `backups/ID.json` in the journal.

Written before anything is made, so that `zvmsnap recover` knows what a crash has left.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec

from zvmsnap.common import json_file
from zvmsnap.common.process import Process
from zvmsnap.common.safe_files import private_dir, remove_durably, sync_dir
from zvmsnap.common.snapshot_name import DatasetName, FullName
from zvmsnap.config.capture_name import GuestUuid
from zvmsnap.config.settings import Config
from zvmsnap.point_disks import temporary

SCHEMA = 1
_FOLDER = "backups"
_Id = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]


class Work(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What both kinds have. `id` is a random one."""

    schema: Annotated[int, msgspec.Meta(ge=SCHEMA, le=SCHEMA)] = SCHEMA
    id: _Id
    domain: Annotated[str, msgspec.Meta(min_length=1)]
    uuid: GuestUuid
    owner: Process
    datasets: tuple[DatasetName, ...] = ()  # made for it, with its mark; parents first


class BackupWork(Work, frozen=True, kw_only=True, tag="backup"):
    """A backup in the making: in `making`, of clones of snapshots.

    `snapshots` were taken for it, with a point of that run.
    """

    making: str
    pushes: bool = False  # libvirt may have a job that writes there
    checkpoint: str = ""  # that libvirt may have made for it
    snapshots: tuple[FullName, ...] = ()


class ImportWork(Work, frozen=True, kw_only=True, tag="import"):
    """An import: the guest that it makes, and what it loads its RAM from."""

    backup: str
    step: str = ""
    nvram: str = ""
    image: str = ""


def in_words(work: BackupWork | ImportWork) -> str:
    """What is under way, or was interrupted, and who will end it."""
    what = f"import of {work.backup}" if isinstance(work, ImportWork) else "backup"
    if work.owner.is_alive():
        return f"{what} is under way (pid {work.owner.pid})"
    return f"{what} was interrupted: zvmsnap recover ends it"


AnyWork = BackupWork | ImportWork


class Works:
    """The directory of work under way."""

    def __init__(self, config: Config) -> None:
        self._directory = config.journal_dir / _FOLDER

    def write(self, work: AnyWork) -> None:
        """Write it down, durably. Raises OSError."""
        private_dir(self._directory)
        json_file.write(self._path(work.id), work)

    def close(self, work: AnyWork) -> None:
        """It is done. Raises OSError."""
        remove_durably(self._path(work.id))
        with suppress(OSError):  # others are under way
            self._directory.rmdir()
            sync_dir(self._directory.parent)

    def read(self, key: str) -> AnyWork | None:
        """The work of that id as it is now; None if it is done. Raises Unreadable and OSError."""
        try:
            work: AnyWork = json_file.read(self._path(key), AnyWork, SCHEMA)
        except FileNotFoundError:
            return None
        return work

    def all(self) -> tuple[list[AnyWork], list[str]]:
        """All that is under way, and what is wrong with files that cannot be read."""
        if not self._directory.is_dir():
            return [], []
        works: list[AnyWork] = []
        problems: list[str] = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                works.append(json_file.read(path, AnyWork, SCHEMA))
            except FileNotFoundError:
                continue  # it was just done
            except json_file.Unreadable as error:
                problems.append(str(error))
        return works, problems

    def _path(self, key: str) -> Path:
        return self._directory / f"{key}.json"


class WorkWriter:
    """Work of this process: every change of it is written down."""

    def __init__(self, config: Config, work: AnyWork) -> None:
        self._works = Works(config)
        self.work = work

    def note(self, **changes: Any) -> None:
        """Write changes down. Raises OSError."""
        changed = msgspec.structs.replace(self.work, **changes)
        self._works.write(changed)
        self.work = changed

    def remove_datasets(self) -> None:
        """Destroy those that were made for it. Raises ZfsFailed and OSError."""
        temporary.remove(self.work.datasets, self.work.id)
        self.note(datasets=())

    def close(self) -> None:
        """It is done. Raises OSError."""
        self._works.close(self.work)
