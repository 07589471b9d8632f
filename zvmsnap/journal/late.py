"""Runs that found a guest in another run, and whose snapshots may have been taken all the same.

Nothing was done to the guest for them. They have entries of their own, as a guest may be found so
several times, by one process, too (zrepl):

    journal/late/<uuid>.<8 hex digits>/UUID.json        named as its capture

| a snapshot of the late run was taken                           | its point |
|----------------------------------------------------------------|-----------|
| before the other run began to merge overlays, or without any   | crash     |
| while overlays were merged                                     | none      |
| after they were merged                                         | crash     |

Whoever merges notes which snapshots exist before and after that, under the guest's lock. The point
is made when no other run of the guest is open.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.journal import snapshot_match
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.points.manifest import SnapshotRef

_LATE = "late"


def journal_of(journal_dir: Path, capture: str) -> Journal:
    """The journal of that late run alone."""
    return Journal(journal_dir / _LATE / capture)


def journals(journal_dir: Path) -> list[Journal]:
    """The journals of all late runs."""
    return [Journal(directory) for directory in sorted((journal_dir / _LATE).glob("*-*"))]


def entries(journal_dir: Path) -> list[Entry]:
    """The entries of all late runs. Raises Unreadable."""
    return [entry for journal in journals(journal_dir) for entry in journal.entries()]


def close(journal_dir: Path, capture: str) -> None:
    """Remove the directory of that late run, whose entry is closed.

    That of all stays, as another process may be about to make one in it.
    """
    with suppress(OSError):
        (journal_dir / _LATE / capture).rmdir()


def merge_begins(journal_dir: Path, uuid: str) -> None:
    """Note which snapshots of late runs exist, before overlays of the guest are merged."""
    for entry in entries(journal_dir):
        if entry.uuid == uuid and entry.before_merge is None:
            _write(journal_dir, entry, before_merge=tuple(_guids(entry) or ()))


def merge_ended(journal_dir: Path, uuid: str) -> None:
    """Note which of them were taken meanwhile. They stay unknown if ZFS does not answer."""
    for entry in entries(journal_dir):
        guids = _guids(entry) if entry.uuid == uuid else None
        if guids is not None:
            meanwhile = tuple(guid for guid in guids if guid not in (entry.before_merge or ()))
            _write(journal_dir, entry, before_merge=None, spoilt=(*entry.spoilt, *meanwhile))


def not_spoilt(entry: Entry, existing: tuple[SnapshotRef, ...]) -> tuple[SnapshotRef, ...]:
    """Those of its snapshots that were not taken while overlays were merged, as far as is known."""
    known = entry.before_merge
    return tuple(
        ref
        for ref in existing
        if ref.guid not in entry.spoilt and (known is None or ref.guid in known)
    )


def _guids(entry: Entry) -> list[int] | None:
    try:
        return [ref.guid for ref in snapshot_match.candidates(entry)]
    except ZfsFailed:
        return None


def _write(journal_dir: Path, entry: Entry, **changes: object) -> None:
    journal_of(journal_dir, entry.capture).write(msgspec.structs.replace(entry, **changes))
