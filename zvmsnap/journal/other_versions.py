"""Work in the journal that another version of zvmsnap has begun: it is named, and left alone."""

from __future__ import annotations

from pathlib import Path

from zvmsnap.common.errors import WorkOfOtherVersion
from zvmsnap.journal import late
from zvmsnap.journal.guest_files import OtherVersionsFile
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import Operations
from zvmsnap.journal.waiting import WaitingEntries


def files(journal_dir: Path) -> list[OtherVersionsFile]:
    """All entries and operations of other schemas."""
    return [
        *Journal(journal_dir).of_other_versions(),
        *Operations(journal_dir).of_other_versions(),
        *WaitingEntries(journal_dir).of_other_versions(),
        *(file for journal in late.journals(journal_dir) for file in journal.of_other_versions()),
    ]


def refuse(journal_dir: Path, uuid: str) -> None:
    """Raises WorkOfOtherVersion if an operation of another version is open for that guest.

    An entry of another version does not count: see finalize/after_snapshot.
    """
    if other := Operations(journal_dir).of_other_version(uuid):
        raise WorkOfOtherVersion(str(other))


def guests(journal_dir: Path) -> frozenset[str]:
    """The guests with such files: each of their captures may belong to one. Raises Unreadable."""
    return frozenset(file.uuid for file in files(journal_dir))
