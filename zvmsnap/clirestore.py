"""The commands that bring points back: restore, clone, verify. How is known elsewhere."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from zvmsnap import completion, config, render, vault, zfs
from zvmsnap.choose import choose
from zvmsnap.clonexml import Network
from zvmsnap.config import Config
from zvmsnap.errors import (
    EXIT_FAILED,
    EXIT_OK,
    ConfirmationMissing,
    PointNotFound,
)
from zvmsnap.point import Point
from zvmsnap.vault import Damaged

if TYPE_CHECKING:
    from zvmsnap.hypervisor import Hypervisor
    from zvmsnap.saveimage import Header

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


def restore(
    point: PointArgument,
    yes: YesOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Check everything, say what would be done.")
    ] = False,
    cold: ColdOption = False,
    paused: PausedOption = False,
    rollback: Annotated[
        bool,
        typer.Option(
            "--rollback", help="Roll the datasets back, which DESTROYS all newer snapshots."
        ),
    ] = False,
    no_safety: Annotated[
        bool, typer.Option("--no-safety", help="Do not keep what is there now as a point.")
    ] = False,
) -> None:
    """Bring a point back in place of its guest.

    Everything is checked before the guest is stopped, and a failure brings it back. What is there
    now becomes a point of its own; its disks, with all newer snapshots, then lie on
    DATASET.before-TIME.

    \b
    Examples:
      zvmsnap restore --dry-run web@latest
      zvmsnap restore web@2026-11-20T03:15      the last point until 03:15:59
      zvmsnap restore --cold web@autosnap_2026-11-20_03:00:00_daily
    """
    from zvmsnap import restoreplan
    from zvmsnap.hooks import cancelled_by_signal
    from zvmsnap.hypervisor import Hypervisor
    from zvmsnap.restore import restore as put_back

    settings = config.load()
    found = find(settings, point)
    wish = restoreplan.Wish(cold=cold, paused=paused, rollback=rollback, safety=not no_safety)
    image = _image(found, cold=cold)
    with Hypervisor(settings.uri) as hypervisor:
        planned = restoreplan.plan(settings, hypervisor, found, wish, image)
        typer.echo("\n".join(planned.lines))
        if dry_run:
            return
        if not yes:
            confirm()
        put_back(settings, hypervisor, found, wish, image, cancelled_by_signal())


def bring_back(
    settings: Config, hypervisor: Hypervisor, found: Point, *, cold: bool, paused: bool
) -> None:
    """Restore a point that was just fetched: there is nothing of now to be kept."""
    from zvmsnap import restoreplan, zfs
    from zvmsnap.hooks import cancelled_by_signal
    from zvmsnap.restore import restore as put_back

    image = _image(found, cold=cold)
    # Rolled back, if nothing is newer: there is no former state that would have to live on.
    rollback = not restoreplan.newer(found, zfs.all_snapshots().present)
    wish = restoreplan.Wish(cold=cold, paused=paused, rollback=rollback, safety=False)
    put_back(settings, hypervisor, found, wish, image, cancelled_by_signal())


def _image(found: Point, *, cold: bool) -> Header | None:
    """The checked RAM image that is to be loaded; None to start from the disks."""
    from zvmsnap import loadable

    memory = None if cold else found.manifest.memory
    return loadable.check(found.directory / memory.file, memory) if memory else None


def confirm() -> None:
    """Ask on a terminal. Raises ConfirmationMissing, and Abort for a no."""
    if not sys.stdin.isatty():
        raise ConfirmationMissing("nobody to ask: say --yes to do this, --dry-run to only see it")
    typer.confirm("Do it?", abort=True)


def clone(
    point: Annotated[
        str,
        typer.Argument(
            metavar="DOMAIN@SNAPNAME",
            help="As for restore; with --destroy the name of a clone.",
            autocompletion=completion.points,
        ),
    ],
    name: Annotated[str, typer.Argument(metavar="NEWNAME", help="The clone's name.")] = "",
    cold: ColdOption = False,
    paused: PausedOption = False,
    network: Annotated[
        Network,
        typer.Option(
            help="none: no link. isolated: a network of clones alone. keep: as the original; "
            "its RAM knows the original's addresses."
        ),
    ] = Network.NONE,
    destroy: Annotated[
        bool, typer.Option("--destroy", help="Remove a clone: what was made for it, nothing else.")
    ] = False,
) -> None:
    """Make a second machine from a point, beside the original, with its RAM.

    It has clones of the datasets, another UUID, other MACs, no network and no autostart. As long
    as it lives, the snapshots that it lies on cannot be destroyed.

    \b
    Examples:
      zvmsnap clone web@latest web-look
      zvmsnap clone --destroy web-look
    """
    from zvmsnap import clone as cloning
    from zvmsnap import unclone
    from zvmsnap.hooks import finish_before_dying
    from zvmsnap.hypervisor import Hypervisor

    settings = config.load()
    if bool(name) == destroy:
        raise typer.BadParameter(
            "say NEWNAME for the clone" if not destroy else "say only the clone's name"
        )
    with Hypervisor(settings.uri) as hypervisor:
        if destroy:
            finish_before_dying()
            for dataset in unclone.destroy(hypervisor, point):
                typer.echo(f"destroyed {dataset}")
            return
        wish = cloning.Wish(name, cold=cold, paused=paused, network=network)
        task = cloning.plan(settings, hypervisor, find(settings, point), wish)
        finish_before_dying()
        cloning.Cloning(settings, hypervisor, task).run()
        typer.echo(f"{name}: {hypervisor.guest(task.uuid).state()}, a clone of {task.point}")


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
    from zvmsnap import verify as verifying
    from zvmsnap.hooks import finish_before_dying
    from zvmsnap.hypervisor import Hypervisor

    settings = config.load()
    points, damaged = _chosen(settings, which)
    finish_before_dying()
    if boot or expect_command:
        with Hypervisor(settings.uri) as hypervisor:
            verdicts = {
                point.name: verifying.boot(settings, hypervisor, point, expect_command)
                for point in points
            }
    else:
        present = zfs.all_snapshots().present
        verdicts = {point.name: verifying.verify(point, present) for point in points}
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


def _chosen(settings: Config, which: str | None) -> tuple[list[Point], list[Damaged]]:
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


def find(settings: Config, text: str) -> Point:
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
