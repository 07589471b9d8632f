"""`zvmsnap verify`."""

from __future__ import annotations

import json
from typing import Annotated

import msgspec
import typer

from zvmsnap.cli import completion, render
from zvmsnap.cli.options import find
from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK, PointNotFound
from zvmsnap.config.settings import Config, load_settings
from zvmsnap.points import vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import DamagedPoint
from zvmsnap.zfs import zfs


def verify(
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="[DOMAIN[@SNAPNAME]]",
            help="One point, or all of a guest; without it, all.",
            autocompletion=completion.points,
        ),
    ] = None,
    boot: Annotated[
        bool, typer.Option("--boot", help="Start each as a clone, see that it lives, remove it.")
    ] = False,
    expect_command: Annotated[
        str | None,
        typer.Option(help="A shell command that must end with 0 in the guest; needs its agent."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Read points to their end, compare checksums, look for their snapshots; or start them.

    The verdict, and with --boot a picture of the screen, is kept beside the point.

    \b
    Examples:
      zvmsnap verify web
      zvmsnap verify --boot web@latest
      zvmsnap verify --boot --expect-command 'systemctl is-active nginx' web@latest
    """
    from zvmsnap.clone import verify
    from zvmsnap.common.signals import finish_before_dying
    from zvmsnap.virt.host import Host

    settings = load_settings()
    points, damaged = _chosen(settings, which)
    finish_before_dying()
    if boot or expect_command:
        with Host(settings.uri) as hypervisor:
            verdicts = {
                point.name: verify.boot(settings, hypervisor, point, expect_command)
                for point in points
            }
    else:
        present = zfs.all_snapshots().present
        verdicts = {point.name: verify.verify(point, present) for point in points}
    if as_json:
        said = {name: msgspec.to_builtins(verdict) for name, verdict in verdicts.items()}
        typer.echo(json.dumps({"points": said, "damaged": [d.why for d in damaged]}, indent=2))
    else:
        for name, verdict in verdicts.items():
            typer.echo(f"{name}: {render.verdict(verdict)}")
        for each in damaged:
            typer.echo(f"damaged: {each.why}")
    good = not damaged and all(verdict.good for verdict in verdicts.values())
    raise typer.Exit(EXIT_OK if good else EXIT_FAILED)


def _chosen(settings: Config, which: str | None) -> tuple[list[RestorePoint], list[DamagedPoint]]:
    if which is not None and "@" in which:
        return [find(settings, which)], []
    points, damaged = vault.read(settings)
    if which is None:
        return points, damaged
    mine = [point for point in points if point.manifest.domain == which]
    lost = [each for each in damaged if each.directory.parent.name == vault.folder_of(which)]
    if not mine and not lost:
        raise PointNotFound(f"{which}: has no point; `zvmsnap list` shows all")
    return mine, lost
