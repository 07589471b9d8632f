"""The command line of an operator: common options, and which module has which command."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

import zvmsnap
from zvmsnap.bulk import progress
from zvmsnap.common import log
from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE, ZvmsnapError
from zvmsnap.hooks import needed
from zvmsnap.journal.request import Role
from zvmsnap.terminal import completion

# The functions of the commands, by module. Only that of the command that is asked for is imported:
# a guest may stand still until it is.
_COMMANDS = {
    "list": ("points", "list_points"),
    "show": ("points", "show"),
    "prune": ("points", "prune_points"),
    "recover": ("recover", "recover_guests"),
    "restore": ("restore", "restore"),
    "clone": ("clone", "clone"),
    "verify": ("verify", "verify"),
    "flatten": ("files", "flatten"),
    "files": ("files", "files"),
    "mount": ("files", "mount"),
    "export-memory": ("restore", "export_memory"),
    "take": ("take", "take"),
    "drop": ("take", "drop"),
    "send": ("replication", "send"),
    "fetch": ("replication", "fetch"),
    "status": ("replication", "status"),
    "backup": ("backup", "backup"),
    "monitor": ("watch", "monitor"),
    "report": ("watch", "report"),
    "check": ("check", "check"),
    "import": ("clone", "import_backup"),
    "idle": ("recover", "idle"),
    "init": ("check", "init"),
    "notify": ("watch", "notify"),
    "hook": ("main", "hook"),
}

# `monitor` and `report` write one file, whole or not at all.
_READ_ONLY = (["list"], ["show"], ["status"], ["monitor"], ["report"], ["idle"])
_LOOKS = (["list"], ["show"], ["verify"])  # of backups
_DRY = frozenset(("--dry-run", "-n"))


def main() -> None:
    """Run the command line; exits 0, 1 for a failure, 2 for usage or configuration."""
    log.setup()
    # A locale without the characters that a name has is no reason to fail.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    completion.join_words_of_bash(os.environ)
    try:
        try:
            app_of(_needed(sys.argv[1:]))()
        finally:
            _tell_failures()
    except ZvmsnapError as error:
        log.plain().error("%s", error)
        sys.exit(error.exit_code)
    except ImportError as error:
        log.plain().error("%s", needed.line(error))
        sys.exit(EXIT_USAGE)
    except Exception as error:
        log.failure(log.plain(), error)
        sys.exit(EXIT_FAILED)


def _tell_failures() -> None:
    """What a command has failed in is told now: no guest waits for it any more."""
    notices = sys.modules.get("zvmsnap.notify.notices")
    if notices and notices.count():
        from zvmsnap.config.settings import load_settings

        notices.deliver(load_settings())


def app_of(commands: Iterable[str] = tuple(_COMMANDS)) -> typer.Typer:
    """The command line that has these commands."""
    # Plain help: every command would import rich, only to draw boxes.
    app = typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(common)
    for name in commands:
        module, function = _COMMANDS[name]
        app.command(name)(getattr(import_module(f"zvmsnap.cli.{module}"), function))
    return app


def _needed(words: Sequence[str]) -> list[str]:
    """The command of a command line; all, if it has none that is known, or is completed."""
    command = _from_command_on(words)[:1]
    is_known = bool(command) and command[0] in _COMMANDS
    return command if is_known and completion.SHELL not in os.environ else list(_COMMANDS)


def _from_command_on(words: Sequence[str]) -> list[str]:
    """Without the options that are common to all commands."""
    command = list(words)
    while command and command[0].startswith("-"):
        del command[: 2 if command[0] == "--config" else 1]
    return command


def only_reads(words: Sequence[str]) -> bool:
    """Does a command line of these words change nothing, so that it may be given up anywhere?"""
    command = _from_command_on(words)
    if command[:1] == ["verify"]:
        # It notes what it has found; with --boot it makes clones.
        return not any(word.startswith(("--boot", "--expect")) for word in command)
    if command[:1] == ["backup"]:
        return command[1:2] in _LOOKS
    if command[:1] == ["check"]:
        return "--fix" not in command
    if command[:1] == ["init"] and "--print-sanoid" in command:
        return True
    return command[:1] in _READ_ONLY or not _DRY.isdisjoint(command)


def read() -> int:
    """Run a command that only reads, in a child process: Ctrl-C reaches it twice, and ends it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    main()
    return EXIT_OK


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zvmsnap {zvmsnap.__version__}")
        raise typer.Exit


def common(
    context: typer.Context,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="Configuration file.", show_default=False)
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Log warnings and errors only.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Coherent restore points (disks and RAM) of running KVM guests on ZFS, made by sanoid's hooks.

    \b
    Examples:
      zvmsnap init                   set this host up for its guests
      zvmsnap check                  is this host as it should be?
      zvmsnap list                   list all points
      zvmsnap list web               list the points of one guest
      zvmsnap show web@autosnap_2026-11-20_03:00:00_daily
      zvmsnap restore web@latest     bring the newest point back, in place
      zvmsnap clone web@latest web2  make a second machine from it
      zvmsnap verify --boot web      start each point of a guest, to prove it
      zvmsnap files web@latest /etc/nginx --to /root/old
      zvmsnap take web db            take points of two guests now, at one instant
      zvmsnap send web backup@nas:pool/offsite
      zvmsnap backup web /backup     copy a guest into a directory, without ZFS
      zvmsnap prune --dry-run        list points that have lost their snapshots
      zvmsnap recover                bring guests back from overlays after a crash
      zvmsnap report --html zvmsnap.html

    \b
    Exit codes: 0 done, 1 something failed, 2 usage, configuration or environment.
    """
    if config_file:
        os.environ["ZVMSNAP_CONFIG"] = str(config_file.absolute())
    log.setup(1 if verbose else -1 if quiet else 0)
    progress.want(not quiet and context.invoked_subcommand != "hook")


def hook(
    role: Annotated[Role, typer.Argument(help="Which of sanoid's hooks.")],
    datasets: Annotated[
        list[str] | None, typer.Argument(help="The datasets, if no variable names them.")
    ] = None,
) -> None:
    """Run as a hook of sanoid, zrepl or zfs_autobackup.

    sanoid and zrepl name datasets and snapshots in variables, zfs_autobackup names datasets as
    arguments.

    \b
    In sanoid.conf:
      pre_snapshot_script = /usr/local/bin/zvmsnap hook pre
      post_snapshot_script = /usr/local/bin/zvmsnap hook post
      pruning_script = /usr/local/bin/zvmsnap hook prune
    """
    from zvmsnap.hooks import stand_in
    from zvmsnap.hooks.main import run

    raise typer.Exit(stand_in.run(lambda: run([role, *(datasets or [])])))
