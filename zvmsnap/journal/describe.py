"""Unfinished work in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zvmsnap.journal.entry import Entry
    from zvmsnap.journal.operation import CloneOperation, RestoreOperation


def operation(command: RestoreOperation | CloneOperation) -> str:
    """What an operator's command is about, and who will end it."""
    what = f"{command.kind} of {command.point}"
    if command.owner.is_alive():
        return f"{what} is under way at step {command.step or 'none'} (pid {command.owner.pid})"
    return f"{what} was interrupted at step {command.step or 'none'}: zvmsnap recover ends it"


def work(entry: Entry) -> str:
    """What an open entry of the journal is for."""
    if entry.backup:
        return f"a backup to {entry.backup}"
    return f"run {entry.run}" if entry.run else "a recovery"


def owner(entry: Entry) -> str:
    """Whose death ends it."""
    return f"{'zvmsnap backup' if entry.backup else 'sanoid'} has pid {entry.owner.pid}"


def progress(entry: Entry) -> str:
    """How far a run is, and who will end it."""
    step = entry.step or "none"
    if entry.owner.is_alive():
        return f"under way at step {step} ({entry.state}; {owner(entry)})"
    if entry.in_the_way:
        return (
            f"interrupted at step {step} ({entry.state}): it stays on its overlays because of "
            f"{entry.in_the_way}; they are merged when that has ended"
        )
    return f"interrupted at step {step} ({entry.state}): zvmsnap recover ends it"


def waiting(entry: Entry) -> str:
    """What a point waits for, and who will publish it."""
    return f"the point of run {entry.run} waits in staging for the vault: zvmsnap recover tries it"
