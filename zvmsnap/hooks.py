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

from zvmsnap import log, sanoid
from zvmsnap.errors import (
    EXIT_FAILED,
    EXIT_OK,
    Cancelled,
    HookEnvironmentInvalid,
    ZvmsnapError,
)
from zvmsnap.sanoid import HookCall, Role

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
        from zvmsnap.prune import forget

        return forget(call, settings)
    from zvmsnap.journal import Process

    parent = os.getppid()
    if call.role is Role.POST:
        _finish_before_dying()
        from zvmsnap.finish import finish

        return finish(call, settings, Process.of(parent))
    cancelled = _cancelled_with_parent(parent)
    from zvmsnap.capture import begin

    takes_recursively = _recursion(call, settings.sanoid_configdir, parent)
    return begin(call, settings, Process.of(parent), takes_recursively, cancelled)


def _recursion(call: HookCall, configured: str, parent: int) -> dict[str, bool]:
    command_line = tuple(
        word.decode(errors="replace")
        for word in Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")
    )
    configdir = (
        Path(configured)
        if configured
        else sanoid.configdir_of(command_line) or sanoid.DEFAULT_CONFIGDIR
    )
    conf = configdir / "sanoid.conf"
    return {dataset: sanoid.takes_recursively(conf, dataset) for dataset in call.datasets}


def _finish_before_dying() -> None:
    """post ends what it began, whatever asks it to stop: a guest on its overlay is worse."""

    def note(number: int, _frame: FrameType | None) -> None:
        log.plain().warning("%s: finishing first", signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, note)


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
