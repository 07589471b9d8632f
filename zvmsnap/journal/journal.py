"""Unfinished work on guests: one entry for each guest, removed when the work is done.

An entry is a hint for cleaning up and publishing; where a disk really is, only libvirt's XML says.
So a guest whose entry is damaged, or of another schema, can be brought back; the point is lost, or
left to the version that began it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import msgspec

from zvmsnap.common import log
from zvmsnap.common.errors import LockTimeout
from zvmsnap.common.lockfile import lock
from zvmsnap.common.steps import Step
from zvmsnap.common.steps import run as run_steps
from zvmsnap.journal.entry import SCHEMA, Entry
from zvmsnap.journal.guest_files import GuestFiles, OtherVersionsFile, check_guest


class Journal:
    """The directory of entries."""

    def __init__(self, directory: Path) -> None:
        self._files: GuestFiles[Entry] = GuestFiles(
            directory, Entry, SCHEMA, check=_check, tell_damaged=_tell_damaged
        )

    def write(self, entry: Entry) -> None:
        """Write `entry`, durably, in place of the guest's earlier one.

        A recovery is not written over a file of another version: it may be begun again by what
        libvirt says. For a run WorkOfOtherVersion is raised.
        """
        if entry.is_recovery and self._files.of_other_version(entry.uuid):
            return
        self._files.write(entry.uuid, entry)

    def read(self, uuid: str) -> Entry | None:
        """The open entry of a guest; none if it is damaged or of another version.

        Raises Unreadable.
        """
        return self._files.read(uuid)

    def entries(self) -> list[Entry]:
        """All open entries. Raises Unreadable."""
        return self._files.all()

    def of_other_version(self, uuid: str) -> OtherVersionsFile | None:
        """The guest's entry, if another version has written it."""
        return self._files.of_other_version(uuid)

    def of_other_versions(self) -> list[OtherVersionsFile]:
        """All entries that another version has written."""
        return self._files.of_other_versions()

    def is_lost(self, uuid: str) -> bool:
        """Was an entry of that guest damaged, and nobody has seen to the guest since?"""
        return self._files.is_lost(uuid)

    def forget_lost(self, uuid: str) -> None:
        """The guest was seen to; the damaged entry stays, under another name."""
        self._files.forget_lost(uuid)

    @contextmanager
    def if_same(
        self, locks_dir: Path, known: Entry, intent: str, timeout_s: float
    ) -> Iterator[Entry | None]:
        """Hold the lock of the guest; yields the entry as it is now.

        None if somebody has closed it meanwhile. Raises LockTimeout.
        """
        with lock(locks_dir, known.uuid, intent, timeout_s):
            entry = self.read(known.uuid)
            yield entry if entry and entry.capture == known.capture else None

    @contextmanager
    def if_free(self, locks_dir: Path, known: Entry, intent: str) -> Iterator[Entry | None]:
        """The same, but None as well if somebody else holds the lock."""
        with ExitStack() as stack:
            try:
                entry = stack.enter_context(self.if_same(locks_dir, known, intent, timeout_s=0))
            except LockTimeout:
                entry = None
            yield entry

    def age_s(self, entry: Entry) -> float:
        """Seconds since somebody last worked on this entry; 0 if it is closed."""
        try:
            # Never below 0, though clocks be set back.
            return max(0.0, time.time() - self._files.path(entry.uuid).stat().st_mtime)
        except FileNotFoundError:
            return 0.0

    def stamp(self, entry: Entry) -> tuple[int, int] | None:
        """What changes whenever this guest's entry is written; None if it is closed.

        Each version is a file of its own. To ask so is far cheaper than to read it.
        """
        try:
            status = self._files.path(entry.uuid).stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    def tried(self, entry: Entry) -> None:
        """Somebody begins to work on this entry, and may fail before the first step is written."""
        with suppress(FileNotFoundError):
            os.utime(self._files.path(entry.uuid), follow_symlinks=False)

    def close(self, entry: Entry) -> None:
        """The work on the guest is done."""
        self._files.remove(entry.uuid)


class EntryStore(Protocol):
    """Where an entry is written: the journal, or among those that wait."""

    def write(self, entry: Entry) -> None: ...
    def close(self, entry: Entry) -> None: ...


class EntryWriter:
    """An entry that is being worked on: each step is written down before it is done."""

    def __init__(self, journal: EntryStore, entry: Entry) -> None:
        self._journal = journal
        self.entry = entry

    def note(self, **changes: Any) -> None:
        """Write changes of the entry down."""
        self.entry = msgspec.structs.replace(self.entry, **changes)
        self._journal.write(self.entry)

    def step(self, name: str, do: Callable[[], None]) -> None:
        """One step. Raises StepFailed; nothing is undone."""
        run_steps([Step(name, do)], lambda step: self.note(step=step))

    def close(self) -> None:
        """The work on the guest is done."""
        self._journal.close(self.entry)


def _check(entry: Entry, uuid: str) -> None:
    check_guest(entry, uuid)
    if bool(entry.snapshot_names) != bool(entry.run):
        raise ValueError("a run has snapshot names, a recovery has none")
    if entry.backup and entry.snapshot_names:
        raise ValueError("a backup has no snapshot names")


def _tell_damaged(path: Path, renamed: Path) -> None:
    log.plain().warning("%s cannot be read; renamed to %s", path, renamed.name)
