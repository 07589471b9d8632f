"""The administrator's programs in /etc/zvmsnap/notify.d: each gets an event on standard input."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from zvmsnap.common import foreign, json_file, log
from zvmsnap.common.errors import GivenUp
from zvmsnap.common.process import run_session
from zvmsnap.common.waiting import in_parallel
from zvmsnap.notify.event import Event

LIMIT_S = 10.0
_LINE_MAX = 200
# What packages and editors leave beside a file.
_LEFT_BEHIND = ("~", ".bak", ".disabled", ".dpkg-dist", ".dpkg-new", ".dpkg-old", ".rpmnew", ".swp")
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def of(directory: Path) -> list[Path]:
    """All programs in it, by name; one that others may write is not run, and logged."""
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return list(_usable(directory, names))


def _usable(directory: Path, names: list[str]) -> Iterator[Path]:
    for name in names:
        path = directory / name
        if name.startswith(".") or name.endswith(_LEFT_BEHIND) or not os.access(path, os.X_OK):
            continue
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            continue
        if status.st_mode & _OTHERS_MAY_WRITE or status.st_uid not in (0, os.geteuid()):
            log.plain().warning("%s: is not root's alone, so it is not run: chmod go-w", path)
            continue
        yield path


def tell(programs: list[Path], event: Event) -> dict[str, str]:
    """Run all of them at once, for LIMIT_S at most; returns why some have failed, by path."""
    works = {path: partial(_run, path, json_file.encoded(event)) for path in programs}
    wrong = {}
    for path, call in in_parallel(works, max(1, len(works))):
        try:
            why = call.answer()
        except (OSError, GivenUp) as error:
            why = str(error)
        if why:
            wrong[str(path)] = why
    return wrong


def _run(path: Path, given: bytes) -> str:
    """Why it failed; "" if it has not. Raises OSError and GivenUp."""
    status, output = run_session([path], os.environ, LIMIT_S, given)
    return f"failed ({status}): {foreign.last_line(output, _LINE_MAX)}" if status else ""
