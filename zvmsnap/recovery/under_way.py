"""What works on guests now, and would go on with other code if zvmsnap were replaced.

Sends and pruning are not among it: they touch no guest, and may take days.
"""

from __future__ import annotations

import re

from zvmsnap.common import lockfile
from zvmsnap.config.settings import Config
from zvmsnap.journal import describe, late, other_versions
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import Operations

# Locks of guests, by UUID, and those of watchdogs (quiesce/watchdog).
_OF_GUESTS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|watchdog-.*|follow-.*")


def under_way(settings: Config) -> list[str]:
    """Each run, restore or clone whose owner lives, in one line; else what holds a guest's lock.

    Raises Unreadable and OSError.
    """
    journal = settings.journal_dir
    entries = [*Journal(journal).entries(), *late.entries(journal)]
    lines = [
        f"{entry.domain}: {describe.work(entry)} is {describe.progress(entry)}"
        for entry in entries
        if entry.owner.is_alive()
    ]
    lines += [
        f"{operation.domain}: {describe.operation(operation)}"
        for operation in Operations(journal).all()
        if operation.owner.is_alive()
    ]
    lines += [str(file) for file in other_versions.files(journal) if file.owner.is_alive()]
    return lines or [
        f"{name}: {holder or 'held'}"
        for name, holder in lockfile.held(settings.locks_dir).items()
        if _OF_GUESTS.fullmatch(name)
    ]
