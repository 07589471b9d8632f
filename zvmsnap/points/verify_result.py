"""What verifying a point has found, kept beside it: by reading it, and by starting it."""

from __future__ import annotations

import msgspec

from zvmsnap.common.atomic_file import write_atomic
from zvmsnap.points.point import RestorePoint, is_time

READ = "verify.json"
BOOTED = "boot.json"
SCREEN = "verify.png"


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came out of one verification; `alive` is by what it was seen to live."""

    checked: str
    why: str = ""
    booted: bool = False
    alive: str = ""
    to_running_s: float = 0.0
    output: str = ""

    @property
    def good(self) -> bool:
        """Is there nothing wrong with the point?"""
        return not self.why


def read(point: RestorePoint) -> VerifyResult | None:
    """What counts of what came out last time; None if it was never verified.

    | read     | started  | counts                                       |
    |----------|----------|----------------------------------------------|
    | any      | bad      | that it does not live: no reading mends that |
    | bad      | good     | the later one                                |
    | good     | good     | that it lived                                |
    | any      | never    | what was read                                |
    """
    was_read, started = _read(point, READ), _read(point, BOOTED)
    if was_read is None or started is None:
        return started or was_read
    spoilt = started.good and not was_read.good and was_read.checked > started.checked
    return was_read if spoilt else started


def _read(point: RestorePoint, name: str) -> VerifyResult | None:
    try:
        found = msgspec.json.decode((point.directory / name).read_bytes(), type=VerifyResult)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if is_time(found.checked) else None


def keep(point: RestorePoint, verdict: VerifyResult) -> None:
    """Write it beside the point. Raises OSError."""
    data = msgspec.json.format(msgspec.json.encode(verdict)) + b"\n"
    write_atomic(point.directory / (BOOTED if verdict.booted else READ), data)
