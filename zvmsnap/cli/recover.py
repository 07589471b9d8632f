"""`zvmsnap recover`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK
from zvmsnap.config.settings import load_settings
from zvmsnap.terminal import render
from zvmsnap.terminal.options import DryRunOption, JsonOption, print_json, print_lines


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
