"""What a send has sent to one destination, or would send.

`zvmsnap send --json` prints the report, and the send status keeps the most of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from zvmsnap.points.point import RestorePoint
from zvmsnap.replication import send_status
from zvmsnap.replication.send_plan import DatasetSend, SendUnit
from zvmsnap.replication.send_status import SendStatus, SentDataset
from zvmsnap.replication.transfer import PointTransfer


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
    """A guest, or datasets of no guest (`domain` is ""); `error` is "" if all was sent.

    `memory_removed` names points of the destination whose RAM goes there.
    """

    domain: str
    datasets: tuple[DatasetReport, ...]
    points: tuple[PointReport, ...]
    points_bytes: int
    error: str
    memory_removed: tuple[str, ...] = ()


class SendReport(msgspec.Struct, frozen=True, kw_only=True):
    """All that goes to one destination; is it `encrypted` on the way, and there?"""

    destination: str
    units: tuple[UnitReport, ...]
    encrypted: bool = False

    @property
    def has_failed(self) -> bool:
        """Was something not sent?"""
        return any(unit.error for unit in self.units)


@dataclass
class UnitOutcome:
    """What became of one unit so far; `error` says why not all was sent."""

    unit: SendUnit
    sends: list[DatasetSend] = field(default_factory=list)
    took_s: dict[str, float] = field(default_factory=dict)
    transfers: list[PointTransfer] = field(default_factory=list)
    points_bytes: int = 0
    error: str = ""
    memory_removed: list[str] = field(default_factory=list)

    def seconds_of(self, dataset: str) -> float:
        """How long syncoid took for a dataset, 0 if it was not needed."""
        return round(self.took_s.get(dataset, 0.0), 2)


def of(outcome: UnitOutcome) -> UnitReport:
    """What a report says of a unit. Pure."""
    return UnitReport(
        domain=outcome.unit.domain,
        datasets=tuple(
            DatasetReport(
                dataset=send.dataset,
                target=send.target,
                newest=send.newest.name,
                since=send.since_name,
                stream_bytes=send.size_bytes,
                raw=send.raw,
                seconds=outcome.seconds_of(send.dataset),
            )
            for send in outcome.sends
        ),
        points=tuple(
            PointReport(name=each.point.name, memory_bytes=each.size_bytes)
            for each in outcome.transfers
        ),
        points_bytes=outcome.points_bytes,
        error=outcome.error,
        memory_removed=tuple(outcome.memory_removed),
    )


def status(
    destination: str, outcome: UnitOutcome, newest: tuple[RestorePoint, str] | None
) -> SendStatus:
    """What is noted of a unit; `newest` is the newest complete point there, and its snapshot."""
    manifest = newest[0].manifest if newest else None
    return SendStatus(
        destination=destination,
        domain=outcome.unit.domain,
        uuid=outcome.unit.uuid,
        last_attempt=send_status.now(),
        error=outcome.error,
        seconds=round(sum(outcome.took_s.values()), 2),
        datasets=tuple(
            SentDataset(
                dataset=send.dataset,
                target=send.target,
                newest=send.newest.name,
                guid=send.newest.guid,
                stream_bytes=send.size_bytes,
                seconds=outcome.seconds_of(send.dataset),
            )
            for send in outcome.sends
        ),
        points=tuple(each.point.name for each in outcome.transfers),
        points_bytes=outcome.points_bytes,
        newest=newest[1] if newest else "",
        newest_created=manifest.created if manifest else "",
        newest_has_memory=bool(manifest and manifest.memory),
    )
