"""Text for people: what was sent, and what lies at destinations."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from zvmsnap.terminal.render import age, columns, size

if TYPE_CHECKING:
    from zvmsnap.replication.send_report import DatasetReport, PointReport, SendReport
    from zvmsnap.replication.send_status import SendStatus

_STATUS_TITLES = ("GUEST", "DESTINATION", "NEWEST", "AGE", "RAM", "SENT", "NOTE")


def sent(report: SendReport, *, dry_run: bool) -> list[str]:
    """What was sent to one destination, or would be sent."""
    lines = [f"{'would send' if dry_run else 'sent'} to {report.destination}:"]
    for unit in report.units:
        lines += [f"  {each.dataset}@{each.newest}: {_amount(each)}" for each in unit.datasets]
        for point in unit.points:
            lines.append(f"  point {point.name}: {_ram(point, report, dry_run=dry_run)}")
        if unit.points_bytes:
            lines.append(f"  transferred for points: {size(unit.points_bytes)}")
        removed = "would remove" if dry_run else "removed"
        lines += [f"  {removed} RAM of point {name} there" for name in unit.memory_removed]
        if unit.error:
            lines.append(f"  FAILED: {unit.error}")
    return lines


def _ram(point: PointReport, report: SendReport, *, dry_run: bool) -> str:
    if not point.memory_bytes:
        return "without RAM"
    if report.encrypted:
        return f"RAM {size(point.memory_bytes)}, all of it, as it is encrypted there"
    # Of a page image only what differs is sent, and of any what has not arrived yet.
    return f"RAM {'up to ' if dry_run else ''}{size(point.memory_bytes)}"


def _amount(dataset: DatasetReport) -> str:
    if dataset.since == dataset.newest:
        return "has arrived already"
    since = f"since {dataset.since}" if dataset.since else "all of it"
    return f"{since}, {size(dataset.stream_bytes)}"


def status(statuses: Sequence[SendStatus], never_sent: Sequence[str]) -> list[str]:
    """How old the newest complete point of each guest is at each destination."""
    now = datetime.now(UTC)
    rows = [_STATUS_TITLES]
    for each in statuses:
        old = age(each.newest_created, now) if each.newest_created else "-"
        ram = "yes" if each.newest_has_memory else "no"
        tried = age(each.last_attempt, now)
        note = f"FAILED: {each.error}" if each.error else ""
        newest = each.newest or "none"
        rows.append((each.domain, each.destination, newest, old, ram, tried, note))
    rows += [(guest, "-", "never sent", "-", "-", "-", "") for guest in never_sent]
    return list(columns(rows)) if len(rows) > 1 else ["nothing was ever sent"]


def plain_points(statuses: Iterable[SendStatus]) -> list[str]:
    """Points that lie at a destination as they are, though what is sent there is encrypted."""
    return [
        f"{each.destination}: has points that are not encrypted: {', '.join(each.plain)}; they "
        "were sent before encrypt_to was set: destroy their snapshots there, and send again"
        for each in statuses
        if each.plain
    ]


def kept_for(silent: Mapping[str, str], held: Mapping[str, Sequence[str]]) -> list[str]:
    """Destinations that may be gone, and what is held for a send that was interrupted."""
    now = datetime.now(UTC)
    lines = []
    for destination in sorted({*silent, *held}):
        said = []
        if destination in silent:
            said.append(f"its newest point is {age(silent[destination], now)} old")
        if snapshots := held.get(destination):
            said.append(
                f"{len(snapshots)} snapshots on this host, such as {min(snapshots)}, are held for "
                "an interrupted send"
            )
        hint = f"if it will not come back: zvmsnap send --forget {shlex.quote(destination)}"
        lines.append(f"{destination}: {'; '.join(said)}; {hint}")
    return lines
