"""The commands that bring points elsewhere and home again: send, fetch, status."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from zvmsnap.cli import options, render, restore
from zvmsnap.common import log
from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK, Cancelled, SendRefused, ZvmsnapError
from zvmsnap.config import destination
from zvmsnap.config.destination import Destination, MemoryWanted
from zvmsnap.config.settings import Config, DestinationTable, load_settings
from zvmsnap.points import vault
from zvmsnap.points.liveness import Liveness
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import DamagedPoint
from zvmsnap.replication import send_status

if TYPE_CHECKING:
    from zvmsnap.replication.send import UnitOutcome
    from zvmsnap.virt.host import Host

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be done.")]


def send(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DOMAIN...|DATASET] DESTINATION",
            help="What, and [USER@HOST:]POOL/PATH; nothing: as [[destination]] in the "
            "configuration says.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All guests that have points.")] = False,
    memory: Annotated[
        MemoryWanted, typer.Option(help="Whose RAM images go there too.")
    ] = MemoryWanted.LATEST,
    raw: Annotated[
        bool, typer.Option("--raw", help="Send as it lies on disk; encrypted datasets always are.")
    ] = False,
    bwlimit: Annotated[
        str, typer.Option(metavar="RATE", help="Bytes per second at most, as in 50M.")
    ] = "",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Send datasets, with syncoid, and their points to another pool or machine.

    Only what is not there yet is sent, and what was interrupted goes on. Points whose snapshots
    the destination has pruned are removed there.

    \b
    Examples:
      zvmsnap send web backup@nas:pool/offsite
      zvmsnap send --all --memory none usb/offsite
      zvmsnap send                       to every [[destination]] of the configuration
    """
    from zvmsnap.common.signals import cancel_at_once
    from zvmsnap.virt.host import Host

    settings = load_settings()
    if not words:
        if every:
            raise typer.BadParameter("say where to: [USER@HOST:]POOL/PATH")
        tables = settings.destination
        if not tables:
            raise SendRefused("say what and where to, or write a [[destination]] into config.toml")
    else:
        *names, where = words
        if bool(names) == every:
            raise typer.BadParameter("say DOMAIN... or a DATASET, or --all, and then where to")
        destination.check_rate(bwlimit)
        destination.parse(where)
        tables = (DestinationTable(where, tuple(names), memory, raw, bwlimit),)
    cancel_at_once()
    failed = False
    with Host(settings.uri) as hypervisor:
        said = []
        for table in tables:
            try:
                said.append(_send(settings, hypervisor, table, dry_run=dry_run))
            except Cancelled:
                raise
            except ZvmsnapError as error:
                # The other destinations are served all the same.
                if len(tables) == 1:
                    raise
                log.plain().error("%s", error)
                failed = True
    if as_json:
        typer.echo(json.dumps({"dry_run": dry_run, "sent": said}, indent=2))
    else:
        for each in said:
            typer.echo("\n".join(render.sent(each, dry_run=dry_run)))
    failed = failed or any(load["failed"] for each in said for load in each["loads"])
    raise typer.Exit(EXIT_FAILED if failed else EXIT_OK)


def _send(
    settings: Config, hypervisor: Host, table: DestinationTable, *, dry_run: bool
) -> dict[str, Any]:
    from zvmsnap.replication import send
    from zvmsnap.replication.send_plan import send_units
    from zvmsnap.replication.syncoid import Options

    target = destination.parse(table.target)
    points, _ = vault.read(settings)
    wanted = send_units(points, table.guests, every=not table.guests)
    options = Options(table.raw, table.bwlimit, table.create_bookmark, table.use_hold)
    job = send.Sending(settings, hypervisor, target, send.SendOptions(table.memory, options))
    outcomes = job.plan(wanted) if dry_run else job.run(wanted)
    return {"destination": target.name, "loads": [_outcome(each) for each in outcomes]}


def _outcome(outcome: UnitOutcome) -> dict[str, Any]:
    return {
        "domain": outcome.load.domain,
        "datasets": [
            {
                "dataset": stream.dataset,
                "target": stream.target,
                "newest": stream.newest.name,
                "since": stream.since.partition("@")[2],
                "stream_bytes": stream.size_bytes,
                "raw": stream.raw,
                "seconds": round(outcome.seconds.get(stream.dataset, 0.0), 2),
            }
            for stream in outcome.streams
        ],
        "points": [
            {"name": each.point.name, "memory_bytes": each.size_bytes} for each in outcome.points
        ],
        "points_bytes": outcome.points_bytes,
        "failed": outcome.failed,
    }


def fetch(
    point: options.PointArgument,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="[USER@HOST:]POOL/PATH")],
    yes: options.YesOption = False,
    dry_run: DryRunOption = False,
    cold: options.ColdOption = False,
    paused: options.PausedOption = False,
    bwlimit: Annotated[
        str, typer.Option(metavar="RATE", help="Bytes per second at most, as in 50M.")
    ] = "",
) -> None:
    """Bring a point home from where it was sent to, to a host that has nothing of it.

    Its datasets come with all their snapshots, to the names that they had; then it is restored,
    with its RAM. What was interrupted goes on with the same command.

    \b
    Example:
      zvmsnap fetch web@latest backup@nas:pool/offsite
    """
    from zvmsnap.common.signals import cancel_at_once
    from zvmsnap.replication.fetch import Fetch
    from zvmsnap.replication.syncoid import Options
    from zvmsnap.virt.host import Host

    settings = load_settings()
    destination.check_rate(bwlimit)
    where = destination.parse(source)
    with Host(settings.uri) as hypervisor:
        job = Fetch(settings, hypervisor, where, Options(bwlimit=bwlimit))
        planned = job.plan(point)
        typer.echo("\n".join(planned.lines))
        if dry_run:
            return
        if not yes:
            options.confirm()
        cancel_at_once()
        found = job.run(planned)
        restore.bring_back(settings, hypervisor, found, cold=cold, paused=paused)


def status(as_json: JsonOption = False) -> None:
    """Say how old the newest complete point of each guest is at each destination.

    By what the last sends have noted: no destination is asked. Exits with 1 if one has failed.

    \b
    Example:
      zvmsnap status
    """
    settings = load_settings()
    found = send_status.read(settings.journal_dir)
    points, _ = vault.read(settings)
    guests = sorted({point.manifest.domain for point in points} - {r.domain for r in found})
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "destinations": [msgspec.to_builtins(receipt) for receipt in found],
                    "never_sent": guests,
                },
                indent=2,
            )
        )
    else:
        typer.echo("\n".join(render.status(found, guests)))
    failed = any(receipt.error for receipt in found)
    raise typer.Exit(EXIT_FAILED if failed else EXIT_OK)


def far_points(
    settings: Config, where: str
) -> tuple[list[RestorePoint], list[DamagedPoint], Liveness]:
    """The points at a destination, and what of their snapshots is there."""
    from zvmsnap.common.ssh import RemoteHost
    from zvmsnap.replication import remote_vault
    from zvmsnap.zfs import zfs

    target: Destination = destination.parse(where)
    far = RemoteHost(target.host, settings.locks_dir)
    branch = zfs.subtree(target.root, far)
    place = remote_vault.place_of(target, far)
    points, damaged = remote_vault.RemoteVault(settings, target, far, place).read()
    liveness = Liveness(branch.snapshots, frozenset({target.root.partition("/")[0]}))
    return points, damaged, liveness
