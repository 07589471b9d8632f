"""How often what has failed on this host: counters in the journal's directory, by cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from zvmsnap.common import json_file
from zvmsnap.common.safe_files import private_dir

SCHEMA = 1
# Not *.json: these are of guests, and keep hooks from being idle.
_FILE = "failures.count"


class _Counts(msgspec.Struct, frozen=True, kw_only=True):
    schema: int = SCHEMA
    counts: dict[str, int] = {}


def read(journal_dir: Path) -> Mapping[str, int]:
    """How often each cause was told; nothing if that cannot be read."""
    try:
        counts: _Counts = json_file.read(journal_dir / _FILE, _Counts, SCHEMA)
        return counts.counts
    except (FileNotFoundError, json_file.Unreadable):
        return {}


def add(journal_dir: Path, causes: Iterable[str]) -> None:
    """Count these, too; whoever calls this has the lock of notices. Raises OSError."""
    counts = Counter(read(journal_dir))
    counts.update(causes)
    json_file.write(private_dir(journal_dir) / _FILE, _Counts(counts=dict(counts)))
