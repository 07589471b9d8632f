"""What works on guests now, and would go on with other code if zvmsnap were replaced.

Sends and pruning are not among it: they touch no guest, and may take days.
"""

from __future__ import annotations

import re

from zvmsnap.common import lockfile
from zvmsnap.config.settings import Config
from zvmsnap.journal import other_versions
from zvmsnap.recovery.unfinished import unfinished

# Locks of guests, by UUID, and those of watchdogs (quiesce/watchdog).
_OF_GUESTS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|watchdog-.*|follow-.*")


def under_way(settings: Config) -> list[str]:
    """Each run, restore or clone whose owner lives, in one line; else what holds a guest's lock.

    Raises Unreadable and OSError.
    """
    lines = [each.words for each in unfinished(settings) if each.is_under_way]
    others = other_versions.files(settings.journal_dir)
    lines += [str(file) for file in others if file.owner.is_alive()]
    return lines or [
        f"{name}: {holder or 'held'}"
        for name, holder in lockfile.held(settings.locks_dir).items()
        if _OF_GUESTS.fullmatch(name)
    ]
