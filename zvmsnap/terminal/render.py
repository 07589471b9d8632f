"""Text for people: tables, sizes, ages. Pure, but for the time of day."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from zvmsnap.common import foreign
from zvmsnap.common.snapshot_name import type_of
from zvmsnap.points.liveness import Life, Liveness, complete_names
from zvmsnap.points.manifest import Disk, HostDescription, Manifest, SnapshotRef, Timing
from zvmsnap.points.point import RestorePoint

if TYPE_CHECKING:
    from zvmsnap.points.memory_image import RamUsage
    from zvmsnap.points.next_start import NextStart
    from zvmsnap.points.verify_result import VerifyResult
    from zvmsnap.recovery.report import Report
    from zvmsnap.retention.prune import Findings

_SHOWN_S = 0.005  # a shorter part of a pause is 0.00 s
_CELL_MAX = 300  # characters: names of snapshots and guests have 255 at most
_TITLES = (
    *("GUEST", "RUN", "TAKEN", "LEVEL", "SNAPSHOTS", "RAM", "ALONE", "PAUSE", "AGE", "VERIFIED"),
    "NOTE",
)


def size(count_bytes: int) -> str:
    """`512M`, `1.5G`: at most four characters before the unit."""
    value = float(count_bytes)
    for unit in "BKMGT":
        if value < 1024 or unit == "T":
            break
        value /= 1024
    return f"{value:.0f}{unit}" if value >= 10 or unit == "B" else f"{value:.1f}{unit}"


def age(time: str, now: datetime) -> str:
    """How long ago an ISO time was: `5m`, `3h`, `12d`."""
    seconds = max(0.0, (now - datetime.fromisoformat(time)).total_seconds())
    for unit, length_s in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length_s:
            return f"{seconds / length_s:.0f}{unit}"
    return f"{seconds:.0f}s"


def local_time(time: str) -> str:
    """An ISO time by the clock of here, as a point may be asked for.

    The names of snapshots are of sanoid's time zone, which is UTC in Debian's unit.
    """
    return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%dT%H:%M")


def point_table(
    points: Sequence[RestorePoint],
    liveness: Liveness,
    results: Callable[[RestorePoint], VerifyResult | None],
    usages: Callable[[RestorePoint], RamUsage | None],
) -> Iterator[str]:
    """One line for each point, below headings.

    `results` says how verifying one has ended, `usages` what its RAM takes on the disk.
    """
    now = datetime.now(UTC)
    rows: list[tuple[str, ...]] = [_TITLES]
    shared: dict[str, str] = {}  # 10 000 points have few different ages and sizes
    for point in points:
        row = _row(point, liveness, results(point), usages(point), now)
        rows.append(tuple(shared.get(cell) or _shared(cell, shared) for cell in row))
    return columns(rows)


def _shared(cell: str, shared: dict[str, str]) -> str:
    # A manifest may come from elsewhere: one name must not make each line of the table as long.
    return shared.setdefault(cell, foreign.printable(cell, _CELL_MAX))


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of cells as lines with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(padded).rstrip()


def _row(
    point: RestorePoint,
    liveness: Liveness,
    result: VerifyResult | None,
    usage: RamUsage | None,
    now: datetime,
) -> tuple[str, ...]:
    manifest = point.manifest
    existing = liveness.existing(manifest)
    types = dict.fromkeys(type_of(snapshot.name) for _, snapshot in existing)
    return (
        manifest.domain,
        point.directory.name,
        local_time(manifest.created),
        manifest.level,
        ",".join(types) or "-",
        size(manifest.memory.stored_bytes) if manifest.memory else "-",
        _alone(usage) if manifest.memory else "-",
        f"{manifest.timing.pause_s:.2f}s" if manifest.timing.pause_s else "-",
        age(manifest.created, now),
        _verified(result, now),
        _note(manifest, liveness, [ref for ref, _ in existing]),
    )


def _alone(usage: RamUsage | None) -> str:
    """What is free when this RAM goes."""
    return "?" if usage is None or usage.alone_bytes is None else size(usage.alone_bytes)


def _verified(result: VerifyResult | None, now: datetime) -> str:
    if result is None:
        return "-"
    what = "FAILED" if not result.good else "booted" if result.booted else "read"
    return f"{what} {age(result.checked, now)} ago"


def verify_result(result: VerifyResult) -> str:
    """The result of verifying a point, in one line."""
    if not result.good:
        return f"FAILED: {result.why}"
    if not result.booted:
        return "good: its files have their checksums, and its snapshots exist"
    output = f"; the command printed {result.output.strip()!r}" if result.output else ""
    return f"lives: {result.alive}; it ran {result.to_running_s:.1f} s after the start{output}"


def note(manifest: Manifest, liveness: Liveness) -> str:
    """What to know before relying on the point; "" if there is nothing."""
    return _note(manifest, liveness, liveness.alive(manifest))


def _note(manifest: Manifest, liveness: Liveness, alive: Sequence[SnapshotRef]) -> str:
    remark, encrypted = _remark(manifest, liveness, alive), "encrypted" * manifest.encrypted
    return "; ".join(filter(None, (remark, encrypted, manifest.tpm_warning)))


def _remark(manifest: Manifest, liveness: Liveness, alive: Sequence[SnapshotRef]) -> str:
    if len(alive) < len(manifest.snapshots):
        if any(liveness.of(ref) is Life.UNKNOWN for ref in manifest.snapshots):
            return "pool not imported"
        if not alive:
            return "no snapshot left: zvmsnap prune removes it"
    if manifest.level.has_memory and not complete_names(alive, manifest.datasets):
        return "no snapshot name is left on all its disks: its RAM fits none of them"
    return manifest.reason or ""


def _other_state(manifest: Manifest) -> Iterator[str]:
    """State that is no disk: what the snapshots have of it, and what the point does not have."""
    for state in manifest.other_state:
        what = f"{state.called} ({state.place})"
        yield f"  not in it  {what} {state.why}" if state.why else f"  also       {what}"


def recovery(report: Report, *, dry_run: bool) -> list[str]:
    """What was wrong with each guest, what was done, and what needs a person."""
    lines = []
    for outcome in report.outcomes:
        why = f": {outcome.why}" if outcome.why else ""
        lines.append(f"{outcome.domain}: {outcome.result}{why}")
        lines += [f"  {line}" for line in outcome.findings]
    lines += [_removed_leftover(path, dry_run=dry_run) for path in report.removed]
    lines += report.problems
    lines += report.foreign
    return lines or ["nothing to recover: every guest is on its own disks"]


def pruning(findings: Findings, *, dry_run: bool) -> Iterator[str]:
    """What was removed, or would be removed, what is kept, and what needs a person."""
    removed = "would remove" if dry_run else "removed"
    for point in findings.orphans:
        yield f"{removed} point {point.name}: its snapshots are gone"
    for point in findings.old_memory:
        memory = point.manifest.memory
        room = size(memory.stored_bytes) if memory else "none"
        yield f"{removed} RAM of point {point.name}: {room}, kept no longer (keep-memory)"
    for path in findings.leftovers.paths:
        yield _removed_leftover(path, dry_run=dry_run)
    for path in findings.stray_memory:
        yield f"{removed} {path}: RAM that its point does not name"
    for point in findings.unknown:
        yield f"kept point {point.name}: a pool of it is not imported: {_pools(point.manifest)}"
    for path in findings.leftovers.overlays:
        yield f"kept {path}: no journal entry names this overlay, and it may hold a guest's writes"
    for damaged in findings.damaged:
        yield f"damaged: {damaged.why}"
    for snapshot in findings.pointless:
        yield f"no point for snapshot {snapshot.full_name}"
    if findings.is_empty:
        yield "nothing to remove"


def _pools(manifest: Manifest) -> str:
    return ", ".join(sorted({ref.pool for ref in manifest.snapshots}))


def _removed_leftover(path: object, *, dry_run: bool) -> str:
    return f"{'would remove' if dry_run else 'removed'} {path}: left by an interrupted run"


def point_details(
    point: RestorePoint,
    liveness: Liveness,
    next_start: NextStart | None,
    usage: RamUsage | None,
    kept: str = "",
) -> list[str]:
    """Everything that the manifest of a point says; `next_start` is of its other definition.

    `usage` is what its RAM takes on the disk, `kept` says until when that is, if it has any.
    """
    manifest = point.manifest
    remark = _remark(manifest, liveness, liveness.alive(manifest))
    return [
        f"{point.name}: level {manifest.level}",
        f"  guest      {manifest.domain} ({manifest.uuid})",
        f"  created    {manifest.created} ({local_time(manifest.created)} local time)",
        f"  directory  {point.directory}",
        *([f"  note       {remark}"] if remark else []),
        *([f"  firmware   {manifest.tpm_warning}"] if manifest.tpm_warning else []),
        *_other_state(manifest),
        "  snapshots",
        *_snapshot_lines(manifest, liveness),
        "  disks",
        *_disk_lines(manifest.disks),
        *(_next_start_lines(next_start, manifest) if next_start else ()),
        *_memory_lines(manifest, usage, kept),
        _host_line(manifest.host),
    ]


def _snapshot_lines(manifest: Manifest, liveness: Liveness) -> Iterator[str]:
    remarks = {Life.ALIVE: "", Life.GONE: "  (gone)", Life.UNKNOWN: "  (pool not imported)"}
    for ref in manifest.snapshots:
        now = liveness.now(ref) or ref
        was = "" if now.full_name == ref.full_name else f"  (was {ref.full_name})"
        yield f"    {now.full_name}  guid {ref.guid}{was}{remarks[liveness.of(ref)]}"


def _next_start_lines(next_start: NextStart, manifest: Manifest) -> Iterator[str]:
    """The disks of the definition for the next start, if they are others."""
    if next_start.is_like(manifest):
        return
    yield "  disks of its next start, which are others"
    yield from _disk_lines(next_start.disks)
    for disk in next_start.outside:
        yield f"    {disk.target}  not part of the point  ({disk.source or disk.type})"


def _disk_lines(disks: Iterable[Disk]) -> Iterator[str]:
    for disk in disks:
        inside = disk.path or str(disk.partition or "")
        where = f"{disk.dataset} {inside}".rstrip()
        yield f"    {disk.target}  {disk.format}  {where}  ({disk.source})"


def _memory_lines(manifest: Manifest, usage: RamUsage | None, kept: str) -> Iterator[str]:
    memory, timing = manifest.memory, manifest.timing
    if memory:
        yield (
            f"  RAM image  {', '.join(memory.files)}: {size(memory.stored_bytes)} stored of "
            f"{size(memory.image_bytes)}, format {memory.format}, compression {memory.compression}"
        )
        if memory.why_plain:
            yield f"    no pages {memory.why_plain}"
        yield f"    on disk  {_usage(usage)}"
        yield f"    {'digest' if memory.is_paged else 'sha256'}   {memory.sha256}"
        if memory.is_paged:
            yield f"    rest     sha256 {memory.rest_sha256}"
        if kept:
            yield f"    kept     {kept}"
    if memory or manifest.absent_memory:
        yield (
            f"  times      paused {timing.pause_s:.2f} s{_pause_parts(timing)}, "
            f"dump {timing.dump_s:.1f} s, "
            f"on overlay {timing.overlay_s:.1f} s, commit {timing.commit_s:.1f} s"
        )
    elif timing.pause_s:
        frozen = f"file systems frozen for {timing.pause_s:.2f} s{_pause_parts(timing)}"
        yield f"  times      {frozen}"


def _usage(usage: RamUsage | None) -> str:
    if usage is None:
        return "unknown: its files cannot be opened"
    if usage.alone_bytes is None or usage.shared_bytes is None:
        return f"{size(usage.disk_bytes)}; how much of it is shared is unknown"
    return f"{size(usage.alone_bytes)} alone, {size(usage.shared_bytes)} shared with others"


def _pause_parts(timing: Timing) -> str:
    """What the guest was held for, as far as that is known; "" if nothing is."""
    parts = timing.pause_parts
    known = {
        "freezing": parts.freeze_s,
        # Of points of older versions nothing else is known.
        "last of RAM": parts.ram_s if parts.sum_s else timing.last_ram_s,
        "flush of the RAM image": parts.flush_s,
        "labelling and overlays": parts.overlays_s,
        "until its snapshot was taken": parts.snapshot_s,
        "going on": parts.resume_s,
    }
    if not any(known.values()):
        return ""
    known["not told apart"] = timing.pause_s - sum(known.values())
    shown = [f"{part} {part_s:.2f} s" for part, part_s in known.items() if part_s >= _SHOWN_S]
    return f" ({', '.join(shown)})" if shown else ""


def _host_line(host: HostDescription) -> str:
    cpu = f"{host.cpu_mode} {host.cpu_model}".strip()
    return (
        f"  made on    libvirt {host.libvirt}, QEMU {host.qemu}, machine {host.machine}, "
        f"CPU {cpu or 'default'} on {host.host_cpu or host.arch}"
    )
