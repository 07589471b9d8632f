"""Fetches that are not complete yet: one file for each guest, `fetches/UUID.json`.

While there is one, whatever it says, all that the vault has of points of this guest in the making
is kept: the same fetch goes on with it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from zvmsnap.common import json_file, lockfile
from zvmsnap.common.safe_files import private_dir, remove_durably, sync_dir
from zvmsnap.config.settings import Config

SCHEMA = 2
_FOLDER = "fetches"


class UnfinishedFetch(msgspec.Struct, frozen=True):
    """A fetch that has begun: its datasets did not exist before."""

    source: str
    point: str
    datasets: tuple[str, ...]
    schema: int = SCHEMA


class Fetches:
    """The directory of fetches."""

    def __init__(self, journal: Path) -> None:
        self._directory = journal / _FOLDER

    def read(self, uuid: str) -> UnfinishedFetch | None:
        """The unfinished fetch of a guest, if there is one. Raises Unreadable."""
        try:
            return json_file.read(self._path(uuid), UnfinishedFetch, SCHEMA)
        except FileNotFoundError:
            return None

    def write(self, uuid: str, fetch: UnfinishedFetch) -> None:
        """Note it, durably. Raises OSError."""
        private_dir(self._directory)
        json_file.write(self._path(uuid), fetch)
        sync_dir(self._directory)

    def close(self, uuid: str) -> None:
        """The fetch is complete, or given up. Raises OSError."""
        remove_durably(self._path(uuid))

    def guests(self) -> frozenset[str]:
        """The guests with an unfinished fetch, readable or not."""
        return frozenset(path.stem for path in self._directory.glob("*.json"))

    def interrupted(self, settings: Config) -> list[str]:
        """Fetches that nobody works on, each in one line: what to do."""
        lines = []
        for uuid in sorted(self.guests()):
            if lockfile.is_held(settings.locks_dir, uuid):
                continue
            try:
                fetch = self.read(uuid)
            except json_file.Unreadable as error:
                lines.append(f"{error}: an unfinished fetch; remove the file")
                continue
            if fetch:
                lines.append(
                    f"the fetch of {fetch.point} from {fetch.source} was interrupted: the same "
                    f"zvmsnap fetch goes on with it; to give it up remove {self._path(uuid)}"
                )
        return lines

    def _path(self, uuid: str) -> Path:
        return self._directory / f"{uuid}.json"
