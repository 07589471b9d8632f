"""`zvmsnap list`, `show` and `prune`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from zvmsnap.cli import replication
from zvmsnap.common import log
from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK, RestoreImpossible
from zvmsnap.common.waiting import now_s
from zvmsnap.config.settings import load_settings
from zvmsnap.points import vault, verify_result
from zvmsnap.points.liveness import Liveness, guids_of
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import DamagedPoint
from zvmsnap.retention import old_memory, prune
from zvmsnap.terminal import render
from zvmsnap.terminal.options import (
    DryRunOption,
    JsonOption,
    PointArgument,
    find_point,
    print_json,
    print_line,
    print_lines,
)
from zvmsnap.virt import qemu_conf
from zvmsnap.zfs import zfs

if TYPE_CHECKING:
    from zvmsnap.points.memory_image import RamUsage
    from zvmsnap.points.next_start import NextStart

# To ask a file system what a large file shares takes up to seconds, and there may be 10 000.
_SHARES_WITHIN_S = 5.0


def list_points(
    domain: Annotated[str | None, typer.Argument(help="Only this guest.")] = None,
    remote: Annotated[
        str | None,
        typer.Option(metavar="DESTINATION", help="Points at [USER@HOST:]POOL/PATH instead."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List points: level, snapshots that exist, RAM stored, and not shared, pause, age.

    \b
    Examples:
      zvmsnap list web
      zvmsnap list --remote backup@nas:pool/offsite
    """
    settings = load_settings()
    if remote:
        points, damaged, liveness = replication.remote_points(settings, remote)
        interrupted = []
    else:
        points, damaged = vault.read(settings)
        from zvmsnap.recovery.unfinished import unfinished  # loads libvirt, which --help does not

        interrupted = [each.words for each in unfinished(settings, domain)]
        liveness = None
    points = [point for point in points if domain in (None, point.manifest.domain)]
    liveness = liveness or _liveness(points)
    if as_json:
        usages = _usages()
        print_json(
            {
                "points": [_as_json(point, liveness, usages(point)) for point in points],
                "interrupted": interrupted,
                "damaged": [_damaged_as_json(each) for each in damaged],
            }
        )
    else:
        if points:
            print_lines(render.point_table(points, liveness, verify_result.read, _usages()))
        print_lines(interrupted)
        if not points and not interrupted:
            print_line(f"no points of {domain}" if domain else "no points")
    if why := qemu_conf.why_unloadable():
        log.plain().error("%s", why)
    for each in damaged:
        log.plain().error("%s", each.why)
    raise typer.Exit(EXIT_FAILED if damaged else EXIT_OK)


def show(point: PointArgument, as_json: JsonOption = False) -> None:
    """Show everything about one point.

    \b
    Examples:
      zvmsnap show web@autosnap_2026-11-20_03:00:00_daily
      zvmsnap show web@latest
      zvmsnap show web@2026-11-20T03:15      the last point until 03:15:59, local time
    """
    settings = load_settings()
    chosen = find_point(settings, point)
    liveness = _liveness([chosen])
    standing = old_memory.standing(settings, chosen)
    kept = standing.until if standing else ""
    usage = _usages(math.inf)(chosen)
    if as_json:
        print_json({**_as_json(chosen, liveness, usage), "memory_kept": kept})
    else:
        print_lines(render.point_details(chosen, liveness, _next_start(chosen), usage, kept))


def prune_points(dry_run: DryRunOption = False, as_json: JsonOption = False) -> None:
    """Remove points whose snapshots are all gone, RAM that is kept no longer, and leftovers.

    How long RAM is kept, zvmsnap:keep-memory says. Leftovers are files of interrupted runs, and of
    RAM that no point names. Also lists the snapshots of the same datasets that have
    no point; they are not touched.

    \b
    Example:
      zvmsnap prune --dry-run
    """
    settings = load_settings()
    findings = prune.find(settings) if dry_run else prune.sweep(settings)
    if as_json:
        print_json(
            {
                "dry_run": dry_run,
                "removed": [point.name for point in findings.orphans],
                "removed_memory": [point.name for point in findings.old_memory],
                "leftovers": [
                    str(path) for path in (*findings.leftovers.paths, *findings.stray_memory)
                ],
                "kept_unknown": [point.name for point in findings.unknown],
                "kept_overlays": [str(path) for path in findings.leftovers.overlays],
                "damaged": [_damaged_as_json(each) for each in findings.damaged],
                "snapshots_without_point": [each.full_name for each in findings.pointless],
            }
        )
    else:
        print_lines(render.pruning(findings, dry_run=dry_run))
    needs_person = findings.damaged or findings.leftovers.overlays
    raise typer.Exit(EXIT_FAILED if needs_person else EXIT_OK)


def _liveness(points: Sequence[RestorePoint]) -> Liveness:
    if not points:
        return Liveness((), {})
    return Liveness.by(zfs.all_snapshots(guids_of(point.manifest for point in points)))


def _next_start(point: RestorePoint) -> NextStart | None:
    """None if it cannot be read, which `verify` tells."""
    from zvmsnap.points.next_start import next_start

    try:
        return next_start(point)
    except RestoreImpossible:
        return None


def _usages(within_s: float = _SHARES_WITHIN_S) -> Callable[[RestorePoint], RamUsage | None]:
    """Says what the RAM of a point takes; after so many seconds not what it shares."""
    from zvmsnap.points import memory_image

    until_s = now_s() + within_s

    def usage(point: RestorePoint) -> RamUsage | None:
        memory = point.manifest.memory
        if memory is None:
            return None
        stored = point.directory / memory.file
        return memory_image.usage(stored, memory, shares=now_s() < until_s)

    return usage


def _as_json(point: RestorePoint, liveness: Liveness, usage: RamUsage | None) -> dict[str, Any]:
    return {
        **msgspec.to_builtins(point.manifest),
        "name": point.name,
        "directory": str(point.directory),
        "alive": [snapshot.full_name for _, snapshot in liveness.existing(point.manifest)],
        "complete_names": liveness.complete_names(point.manifest),
        "note": render.note(point.manifest, liveness),
        "memory_on_disk": dataclasses.asdict(usage) if usage else None,
        "verified": msgspec.to_builtins(verify_result.read(point)),
    }


def _damaged_as_json(damaged: DamagedPoint) -> dict[str, str]:
    return {"directory": str(damaged.directory), "why": damaged.why}
