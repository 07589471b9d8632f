"""The commands that take a moment by hand, and drop what was taken so."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from zvmsnap.cli import options
from zvmsnap.common.signals import cancelled_by_signal, finish_before_dying
from zvmsnap.config.settings import load_settings

if TYPE_CHECKING:
    from zvmsnap.capture.take import TakePlan
    from zvmsnap.config.settings import Config

_LOOK_EVERY_S = 0.1


def take(
    domains: Annotated[
        list[str] | None, typer.Argument(metavar="DOMAIN...", help="Guests, by name or UUID.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help="All guests with a disk on a dataset with zvmsnap:group=NAME."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the snapshots; by default zvmsnap_TIME_manual.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="LEVELS",
            help="memory, paused, quiesced, crash: which to try, best first; `required` last.",
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(
            min=1, help="Drop all but the newest N of the guests' points with such names."
        ),
    ] = None,
    hold: Annotated[
        str | None, typer.Option(metavar="TAG", help="Hold the snapshots (zfs hold).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only say what would be taken.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Take a moment now, without sanoid: several guests, on any datasets, at one instant.

    All or none: if one guest fails, all go on, and no snapshot stays. sanoid never prunes these.
    Several guests stand still together until their disks are snapshotted (level paused).

    \b
    Examples:
      zvmsnap take web
      zvmsnap take web db --name before-upgrade
      zvmsnap take --group shop --hold audit
      zvmsnap take web --mode quiesced,required --keep 7
    """
    from zvmsnap.capture import take
    from zvmsnap.retention import drop
    from zvmsnap.virt.host import Host

    if bool(domains) == (group is not None):
        raise typer.BadParameter("say DOMAIN..., or --group NAME")
    if keep and name:
        raise typer.BadParameter("--keep counts the names that are made here: not with --name")
    settings = load_settings()
    with Host(settings.uri) as hypervisor:
        planned = take.plan(hypervisor, domains or [], group, name or take.default_name(), mode)
    points = []
    if not dry_run:
        with _told(settings, planned):
            points = take.take(settings, planned, hold, cancelled_by_signal())
    dropped = []
    if keep:
        finish_before_dying()
        kept = keep - 1 if dry_run else keep
        dropped = drop.surplus(settings, planned.uuids, kept, dry_run=dry_run)
    if as_json:
        said = {
            "dry_run": dry_run,
            "name": planned.name,
            "domains": planned.domains,
            "datasets": planned.datasets,
            "points": [{"name": p.name, "level": p.manifest.level} for p in points],
            "dropped": dropped,
        }
        typer.echo(json.dumps(said, indent=2))
    elif dry_run:
        typer.echo(f"would take {planned.name} of {', '.join(planned.domains)}:")
        typer.echo("\n".join(f"  {dataset}" for dataset in planned.datasets))
    else:
        typer.echo("\n".join(f"{point.name}: {point.manifest.level}" for point in points))
    if dropped and not as_json:
        typer.echo(
            "\n".join(f"{'would drop' if dry_run else 'dropped'} {name}" for name in dropped)
        )


@contextmanager
def _told(settings: Config, planned: TakePlan) -> Iterator[None]:
    """On a terminal, tell of each step of each guest, as the journal has it."""
    if not sys.stderr.isatty():
        yield
        return
    from zvmsnap.journal.journal import Journal

    journal = Journal(settings.journal_dir)
    over = threading.Event()

    def tell() -> None:
        seen: dict[str, str] = {}
        while not over.wait(_LOOK_EVERY_S):
            for entry in journal.entries():
                if entry.snapshot_names == (planned.name,) and seen.get(entry.uuid) != entry.step:
                    seen[entry.uuid] = entry.step
                    typer.echo(f"{entry.domain}: {entry.step}", err=True)

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def drop(
    points: options.PointsArgument,
    yes: options.YesOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only say what would go.")
    ] = False,
) -> None:
    """Remove points that were taken by hand, with their snapshots.

    \b
    Examples:
      zvmsnap drop web@before-upgrade
      zvmsnap drop web@before-upgrade db@before-upgrade
    """
    from zvmsnap.retention import drop

    settings = load_settings()
    meant = (options.find(settings, point) for point in points)
    found = list({point.directory: point for point in meant}.values())
    names = drop.snapshots(settings, found)
    said = ", ".join(point.name for point in found)
    typer.echo("\n".join([f"drop {said}:", *(f"  destroy {name}" for name in names)]))
    if dry_run:
        return
    if not yes:
        options.confirm()
    finish_before_dying()
    drop.drop(settings, found, names)
