"""Points as a person reads them: columns, sizes, ages. Pure text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from zvmsnap.common.snapshot_name import type_of
from zvmsnap.points.liveness import Life, Liveness
from zvmsnap.points.manifest import Manifest
from zvmsnap.points.point import RestorePoint

if TYPE_CHECKING:
    from zvmsnap.points.verify_result import VerifyResult
    from zvmsnap.recovery.report import Report
    from zvmsnap.replication.send_status import SendStatus
    from zvmsnap.retention.prune import Findings

_STATUS_HEADINGS = ("GUEST", "DESTINATION", "NEWEST", "AGE", "RAM", "SENT", "NOTE")
_HEADINGS = ("GUEST", "MOMENT", "LEVEL", "SNAPSHOTS", "RAM", "PAUSE", "AGE", "VERIFIED", "NOTE")


def size(count_bytes: int) -> str:
    """`512M`, `1.5G`: at most four characters before the unit."""
    value = float(count_bytes)
    for unit in "BKMGT":
        if value < 1024 or unit == "T":
            break
        value /= 1024
    return f"{value:.0f}{unit}" if value >= 10 or unit == "B" else f"{value:.1f}{unit}"


def age(taken: str, now: datetime) -> str:
    """How long ago an ISO moment was: `5m`, `3h`, `12d`."""
    seconds = max(0.0, (now - datetime.fromisoformat(taken)).total_seconds())
    for unit, length_s in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length_s:
            return f"{seconds / length_s:.0f}{unit}"
    return f"{seconds:.0f}s"


def table(
    points: Sequence[RestorePoint], liveness: Liveness, verdicts: Mapping[str, VerifyResult | None]
) -> list[str]:
    """One line for each point, below headings; `verdicts` by the points' names."""
    now = datetime.now(UTC)
    rows = [_row(point, liveness, verdicts.get(point.name), now) for point in points]
    return columns([_HEADINGS, *rows])


def sent(run: Mapping[str, Any], *, dry_run: bool) -> list[str]:
    """What a run of send has sent, or would send; as `zvmsnap send --json` tells it."""
    lines = [f"{'would send' if dry_run else 'sent'} to {run['destination']}:"]
    for load in run["loads"]:
        for stream in load["datasets"]:
            since = f"since {stream['since']}" if stream["since"] else "all of it"
            there = stream["since"] == stream["newest"]
            what = "is there" if there else f"{since}, {size(stream['stream_bytes'])}"
            lines.append(f"  {stream['dataset']}@{stream['newest']}: {what}")
        for point in load["points"]:
            ram = f"RAM {size(point['memory_bytes'])}" if point["memory_bytes"] else "without RAM"
            lines.append(f"  point {point['name']}: {ram}")
        if load["failed"]:
            lines.append(f"  FAILED: {load['failed']}")
    return lines


def status(found: Sequence[SendStatus], never_sent: Sequence[str]) -> list[str]:
    """How old the newest complete point of each guest is at each destination."""
    now = datetime.now(UTC)
    rows = [_STATUS_HEADINGS]
    for receipt in found:
        old = age(receipt.newest_created, now) if receipt.newest_created else "-"
        ram = "yes" if receipt.newest_has_memory else "no"
        tried = age(receipt.last_attempt, now)
        note = f"FAILED: {receipt.error}" if receipt.error else ""
        newest = receipt.newest or "none"
        rows.append((receipt.domain, receipt.destination, newest, old, ram, tried, note))
    rows += [(guest, "-", "never sent", "-", "-", "-", "") for guest in never_sent]
    return columns(rows) if len(rows) > 1 else ["nothing was ever sent"]


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _row(
    point: RestorePoint, liveness: Liveness, verdict: VerifyResult | None, now: datetime
) -> tuple[str, ...]:
    manifest = point.manifest
    alive = dict.fromkeys(type_of(tie.name) for tie in liveness.alive(manifest))
    return (
        manifest.domain,
        point.directory.name,
        manifest.level,
        ",".join(alive) or "-",
        size(manifest.memory.stored_bytes) if manifest.memory else "-",
        f"{manifest.timing.pause_s:.2f}s" if manifest.timing.pause_s else "-",
        age(manifest.created, now),
        _verified(verdict, now),
        note(manifest, liveness),
    )


def _verified(found: VerifyResult | None, now: datetime) -> str:
    if found is None:
        return "-"
    what = "FAILED" if not found.good else "booted" if found.booted else "read"
    return f"{what} {age(found.checked, now)} ago"


def verdict(found: VerifyResult) -> str:
    """What a verification found, in one line."""
    if not found.good:
        return f"FAILED: {found.why}"
    if not found.booted:
        return "whole: files, checksums and snapshots are there"
    output = f"; the command said {found.output.strip()!r}" if found.output else ""
    return f"lives: {found.alive}; it ran {found.to_running_s:.1f} s after the start{output}"


def note(manifest: Manifest, liveness: Liveness) -> str:
    """What one should know before relying on the point; "" if there is nothing."""
    return "; ".join(filter(None, (_remark(manifest, liveness), manifest.tpm_warning)))


def _remark(manifest: Manifest, liveness: Liveness) -> str:
    if any(liveness.of(tie) is Life.UNKNOWN for tie in manifest.snapshots):
        return "pool not imported"
    if liveness.orphaned(manifest):
        return "no snapshot left: zvmsnap prune removes it"
    if manifest.level.has_memory and not liveness.complete_names(manifest):
        return "no name is complete over all disks: its RAM fits none"
    return manifest.reason or ""


def recovery(report: Report, *, dry_run: bool) -> list[str]:
    """What was found of each guest and what became of it, and what is left to a person."""
    lines = []
    for outcome in report.outcomes:
        why = f": {outcome.why}" if outcome.why else ""
        lines.append(f"{outcome.domain}: {outcome.result}{why}")
        lines += [f"  {found}" for found in outcome.found]
    removes = "would remove" if dry_run else "removed"
    lines += [f"{removes} {path}: left by an interrupted run" for path in report.removed]
    lines += report.problems
    lines += report.foreign
    return lines or ["nothing to recover: every guest is on its own disks"]


def details(point: RestorePoint, liveness: Liveness) -> list[str]:
    """Everything that one point says of itself."""
    manifest = point.manifest
    lines = [
        f"{point.name}: level {manifest.level}",
        f"  guest      {manifest.domain} ({manifest.uuid})",
        f"  taken      {manifest.created}",
        f"  directory  {point.directory}",
    ]
    remark = _remark(manifest, liveness)
    if remark:
        lines.append(f"  note       {remark}")
    if manifest.tpm_warning:
        lines.append(f"  TPM        {manifest.tpm_warning}")
    lines.append("  snapshots")
    for tie in manifest.snapshots:
        life = {Life.ALIVE: "", Life.GONE: "  (gone)", Life.UNKNOWN: "  (pool not imported)"}
        lines.append(f"    {tie.full_name}  guid {tie.guid}{life[liveness.of(tie)]}")
    lines.append("  disks")
    for disk in manifest.disks:
        inside = f" {disk.path}" if disk.path else ""
        lines.append(f"    {disk.target}  {disk.format}  {disk.dataset}{inside}  ({disk.source})")
    timing = manifest.timing
    if manifest.memory:
        memory = manifest.memory
        last_ram = f" ({timing.last_ram_s:.2f} s for the last of RAM)" if timing.last_ram_s else ""
        lines += [
            f"  RAM image  {memory.file}: {size(memory.stored_bytes)} stored of "
            f"{size(memory.image_bytes)}, format {memory.format}, compression {memory.compression}",
            f"    sha256   {memory.sha256}",
            f"  times      paused {timing.pause_s:.2f} s{last_ram}, dump {timing.dump_s:.1f} s, "
            f"on overlay {timing.overlay_s:.1f} s, commit {timing.commit_s:.1f} s",
        ]
    elif timing.pause_s:
        lines.append(f"  times      file systems frozen for {timing.pause_s:.2f} s")
    host = manifest.host
    cpu = f"{host.cpu_mode} {host.cpu_model}".strip()
    lines.append(
        f"  made on    libvirt {host.libvirt}, QEMU {host.qemu}, machine {host.machine}, "
        f"CPU {cpu or 'default'} on {host.host_cpu or host.arch}"
    )
    return lines


def findings(found: Findings, *, dry_run: bool) -> list[str]:
    """What a sweep removed, or would remove, and what it leaves to a person."""
    removes = "would remove" if dry_run else "removed"
    lines = [f"{removes} point {point.name}: its snapshots are gone" for point in found.orphans]
    lines += [f"{removes} {path}: left by an interrupted run" for path in found.leftovers.paths]
    lines += [
        f"kept point {point.name}: its pool is not imported, or its snapshots have other names now"
        for point in found.unknown
    ]
    lines += [
        f"kept {path}: an overlay that no journal knows; may hold a guest's writes"
        for path in found.leftovers.overlays
    ]
    lines += [f"damaged: {damaged.why}" for damaged in found.damaged]
    lines += [f"no point for snapshot {snapshot.full_name}" for snapshot in found.pointless]
    return lines or ["nothing to remove"]
