"""The result of verifying a point, kept beside it: of reading it, and of starting it."""

from __future__ import annotations

import os

import msgspec

from zvmsnap.common import json_file
from zvmsnap.common.errors import PointGone
from zvmsnap.common.json_file import Unreadable
from zvmsnap.points import vault
from zvmsnap.points.point import RestorePoint, is_time

SCHEMA = 2
READ = "verify.json"
BOOTED = "boot.json"
SCREEN = "verify.png"


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one verification; `alive` is what showed that the clone lived."""

    schema: int = SCHEMA
    checked: str
    why: str = ""
    booted: bool = False
    alive: str = ""
    to_running_s: float = 0.0
    output: str = ""

    @property
    def good(self) -> bool:
        """Is nothing wrong with the point?"""
        return not self.why


def read(point: RestorePoint) -> VerifyResult | None:
    """The result that counts; None if the point was never verified.

    | read     | started  | counts                                               |
    |----------|----------|------------------------------------------------------|
    | any      | bad      | that it does not live: reading it does not mend that |
    | bad      | good     | the later one                                        |
    | good     | good     | that it lived                                        |
    | any      | never    | what was read                                        |
    """
    was_read, started = _read(point, READ), _read(point, BOOTED)
    if was_read is None or started is None:
        return started or was_read
    spoilt = started.good and not was_read.good and was_read.checked > started.checked
    return was_read if spoilt else started


def _read(point: RestorePoint, name: str) -> VerifyResult | None:
    path = f"{point.directory}/{name}"
    # Most points were never verified: asking so is cheaper than an open that fails.
    if not os.access(path, os.F_OK):
        return None
    try:
        result = json_file.read(path, VerifyResult, SCHEMA, follow_symlinks=False)
    except (FileNotFoundError, Unreadable):
        return None
    return result if is_time(result.checked) else None


def keep(point: RestorePoint, result: VerifyResult) -> None:
    """Write it beside the point. Raises PointGone and OSError."""
    try:
        vault.put(point.directory, BOOTED if result.booted else READ, json_file.encoded(result))
    except FileNotFoundError as error:
        raise PointGone(f"{point.name}: was removed meanwhile") from error


def of_memory(point: RestorePoint) -> tuple[str, ...]:
    """The files with what was said of the RAM of a point, which go with it.

    | the result     | stays when the RAM goes                                          |
    |----------------|------------------------------------------------------------------|
    | read, good     | yes: all other files were read, too                              |
    | read, bad      | no: it may have been the RAM                                     |
    | started        | no, nor its screen: it was started from the RAM                  |
    """
    was_read = _read(point, READ)
    return (BOOTED, SCREEN) if was_read and was_read.good else (READ, BOOTED, SCREEN)
