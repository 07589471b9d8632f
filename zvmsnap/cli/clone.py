"""`zvmsnap clone`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zvmsnap.clone.identity import Network
from zvmsnap.config.settings import Config, load_settings
from zvmsnap.terminal import completion
from zvmsnap.terminal.options import (
    ColdOption,
    JsonOption,
    PausedOption,
    TrustOption,
    find_point,
    print_json,
    print_line,
    print_lines,
)

if TYPE_CHECKING:
    from zvmsnap.clone.plan import CloneOptions


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
    trust: TrustOption = False,
    network: Annotated[
        Network,
        typer.Option(
            help="none: no link. isolated: a network of clones only. keep: the original's network; "
            "the clone's RAM has the original's addresses."
        ),
    ] = Network.NONE,
    destroy: Annotated[
        bool,
        typer.Option("--destroy", help="Remove a clone: what was made for it, nothing else."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a second machine from a point, beside the original.

    It has the RAM of the point, clones of its datasets, another UUID, other MAC addresses, no
    network and no autostart. While it exists, the snapshots that it was cloned from cannot be
    destroyed.

    \b
    Examples:
      zvmsnap clone web@latest web-look
      zvmsnap clone --destroy web-look
    """
    from zvmsnap.clone.plan import CloneOptions

    settings = load_settings()
    if bool(name) == destroy:
        raise typer.BadParameter(
            "say only the clone's name" if destroy else "say NEWNAME for the clone"
        )
    if destroy:
        _destroy(settings, point, as_json=as_json)
    else:
        options = CloneOptions(name, cold, paused, network, trust)
        _create(settings, point, options, as_json=as_json)


def _create(settings: Config, point: str, options: CloneOptions, *, as_json: bool) -> None:
    from zvmsnap.clone.create import CloneCreation
    from zvmsnap.clone.plan import plan_clone
    from zvmsnap.common.signals import finish_before_dying
    from zvmsnap.virt.host import Host

    with Host.connect(settings.uri) as host:
        operation = plan_clone(settings, host, find_point(settings, point), options)
        finish_before_dying()
        CloneCreation(settings, host, operation).run()
        state = host.guest(operation.uuid).state()
    if as_json:
        made = {"name": options.name, "uuid": operation.uuid, "point": operation.point}
        print_json({"created": {**made, "state": state}, "destroyed": []})
    else:
        print_line(f"{options.name}: {state}, a clone of {operation.point}")


def _destroy(settings: Config, name: str, *, as_json: bool) -> None:
    from zvmsnap.clone.destroy import destroy_clone
    from zvmsnap.common.signals import finish_before_dying
    from zvmsnap.virt.host import Host

    with Host.connect(settings.uri) as host:
        finish_before_dying()
        destroyed = destroy_clone(host, name)
    if as_json:
        print_json({"created": None, "destroyed": destroyed})
    else:
        print_lines(f"destroyed {dataset}" for dataset in destroyed)
