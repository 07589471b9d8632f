"""`zvmsnap check` and `zvmsnap init`: is this host as it should be, and make it so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK
from zvmsnap.terminal.options import (
    DryRunOption,
    JsonOption,
    YesOption,
    confirm,
    print_file,
    print_json,
    print_line,
    print_lines,
)

if TYPE_CHECKING:
    from zvmsnap.check.finding import Finding


def check(
    as_json: JsonOption = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what can be mended without harm, and say so.")
    ] = False,
) -> None:
    """Look at all that points depend on: sanoid, storage, libvirt, guests, ZFS, destinations.

    One line for each finding: green, yellow (it works, but not well, or not for ever) or red
    (points are missing or worthless, or guests in danger), with what to do. The exit code is that
    of the worst: 0, 1 or 2. Nothing is changed without --fix.

    \b
    Examples:
      zvmsnap check
      zvmsnap check --fix
      zvmsnap check --json
    """
    from zvmsnap.check import run

    findings = run.all_findings()
    done = list(run.fixed(findings)) if fix else []
    if done:
        findings = run.all_findings()
    raise typer.Exit(_report(findings, done, as_json=as_json))


def init(
    guests: Annotated[
        list[str] | None,
        typer.Option("--guest", metavar="GUEST", help="Only these, by name or UUID; repeatable."),
    ] = None,
    dry_run: DryRunOption = False,
    print_sanoid: Annotated[
        bool,
        typer.Option("--print-sanoid", help="Print sanoid.conf as it would be, and do nothing."),
    ] = False,
    yes: YesOption = False,
) -> None:
    """Add what a host lacks for its guests: sections for sanoid, configuration, a place for points.

    Finds the guests with disks on ZFS, shows what would be added, asks, keeps copies of the files
    that it changes, and ends with `zvmsnap check`. No line of yours is changed or removed. To run
    it again adds what is missing since.

    \b
    Examples:
      zvmsnap init --dry-run
      zvmsnap init
      zvmsnap init --guest web --yes
      zvmsnap init --print-sanoid
    """
    from zvmsnap.check import facts, run
    from zvmsnap.check.finding import Colour
    from zvmsnap.setup.plan import plan

    seen = facts.gather()
    wanted = plan(seen, guests or ())
    if print_sanoid:
        print_file(wanted.sanoid_conf)
        return
    print_lines(line.expandtabs() for line in wanted.lines())
    if dry_run:
        return
    if wanted.is_empty:
        print_line("nothing is missing")
    else:
        if not yes:
            confirm()
        print_lines(wanted.execute(seen))
    # The work is done; what is yellow can wait.
    is_red = _report(run.all_findings(), [], as_json=False) == Colour.RED.exit_code
    raise typer.Exit(EXIT_FAILED if is_red else EXIT_OK)


def _report(findings: Sequence[Finding], done: Sequence[str], *, as_json: bool) -> int:
    """Print what was found and done; returns the exit code."""
    from zvmsnap.check.finding import worst

    colour = worst(findings)
    if as_json:
        print_json(
            {
                "schema": 1,
                "colour": colour,
                "findings": [each.as_json() for each in findings],
                "fixed": done,
            }
        )
    else:
        print_lines(_lines(findings, done))
        print_line(_summary(findings))
    return colour.exit_code


def _lines(findings: Sequence[Finding], done: Sequence[str]) -> Iterator[str]:
    yield from done
    # The worst last: there it is seen.
    for each in sorted(findings, key=lambda each: each.colour.exit_code):
        yield each.line()


def _summary(findings: Sequence[Finding]) -> str:
    from zvmsnap.check.finding import Colour

    counts = {colour: sum(each.colour is colour for each in findings) for colour in Colour}
    return ", ".join(f"{number} {colour}" for colour, number in counts.items())
