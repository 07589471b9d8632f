"""What we were about to do for each guest when we died: one file per guest, removed when done.

A hint for cleaning up and publishing; where a disk really is, only libvirt's XML says.
An entry that cannot be read, or is of another schema, is set aside: the XML is enough to bring
its guest back, and only the point of that moment is lost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from zvmsnap.common import log
from zvmsnap.common.atomic_file import private_dir, remove_durably, write_atomic
from zvmsnap.common.errors import LockTimeout
from zvmsnap.common.lockfile import lock
from zvmsnap.common.steps import Step
from zvmsnap.common.steps import run as run_steps
from zvmsnap.journal.entry import Entry

_DAMAGED = ".damaged"


class Journal:
    """The directory of entries."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, entry: Entry) -> None:
        """Write `entry` down, durably, in place of the guest's former one."""
        private_dir(self._directory)
        write_atomic(self._path(entry.uuid), msgspec.json.format(msgspec.json.encode(entry)))

    def read(self, uuid: str) -> Entry | None:
        """The open entry of a guest. A damaged one is set aside and counts as none."""
        path = self._path(uuid)
        try:
            entry = msgspec.json.decode(path.read_bytes(), type=Entry)
            if entry.uuid != uuid or not entry.capture.startswith(f"{uuid}."):
                raise msgspec.ValidationError("it is of another guest")
            if bool(entry.snapshot_names) != bool(entry.run):
                raise msgspec.ValidationError("a moment has snapshot names, a recovery has none")
            return entry
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            aside = path.with_suffix(_DAMAGED)
            log.plain().warning("%s cannot be read; set aside as %s", path, aside.name)
            os.replace(path, aside)
            return None

    def lost(self, uuid: str) -> bool:
        """Was an entry of that guest set aside, and has nobody seen to the guest since?"""
        return self._path(uuid).with_suffix(_DAMAGED).exists()

    def forget_lost(self, uuid: str) -> None:
        """The guest was seen to; what was set aside stays, under another name."""
        path = self._path(uuid).with_suffix(_DAMAGED)
        with suppress(FileNotFoundError):
            os.replace(path, path.with_suffix(f"{_DAMAGED}.seen"))

    def entries(self) -> list[Entry]:
        """All open entries."""
        if not self._directory.is_dir():
            return []
        found = (self.read(path.stem) for path in sorted(self._directory.glob("*.json")))
        return [entry for entry in found if entry]

    @contextmanager
    def if_free(self, locks_dir: Path, seen: Entry, intent: str) -> Iterator[Entry | None]:
        """Hold the lock of its guest, if nobody else does; yields the entry as it is by now.

        None if somebody works on it, or has closed it.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(lock(locks_dir, seen.uuid, intent, timeout_s=0))
            except LockTimeout:
                yield None
                return
            entry = self.read(seen.uuid)
            yield entry if entry and entry.capture == seen.capture else None

    def age_s(self, entry: Entry) -> float:
        """Seconds since somebody last worked on this entry; 0 if it is closed."""
        try:
            # Not less than 0, though clocks be set back.
            return max(0.0, time.time() - self._path(entry.uuid).stat().st_mtime)
        except FileNotFoundError:
            return 0.0

    def tried(self, entry: Entry) -> None:
        """Somebody begins to work on this entry, and may fail before there is a step to write."""
        with suppress(FileNotFoundError):
            os.utime(self._path(entry.uuid), follow_symlinks=False)

    def close(self, entry: Entry) -> None:
        """The guest's part is done."""
        remove_durably(self._path(entry.uuid))

    def _path(self, uuid: str) -> Path:
        return self._directory / f"{uuid}.json"


class EntryWriter:
    """An entry that is being worked on: each step is written down before it is done."""

    def __init__(self, journal: Journal, entry: Entry) -> None:
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
        """The guest's part is done."""
        self._journal.close(self.entry)
