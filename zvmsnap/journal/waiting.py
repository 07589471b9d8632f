"""Entries whose guest is released, and whose point waits in staging until the vault can be used.

One file for each capture, so a guest may have several of them, and is captured again meanwhile.
"""

from __future__ import annotations

from pathlib import Path

from zvmsnap.common import log
from zvmsnap.config import capture_name
from zvmsnap.journal import late
from zvmsnap.journal.entry import SCHEMA, Entry
from zvmsnap.journal.guest_files import WAITING, GuestFiles, OtherVersionsFile
from zvmsnap.journal.journal import Journal


class WaitingEntries:
    """The directory of these entries."""

    def __init__(self, journal_dir: Path) -> None:
        self._files: GuestFiles[Entry] = GuestFiles(
            journal_dir / WAITING, Entry, SCHEMA, check=_check, tell_damaged=_tell_damaged
        )

    def all(self) -> list[Entry]:
        """All that wait, oldest first. Raises Unreadable."""
        return sorted(self._files.all(), key=lambda entry: entry.created)

    def of(self, uuid: str) -> list[Entry]:
        """Those of a guest, oldest first. Raises Unreadable."""
        return [entry for entry in self.all() if entry.uuid == uuid]

    def of_other_versions(self) -> list[OtherVersionsFile]:
        """All that another version has written."""
        return self._files.of_other_versions()

    def write(self, entry: Entry) -> None:
        """Write `entry`, durably. Raises WorkOfOtherVersion."""
        self._files.write(entry.capture, entry)

    def close(self, entry: Entry) -> None:
        """Its point is published, or none is made."""
        self._files.remove(entry.capture)


def all_entries(journal_dir: Path) -> list[Entry]:
    """All entries: open ones, those of late runs, and those that wait. Raises Unreadable."""
    return [
        *Journal(journal_dir).entries(),
        *late.entries(journal_dir),
        *WaitingEntries(journal_dir).all(),
    ]


def put_by(journal: Journal, waiting: WaitingEntries, entry: Entry) -> None:
    """Make room for the guest's next entry.

    Repeated after a crash between the two steps: whoever comes second finds the point published.
    """
    waiting.write(entry)
    journal.close(entry)


def _check(entry: Entry, capture: str) -> None:
    if entry.capture != capture or capture_name.uuid_of(capture) != entry.uuid:
        raise ValueError("it is of another capture")


def _tell_damaged(path: Path, renamed: Path) -> None:
    log.plain().warning("%s cannot be read; renamed to %s: its point is lost", path, renamed.name)
