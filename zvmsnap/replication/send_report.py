"""What a send has sent to one destination, or would send. `zvmsnap send --json` prints it."""

from __future__ import annotations

import msgspec


class DatasetReport(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset: `newest` and `since` are bare snapshot names, `since` is "" for a whole dataset.

    `stream_bytes` is what ZFS estimated, without compression on the way. `seconds` is how long
    syncoid took.
    """

    dataset: str
    target: str
    newest: str
    since: str
    stream_bytes: int
    raw: bool
    seconds: float


class PointReport(msgspec.Struct, frozen=True, kw_only=True):
    """A point: `memory_bytes` is the size of its RAM image, 0 if that is not sent."""

    name: str
    memory_bytes: int


class UnitReport(msgspec.Struct, frozen=True, kw_only=True):
    """A guest, or datasets of no guest (`domain` is ""); `error` is "" if all was sent."""

    domain: str
    datasets: tuple[DatasetReport, ...]
    points: tuple[PointReport, ...]
    points_bytes: int
    error: str


class SendReport(msgspec.Struct, frozen=True, kw_only=True):
    """All that goes to one destination."""

    destination: str
    units: tuple[UnitReport, ...]

    @property
    def has_failed(self) -> bool:
        """Was something not sent?"""
        return any(unit.error for unit in self.units)
