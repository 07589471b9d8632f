"""Unfinished work in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zvmsnap.journal.entry import Entry
    from zvmsnap.journal.operation import CloneOperation, RestoreOperation


def task(found: RestoreOperation | CloneOperation) -> str:
    """What a command of an operator is about, and who will end it."""
    what = f"{found.kind} of {found.point}"
    if found.owner.is_alive():
        return f"{what} is under way at step {found.step or 'none'} (pid {found.owner.pid})"
    return f"{what} was interrupted at step {found.step or 'none'}: zvmsnap recover ends it"


def work(entry: Entry) -> str:
    """What an open entry of the journal is for."""
    return f"moment {entry.run}" if entry.run else "a recovery"


def progress(entry: Entry) -> str:
    """How far a moment is, and who will end it."""
    if entry.owner.is_alive():
        return f"under way at step {entry.step or 'none'} (sanoid has pid {entry.owner.pid})"
    return f"interrupted at step {entry.step or 'none'}: zvmsnap recover ends it"
