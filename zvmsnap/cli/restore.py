"""The commands that bring points back: restore, clone, verify. How is known elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zvmsnap.cli.options import ColdOption, PausedOption, PointArgument, YesOption, confirm, find
from zvmsnap.config.settings import Config, load_settings
from zvmsnap.points.point import RestorePoint

if TYPE_CHECKING:
    from zvmsnap.virt.host import Host
    from zvmsnap.virt.save_image import Header


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
    from zvmsnap.common.signals import cancelled_by_signal
    from zvmsnap.restore import plan
    from zvmsnap.restore.in_place import restore as put_back
    from zvmsnap.virt.host import Host

    settings = load_settings()
    found = find(settings, point)
    wish = plan.RestoreOptions(cold=cold, paused=paused, rollback=rollback, safety=not no_safety)
    image = _image(found, cold=cold)
    with Host(settings.uri) as hypervisor:
        planned = plan.plan(settings, hypervisor, found, wish, image)
        typer.echo("\n".join(planned.lines))
        if dry_run:
            return
        if not yes:
            confirm()
        put_back(settings, hypervisor, found, wish, image, cancelled_by_signal())


def bring_back(
    settings: Config, hypervisor: Host, found: RestorePoint, *, cold: bool, paused: bool
) -> None:
    """Restore a point that was just fetched: there is nothing of now to be kept."""
    from zvmsnap.common.signals import cancelled_by_signal
    from zvmsnap.restore import plan
    from zvmsnap.restore.in_place import restore as put_back
    from zvmsnap.zfs import zfs

    image = _image(found, cold=cold)
    # Rolled back, if nothing is newer: there is no former state that would have to live on.
    rollback = not plan.newer(found, zfs.all_snapshots().present)
    wish = plan.RestoreOptions(cold=cold, paused=paused, rollback=rollback, safety=False)
    put_back(settings, hypervisor, found, wish, image, cancelled_by_signal())


def _image(found: RestorePoint, *, cold: bool) -> Header | None:
    """The checked RAM image that is to be loaded; None to start from the disks."""
    from zvmsnap.points import memory_image

    memory = None if cold else found.manifest.memory
    return memory_image.check(found.directory / memory.file, memory) if memory else None
