"""`zvmsnap clone`."""

from __future__ import annotations

from typing import Annotated

import typer

from zvmsnap.cli import completion
from zvmsnap.cli.options import ColdOption, PausedOption, find
from zvmsnap.clone.domain_xml import Network
from zvmsnap.config.settings import load_settings


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
    from zvmsnap.clone import create, plan
    from zvmsnap.clone.destroy import destroy_clone
    from zvmsnap.common.signals import finish_before_dying
    from zvmsnap.virt.host import Host

    settings = load_settings()
    if bool(name) == destroy:
        raise typer.BadParameter(
            "say NEWNAME for the clone" if not destroy else "say only the clone's name"
        )
    with Host(settings.uri) as hypervisor:
        if destroy:
            finish_before_dying()
            for dataset in destroy_clone(hypervisor, point):
                typer.echo(f"destroyed {dataset}")
            return
        wish = plan.CloneOptions(name, cold=cold, paused=paused, network=network)
        task = plan.plan(settings, hypervisor, find(settings, point), wish)
        finish_before_dying()
        create.CloneCreation(settings, hypervisor, task).run()
        typer.echo(f"{name}: {hypervisor.guest(task.uuid).state()}, a clone of {task.point}")
