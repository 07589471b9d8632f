"""Arguments and options that several commands share."""

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

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def print_json(value: object) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2))


_POINT = typer.Argument(
    metavar="DOMAIN@SNAPNAME",
    help="Any name of the moment; or DOMAIN@latest, or DOMAIN@TIME: the last one until that "
    "day, minute or second is over.",
    autocompletion=completion.points,
)
PointArgument = Annotated[str, _POINT]
PointsArgument = Annotated[list[str], _POINT]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
ColdOption = Annotated[bool, typer.Option("--cold", help="Boot from the disks, without RAM.")]
PausedOption = Annotated[bool, typer.Option("--paused", help="Let it stand still in the end.")]


def confirm() -> None:
    """Ask on a terminal. Raises ConfirmationMissing, and Abort for a no."""
    if not sys.stdin.isatty():
        raise ConfirmationMissing("nobody to ask: say --yes to do this, --dry-run to only see it")
    typer.confirm("Do it?", abort=True)


def find(settings: Config, text: str) -> RestorePoint:
    """The point that is meant. Raises PointNotFound, which tells of damaged ones too."""
    points, damaged = vault.read(settings)
    try:
        return choose(points, text)
    except PointNotFound as error:
        folder = vault.folder_of(text.rpartition("@")[0])
        lost = [each.why for each in damaged if each.directory.parent.name == folder]
        if not lost:
            raise
        raise PointNotFound(f"{error}; damaged: {'; '.join(lost)}") from error
