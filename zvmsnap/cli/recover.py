"""`zvmsnap recover` and `idle`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from zvmsnap.common import log, waiting
from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK
from zvmsnap.config.settings import load_settings
from zvmsnap.terminal import render
from zvmsnap.terminal.options import DryRunOption, JsonOption, print_json, print_line, print_lines

_IDLE_POLL_S = 1.0


def recover_guests(
    domain: Annotated[str | None, typer.Argument(help="Only this guest, by name or UUID.")] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring guests that are on overlays back to their own disks.

    Finishes what sanoid, a hook or the whole machine left when it died. Guests that are off are
    not started. If an overlay may hold a guest's writes and cannot be merged, it is kept and
    reported, and the exit code is 1.

    \b
    Example:
      zvmsnap recover --dry-run
    """
    from zvmsnap.common.signals import finish_before_dying
    from zvmsnap.recovery import recover

    finish_before_dying()
    report = recover.recover_guests(load_settings(), domain, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, **dataclasses.asdict(report)})
    else:
        print_lines(render.recovery(report, dry_run=dry_run))
    raise typer.Exit(EXIT_OK if report.complete else EXIT_FAILED)


def idle(
    wait_s: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, help="Wait so long for its end.")
    ] = 0,
) -> None:
    """Say which runs, restores and clones are under way; exit with 1 if there are any.

    Ask before you replace zvmsnap itself: what is under way would go on with the code of another
    version. The Debian package waits so before an upgrade. Sends and pruning do not count.

    \b
    Example:
      zvmsnap idle --wait 600        before an upgrade
    """
    from zvmsnap.recovery.under_way import under_way

    settings = load_settings()
    deadline_s = waiting.now_s() + wait_s
    said: list[str] = []
    while (lines := under_way(settings)) and waiting.now_s() < deadline_s:
        if lines != said:
            log.plain().info("waiting for what is under way: %s", "; ".join(lines))
            said = lines
        waiting.sleep(_IDLE_POLL_S)
    if lines:
        print_lines(lines)
    else:
        print_line("nothing is under way")
    raise typer.Exit(EXIT_FAILED if lines else EXIT_OK)
