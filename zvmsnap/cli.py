"""The commands of an operator. How anything works is known elsewhere."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

import zvmsnap
from zvmsnap import (
    clirestore,
    clisend,
    clitake,
    completion,
    config,
    log,
    prune,
    qemuconf,
    render,
    vault,
    verdict,
    zfs,
)
from zvmsnap.clirestore import PointArgument
from zvmsnap.errors import EXIT_FAILED, EXIT_OK, ZvmsnapError
from zvmsnap.journal import Journal
from zvmsnap.point import Liveness, Point
from zvmsnap.sanoid import Role
from zvmsnap.tasks import Tasks
from zvmsnap.vault import Damaged

# Plain help: rich would be imported by every command for the sake of boxes.
app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def main() -> None:
    """Run the command line; exits 0, 1 for a failure, 2 for usage or configuration."""
    log.setup()
    completion.join_words_of_bash(os.environ)
    try:
        app()
    except ZvmsnapError as error:
        log.plain().error("%s", error)
        sys.exit(error.exit_code)
    except OSError as error:
        log.plain().error("%s", error)
        sys.exit(EXIT_FAILED)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zvmsnap {zvmsnap.__version__}")
        raise typer.Exit


@app.callback()
def common(
    config_file: Annotated[
        Path | None, typer.Option("--config", help="Configuration file.", show_default=False)
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Points in time of running KVM guests on ZFS, taken by sanoid's hooks.

    \b
    Examples:
      zvmsnap list                 all points
      zvmsnap list web             those of one guest
      zvmsnap show web@autosnap_2026-11-20_03:00:00_daily
      zvmsnap restore web@latest   bring it back, in place
      zvmsnap clone web@latest w2  a second machine from it, beside the first
      zvmsnap verify --boot web    prove that its points live
      zvmsnap take web db          both, now, at one instant
      zvmsnap send web backup@nas:pool/offsite
      zvmsnap prune --dry-run      what has lost its snapshots
      zvmsnap recover              bring guests back from overlays, whatever died

    \b
    Exit codes: 0 done, 1 something failed, 2 usage, configuration or environment.
    """
    if config_file:
        os.environ["ZVMSNAP_CONFIG"] = str(config_file)
    log.setup(1 if verbose else -1 if quiet else 0)


@app.command("list")
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
    settings = config.load()
    if remote:
        points, damaged, liveness = clisend.far_points(settings, remote)
        interrupted = []
    else:
        points, damaged = vault.read(settings)
        interrupted = _interrupted(domain)
        liveness = _liveness() if points else Liveness({}, frozenset())
    points = [point for point in points if domain in (None, point.manifest.domain)]
    if as_json:
        _print_json(
            {
                "points": [_described(point, liveness) for point in points],
                "interrupted": interrupted,
                "damaged": [_damage(entry) for entry in damaged],
            }
        )
    else:
        if points:
            verdicts = {point.name: verdict.read(point) for point in points}
            typer.echo("\n".join(render.table(points, liveness, verdicts)))
        elif not interrupted:
            typer.echo(f"no points of {domain}" if domain else "no points")
        for text in interrupted:
            typer.echo(text)
    if why := qemuconf.why_unloadable():
        log.plain().error("%s", why)
    _report_and_exit(damaged)


@app.command()
def show(point: PointArgument, as_json: JsonOption = False) -> None:
    """Show everything that is known of one point.

    \b
    Examples:
      zvmsnap show web@autosnap_2026-11-20_03:00:00_daily
      zvmsnap show web@latest
      zvmsnap show web@2026-11-20T03:15    the last one taken until then, local time
    """
    found = clirestore.find(config.load(), point)
    liveness = _liveness()
    if as_json:
        _print_json(_described(found, liveness))
    else:
        typer.echo("\n".join(render.details(found, liveness)))


@app.command("prune")
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
    settings = config.load()
    found = prune.find(settings) if dry_run else prune.sweep(settings)
    if as_json:
        _print_json(
            {
                "dry_run": dry_run,
                "removed": [point.name for point in found.orphans],
                "debris": [str(path) for path in found.debris.paths],
                "kept_unknown": [point.name for point in found.unknown],
                "kept_overlays": [str(path) for path in found.debris.overlays],
                "damaged": [_damage(entry) for entry in found.damaged],
                "snapshots_without_point": [snapshot.full_name for snapshot in found.pointless],
            }
        )
    else:
        typer.echo("\n".join(render.findings(found, dry_run=dry_run)))
    raise typer.Exit(EXIT_FAILED if found.damaged or found.debris.overlays else EXIT_OK)


@app.command("recover")
def recover_guests(
    domain: Annotated[str | None, typer.Argument(help="Only this guest, by name or UUID.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only say what would be done.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring every guest that is on one of our overlays back to its own disks.

    Ends whatever a run of sanoid, a hook or the whole machine left half done when it died. Guests
    that are off are not started. What cannot be proven is kept, and said; then the exit code is 1.

    \b
    Example:
      zvmsnap recover --dry-run
    """
    from zvmsnap.hooks import finish_before_dying
    from zvmsnap.recover import recover

    finish_before_dying()
    report = recover(config.load(), domain, dry_run=dry_run)
    if as_json:
        _print_json({"dry_run": dry_run, **dataclasses.asdict(report)})
    else:
        typer.echo("\n".join(render.recovery(report, dry_run=dry_run)))
    raise typer.Exit(EXIT_OK if report.complete else EXIT_FAILED)


app.command("restore")(clirestore.restore)
app.command("clone")(clirestore.clone)
app.command("verify")(clirestore.verify)
app.command("take")(clitake.take)
app.command("drop")(clitake.drop)
app.command("send")(clisend.send)
app.command("fetch")(clisend.fetch)
app.command("status")(clisend.status)


@app.command()
def hook(
    role: Annotated[Role, typer.Argument(help="Which of sanoid's hooks.")],
    datasets: Annotated[
        list[str] | None, typer.Argument(help="What is snapshotted, where no variable says so.")
    ] = None,
) -> None:
    """Run as a hook of sanoid or zrepl, who say the rest through variables, or of zfs_autobackup.

    \b
    In sanoid.conf:
      pre_snapshot_script = /usr/local/bin/zvmsnap hook pre
      post_snapshot_script = /usr/local/bin/zvmsnap hook post
      pruning_script = /usr/local/bin/zvmsnap hook prune
    """
    from zvmsnap.hooks import run

    raise typer.Exit(run([role, *(datasets or [])]))


def _interrupted(domain: str | None) -> list[str]:
    """Moments that are not points yet, or not gone yet: under way, or waiting to be recovered."""
    settings = config.load()
    entries = Journal(settings.journal_dir).entries()
    tasks = Tasks(settings.journal_dir).all()
    known = {entry.capture for entry in entries} | {task.capture for task in tasks}
    found = [
        f"{entry.domain}: {render.work(entry)} is {render.progress(entry)}"
        for entry in entries
        if domain in (None, entry.domain)
    ]
    found += [
        f"{task.domain}: {render.task(task)}" for task in tasks if domain in (None, task.domain)
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


def _described(point: Point, liveness: Liveness) -> dict[str, Any]:
    return {
        **msgspec.to_builtins(point.manifest),
        "name": point.name,
        "directory": str(point.directory),
        "alive": [tie.full_name for tie in liveness.alive(point.manifest)],
        "complete_names": liveness.complete_names(point.manifest),
        "note": render.note(point.manifest, liveness),
        "verified": msgspec.to_builtins(verdict.read(point)),
    }


def _damage(entry: Damaged) -> dict[str, str]:
    return {"directory": str(entry.directory), "why": entry.why}


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))


def _report_and_exit(damaged: list[Damaged]) -> None:
    for entry in damaged:
        log.plain().error("%s", entry.why)
    raise typer.Exit(EXIT_FAILED if damaged else EXIT_OK)
