"""What the hooks of one round note for each other: a round is all that one process of sanoid takes.

    <locks>/round-<pid>-<started>/notes.json

On a file system that is emptied at boot. These are notes and no state: if they are lost, sanoid is
asked once more, a warning comes twice, and post compares nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec

from zvmsnap.common import json_file, log
from zvmsnap.common.json_file import Unreadable
from zvmsnap.common.process import Process
from zvmsnap.common.safe_files import private_dir
from zvmsnap.common.snapshot_name import DatasetName

SCHEMA = 1

_NAME = "round-{}-{}"


class Expected(msgspec.Struct, frozen=True):
    """What pre went by: is the snapshot of a dataset recursive? `witness` is a dataset below it."""

    recursive: bool
    witness: DatasetName


class Notes(msgspec.Struct, frozen=True, kw_only=True):
    """The notes of a round.

    `recursive`: of which datasets sanoid takes recursive snapshots, None if it was not asked, or
    has not answered (`unanswered` says why). `warned`: what was warned of.
    """

    schema: Annotated[int, msgspec.Meta(ge=SCHEMA, le=SCHEMA)] = SCHEMA
    recursive: tuple[DatasetName, ...] | None = None
    unanswered: str = ""
    expected: dict[DatasetName, Expected] = {}
    warned: tuple[str, ...] = ()


class Round:
    """The round of one process."""

    def __init__(self, locks_dir: Path, owner: Process) -> None:
        self._locks_dir = locks_dir
        self._owner = owner
        self._path = locks_dir / _NAME.format(owner.pid, owner.started)

    @property
    def notes(self) -> Notes:
        """The notes; none if they are lost, or of another version."""
        try:
            return json_file.read(self._path / "notes.json", Notes, SCHEMA)
        except (FileNotFoundError, Unreadable):
            return Notes()

    @property
    def directory(self) -> Path:
        """A directory that lasts as long as the round, for root alone. Raises OSError."""
        if not self._path.is_dir():
            _remove_ended(private_dir(self._locks_dir))
        return private_dir(self._path)

    def note(self, **changes: Any) -> None:
        """Change the notes. That this fails is logged, and no reason to fail."""
        try:
            notes = msgspec.structs.replace(self.notes, **changes)
            json_file.write(self.directory / "notes.json", notes)
        except OSError as error:
            log.plain().warning("%s: nothing is noted there: %s", self._path, error)

    def expect(self, expected: dict[str, Expected]) -> None:
        """Note what pre goes by."""
        if expected:
            self.note(expected={**self.notes.expected, **expected})

    def new(self, warnings: Iterable[str]) -> list[str]:
        """Those of these warnings that come for the first time in this round."""
        warned = self.notes.warned
        fresh = [each for each in dict.fromkeys(warnings) if each not in warned]
        if fresh:
            self.note(warned=(*warned, *fresh))
        return fresh


def _remove_ended(locks_dir: Path) -> None:
    """Remove what the rounds of processes have left that have ended."""
    for path in locks_dir.glob(_NAME.format("*", "*")):
        pid = path.name.split("-")[1]
        if not (pid.isdecimal() and path.name == _NAME.format(pid, Process.of(int(pid)).started)):
            shutil.rmtree(path, ignore_errors=True)
