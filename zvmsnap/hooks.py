"""The three hooks that sanoid calls: `zvmsnap hook pre|post|prune`.

Kept light: sanoid calls prune once for each destroyed snapshot, so each hook imports its own room
only when it is entered, and neither typer nor libvirt before they are needed.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from zvmsnap import log, sanoid
from zvmsnap.errors import (
    EXIT_FAILED,
    EXIT_OK,
    Cancelled,
    HookEnvironmentInvalid,
    ZvmsnapError,
)
from zvmsnap.sanoid import HookCall, Role

if TYPE_CHECKING:
    from zvmsnap.config import Config

_TRY_AGAIN_S = 300
_PR_SET_PDEATHSIG = 1
_INIT = 1


def main(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Run the hook named by the one argument, with log lines; returns the exit code."""
    log.setup()
    return run(arguments, environment)


def run(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Run the hook named by the one argument; returns the exit code."""
    try:
        role = _role(arguments)
        return EXIT_OK if _run(sanoid.hook_call(role, environment)) else EXIT_FAILED
    except ZvmsnapError as error:
        log.plain().error("%s", error)
        return error.exit_code
    except OSError as error:
        log.plain().error("%s", error)
        return EXIT_FAILED


def _role(arguments: Sequence[str]) -> Role:
    try:
        (word,) = arguments
        return Role(word)
    except ValueError:
        roles = "|".join(Role)
        raise HookEnvironmentInvalid(
            f"usage: zvmsnap hook {roles}, not {' '.join(arguments) or 'nothing'!r}"
        ) from None


def _run(call: HookCall) -> bool:
    from zvmsnap import config

    settings = config.load()
    if call.role is Role.PRUNE:
        finish_before_dying()
        from zvmsnap.prune import forget

        # sanoid calls prune for one snapshot after the other: what failed now would fail again.
        complete = _finish_abandoned(call, settings, tried_before_s=_TRY_AGAIN_S)
        return forget(call, settings) and complete
    from zvmsnap.journal import Process

    parent = os.getppid()
    caller = _sanoid_above(parent)
    owner = Process.of(caller or parent)
    if call.role is Role.POST:
        finish_before_dying()
        from zvmsnap.finish import finish

        complete = finish(call, settings, owner)
        return _finish_abandoned(call, settings) and complete
    cancelled = _cancelled_with_parent(parent)
    from zvmsnap.capture import begin

    takes_recursively = _recursion(call, settings.sanoid_configdir, caller)
    return begin(call, settings, owner, takes_recursively, cancelled, guarded=bool(caller))


def _finish_abandoned(call: HookCall, settings: Config, tried_before_s: float = 0) -> bool:
    """Finish moments of these datasets whose sanoid is dead; pre does so for each guest itself.

    True if all could be; what could not keeps nobody from the hook's own work.
    """
    from zvmsnap.journal import Journal

    journal = Journal(settings.journal_dir)
    entries = [
        entry
        for entry in journal.entries()
        if {*entry.targets, *entry.datasets} & set(call.datasets)
        and not entry.owner.is_alive()
        and journal.age_s(entry) >= tried_before_s
    ]
    if not entries:
        return True
    from zvmsnap import recover

    for entry in entries:
        journal.tried(entry)
    try:
        return recover.each(settings, entries)
    except (ZvmsnapError, OSError) as error:
        log.plain().error("abandoned moments are not finished: %s", error)
        return False


def _sanoid_above(pid: int) -> int | None:
    """The sanoid that called us, maybe through a script; None if it was somebody else."""
    while pid > _INIT:
        if sanoid.is_sanoid(_command_line(pid)):
            return pid
        pid = _parent_of(pid)
    return None


def _parent_of(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return _INIT
    return int(stat.rpartition(b")")[2].split()[1])


def _command_line(pid: int) -> tuple[str, ...]:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ()
    return tuple(word.decode(errors="replace") for word in words)


def _recursion(call: HookCall, configured: str, caller: int | None) -> dict[str, bool]:
    configdir = (
        Path(configured)
        if configured
        else sanoid.configdir_of(_command_line(caller) if caller else ())
        or sanoid.DEFAULT_CONFIGDIR
    )
    conf = configdir / "sanoid.conf"
    return {dataset: sanoid.takes_recursively(conf, dataset) for dataset in call.datasets}


def finish_before_dying() -> None:
    """What merges or removes ends what it began, whatever asks it to stop."""

    def note(number: int, _frame: FrameType | None) -> None:
        log.plain().warning("%s: finishing first", signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, note)


def cancelled_by_signal() -> threading.Event:
    """An event that is set when we are asked to stop."""
    cancelled = threading.Event()

    def cancel(number: int, _frame: FrameType | None) -> None:
        log.plain().warning("%s: undoing or finishing first", signal.Signals(number).name)
        cancelled.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, cancel)
    return cancelled


def cancel_at_once() -> None:
    """What may be interrupted anywhere ends as soon as it is asked to, with Cancelled."""

    def cancel(number: int, _frame: FrameType | None) -> None:
        raise Cancelled(f"{signal.Signals(number).name}: interrupted; the next run goes on with it")

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, cancel)


def _cancelled_with_parent(parent: int) -> threading.Event:
    """An event that is set when we are asked to stop, or when sanoid dies under us.

    sanoid's own script_timeout kills sanoid and not the hook, which would then leave guests on
    overlays for a post that never comes. Raises Cancelled if sanoid is dead already.
    """
    cancelled = threading.Event()

    def cancel(number: int, _frame: FrameType | None) -> None:
        dead = os.getppid() != parent
        cause = "sanoid died (script_timeout?)" if dead else signal.Signals(number).name
        log.plain().error("%s: putting every guest back", cause)
        cancelled.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, cancel)
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # It may have died before the kernel knew that we want to be told.
    if os.getppid() != parent or parent == _INIT:
        raise Cancelled("sanoid is dead already; nothing was touched")
    return cancelled
