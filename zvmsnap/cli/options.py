"""Arguments and options that several commands share, and how commands ask and print."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from zvmsnap.cli import completion
from zvmsnap.common.errors import ConfirmationMissing, PointNotFound
from zvmsnap.config.settings import Config
from zvmsnap.points import vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.selector import choose

_POINT = typer.Argument(
    metavar="DOMAIN@SNAPNAME",
    help="Any snapshot name of the point; or DOMAIN@latest; or DOMAIN@TIME: the last point taken "
    "until this day, minute or second is over.",
    autocompletion=completion.points,
)
PointArgument = Annotated[str, _POINT]
PointsArgument = Annotated[list[str], _POINT]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be done.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
ColdOption = Annotated[bool, typer.Option("--cold", help="Boot from the disks, without RAM.")]
PausedOption = Annotated[bool, typer.Option("--paused", help="Keep the guest paused at the end.")]


def print_json(value: object) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2))


def confirm() -> None:
    """Ask on the terminal. Raises ConfirmationMissing without one, and Abort for a no."""
    if not sys.stdin.isatty():
        raise ConfirmationMissing(
            "no terminal to ask on: say --yes to do this, --dry-run to only see it"
        )
    typer.confirm("Do it?", abort=True)


def find_point(settings: Config, text: str) -> RestorePoint:
    """The point that an operator names. Raises PointNotFound, which names damaged points too."""
    points, damaged = vault.read(settings)
    try:
        return choose(points, text)
    except PointNotFound as error:
        folder = vault.folder_of(text.rpartition("@")[0])
        reasons = [each.why for each in damaged if each.directory.parent.name == folder]
        if not reasons:
            raise
        raise PointNotFound(f"{error}; damaged: {'; '.join(reasons)}") from error
