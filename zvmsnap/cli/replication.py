"""The commands that send points elsewhere, and fetch them: send, fetch, status."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from zvmsnap.cli import restore
from zvmsnap.common import log
from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK, Cancelled, SendRefused, ZvmsnapError
from zvmsnap.config import destination
from zvmsnap.config.destination import MemoryWanted
from zvmsnap.config.settings import Config, DestinationTable, load_settings
from zvmsnap.journal import describe
from zvmsnap.journal.journal import Journal
from zvmsnap.points import vault
from zvmsnap.points.liveness import Liveness
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import DamagedPoint
from zvmsnap.replication import send_status
from zvmsnap.terminal import options, render_sends
from zvmsnap.terminal.options import JsonOption, print_json, print_line, print_lines

if TYPE_CHECKING:
    from zvmsnap.replication.send_report import SendReport
    from zvmsnap.virt.host import Host

DryRunOption = Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be done.")]
BwlimitOption = Annotated[
    str, typer.Option("--bwlimit", metavar="RATE", help="Bytes per second at most, as in 50M.")
]


def send(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DOMAIN...|DATASET] DESTINATION",
            help="What to send, and where to: [USER@HOST:]POOL/PATH. Without both: as "
            "[[destination]] in the configuration says.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All guests that have points.")] = False,
    memory: Annotated[
        MemoryWanted, typer.Option(help="Whose RAM images are sent too.")
    ] = MemoryWanted.LATEST,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="Send blocks as they are on disk; for encrypted datasets always."
        ),
    ] = False,
    bwlimit: BwlimitOption = "",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    forget: Annotated[
        str,
        typer.Option(
            metavar="DESTINATION",
            help="Send nothing: end what this host keeps for a destination that is gone.",
        ),
    ] = "",
) -> None:
    """Send datasets, with syncoid, and their points to another pool or machine.

    Only what the destination lacks is sent. What was interrupted goes on. Points whose snapshots
    the destination has pruned are removed there.

    \b
    Examples:
      zvmsnap send web backup@nas:pool/offsite
      zvmsnap send --all --memory none usb/offsite
      zvmsnap send                       to every [[destination]] of the configuration
      zvmsnap send --forget backup@nas:pool/offsite
    """
    from zvmsnap.common.signals import cancel_at_once
    from zvmsnap.virt.host import Host

    settings = load_settings()
    if forget:
        if words or every:
            raise typer.BadParameter("--forget takes a destination, and nothing is sent")
        _forget(settings, destination.parse(forget).name, as_json=as_json)
        return
    if words:
        *names, target = words
        given = DestinationTable(target, tuple(names), memory, raw, bwlimit)
        tables = _checked(given, every=every)
    else:
        tables = _configured(settings, every=every)
    cancel_at_once()
    with Host.connect(settings.uri) as host:
        reports = _send_to_each(settings, host, tables, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, "sent": [msgspec.to_builtins(each) for each in reports]})
    else:
        for report in reports:
            print_lines(render_sends.sent(report, dry_run=dry_run))
    failed = len(reports) < len(tables) or any(report.has_failed for report in reports)
    raise typer.Exit(EXIT_FAILED if failed else EXIT_OK)


def _checked(table: DestinationTable, *, every: bool) -> tuple[DestinationTable, ...]:
    """What the command line says. Raises BadParameter and DestinationInvalid."""
    if bool(table.guests) == every:
        raise typer.BadParameter("say DOMAIN... or a DATASET, or --all, and then where to")
    destination.check_rate(table.bwlimit)
    destination.parse(table.target)
    return (table,)


def _configured(settings: Config, *, every: bool) -> tuple[DestinationTable, ...]:
    """What the configuration says. Raises BadParameter and SendRefused."""
    if every:
        raise typer.BadParameter("say where to: [USER@HOST:]POOL/PATH")
    if not settings.destination:
        raise SendRefused("say what and where to, or write a [[destination]] into config.toml")
    return settings.destination


def _send_to_each(
    settings: Config, host: Host, tables: Sequence[DestinationTable], *, dry_run: bool
) -> list[SendReport]:
    """Send to all destinations; one of several that fails is logged, and has no report."""
    reports = []
    for table in tables:
        try:
            report = _send(settings, host, table, dry_run=dry_run)
            reports.append(report)
            for unit in report.units:
                if unit.error and not dry_run:
                    _tell(
                        settings, unit.error, f"{unit.domain} to {report.destination}", unit.domain
                    )
        except Cancelled:
            raise
        except ZvmsnapError as error:
            if not dry_run:
                _tell(settings, error, f"to {table.target}")
            if len(tables) == 1:
                raise
            log.plain().error("%s", error)
    return reports


def _tell(settings: Config, why: str | ZvmsnapError, what: str, guest: str = "") -> None:
    """Let the administrator's programs hear of it: sends are mostly begun by a timer."""
    from zvmsnap.notify import event, notices

    error = log.class_of(why) if isinstance(why, ZvmsnapError) else ""
    said = event.of(event.Kind.SEND, f"send {what}: {why}", guest=guest, error=error)
    notices.note(settings, said)


def _send(settings: Config, host: Host, table: DestinationTable, *, dry_run: bool) -> SendReport:
    from zvmsnap.encryption.age import Recipients
    from zvmsnap.replication.send import Sender, SendOptions
    from zvmsnap.replication.send_plan import send_units
    from zvmsnap.replication.syncoid import SyncoidOptions

    target = destination.parse(table.target)
    points, _ = vault.read(settings)
    units = send_units(points, table.guests, every=not table.guests)
    syncoid = SyncoidOptions(table.raw, table.bwlimit, table.create_bookmark, table.use_hold)
    # Also if the command line names the destination: nothing goes there in plain by mistake.
    configured = _of_destination(settings, target.name)
    recipients = Recipients(configured.encrypt_to, configured.recipients_file)
    chosen = SendOptions(table.memory, syncoid, table.keep, recipients)
    sender = Sender(settings, host, target, chosen)
    return sender.plan(units) if dry_run else sender.send(units)


def _of_destination(settings: Config, name: str) -> DestinationTable:
    """What the configuration says of encryption for a destination, in all its tables together."""
    tables = [t for t in settings.destination if destination.parse(t.target).name == name]
    return DestinationTable(
        target=name,
        encrypt_to=tuple(key for table in tables for key in table.encrypt_to),
        recipients_file=next((t.recipients_file for t in tables if t.recipients_file), ""),
    )


def _forget(settings: Config, name: str, *, as_json: bool) -> None:
    """End the marks of a destination, and remove all that the journal says of it."""
    from zvmsnap.replication import remote_vault
    from zvmsnap.replication.send import send_lock
    from zvmsnap.replication.send_marks import SendMarks

    with send_lock(settings, name):
        bookmarks, holds = SendMarks(name).forget()
        statuses = send_status.forget(settings.journal_dir, name)
        remote_vault.forget(settings, name)
    if as_json:
        counts = {"bookmarks": bookmarks, "holds": holds, "statuses": statuses}
        print_json({"destination": name, "forgotten": counts})
    else:
        print_line(f"{name}: forgot {bookmarks} bookmarks, {holds} holds, {statuses} statuses")


def fetch(
    point: options.PointArgument,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="[USER@HOST:]POOL/PATH")],
    yes: options.YesOption = False,
    dry_run: DryRunOption = False,
    cold: options.ColdOption = False,
    paused: options.PausedOption = False,
    trust: options.TrustOption = False,
    identity: options.IdentityOption = "",
    bwlimit: BwlimitOption = "",
    as_json: JsonOption = False,
) -> None:
    """Fetch a point from where it was sent to, to a host that has nothing of it.

    Its datasets are received with all their snapshots, under the names that they had. After that
    the guest is restored, with its RAM. What was interrupted goes on with the same command.

    \b
    Example:
      zvmsnap fetch web@latest backup@nas:pool/offsite
    """
    from zvmsnap.common.signals import cancel_at_once
    from zvmsnap.replication.fetch import Fetcher
    from zvmsnap.replication.syncoid import SyncoidOptions
    from zvmsnap.virt.host import Host

    options.refuse_to_ask(as_json=as_json, yes=yes or dry_run)
    settings = load_settings()
    destination.check_rate(bwlimit)
    shown = restore.Shown(as_json=as_json)
    origin = destination.parse(source)
    with Host.connect(settings.uri) as host:
        syncoid = SyncoidOptions(bwlimit=bwlimit)
        key = options.identity_file(settings, identity, origin)
        fetcher = Fetcher(settings, host, origin, syncoid, trust=trust, identity=key)
        plan = fetcher.plan(point)
        shown.lines(plan.lines)
        if dry_run:
            restore.tell_restored(plan.point, shown, dry_run=True)
            return
        if not yes:
            options.confirm()
        cancel_at_once()
        fetched = fetcher.fetch(plan)
        restore.bring_back(settings, host, fetched, shown, cold=cold, paused=paused, trust=trust)


def status(as_json: JsonOption = False) -> None:
    """Say how old the newest complete point of each guest is at each destination.

    As the last sends have noted it: no destination is asked. Also says which snapshots on this host
    are held for an interrupted send, and which guests stay on their overlays because of somebody
    else's job. Exits with 1 if a send has failed, or if something that was noted cannot be read.

    \b
    Example:
      zvmsnap status
    """
    from zvmsnap.replication import send_marks

    settings = load_settings()
    statuses, unreadable = send_status.read_all(settings.journal_dir)
    points, _ = vault.read(settings)
    sent = {status.uuid for status in statuses}
    never_sent = sorted(
        {point.manifest.domain for point in points if point.manifest.uuid not in sent}
    )
    held = send_marks.held_by_destination()
    silent = send_status.silent(statuses, datetime.now(UTC))
    waiting = [entry for entry in Journal(settings.journal_dir).entries() if entry.in_the_way]
    held_up = [f"{e.domain}: {describe.work(e)} is {describe.progress(e)}" for e in waiting]
    if as_json:
        described = [msgspec.to_builtins(status) for status in statuses]
        print_json(
            {
                "destinations": described,
                "never_sent": never_sent,
                "silent": silent,
                "held": held,
                "held_up": held_up,
                "unreadable": [str(path) for path in unreadable],
            }
        )
    else:
        plain = render_sends.plain_points(statuses)
        kept = render_sends.kept_for(silent, held)
        lines = [*render_sends.status(statuses, never_sent), *plain, *kept, *held_up]
        print_lines(lines)
    failed = bool(unreadable) or any(status.error for status in statuses)
    raise typer.Exit(EXIT_FAILED if failed else EXIT_OK)


def remote_points(
    settings: Config, text: str
) -> tuple[list[RestorePoint], list[DamagedPoint], Liveness]:
    """The points at a destination, damaged ones, and which of their snapshots it has."""
    from zvmsnap.common.ssh import RemoteHost
    from zvmsnap.replication.remote_vault import RemoteVault
    from zvmsnap.zfs import zfs

    target = destination.parse(text)
    remote = RemoteHost(target.host, settings.locks_dir)
    subtree = zfs.subtree(target.root, remote)
    points, damaged = RemoteVault.of(settings, target, remote).read()
    liveness = Liveness.below(target.root, subtree)
    return points, damaged, liveness
