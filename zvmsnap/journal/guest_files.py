"""A directory of the journal: one file for each guest, `UUID.json`, and what cannot be read of it.

| the file                 | read as | then                                                        |
|--------------------------|---------|-------------------------------------------------------------|
| of this schema           | itself  |                                                             |
| of another schema        | none    | it is left alone: never renamed, overwritten or removed     |
| damaged                  | none    | renamed to UUID.damaged, UUID.damaged.2, ...; never removed |
| cannot be read just now  |         | Unreadable is raised; it stays                              |

A file of another schema stands for work that only the version that wrote it can finish. Until then
all captures of its guest in staging and vault are kept, as any of them may belong to it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from zvmsnap.common import json_file
from zvmsnap.common.errors import WorkOfOtherVersion
from zvmsnap.common.json_file import Damaged, OtherSchema, Unreadable
from zvmsnap.common.process import Process
from zvmsnap.common.safe_files import private_dir, remove_durably, rename_to_free
from zvmsnap.config import capture_name

OPERATIONS = "operations"
WAITING = "waiting"
_DAMAGED = ".damaged"
_SEEN = ".seen"

Content = TypeVar("Content", bound=msgspec.Struct)


class OfGuest(Protocol):
    """What a file of the journal says of its guest."""

    @property
    def uuid(self) -> str: ...
    @property
    def capture(self) -> str: ...


class _Owned(msgspec.Struct):
    """What journal files of all schemas have in common."""

    owner: Process


@dataclass(frozen=True)
class OtherVersionsFile:
    """A file of another schema, and the process that works by it."""

    path: Path
    schema: int
    owner: Process

    @property
    def uuid(self) -> str:
        """The guest; a waiting entry is called by its capture."""
        return capture_name.uuid_of(self.path.stem)

    @property
    def is_operation(self) -> bool:
        """Is it a restore or a clone, not an entry of a run?"""
        return self.path.parent.name == OPERATIONS

    def __str__(self) -> str:
        """What, where, and what to do."""
        by = f", and pid {self.owner.pid} works by it" if self.owner.is_alive() else ""
        return (
            f"{self.path}: schema {self.schema} is not one this version reads{by}: finish it with "
            "the version of zvmsnap that wrote it (zvmsnap recover), or move the file away"
        )


class GuestFiles(Generic[Content]):
    """The files of one directory and schema.

    `check` raises ValueError, if a file cannot be that of its guest; `tell_damaged` gets the path
    of a damaged one, and what it is called now.
    """

    def __init__(
        self,
        directory: Path,
        kind: Any,
        schema: int,
        *,
        check: Callable[[Content, str], None],
        tell_damaged: Callable[[Path, Path], None],
    ) -> None:
        self._directory = directory
        self._kind = kind
        self._schema = schema
        self._check = check
        self._tell_damaged = tell_damaged

    def path(self, uuid: str) -> Path:
        """Where the file of that guest is."""
        return self._directory / f"{uuid}.json"

    def read(self, uuid: str) -> Content | None:
        """The file of that guest, by the table above. Raises Unreadable."""
        try:
            return self._read(uuid)
        except (FileNotFoundError, OtherSchema):
            return None
        except Damaged:
            self._rename_damaged(self.path(uuid))
            return None

    def all(self) -> list[Content]:
        """All files that can be read. Raises Unreadable."""
        contents = [self.read(uuid) for uuid in self._uuids()]
        return [content for content in contents if content]

    def write(self, uuid: str, content: Content) -> None:
        """Write the file of that guest, durably.

        Raises WorkOfOtherVersion, Unreadable and OSError.
        """
        if other := self.of_other_version(uuid):
            raise WorkOfOtherVersion(str(other))
        private_dir(self._directory)
        json_file.write(self.path(uuid), content)

    def remove(self, uuid: str) -> None:
        """Remove the file of that guest, unless another version has written it.

        Raises Unreadable and OSError.
        """
        if not self.of_other_version(uuid):
            remove_durably(self.path(uuid))

    def of_other_version(self, uuid: str) -> OtherVersionsFile | None:
        """The file of that guest, if it is of another schema. Raises Unreadable."""
        if not self._directory.is_dir():
            return None
        try:
            self._read(uuid)
        except OtherSchema as error:
            return OtherVersionsFile(error.path, error.schema, _owner(error))
        except (FileNotFoundError, Damaged):
            return None
        return None

    def of_other_versions(self) -> list[OtherVersionsFile]:
        """All files of other schemas. Raises Unreadable."""
        files = [self.of_other_version(uuid) for uuid in self._uuids()]
        return [file for file in files if file]

    def is_lost(self, uuid: str) -> bool:
        """Was a damaged file of that guest renamed, and nobody has seen to the guest since?"""
        return bool(self._unseen(uuid))

    def forget_lost(self, uuid: str) -> None:
        """The guest was seen to; the damaged files stay, under another name."""
        for path in self._unseen(uuid):
            rename_to_free(path, self._directory / f"{uuid}{_DAMAGED}{_SEEN}")

    def _read(self, uuid: str) -> Content:
        path = self.path(uuid)
        content: Content = json_file.read(path, self._kind, self._schema)
        try:
            self._check(content, uuid)
        except ValueError as error:
            raise Damaged(path, str(error)) from error
        return content

    def _uuids(self) -> list[str]:
        if not self._directory.is_dir():
            return []
        return [path.stem for path in sorted(self._directory.glob("*.json"))]

    def _rename_damaged(self, path: Path) -> None:
        with suppress(FileNotFoundError):  # another process has just done it
            self._tell_damaged(path, rename_to_free(path, path.with_suffix(_DAMAGED)))

    def _unseen(self, uuid: str) -> list[Path]:
        seen = f"{uuid}{_DAMAGED}{_SEEN}"
        paths = sorted(self._directory.glob(f"{uuid}{_DAMAGED}*"))
        return [path for path in paths if not path.name.startswith(seen)]


def check_guest(content: OfGuest, uuid: str) -> None:
    """Raises ValueError if a file, or the capture that it names, is of another guest."""
    if content.uuid != uuid or capture_name.uuid_of(content.capture) != uuid:
        raise ValueError("it is of another guest")


def _owner(error: OtherSchema) -> Process:
    try:
        return json_file.read(error.path, _Owned, error.schema).owner
    except (FileNotFoundError, Unreadable):
        return Process.none()
