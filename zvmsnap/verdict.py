"""What verifying a point has found, kept beside it."""

from __future__ import annotations

import msgspec

from zvmsnap.files import write_atomic
from zvmsnap.point import Point

VERDICT = "verify.json"
SCREEN = "verify.png"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
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


def read(point: Point) -> Verdict | None:
    """What came out last time; None if it was never verified."""
    try:
        return msgspec.json.decode((point.directory / VERDICT).read_bytes(), type=Verdict)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def keep(point: Point, verdict: Verdict) -> None:
    """Write it beside the point. Raises OSError."""
    data = msgspec.json.format(msgspec.json.encode(verdict)) + b"\n"
    write_atomic(point.directory / VERDICT, data)
