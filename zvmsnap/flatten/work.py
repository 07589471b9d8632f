"""Chains that are being merged: one file for each guest, `flattenings/UUID.json` in the journal.

It is written before a job begins, so that `zvmsnap recover` knows whose job it is.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from zvmsnap.common import json_file
from zvmsnap.common.process import Process
from zvmsnap.common.safe_files import private_dir, remove_durably, sync_dir
from zvmsnap.config.capture_name import GuestUuid
from zvmsnap.flatten.method import Method

SCHEMA = 1
_FOLDER = "flattenings"


class Flattening(msgspec.Struct, frozen=True, kw_only=True):
    """The disks of a guest whose chains are being merged, and who does it."""

    schema: int = SCHEMA
    domain: str
    uuid: GuestUuid
    owner: Process
    method: Method
    targets: tuple[str, ...]


class Flattenings:
    """The directory of these."""

    def __init__(self, journal: Path) -> None:
        self._directory = journal / _FOLDER

    def write(self, work: Flattening) -> None:
        """Note it, durably. Raises OSError."""
        private_dir(self._directory)
        json_file.write(self._path(work.uuid), work)
        sync_dir(self._directory)

    def read(self, uuid: str) -> Flattening | None:
        """What is under way, or was interrupted, of that guest. Raises Unreadable."""
        try:
            work = json_file.read(self._path(uuid), Flattening, SCHEMA)
        except FileNotFoundError:
            return None
        return work if work.uuid == uuid else None

    def all(self) -> tuple[list[Flattening], list[str]]:
        """All of them, and what is wrong with files that cannot be read."""
        works: list[Flattening] = []
        problems: list[str] = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                if work := self.read(path.stem):
                    works.append(work)
            except json_file.Unreadable as error:
                problems.append(str(error))
        return works, problems

    def close(self, uuid: str) -> None:
        """It is done, or undone. Raises OSError."""
        remove_durably(self._path(uuid))

    def _path(self, uuid: str) -> Path:
        return self._directory / f"{uuid}.json"
