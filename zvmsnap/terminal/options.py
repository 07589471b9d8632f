"""Arguments and options that several commands share, and how commands ask and print."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Annotated

import typer

from zvmsnap.common import foreign, log
from zvmsnap.common.errors import ConfirmationMissing, PointNotFound, ZfsFailed
from zvmsnap.config import destination
from zvmsnap.config.destination import Destination
from zvmsnap.config.settings import Config
from zvmsnap.points import selector, vault
from zvmsnap.points.liveness import Liveness, guids_of
from zvmsnap.points.point import RestorePoint, is_by_clock
from zvmsnap.points.selector import LATEST, choose
from zvmsnap.terminal import completion
from zvmsnap.zfs import zfs

# Of what `--json` prints: a key that is new does not change it, anything else does.
JSON_VERSION = 1

_POINT = typer.Argument(
    metavar="DOMAIN@SNAPNAME",
    help="Any snapshot name of the point; or DOMAIN@latest; or DOMAIN@TIME: the last point taken "
    "until this day, minute or second is over, or DOMAIN@yesterday, or DOMAIN@-3h.",
    autocompletion=completion.points,
)
PointArgument = Annotated[str, _POINT]
PointsArgument = Annotated[list[str], _POINT]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be done.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
ColdOption = Annotated[bool, typer.Option("--cold", help="Boot from the disks, without RAM.")]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Take the definition of a point that was made elsewhere, whatever it reaches here.",
    ),
]
IdentityOption = Annotated[
    str,
    typer.Option(
        "--identity",
        metavar="FILE",
        help="The key of age for a point that is encrypted. Default: identity_file of the "
        "configuration.",
        show_default=False,
    ),
]
PausedOption = Annotated[bool, typer.Option("--paused", help="Keep the guest paused at the end.")]


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON document on stdout: all text as it is, escaped.

    docs/reference/json.md describes that of each command.
    """
    typer.echo(json.dumps({"json_version": JSON_VERSION, **value}, indent=2))


def refuse_to_ask(*, as_json: bool, yes: bool) -> None:
    """Raises BadParameter where a question would stand before JSON."""
    if as_json and not yes:
        raise typer.BadParameter("--json asks nothing: say --yes, or --dry-run")


def print_lines(lines: Iterable[str], *, err: bool = False) -> None:
    """Print lines for people, each made printable, as they come: there may be 100 000.

    All commands print by this or `print_json` (tests/unit/cli/test_printing.py).
    """
    remaining = map(foreign.printable, lines)
    while some := list(islice(remaining, 1000)):
        typer.echo("\n".join(some), err=err)


def print_line(line: str) -> None:
    """Print one line for people."""
    print_lines([line])


def print_file(text: str) -> None:
    """Print the text of a file as it is, for a file or a program; on a terminal made printable."""
    if sys.stdout.isatty():
        print_lines(line.expandtabs() for line in text.splitlines())
    else:
        typer.echo(text.encode(errors="surrogateescape"), nl=False)


def confirm() -> None:
    """Ask on the terminal. Raises ConfirmationMissing without one, and Abort for a no."""
    if not sys.stdin.isatty():
        raise ConfirmationMissing(
            "no terminal to ask on: say --yes to do this, --dry-run to only see it"
        )
    typer.confirm("Do it?", abort=True)


def identity_file(settings: Config, said: str, origin: Destination | None = None) -> str:
    """The key to decrypt with: as was said, or of `origin`, or of any destination; "" if none."""
    tables = (
        table
        for table in settings.destination
        if origin is None or destination.parse(table.target).name == origin.name
    )
    return said or next((table.identity_file for table in tables if table.identity_file), "")


def tell_if_by_clock(points: Iterable[RestorePoint], text: str) -> None:
    """Say so if only the clock tells which point is the latest one that an operator asks for."""
    domain, _, which = text.rpartition("@")
    own = [point for point in points if point.manifest.domain == domain]
    if which == LATEST and is_by_clock(own):
        log.plain().warning(
            "%s: its points are in several pools: which is the latest, only the clock says", domain
        )


def _by_present_name(points: Iterable[RestorePoint], text: str) -> RestorePoint | None:
    """The point of which a snapshot was renamed, and is called so now."""
    domain, _, which = text.rpartition("@")
    own = [point for point in points if point.manifest.domain == domain]
    if not own:
        return None
    try:
        liveness = Liveness.by(zfs.all_snapshots(guids_of(point.manifest for point in own)))
    except ZfsFailed as error:
        log.plain().warning("%s", error)
        return None
    found = [
        point
        for point in own
        if any(snapshot.name == which for _, snapshot in liveness.existing(point.manifest))
    ]
    return found[0] if len(found) == 1 else None


def find_point(settings: Config, text: str) -> RestorePoint:
    """The point that an operator names. Raises PointNotFound, which names damaged points too."""
    points, damaged = vault.read(settings)
    try:
        tell_if_by_clock(points, text)
        chosen = choose(points, text)
        if said := selector.said(chosen, text):
            log.plain().info("%s", said)
        return chosen
    except PointNotFound as error:
        if renamed := _by_present_name(points, text):
            return renamed
        folder = vault.folder_of(text.rpartition("@")[0])
        reasons = [each.why for each in damaged if each.directory.parent.name == folder]
        if not reasons:
            raise
        raise PointNotFound(f"{error}; damaged: {'; '.join(reasons)}") from error
