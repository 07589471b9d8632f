"""`zvmsnap list`, `show` and `prune`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from zvmsnap.cli import options, render, replication
from zvmsnap.cli.options import JsonOption, PointArgument, print_json
from zvmsnap.common import log
from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK
from zvmsnap.config.settings import load_settings
from zvmsnap.journal import describe
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import Operations
from zvmsnap.points import vault, verify_result
from zvmsnap.points.liveness import Liveness
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import DamagedPoint
from zvmsnap.retention import prune
from zvmsnap.virt import qemu_conf
from zvmsnap.zfs import zfs


def list_points(
    domain: Annotated[str | None, typer.Argument(help="Only this guest.")] = None,
    remote: Annotated[
        str | None,
        typer.Option(metavar="DESTINATION", help="Those at [USER@HOST:]POOL/PATH instead."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List points: level, snapshots alive, RAM stored, pause, age.

    \b
    Examples:
      zvmsnap list web
      zvmsnap list --remote backup@nas:pool/offsite
    """
    settings = load_settings()
    if remote:
        points, damaged, liveness = replication.far_points(settings, remote)
        interrupted = []
    else:
        points, damaged = vault.read(settings)
        interrupted = _interrupted(domain)
        liveness = _liveness() if points else Liveness({}, frozenset())
    points = [point for point in points if domain in (None, point.manifest.domain)]
    if as_json:
        print_json(
            {
                "points": [_described(point, liveness) for point in points],
                "interrupted": interrupted,
                "damaged": [_damage(entry) for entry in damaged],
            }
        )
    else:
        if points:
            verdicts = {point.name: verify_result.read(point) for point in points}
            typer.echo("\n".join(render.table(points, liveness, verdicts)))
        elif not interrupted:
            typer.echo(f"no points of {domain}" if domain else "no points")
        for text in interrupted:
            typer.echo(text)
    if why := qemu_conf.why_unloadable():
        log.plain().error("%s", why)
    _report_and_exit(damaged)


def show(point: PointArgument, as_json: JsonOption = False) -> None:
    """Show everything that is known of one point.

    \b
    Examples:
      zvmsnap show web@autosnap_2026-11-20_03:00:00_daily
      zvmsnap show web@latest
      zvmsnap show web@2026-11-20T03:15    the last one taken until then, local time
    """
    found = options.find(load_settings(), point)
    liveness = _liveness()
    if as_json:
        print_json(_described(found, liveness))
    else:
        typer.echo("\n".join(render.details(found, liveness)))


def prune_points(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only say what would go.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove points whose snapshots are all gone, and what interrupted runs have left.

    Also tells which snapshots of the same datasets have no point; these are not touched.

    \b
    Example:
      zvmsnap prune --dry-run
    """
    settings = load_settings()
    found = prune.find(settings) if dry_run else prune.sweep(settings)
    if as_json:
        print_json(
            {
                "dry_run": dry_run,
                "removed": [point.name for point in found.orphans],
                "debris": [str(path) for path in found.leftovers.paths],
                "kept_unknown": [point.name for point in found.unknown],
                "kept_overlays": [str(path) for path in found.leftovers.overlays],
                "damaged": [_damage(entry) for entry in found.damaged],
                "snapshots_without_point": [snapshot.full_name for snapshot in found.pointless],
            }
        )
    else:
        typer.echo("\n".join(render.findings(found, dry_run=dry_run)))
    raise typer.Exit(EXIT_FAILED if found.damaged or found.leftovers.overlays else EXIT_OK)


def _interrupted(domain: str | None) -> list[str]:
    """Moments that are not points yet, or not gone yet: under way, or waiting to be recovered."""
    settings = load_settings()
    entries = Journal(settings.journal_dir).entries()
    tasks = Operations(settings.journal_dir).all()
    known = {entry.capture for entry in entries} | {task.capture for task in tasks}
    found = [
        f"{entry.domain}: {describe.work(entry)} is {describe.progress(entry)}"
        for entry in entries
        if domain in (None, entry.domain)
    ]
    found += [
        f"{task.domain}: {describe.task(task)}" for task in tasks if domain in (None, task.domain)
    ]
    for left in vault.unfinished(settings.vault_dir):
        mine = domain is None or left.directory.parent.name == vault.folder_of(domain)
        if not mine or left.capture in known:
            continue
        what = "publishing" if left.capture else "removal"
        found.append(f"{left.directory}: its {what} was interrupted; zvmsnap recover ends it")
    return found


def _liveness() -> Liveness:
    answer = zfs.all_snapshots()
    return Liveness(answer.present, answer.pools)


def _described(point: RestorePoint, liveness: Liveness) -> dict[str, Any]:
    return {
        **msgspec.to_builtins(point.manifest),
        "name": point.name,
        "directory": str(point.directory),
        "alive": [tie.full_name for tie in liveness.alive(point.manifest)],
        "complete_names": liveness.complete_names(point.manifest),
        "note": render.note(point.manifest, liveness),
        "verified": msgspec.to_builtins(verify_result.read(point)),
    }


def _damage(entry: DamagedPoint) -> dict[str, str]:
    return {"directory": str(entry.directory), "why": entry.why}


def _report_and_exit(damaged: list[DamagedPoint]) -> None:
    for entry in damaged:
        log.plain().error("%s", entry.why)
    raise typer.Exit(EXIT_FAILED if damaged else EXIT_OK)
