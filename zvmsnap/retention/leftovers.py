"""What interrupted runs have left in staging and vault, and nobody will come back for."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from zvmsnap.config.settings import Config
from zvmsnap.disks.staging import staging_dirs
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import Operations
from zvmsnap.points import vault


@dataclass(frozen=True)
class Leftovers:
    """`paths` may go. `overlays` are of no journal: they may hold a guest's writes."""

    paths: list[Path] = field(default_factory=list)
    overlays: list[Path] = field(default_factory=list)

    def remove(self) -> None:
        """Remove the paths."""
        for path in self.paths:
            # Its moment may have ended meanwhile, and taken it along.
            with suppress(FileNotFoundError):
                shutil.rmtree(path)


def find(config: Config) -> Leftovers:
    """Look through staging and vault. Raises OSError."""
    # The journal last: what appears in staging or vault has its entry already, so what was seen
    # there and has none is nobody's.
    staged = staging_dirs(config.staging_dir)
    unfinished = vault.unfinished(config.vault_dir)
    open_captures = {entry.capture for entry in Journal(config.journal_dir).entries()}
    open_captures |= {task.capture for task in Operations(config.journal_dir).all()}
    found = Leftovers()
    for left in unfinished:
        if left.capture not in open_captures:
            found.paths.append(left.directory)
    for capture in staged:
        if capture.path.name in open_captures:
            continue
        overlays = capture.overlays()
        found.overlays.extend(overlays)
        if not overlays:
            found.paths.append(capture.path)
        elif capture.point.exists():
            found.paths.append(capture.point)
    return found
