"""`zvmsnap backup`: copies of guests in a plain directory, which any qemu-img reads."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from zvmsnap.archive.manifest import Level
from zvmsnap.common import log
from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK, BackupInvalid, GuestNotFound
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
        bool, typer.Option("--all-running", help="All guests that run, some at once.")
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
    if point:
        made = [_of_point(settings, point, directory, options)]
    else:
        from zvmsnap.virt.host import Host

        with Host.connect(settings.uri) as host:
            guests = _chosen(host, None if all_running else names)
            wanted = _wanted(quiesce, state, crash)
            if len(guests) != 1:
                words = _words(options, wanted, as_json=as_json)
                code = _of_several(settings, guests, directory.path, words, as_json=as_json)
                raise typer.Exit(code)
            made = _of_guest(settings, host, guests[0], directory, options, wanted)
    if as_json:
        print_json({"backups": [_as_json(each) for each in made]})
    else:
        print_lines(map(_line, made))


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


def _of_guest(
    settings: Config,
    host: Host,
    guest: Guest,
    directory: BackupDirectory,
    options: BackupOptions,
    wanted: Wanted,
) -> list[StoredBackup]:
    from zvmsnap.backup.of_guest import back_up_guest
    from zvmsnap.common.signals import cancel_at_once

    cancel_at_once()
    made = back_up_guest(settings, host, guest, directory, options, wanted)
    if not made:
        log.plain().warning("%s: nothing has changed since its last backup", guest.name)
    return [made] if made else []


def _words(options: BackupOptions, wanted: Wanted, *, as_json: bool) -> list[str]:
    """The same options for another command line of ours."""
    from zvmsnap.backup.of_guest import Wanted

    kinds = {Wanted.QUIESCED: "--quiesce", Wanted.STATE: "--state", Wanted.CRASH: "--crash"}
    level = [f"--level={options.level}"] if options.level else []
    compress = ["--compress"] if options.compress else []
    how = [kinds[wanted]] if wanted in kinds else []
    without = [f"--exclude={target}" for target in sorted(options.exclude)]
    return [*level, *how, *without, *compress, *(["--json"] if as_json else [])]


def _of_several(
    settings: Config, guests: Sequence[Guest], path: Path, words: Sequence[str], *, as_json: bool
) -> int:
    """Back them up, some at once; returns the exit code of the worst."""
    from zvmsnap.common.signals import cancel_at_once
    from zvmsnap.terminal import several

    commands = {
        guest.name: several.command("backup", *words, "make", guest.uuid, str(path))
        for guest in guests
    }
    code = EXIT_OK
    told: list[Any] = []
    cancel_at_once()
    with closing(several.run_each(commands, settings.limits.parallel_backups)) as each:
        for name, ended in each:
            if ended.code:
                log.plain().error("%s: is not backed up (exit code %d)", name, ended.code)
            elif as_json:
                told += json.loads(ended.output)["backups"]
            else:
                print_lines(ended.output.splitlines())
            code = max(code, ended.code)
    if as_json:
        print_json({"backups": told})
    return code


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
    looked_at = {each.name: problems(directory, each) for each in found}
    results = {n: p for n, p in looked_at.items() if os.path.lexists(directory.path / n)}
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
