"""The commands that take a moment by hand, and drop what was taken so."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from zvmsnap import clirestore, config
from zvmsnap.hooks import cancelled_by_signal, finish_before_dying


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

    \b
    Examples:
      zvmsnap take web
      zvmsnap take web db --name before-upgrade
      zvmsnap take --group shop --hold audit
    """
    from zvmsnap import take as taking
    from zvmsnap.hypervisor import Hypervisor

    if bool(domains) == (group is not None):
        raise typer.BadParameter("say DOMAIN..., or --group NAME")
    settings = config.load()
    with Hypervisor(settings.uri) as hypervisor:
        planned = taking.plan(hypervisor, domains or [], group, name or taking.default_name())
    points = []
    if not dry_run:
        points = taking.take(settings, planned, hold, cancelled_by_signal())
    if as_json:
        said = {
            "dry_run": dry_run,
            "name": planned.name,
            "domains": planned.domains,
            "datasets": planned.datasets,
            "points": [{"name": p.name, "level": p.manifest.level} for p in points],
        }
        typer.echo(json.dumps(said, indent=2))
    elif dry_run:
        typer.echo(f"would take {planned.name} of {', '.join(planned.domains)}:")
        typer.echo("\n".join(f"  {dataset}" for dataset in planned.datasets))
    else:
        typer.echo("\n".join(f"{point.name}: {point.manifest.level}" for point in points))


def drop(
    point: clirestore.PointArgument,
    yes: clirestore.YesOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only say what would go.")
    ] = False,
) -> None:
    """Remove a point that was taken by hand, with its snapshots.

    \b
    Example:
      zvmsnap drop web@before-upgrade
    """
    from zvmsnap import drop as dropping

    settings = config.load()
    found = clirestore.find(settings, point)
    names = dropping.snapshots(found)
    typer.echo("\n".join([f"drop {found.name}:", *(f"  destroy {name}" for name in names)]))
    if dry_run:
        return
    if not yes:
        clirestore.confirm()
    finish_before_dying()
    dropping.drop(settings, found, names)
