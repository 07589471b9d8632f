"""The three hooks that sanoid calls: `zvmsnap hook pre|post|prune`; also for others (callers).

Kept light: sanoid calls prune once for each destroyed snapshot, so each hook imports its own room
only when it is entered, and neither typer nor libvirt before they are needed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zvmsnap.common import log
from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK, ZvmsnapError
from zvmsnap.common.signals import cancelled_with_parent, finish_before_dying
from zvmsnap.hooks import callers, sanoid
from zvmsnap.hooks.callers import Caller
from zvmsnap.journal.request import HookCall, Role

if TYPE_CHECKING:
    from zvmsnap.common.process import Process
    from zvmsnap.config.settings import Config

_TRY_AGAIN_S = 300


def main(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Run a hook, with log lines; returns the exit code."""
    log.setup()
    return run(arguments, environment)


def run(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Run the hook that `arguments` name: a role, or what callers says; returns the exit code."""
    try:
        call = callers.hook_call(arguments, environment)
        if call is None:
            log.plain().info("a rehearsal: nothing is done")
            return EXIT_OK
        return EXIT_OK if _run(call, environment) else EXIT_FAILED
    except ZvmsnapError as error:
        log.plain().error("%s", error)
        return error.exit_code
    except OSError as error:
        log.plain().error("%s", error)
        return EXIT_FAILED


def _run(call: HookCall, environment: Mapping[str, str]) -> bool:
    from zvmsnap.config.settings import load_settings

    settings = load_settings()
    if call.role is Role.PRUNE:
        finish_before_dying()
        from zvmsnap.retention.forget import forget

        # sanoid calls prune for one snapshot after the other: what failed now would fail again.
        complete = _finish_abandoned(call, settings, tried_before_s=_TRY_AGAIN_S)
        return forget(call, settings) and complete
    from zvmsnap.common.process import Process

    parent = os.getppid()
    caller = callers.above(call, environment)
    owner = Process.of(caller.pid)
    if call.role is Role.POST:
        finish_before_dying()
        from zvmsnap.finalize.after_snapshot import finish

        complete = finish(call, settings, owner)
        return _finish_abandoned(call, settings) and complete
    cancelled = cancelled_with_parent(parent)
    from zvmsnap.capture.all_guests import begin

    takes_recursively = _recursion(call, settings.sanoid_configdir, caller)
    complete = begin(call, settings, owner, takes_recursively, cancelled, caller.post_within_s)
    if not complete and caller.post_only_after_success and _waits_for_post(settings, owner):
        log.plain().warning("exits with 0 all the same: else nobody would call post")
        return True
    return complete


def _waits_for_post(settings: Config, owner: Process) -> bool:
    from zvmsnap.journal.journal import Journal

    return any(entry.owner == owner for entry in Journal(settings.journal_dir).entries())


def _finish_abandoned(call: HookCall, settings: Config, tried_before_s: float = 0) -> bool:
    """Finish moments of these datasets whose sanoid is dead; pre does so for each guest itself.

    True if all could be; what could not keeps nobody from the hook's own work.
    """
    from zvmsnap.journal.journal import Journal

    journal = Journal(settings.journal_dir)
    entries = [
        entry
        for entry in journal.entries()
        if {*entry.request_datasets, *entry.datasets} & set(call.datasets)
        and not entry.owner.is_alive()
        and journal.age_s(entry) >= tried_before_s
    ]
    if not entries:
        return True
    from zvmsnap.recovery import recover

    for entry in entries:
        journal.tried(entry)
    try:
        return recover.each(settings, entries)
    except (ZvmsnapError, OSError) as error:
        log.plain().error("abandoned moments are not finished: %s", error)
        return False


def _recursion(call: HookCall, configured: str, caller: Caller) -> dict[str, bool]:
    if call.unnamed:
        return dict.fromkeys(call.datasets, True)
    configdir = (
        Path(configured)
        if configured
        else sanoid.configdir_of(caller.command_line) or sanoid.DEFAULT_CONFIGDIR
    )
    conf = configdir / "sanoid.conf"
    return {dataset: sanoid.takes_recursively(conf, dataset) for dataset in call.datasets}
