"""Whole writes: write(2) may write less than it was given."""

from __future__ import annotations

import os


def write(file: int, data: bytes | memoryview) -> None:
    """Write all of `data`. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def write_at(file: int, data: bytes, place: int) -> None:
    """Write all of `data` to `place`. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, place)
        view = view[written:]
        place += written


def write_vector(file: int, parts: list[memoryview | bytes]) -> None:
    """Write all of some parts, one after the other; not more than IOV_MAX. Raises OSError."""
    written = os.writev(file, parts)
    for part in parts:
        if written >= len(part):
            written -= len(part)
        else:
            write(file, memoryview(part)[written:])
            written = 0
