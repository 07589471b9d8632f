"""`zvmsnap files`, `zvmsnap mount` and `zvmsnap flatten`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zvmsnap.common import log
from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK, GuestNotFound
from zvmsnap.config.settings import load_settings
from zvmsnap.flatten.method import Method
from zvmsnap.terminal import completion
from zvmsnap.terminal.options import (
    DryRunOption,
    JsonOption,
    PointArgument,
    YesOption,
    confirm,
    find_point,
    print_json,
    print_lines,
)

if TYPE_CHECKING:
    from zvmsnap.files.copy_out import Copied
    from zvmsnap.files.tree import Item
    from zvmsnap.flatten.plan import FlattenPlan

ByDeviceOption = Annotated[
    bool,
    typer.Option(
        "--by-device", help="All file systems by their devices, not as the guest mounts them."
    ),
]


def files(
    point: PointArgument,
    path: Annotated[str, typer.Argument(help="In the guest; C:\\Users\\x of Windows.")] = "/",
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Copy it there, with all below it."),
    ] = None,
    by_device: ByDeviceOption = False,
    as_json: JsonOption = False,
) -> None:
    """List, or copy out, files of a point.

    A small machine of libguestfs looks into the disks of the point, read-only. The guest is not
    touched, nor its file systems mounted by this host. Without --to a directory is listed. Nothing
    is written outside of DIR; devices, and symlinks that lead out of what is copied, are left out.

    \b
    Examples:
      zvmsnap files web@latest
      zvmsnap files web@latest /etc/nginx
      zvmsnap files web@latest /etc/nginx --to /root/old
      zvmsnap files win@latest 'C:\\Users\\ada\\Documents' --to /root/old
    """
    from zvmsnap.common.signals import cancel_at_once
    from zvmsnap.files import appliance, copy_progress, ending, opening, plan, tree
    from zvmsnap.files.copy_out import copy_out
    from zvmsnap.points import vault

    settings = load_settings()
    appliance.check_installed()
    named = find_point(settings, point)
    cancel_at_once()
    for left in ending.tidy(settings):
        log.plain().error("%s", left)
    view = plan.plan_view(settings, named, by_device=by_device)
    with opening.opened(view) as opened:
        for each in opened.left_out:
            log.plain().warning("%s", each)
        with tree.found(view.mountpoint, path, any_case=opened.is_windows) as entry:
            if to is None:
                _print_listing(entry.path, tree.listed(entry), as_json=as_json)
                return
            name = entry.path.rpartition("/")[2] or vault.folder_of(view.domain)
            with copy_progress.shown(entry.path) as copied:
                target, _ = copy_out(entry, name, to.absolute(), opened.size_bytes, copied)
    _print_copied(target, copied, as_json=as_json)
    raise typer.Exit(EXIT_FAILED if copied.failed else EXIT_OK)


def mount(
    point: Annotated[
        str,
        typer.Argument(
            metavar="DOMAIN@SNAPNAME",
            help="As for restore; with --off the directory.",
            autocompletion=completion.points,
        ),
    ],
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="An empty directory.")
    ] = None,
    by_device: ByDeviceOption = False,
    off: Annotated[bool, typer.Option("--off", help="Unmount DIR, as umount does.")] = False,
) -> None:
    """Mount the file systems of a point at a directory, read-only, for root alone.

    By libguestfs: this host's kernel sees files, not the guest's file systems. A process stays
    until DIR is unmounted. Meanwhile the snapshots of the point cannot be destroyed.

    \b
    Examples:
      zvmsnap mount web@latest /mnt
      zvmsnap mount --off /mnt
    """
    from zvmsnap.files import opening

    settings = load_settings()
    if (directory is None) != off:
        raise typer.BadParameter("say only DIR with --off" if off else "say DIR, to mount it there")
    if off or directory is None:
        closed = opening.close(settings, Path(os.path.realpath(point)))
        print_lines([f"{point}: unmounted, it was {closed}"])
        return
    _mount(point, directory, by_device=by_device)


def _mount(point: str, directory: Path, *, by_device: bool) -> None:
    from zvmsnap.common.signals import cancel_at_once
    from zvmsnap.files import appliance, ending, opening, plan

    settings = load_settings()
    appliance.check_installed()
    named = find_point(settings, point)
    mountpoint = plan.mountpoint(directory)
    cancel_at_once()
    for left in ending.tidy(settings):
        log.plain().error("%s", left)
    opened = opening.leave_open(plan.plan_view(settings, named, mountpoint, by_device=by_device))
    for each in opened.left_out:
        log.plain().warning("%s", each)
    print_lines([f"{directory}: {named.name}, until zvmsnap mount --off {directory}"])


def _print_listing(path: str, items: list[Item], *, as_json: bool) -> None:
    from zvmsnap.files import tree

    if as_json:
        print_json({"path": path, "entries": [dataclasses.asdict(item) for item in items]})
    else:
        print_lines(map(tree.line, items))


def _print_copied(target: Path, copied: Copied, *, as_json: bool) -> None:
    if as_json:
        print_json({"target": str(target), **dataclasses.asdict(copied)})
        return
    for each in copied.failed:
        log.plain().error("not copied: %s", each)
    for each in copied.left_out:
        log.plain().warning("left out: %s", each)
    counts = f"{copied.files} files, {copied.read_bytes} bytes"
    missing = f", {copied.left_out_count} left out, {copied.failed_count} not copied"
    is_whole = not copied.left_out_count and not copied.failed_count
    print_lines([f"{target}: {counts}{'' if is_whole else missing}"])


def flatten(
    domain: Annotated[str, typer.Argument(help="The guest, by name or UUID.")],
    method: Annotated[
        Method,
        typer.Option(
            help="commit: all goes into the last image, which the guest has then. pull: all goes "
            "into the first; no other is changed."
        ),
    ] = Method.COMMIT,
    disk: Annotated[
        list[str] | None, typer.Option(help="Only this disk, such as vda; may be repeated.")
    ] = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
) -> None:
    """Merge chains of images that other tools have left below a guest's disks.

    The guest may run or be off. Overlays of zvmsnap are left to recover. Images that are not
    needed any more are named, and stay. Interrupted, it leaves the guest on its chain.

    \b
    Examples:
      zvmsnap flatten web --dry-run
      zvmsnap flatten web --disk vda --method pull
    """
    from zvmsnap.common.signals import cancel_at_once
    from zvmsnap.flatten import run
    from zvmsnap.flatten.plan import plan
    from zvmsnap.virt.host import Host

    settings = load_settings()
    with Host.connect(settings.uri) as host:
        guest = next((each for each in host.guests() if domain in (each.name, each.uuid)), None)
        if guest is None:
            raise GuestNotFound(f"{domain}: libvirt has no such guest")
        planned = plan(host, guest, method, disk or ())
        print_lines(_plan_lines(guest.name, planned))
        if dry_run or not planned.chains:
            return
        if not yes:
            confirm()
        cancel_at_once()
        run.flatten(settings, host, guest, planned)
    print_lines(_result_lines(planned))


def _plan_lines(name: str, planned: FlattenPlan) -> Iterator[str]:
    if not planned.chains:
        yield f"{name}: no disk is on a chain of images"
    for target, chain in planned.chains.items():
        yield f"{target}: {len(chain.overlays) + 1} images become {planned.result(target)}:"
        yield from (f"  {image}" for image in (*chain.overlays, chain.base))


def _result_lines(planned: FlattenPlan) -> Iterator[str]:
    for target in planned.chains:
        yield f"{target}: is on {planned.result(target)} alone; not needed any more:"
        yield from (f"  {image}" for image in planned.superfluous(target))
