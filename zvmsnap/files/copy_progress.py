"""How far a copy is, for whoever has given the command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from zvmsnap.bulk import progress
from zvmsnap.common.waiting import now_s
from zvmsnap.files.copy_out import Copied


@contextmanager
def shown(path: str) -> Iterator[Copied]:
    """Show how far the copy of that path is, while it is made; yields what is to be counted."""
    copied = Copied()
    begun_s = now_s()
    with progress.told(lambda: said(path, copied, now_s() - begun_s)):
        yield copied


def said(path: str, copied: Copied, since_s: float) -> str:
    """The line after so many seconds."""
    mib = copied.read_bytes / (1 << 20)
    return f"{path}: {copied.files} files, {mib:.0f} MiB, {mib / max(since_s, 1):.1f} MiB/s"
