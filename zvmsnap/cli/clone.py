"""`zvmsnap clone` and `zvmsnap import`: a guest of a point, or of a backup."""

from __future__ import annotations

from pathlib import Path
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


# -- a guest of a backup


def import_backup(
    path: Annotated[Path, typer.Argument(metavar="DIRECTORY/GUEST@TIME", help="The backup.")],
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="DATASET", help="The parent of the dataset that is made for the guest."
        ),
    ],
    name: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="NAME",
            help="Another guest: with this name, another UUID and other MAC addresses.",
        ),
    ] = "",
    volume: Annotated[
        bool, typer.Option("--volume", help="Its disks become volumes, and no files.")
    ] = False,
    start: Annotated[bool, typer.Option("--start", help="Start it from its disks.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Let it go on with the RAM of the backup.")
    ] = False,
    network: Annotated[
        Network | None,
        typer.Option(
            help="With --as. none: no link. keep: the original's network; with its RAM it has the "
            "original's addresses.  [default: none]",
            show_default=False,
        ),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Take the definition of a backup that was made elsewhere, whatever it reaches.",
        ),
    ] = False,
) -> None:
    """Make a guest of a backup, on this host or another.

    All that is needed is read and compared with its checksums first. Without --as it is the guest
    that was backed up, which must not be here any more.

    \b
    Examples:
      zvmsnap import /backup/web@2026-11-20T030000Z --to tank/vm
      zvmsnap import /backup/web@2026-11-20T030000Z --as web2 --to tank/vm --volume --resume
    """
    from zvmsnap.backup.import_guest import GuestImport
    from zvmsnap.backup.import_plan import ImportOptions, Start, plan_import
    from zvmsnap.common.signals import cancel_at_once
    from zvmsnap.virt.host import Host

    if start and resume:
        raise typer.BadParameter("say --start or --resume")
    if network is Network.ISOLATED:
        raise typer.BadParameter("isolated is of clones: say none or keep")
    if network and not name:
        raise typer.BadParameter("--network is of --as: without it, all is as it was")
    how = Start.RESUME if resume else Start.BOOT if start else Start.OFF
    options = ImportOptions(to, name, volume, how, network or Network.NONE, trust)
    settings = load_settings()
    cancel_at_once()
    with Host.connect(settings.uri) as host:
        plan = plan_import(settings, host, path, options)
        GuestImport.of(settings, host, plan).run()
        state = host.guest(plan.uuid).state()
    print_line(f"{plan.domain}: {state}, of {plan.backup.name}, in {plan.dataset}")
