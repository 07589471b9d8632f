"""Views that are open: one file for each, `views/NAME.json` in the journal.

A view has the file systems of a point open as directories. The process that holds it writes the
file before it makes anything, and removes it last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from zvmsnap.common import json_file
from zvmsnap.common.process import Process
from zvmsnap.common.safe_files import private_dir, remove_durably, sync_dir
from zvmsnap.common.snapshot_name import DatasetName
from zvmsnap.config.capture_name import GuestUuid

SCHEMA = 1
_FOLDER = "views"


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What is open, and what was made for it; its `name` is random.

    `datasets` are clones that bear its name as their mark. `work` has the overlays that QEMU writes
    to. `stays`: until somebody unmounts it; else until its caller is done, or dead.
    """

    schema: int = SCHEMA
    name: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{8}\Z")]
    domain: str
    uuid: GuestUuid
    point: str
    directory: str
    mountpoint: str
    work: str
    owner: Process
    datasets: tuple[DatasetName, ...] = ()
    by_device: bool = False
    stays: bool = False


class Views:
    """The directory of open views."""

    def __init__(self, journal: Path) -> None:
        self._directory = journal / _FOLDER

    def write(self, view: View) -> None:
        """Note it, durably. Raises OSError."""
        private_dir(self._directory)
        json_file.write(self._path(view.name), view)
        sync_dir(self._directory)

    def read(self, name: str) -> View | None:
        """The view of that name, if it is open. Raises Unreadable."""
        try:
            view = json_file.read(self._path(name), View, SCHEMA)
        except FileNotFoundError:
            return None
        return view if view.name == name else None

    def all(self) -> tuple[list[View], list[str]]:
        """All open views, and what is wrong with files that cannot be read."""
        views: list[View] = []
        problems: list[str] = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                if view := self.read(path.stem):
                    views.append(view)
            except json_file.Unreadable as error:
                problems.append(str(error))
        return views, problems

    def close(self, name: str) -> None:
        """Nothing is left of it. Raises OSError."""
        remove_durably(self._path(name))

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.json"
