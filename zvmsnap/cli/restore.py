"""`zvmsnap restore`, and `zvmsnap export-memory` for who restores by hand."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zvmsnap.common.errors import ExportImpossible, RestoreImpossible
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config, load_settings
from zvmsnap.points.manifest import Memory
from zvmsnap.points.point import RestorePoint
from zvmsnap.terminal.options import (
    ColdOption,
    DryRunOption,
    IdentityOption,
    JsonOption,
    PausedOption,
    PointArgument,
    TrustOption,
    YesOption,
    confirm,
    find_point,
    identity_file,
    print_json,
    print_line,
    print_lines,
    refuse_to_ask,
)

if TYPE_CHECKING:
    from zvmsnap.restore.plan import RestorePlan
    from zvmsnap.virt.host import Host
    from zvmsnap.virt.save_image import Header


def restore(
    point: PointArgument,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    cold: ColdOption = False,
    paused: PausedOption = False,
    trust: TrustOption = False,
    identity: IdentityOption = "",
    rollback: Annotated[
        bool,
        typer.Option("--rollback", help="Use zfs rollback, which DESTROYS all newer snapshots."),
    ] = False,
    no_safety: Annotated[
        bool, typer.Option("--no-safety", help="Do not keep the replaced guest as a point.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until sends of its snapshots have ended.")
    ] = False,
    end_sends: Annotated[
        bool, typer.Option("--end-sends", help="End sends of its snapshots: zfs send, by SIGTERM.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a point back in place of its guest.

    Everything is checked before the guest is stopped. If the restore fails, the guest goes on. The
    replaced guest becomes a point of its own. Its disks, with all newer snapshots, are afterwards
    on DATASET.before-TIME.

    \b
    Examples:
      zvmsnap restore --dry-run web@latest
      zvmsnap restore web@2026-11-20T03:15      the last point until 03:15:59
      zvmsnap restore --identity /root/key web@latest      a point that is encrypted
      zvmsnap restore --cold web@autosnap_2026-11-20_03:00:00_daily
    """
    refuse_to_ask(as_json=as_json, yes=yes or dry_run)
    settings = load_settings()
    chosen = find_point(settings, point)
    shown = Shown(as_json=as_json)
    if chosen.manifest.encrypted:
        chosen = _decrypted(settings, chosen, identity, dry_run=dry_run)
    with _image_checked(chosen, cold=cold, whole=dry_run) as checked:
        # To load all this takes a while, too.
        from zvmsnap.common.signals import cancelled_by_signal
        from zvmsnap.restore import running_sends
        from zvmsnap.restore.in_place import restore as put_back
        from zvmsnap.restore.in_place import restore_at_once
        from zvmsnap.restore.plan import RestoreOptions, RestoreRequest, plan_restore
        from zvmsnap.virt.host import Host

        options = RestoreOptions(cold, paused, rollback, safety=not no_safety, trust=trust)
        at_once = yes and not (dry_run or wait or end_sends)
        image = _header(chosen, cold=cold) if at_once else checked()
        request = RestoreRequest(chosen, options, image)
        with Host.connect(settings.uri) as host:
            if at_once:
                restore_at_once(settings, host, request, checked, _teller(shown))
                tell_restored(chosen, shown, dry_run=False)
                return
            planned = plan_restore(settings, host, request)
            shown.lines(planned.lines)
            if planned.sends and (wait or end_sends):
                how = "waits for the end of" if wait else "ENDS"
                shown.lines([f"  first {how}: {planned.sends}"])
            else:
                planned.sends.refuse(planned.operation.domain)
            if dry_run:
                tell_restored(chosen, shown, dry_run=True)
                return
            if not yes:
                confirm()
            cancelled = cancelled_by_signal()
            if wait:
                running_sends.wait_for_end(planned.operation, cancelled)
            elif end_sends:
                running_sends.end(planned.operation)
            put_back(settings, host, planned, cancelled)
    tell_restored(chosen, shown, dry_run=False)


class Shown:
    """A plan in words: it is printed as it comes, or kept for JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.kept: list[str] = []

    def lines(self, lines: Iterable[str]) -> None:
        """Show these, too."""
        if self.as_json:
            self.kept += lines
        else:
            print_lines(lines)


def tell_restored(point: RestorePoint, shown: Shown, *, dry_run: bool) -> None:
    """Print what was done, for programs."""
    if shown.as_json:
        print_json(
            {
                "dry_run": dry_run,
                "point": point.name,
                "guest": point.manifest.domain,
                "uuid": point.manifest.uuid,
                "plan": [line.strip() for line in shown.kept],
            }
        )


def _decrypted(
    settings: Config, point: RestorePoint, identity: str, *, dry_run: bool
) -> RestorePoint:
    """The same point, decrypted in the vault for good. Raises EncryptionFailed and others."""
    from zvmsnap.encryption import in_place

    if dry_run:
        raise RestoreImpossible(
            f"{point.name}: is encrypted, and --dry-run changes nothing: without it, the point is "
            "decrypted in the vault first, and stays so"
        )
    return in_place.decrypt(settings, point, identity_file(settings, identity))


def bring_back(
    settings: Config,
    host: Host,
    point: RestorePoint,
    shown: Shown,
    *,
    cold: bool,
    paused: bool,
    trust: bool,
) -> None:
    """Restore a point that was just fetched. No safety point is made: there is no replaced guest.

    Its datasets are rolled back, unless they have newer snapshots.
    """
    from zvmsnap.common.signals import cancelled_by_signal
    from zvmsnap.restore.in_place import restore_at_once
    from zvmsnap.restore.plan import RestoreOptions, RestoreRequest, newer

    rollback = not newer(point)
    options = RestoreOptions(cold, paused, rollback, safety=False, trust=trust)
    with _image_checked(point, cold=cold, whole=False) as checked:
        request = RestoreRequest(point, options, _header(point, cold=cold))
        restore_at_once(settings, host, request, checked, lambda _plan: cancelled_by_signal())
    tell_restored(point, shown, dry_run=False)


def _teller(shown: Shown) -> Callable[[RestorePlan], threading.Event]:
    """What shows a plan, and returns what cancels it from then on."""
    from zvmsnap.common.signals import cancelled_by_signal

    def tell(plan: RestorePlan) -> threading.Event:
        shown.lines(plan.lines)
        return cancelled_by_signal()

    return tell


@contextmanager
def _image_checked(
    point: RestorePoint, *, cold: bool, whole: bool
) -> Iterator[Callable[[], Header | None]]:
    """Check the RAM image that is to be loaded meanwhile; yields what waits for its header.

    That raises ImageUnloadable; its result is None to boot from the disks. If not `whole`, its
    pages are checked when libvirt's image is made of them, before the guest stops.
    """
    from zvmsnap.points import memory_image

    memory = None if cold else point.manifest.memory
    if memory is None:
        yield lambda: None
        return
    with memory_image.checking(point.directory / memory.file, memory, whole=whole) as checked:
        yield checked


def _header(point: RestorePoint, *, cold: bool) -> Header | None:
    """The same header, which is not checked yet."""
    from zvmsnap.points import memory_image

    memory = None if cold else point.manifest.memory
    return memory_image.header_of(point.directory / memory.file, memory) if memory else None


def export_memory(
    point: PointArgument,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A new file, on a file system with room.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Write the RAM image of a point into a new file, as libvirt writes it, for virsh restore.

    All of it is read and compared with its checksum. The file appears when it is complete, and only
    root can read it: it holds all that the guest had in memory. Its disks must be those of the same
    instant, as their snapshots have them: zvmsnap restore sees to that, virsh restore does not.

    \b
    Examples:
      zvmsnap export-memory web@latest /root/web.img
    """
    from zvmsnap.points import memory_image

    _check(file)
    chosen = find_point(load_settings(), point)
    memory = chosen.manifest.memory
    if memory is None:
        why = chosen.manifest.reason
        raise ExportImpossible(f"{chosen.name}: has no RAM image{f': {why}' if why else ''}")
    _check_room(file, memory)
    # libvirt's image of a paused guest says so; but it was running until the snapshot.
    ran = chosen.manifest.level is ConsistencyLevel.PAUSED
    memory_image.export(chosen.directory / memory.file, memory, file, ran=ran)
    size_bytes = file.stat().st_size
    if as_json:
        print_json({"point": chosen.name, "file": str(file), "size_bytes": size_bytes})
    else:
        print_line(f"{file}: the RAM image of {chosen.name}, {size_bytes >> 20} MiB")


def _check(file: Path) -> None:
    if str(file) == "-":
        # libvirt opens an image twice, and only at its end it is known whether it is whole.
        raise typer.BadParameter("a RAM image is written into a file, not to a pipe")
    if file.is_symlink() or file.exists():
        raise typer.BadParameter(f"{file} exists already, and is not overwritten")
    if not file.parent.is_dir():
        raise typer.BadParameter(f"{file.parent} is no directory")


def _check_room(file: Path, memory: Memory) -> None:
    free_bytes = shutil.disk_usage(file.parent).free
    if memory.image_bytes > free_bytes:
        raise ExportImpossible(
            f"{file.parent} has {free_bytes >> 20} MiB free, and the RAM image may need "
            f"{memory.image_bytes >> 20} MiB"
        )
