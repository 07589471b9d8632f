"""Files of interrupted runs in staging and vault that nobody will come back for."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from zvmsnap.config import capture_name
from zvmsnap.config.settings import Config
from zvmsnap.disks.staging import moved_aside, staging_dirs
from zvmsnap.journal import other_versions
from zvmsnap.journal.fetches import Fetches
from zvmsnap.journal.operation import Operations
from zvmsnap.journal.waiting import all_entries
from zvmsnap.points import vault


@dataclass(frozen=True)
class Leftovers:
    """`paths` can be removed. `overlays` are in no journal: they may have a guest's writes.

    Among these are those that were moved aside (disks/unused_overlay).
    """

    paths: list[Path] = field(default_factory=list)
    overlays: list[Path] = field(default_factory=list)

    def remove(self) -> None:
        """Remove the paths."""
        for path in self.paths:
            # Its run may have ended meanwhile, and removed it.
            with suppress(FileNotFoundError):
                shutil.rmtree(path)


def find(settings: Config) -> Leftovers:
    """Look through staging and vault. Raises OSError and Unreadable."""
    # The journal last: an entry or a fetch is written before anything appears in staging or vault.
    # So what was seen in them and is not in the journal belongs to nobody.
    captures = staging_dirs(settings.staging_dir)
    unfinished_points = vault.unfinished(settings.vault_dir)
    work = [*all_entries(settings.journal_dir), *Operations(settings.journal_dir).all()]
    open_captures = {each.capture for each in work}
    # Any capture of these guests may be the one that is worked on.
    kept = other_versions.guests(settings.journal_dir) | Fetches(settings.journal_dir).guests()

    def is_open(capture: str | None) -> bool:
        return capture is not None and (
            capture in open_captures or capture_name.uuid_of(capture) in kept
        )

    leftovers = Leftovers(overlays=moved_aside(settings.staging_dir))
    for unfinished in unfinished_points:
        if not is_open(unfinished.capture):
            leftovers.paths.append(unfinished.directory)
    for capture in captures:
        if is_open(capture.path.name):
            continue
        overlays = capture.overlays()
        leftovers.overlays.extend(overlays)
        if not overlays:
            leftovers.paths.append(capture.path)
        elif capture.point.exists():
            leftovers.paths.append(capture.point)
    return leftovers
