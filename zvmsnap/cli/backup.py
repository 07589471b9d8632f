"""`zvmsnap backup`: copies of guests in a plain directory, which any qemu-img reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from zvmsnap.archive.manifest import Level
from zvmsnap.clone.identity import Network
from zvmsnap.common import log
from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK, BackupInvalid, Cancelled, GuestNotFound
from zvmsnap.config.settings import Config, load_settings
from zvmsnap.terminal.options import JsonOption, find_point, print_json, print_line, print_lines

if TYPE_CHECKING:
    from zvmsnap.archive.directory import BackupDirectory, DamagedBackup, StoredBackup
    from zvmsnap.backup.of_guest import Wanted
    from zvmsnap.backup.writing import BackupOptions
    from zvmsnap.virt.guest import Guest
    from zvmsnap.virt.host import Host

_VERBS = ("make", "list", "show", "verify", "consolidate")


def backup(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[GUEST...] DIRECTORY",
            help="Or: list DIRECTORY; show or verify DIRECTORY/BACKUP; verify DIRECTORY; "
            "consolidate GUEST DIRECTORY. A guest that is called as one of these: make GUEST "
            "DIRECTORY.",
        ),
    ],
    point: Annotated[
        str,
        typer.Option(
            "--from", metavar="DOMAIN@SNAPNAME", help="Back up a point, with its RAM, instead."
        ),
    ] = "",
    level: Annotated[
        Level | None,
        typer.Option(
            help="full; inc: what differs from the last backup; diff: from the last full one; "
            "copy: full, and no later one depends on it. Default: inc, the first one full.",
            show_default=False,
        ),
    ] = None,
    quiesce: Annotated[
        bool, typer.Option("--quiesce", help="Fail if its agent cannot freeze its file systems.")
    ] = False,
    state: Annotated[
        bool, typer.Option("--state", help="With its RAM: it can go on from there.")
    ] = False,
    crash: Annotated[bool, typer.Option("--crash", help="Do not freeze anything.")] = False,
    all_running: Annotated[
        bool, typer.Option("--all-running", help="All guests that run, one after the other.")
    ] = False,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", "-x", metavar="TARGET", help="Without this disk, such as vdb."),
    ] = None,
    compress: Annotated[
        bool, typer.Option("--compress", help="Compress the images (zstd, within qcow2).")
    ] = False,
    keep: Annotated[
        int,
        typer.Option(min=0, help="With consolidate: how many backups stay.", show_default=False),
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Copy guests into a directory: plain qcow2 files, definition, firmware and RAM.

    The first backup of a guest is a full one, later ones are what differs. Each is a directory
    GUEST@TIME. Neither ZFS nor zvmsnap is needed to read them.

    \b
    Examples:
      zvmsnap backup web /backup
      zvmsnap backup --all-running /backup
      zvmsnap backup --from web@latest /backup
      zvmsnap backup list /backup
      zvmsnap backup verify /backup
      zvmsnap backup consolidate web /backup --keep 7
    """
    verb, names, path = _parsed(words)
    settings = load_settings()
    if bool(keep) != (verb == "consolidate"):
        raise typer.BadParameter("--keep NUMBER and consolidate belong together")
    if verb == "consolidate":
        _consolidate(settings, names, path, keep, compress=compress, as_json=as_json)
        return
    if verb != "make":
        if point or level or quiesce or state or crash or exclude or compress or all_running:
            raise typer.BadParameter(f"these options are not of {verb}")
        _look(verb, path, as_json=as_json)
        return
    if bool(names) + bool(point) + all_running != 1:
        raise typer.BadParameter("say GUEST..., or --all-running, or --from a point")
    if quiesce + state + crash > 1 or (point and (quiesce or state or crash)):
        raise typer.BadParameter("say one of --quiesce, --state and --crash; none with --from")
    from zvmsnap.archive.directory import BackupDirectory
    from zvmsnap.backup.writing import BackupOptions

    options = BackupOptions(level, frozenset(exclude or ()), compress)
    directory = BackupDirectory(path)
    failed: list[str] = []
    if point:
        made = [_of_point(settings, point, directory, options)]
    else:
        wanted = _wanted(quiesce, state, crash)
        asked = None if all_running else names
        made = list(_of_guests(settings, asked, directory, options, wanted, failed))
    if as_json:
        print_json({"backups": [_as_json(each) for each in made]})
    else:
        print_lines(map(_line, made))
    raise typer.Exit(EXIT_FAILED if failed else EXIT_OK)


def _parsed(words: Sequence[str]) -> tuple[str, list[str], Path]:
    """What to do, the names of guests, and the directory."""
    verb, rest = (words[0], list(words[1:])) if words[0] in _VERBS else ("make", list(words))
    if not rest:
        raise typer.BadParameter("say the DIRECTORY of the backups")
    names, path = rest[:-1], Path(rest[-1])
    if verb not in ("make", "consolidate") and names:
        raise typer.BadParameter(f"{verb} takes one directory")
    return verb, names, path


def _wanted(quiesce: bool, state: bool, crash: bool) -> Wanted:
    from zvmsnap.backup.of_guest import Wanted

    if quiesce:
        return Wanted.QUIESCED
    if state:
        return Wanted.STATE
    return Wanted.CRASH if crash else Wanted.BEST


def _of_point(
    settings: Config, text: str, directory: BackupDirectory, options: BackupOptions
) -> StoredBackup:
    from zvmsnap.backup.of_point import back_up_point
    from zvmsnap.common.signals import cancel_at_once

    chosen = find_point(settings, text)
    cancel_at_once()
    return back_up_point(settings, chosen, directory, options)


def _of_guests(
    settings: Config,
    names: Sequence[str] | None,
    directory: BackupDirectory,
    options: BackupOptions,
    wanted: Wanted,
    failed: list[str],
) -> Iterator[StoredBackup]:
    """Back them up, one after the other; None: all that run. Those that `failed` are told."""
    from zvmsnap.backup.of_guest import back_up_guest
    from zvmsnap.virt.host import Host

    with Host.connect(settings.uri) as host:
        for guest in _chosen(host, names):
            try:
                made = back_up_guest(settings, host, guest, directory, options, wanted)
                if made:
                    yield made
                else:
                    log.plain().warning("%s: nothing has changed since its last backup", guest.name)
            except Cancelled:
                raise
            except Exception as error:
                if names and len(names) == 1:
                    raise
                failed.append(guest.name)
                log.failure(log.about(guest.name, str(directory.path)), error)


def _chosen(host: Host, names: Sequence[str] | None) -> list[Guest]:
    guests = host.guests()
    if names is None:
        return [guest for guest in guests if guest.is_active()]
    known = {key: guest for guest in guests for key in (guest.uuid, guest.name)}
    for name in names:
        if name not in known:
            raise GuestNotFound(f"{name}: libvirt has no such guest")
    return list({known[name].uuid: known[name] for name in names}.values())


def _consolidate(
    settings: Config,
    names: Sequence[str],
    path: Path,
    keep: int,
    *,
    compress: bool,
    as_json: bool,
) -> None:
    from zvmsnap.archive.consolidate import consolidate, guest_named
    from zvmsnap.archive.directory import BackupDirectory
    from zvmsnap.backup.of_point import lock_name
    from zvmsnap.common.lockfile import own_lock
    from zvmsnap.common.signals import cancel_at_once

    if len(names) != 1:
        raise typer.BadParameter("say one GUEST, and the DIRECTORY")
    directory = BackupDirectory(path)
    uuid = guest_named(directory, names[0])
    intent = f"consolidate {names[0]} in {path}"
    cancel_at_once()
    with own_lock(settings.locks_dir, lock_name(uuid), intent, settings.limits.lock_timeout_s):
        whole, gone = consolidate(directory, uuid, keep, compress=compress)
    if as_json:
        print_json({"whole": whole, "removed": gone})
        return
    print_lines(f"{each}: is whole now" for each in whole)
    print_lines(f"removed {each}" for each in gone)


# -- into a guest again


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


# -- what is there


def _look(verb: str, path: Path, *, as_json: bool) -> None:
    from zvmsnap.archive.directory import BackupDirectory
    from zvmsnap.archive.manifest import is_name

    if is_name(path.name) and path.is_dir():
        directory = BackupDirectory(path.parent)
        found = [directory.backup(path.name)]
        damaged: list[DamagedBackup] = []
    else:
        directory = BackupDirectory(path)
        found, damaged = directory.read()
    if verb == "show":
        if not is_name(path.name):
            raise BackupInvalid(f"{path}: is no backup: say DIRECTORY/GUEST@TIME")
        _show(directory, found[0], as_json=as_json)
    elif verb == "verify":
        _verify(directory, found, damaged, as_json=as_json)
    else:
        _list(found, damaged, as_json=as_json)


def _list(
    found: Sequence[StoredBackup], damaged: Sequence[DamagedBackup], *, as_json: bool
) -> None:
    if as_json:
        print_json(
            {
                "backups": [_as_json(each) for each in found],
                "damaged": [{"directory": str(e.directory), "why": e.why} for e in damaged],
            }
        )
    else:
        print_lines(map(_line, found))
        print_lines(f"DAMAGED: {each.why}" for each in damaged)
    raise typer.Exit(EXIT_FAILED if damaged else EXIT_OK)


def _show(directory: BackupDirectory, found: StoredBackup, *, as_json: bool) -> None:
    manifest = found.manifest
    chain = directory.chain(found)
    if as_json:
        print_json(_as_json(found) | {"chain": [each.name for each in chain]})
        return
    print_line(_line(found))
    print_line(f"  made of: {manifest.way} ({manifest.point or 'no point'})")
    if manifest.reason:
        print_line(f"  because: {manifest.reason}")
    for disk in manifest.disks:
        on = f", on that of {manifest.parent}" if disk.depends else ""
        how = f" ({disk.compared})" if disk.compared else ""
        print_line(f"  {disk.target}: {disk.file}, {disk.disk_bytes >> 20} MiB{on}{how}")
    if manifest.left_out:
        print_line(f"  without: {', '.join(manifest.left_out)}")
    print_lines(f"  needs: {each.name}" for each in chain[1:])


def _verify(
    directory: BackupDirectory,
    found: Sequence[StoredBackup],
    damaged: Sequence[DamagedBackup],
    *,
    as_json: bool,
) -> None:
    from zvmsnap.archive.verify import problems
    from zvmsnap.common.signals import cancel_at_once

    cancel_at_once()
    results = {each.name: list(problems(directory, each)) for each in found}
    results |= {each.directory.name: [each.why] for each in damaged}
    if as_json:
        print_json({"backups": [{"name": n, "problems": p} for n, p in results.items()]})
    else:
        print_lines(f"{n}: {'; '.join(p) if p else 'is whole'}" for n, p in results.items())
    raise typer.Exit(EXIT_FAILED if any(results.values()) else EXIT_OK)


def _line(found: StoredBackup) -> str:
    manifest = found.manifest
    ram = ", with RAM" if manifest.memory else ""
    disks = ",".join(disk.target for disk in manifest.disks)
    return (
        f"{found.name}  {manifest.level}  {manifest.consistency}{ram}  {disks}  "
        f"{manifest.stored_bytes >> 20} MiB"
    )


def _as_json(found: StoredBackup) -> dict[str, Any]:
    return {"name": found.name, **msgspec.to_builtins(found.manifest)}
