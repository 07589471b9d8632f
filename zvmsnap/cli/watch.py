"""`zvmsnap monitor` and `notify`: what is wrong, told to who watches; and `report`, for people."""

from __future__ import annotations

import math
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zvmsnap.common import log, safe_files
from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK, GivenUp
from zvmsnap.config.settings import load_settings
from zvmsnap.hooks import needed
from zvmsnap.terminal.options import JsonOption, print_json, print_line
from zvmsnap.watch import judge, metrics, nagios
from zvmsnap.watch.finding import Finding, Kind, Severity, by_rank, worst
from zvmsnap.watch.thresholds import Thresholds, thresholds

if TYPE_CHECKING:
    from zvmsnap.points.memory_image import RamUsage
    from zvmsnap.watch.facts import Facts, GuestFacts

# To ask a file system what a large file shares takes up to seconds.
_SHARES_WITHIN_S = 5.0


def monitor(
    domains: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DOMAIN...]", help="Only these guests, and the host."),
    ] = None,
    warn_age: Annotated[
        str,
        typer.Option(
            metavar="AGE",
            help="Warn if a guest's newest point is older: 90m, 36h, 14d, off. Default: warn_age "
            "of the configuration. The property zvmsnap:warn-age comes first.",
            show_default=False,
        ),
    ] = "",
    crit_age: Annotated[
        str, typer.Option(metavar="AGE", help="The same: critical.", show_default=False)
    ] = "",
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Wait for nobody longer than that.")
    ] = 20,
    prometheus: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write metrics, for the textfile collector of node_exporter.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is wrong with points, guests and our directories, as a plugin of Nagios or Icinga.

    Prints one line, with perfdata. Changes nothing, and waits for nobody for long.

    \b
    Examples:
      zvmsnap monitor
      zvmsnap monitor --warn-age 90m --crit-age 6h web
      zvmsnap monitor --prometheus /var/lib/prometheus/node-exporter/zvmsnap.prom

    \b
    Exit codes: 0 well, 1 warning, 2 critical, 3 unknown.
    """
    try:
        config = load_settings()
        limits = thresholds(config, warn_age, crit_age)
        from zvmsnap.watch.observe import observe

        facts = observe(config, timeout)
        found = judge.findings(config, facts, limits, domains or ())
        if prometheus:
            found += _written(config.journal_dir, facts, found, limits, prometheus)
        said: str | dict[str, Any] = (
            _as_json(facts, found, limits, domains or [])
            if as_json
            else nagios.line(facts, found, limits, domains or ())
        )
        severity = worst(found)
    except ImportError as error:
        said, severity = nagios.failure(needed.line(error)), Severity.UNKNOWN
    except Exception as error:
        said, severity = nagios.failure(log.one_line(error)), Severity.UNKNOWN
    if isinstance(said, str):
        print_line(said)
    else:
        print_json(said)
    raise typer.Exit(severity)


def notify(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to tell.")],
) -> None:
    """Tell the programs that hear of failures something, to try them, or of a unit that failed.

    Each gets JSON on its standard input, as of a failure of a hook. Exits with 1 if one of them
    fails, or if there is none.

    \b
    Examples:
      zvmsnap notify 'this is a test'
    """
    from zvmsnap.notify import event, programs

    directory = Path(load_settings().notify)
    told = programs.of(directory)
    wrong = programs.tell(told, event.of(event.Kind.OTHER, text))
    for path in told:
        if str(path) not in wrong:
            print_line(f"told {path}")
    for name, why in wrong.items():
        log.plain().error("%s: %s", name, why)
    if not told:
        log.plain().error("%s: has no program that may be run", directory)
    raise typer.Exit(EXIT_FAILED if wrong or not told else EXIT_OK)


def _written(
    journal_dir: Path, facts: Facts, found: list[Finding], limits: Thresholds, file: Path
) -> list[Finding]:
    """Write the metrics; what keeps us from that."""
    from zvmsnap.notify import failures
    from zvmsnap.watch import exposition

    counts = failures.read(journal_dir)
    families = metrics.families(facts, found, limits, _usages(facts), counts)

    try:
        # Not below another path until it is complete: node_exporter reads whatever ends in .prom.
        safe_files.write_atomic(file, exposition.text(families), safe_files.PUBLIC_FILE)
        return []
    except OSError as error:
        return [Finding(Severity.UNKNOWN, Kind.METRICS, f"{file}: {error.strerror or error}")]


def _usages(facts: Facts) -> dict[str, RamUsage]:
    """What the RAM of each guest's newest point takes, by UUID, as far as that is soon known."""
    from zvmsnap.common.waiting import Call
    from zvmsnap.points import memory_image

    until_s = time.monotonic() + _SHARES_WITHIN_S
    usages = {}
    for uuid, points in (facts.points or {}).items():
        memory = points.newest.memory if points.newest else None
        if not memory or time.monotonic() >= until_s:
            continue
        try:
            usage = partial(memory_image.usage, points.directory / memory.file, memory)
            known = Call(usage).answer(max(0.0, until_s - time.monotonic()))
        except GivenUp:
            break
        if known:
            usages[uuid] = known
    return usages


def _as_json(
    facts: Facts, found: list[Finding], limits: Thresholds, only: list[str]
) -> dict[str, Any]:
    return {
        "state": worst(found).name.lower(),
        "findings": [
            {
                "severity": each.severity.name.lower(),
                "kind": str(each.kind),
                "guest": each.guest,
                "text": each.text,
            }
            for each in by_rank(found)
        ],
        "guests": [
            _guest_as_json(facts, limits, guest)
            for guest in facts.guests or ()
            if not only or guest.name in only
        ],
        "rooms": {
            name: {
                "directory": str(room.directory),
                "free_bytes": room.free_bytes,
                "size_bytes": room.size_bytes,
            }
            for name, room in facts.rooms.items()
        },
    }


def _guest_as_json(facts: Facts, limits: Thresholds, guest: GuestFacts) -> dict[str, Any]:
    points = (facts.points or {}).get(guest.uuid)
    newest = points.newest if points else None
    limit, _ = judge.age_limit(guest, facts, limits)
    datasets = judge.watched(guest, facts.properties or {})
    return {
        "name": guest.name,
        "uuid": guest.uuid,
        "watched": datasets is None or bool(datasets),
        "datasets": None if guest.datasets is None else sorted(guest.datasets),
        "points": points.count if points else 0,
        "newest": f"{newest.domain}@{points.directory.name}" if points and newest else None,
        "created": newest.created if newest else None,
        "level": str(newest.level) if newest else None,
        "age_s": facts.now_s - judge.time_s(newest.created) if newest else None,
        "warn_age_s": None if math.isinf(limit.warn_s) else limit.warn_s,
        "crit_age_s": None if math.isinf(limit.crit_s) else limit.crit_s,
    }


def report(
    html: Annotated[
        Path, typer.Option("--html", metavar="FILE", help="Write the page into this file.")
    ],
) -> None:
    """Write a page that shows all guests and their points, to be opened in a browser.

    What needs attention is on top. Below: which guest has which points on which day, what was
    verified, and what is offsite; and for each guest its pauses, its RAM, and the screens of the
    points that were started. The page is one file without scripts. It shows what guests have on
    their screens: only you can read it.

    \b
    Example:
      zvmsnap report --html /root/zvmsnap.html
    """
    from zvmsnap.common.errors import ReportUnwritable
    from zvmsnap.report.gather import gather
    from zvmsnap.report.page import page

    facts = gather(load_settings(), datetime.now().astimezone())
    content = page(facts)
    try:
        safe_files.write_atomic(html.absolute(), content.encode())
    except OSError as error:
        raise ReportUnwritable(f"{html}: cannot be written: {error.strerror or error}") from error
    print_line(f"wrote {html}: {facts.points_count} points of {len(facts.guests)} guests")
