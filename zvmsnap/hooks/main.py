"""The three hooks: `zvmsnap hook pre|post|prune`. sanoid calls them, or another of callers.

sanoid calls prune once for each destroyed snapshot. So each hook imports only the packages that it
needs, and libvirt only when there is work for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from zvmsnap.common import log
from zvmsnap.common.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE, Cancelled, ZvmsnapError
from zvmsnap.common.process import INIT, Process
from zvmsnap.common.signals import cancelled_with_parent, finish_before_dying
from zvmsnap.hooks import callers, needed, stand_in
from zvmsnap.hooks.callers import Caller
from zvmsnap.hooks.stand_in import caller_pid
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.journal.round import Round

if TYPE_CHECKING:
    from zvmsnap.config.settings import Config
    from zvmsnap.hooks.rehearsal import Rehearsal

# sanoid calls prune for one snapshot after the other: what failed now would fail again.
_RETRY_AFTER_S = 300


def main(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Run a hook, with log lines; returns the exit code."""
    log.setup()
    return run(arguments, environment)


def in_child(arguments: Sequence[str]) -> NoReturn:
    """The same in a child process, so that nobody waits for the end of what hangs.

    It ends this process at once: guests may stand still until sanoid goes on, and Python takes its
    time to clean up.
    """
    os._exit(stand_in.run(lambda: main(arguments)))


def run(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Run the hook that arguments and environment name; returns the exit code."""
    try:
        call = callers.hook_call(arguments, environment)
        if call is None:
            log.plain().info("a rehearsal: nothing is done")
            return EXIT_OK
        return EXIT_OK if _run(call, environment) else EXIT_FAILED
    except ZvmsnapError as error:
        log.plain().error("%s", error)
        return error.exit_code
    except ImportError as error:
        log.plain().error("%s", needed.line(error))
        return EXIT_USAGE
    except Exception as error:
        log.failure(log.plain(), error)
        return EXIT_FAILED


def _run(call: HookCall, environment: Mapping[str, str]) -> bool:
    """Run the hook; False if something failed, which is logged by then."""
    from zvmsnap.config.settings import load_settings

    settings = load_settings()
    from zvmsnap.notify import event, notices

    kind, about = event.Kind.HOOK, {"dataset": ",".join(call.datasets)}
    before = notices.count()
    try:
        complete = _run_role(call, environment, settings)
        if not complete and notices.count() == before:
            why = f"the {call.role} hook failed: its lines in the log say why"
            notices.note(settings, event.of(kind, why, **about))
        return complete
    except Exception as error:
        # Of what sanoid cannot have made, and nobody has touched, nobody is told.
        if getattr(error, "exit_code", EXIT_FAILED) != EXIT_USAGE:
            why = needed.line(error) if isinstance(error, ImportError) else log.one_line(error)
            about["error"] = log.class_of(error)
            notices.note(settings, event.of(kind, why, **about))
        raise
    finally:
        # Whoever is captured waits for sanoid, and so for pre: post tells what has failed.
        if call.role is not Role.PRE or not any(settings.journal_dir.glob("*.json")):
            notices.deliver(settings)


def _run_role(call: HookCall, environment: Mapping[str, str], settings: Config) -> bool:
    if call.role is Role.PRUNE:
        return _prune(call, settings)
    parent = os.getppid()
    caller = callers.find_caller(call, environment)
    if call.role is Role.POST:
        return _post(call, settings, caller)
    return _pre(call, settings, caller, parent)


def _pre(call: HookCall, settings: Config, caller: Caller, parent: int) -> bool:
    owner = Process.of(caller.pid)
    if caller_pid() == INIT:
        raise Cancelled("sanoid is dead already; nothing was touched")
    cancelled = cancelled_with_parent(parent)
    from zvmsnap.capture.all_guests import begin
    from zvmsnap.hooks.rehearsal import Rehearsal

    rehearsal = Rehearsal(caller, settings.sanoid_configdir, Round(settings.locks_dir, owner))
    takes_recursively = _recursion(call, caller, rehearsal)
    complete = begin(call, settings, owner, takes_recursively, cancelled, caller.post_within_s)
    complete = complete and not rehearsal.unanswered
    if not complete and caller.post_only_after_success and _waits_for_post(settings, owner):
        log.plain().warning("exits with 0 all the same: else zrepl would not call post")
        return True
    return complete


def _post(call: HookCall, settings: Config, caller: Caller) -> bool:
    owner = Process.of(caller.pid)
    finish_before_dying()
    from zvmsnap.finalize.after_snapshot import finish_and_tidy

    complete = finish_and_tidy(call, settings, owner)
    complete = _as_expected(call, settings, owner) and complete
    return _finish_abandoned(call, settings) and complete


def _as_expected(call: HookCall, settings: Config, owner: Process) -> bool:
    """Were the snapshots as recursive as pre has expected? If not, that is logged."""
    from zvmsnap.hooks.surprise import as_expected

    try:
        return as_expected(call, Round(settings.locks_dir, owner))
    except ZvmsnapError as error:
        log.failure(log.plain(), error, "not known whether a snapshot was recursive")
        return False


def _prune(call: HookCall, settings: Config) -> bool:
    finish_before_dying()
    from zvmsnap.retention.forget import forget

    complete = _finish_abandoned(call, settings, untried_for_s=_RETRY_AFTER_S)
    return forget(call, settings) and complete


def _waits_for_post(settings: Config, owner: Process) -> bool:
    from zvmsnap.journal import late
    from zvmsnap.journal.journal import Journal

    entries = (*Journal(settings.journal_dir).entries(), *late.entries(settings.journal_dir))
    return any(entry.owner == owner for entry in entries)


def _finish_abandoned(call: HookCall, settings: Config, untried_for_s: float = 0) -> bool:
    """Finish the runs of these datasets whose owner is dead; pre does this for each guest itself.

    Only entries on which nobody has worked for `untried_for_s`. False if one cannot be finished;
    this is logged, and the hook goes on with its own work.
    """
    from zvmsnap.journal.journal import Journal

    journal = Journal(settings.journal_dir)
    entries = [
        entry
        for entry in journal.entries()
        if {*entry.request_datasets, *entry.datasets} & set(call.datasets)
        and not entry.owner.is_alive()
        and journal.age_s(entry) >= untried_for_s
    ]
    if not entries:
        return True
    from zvmsnap.recovery.recover import recover_entries

    for entry in entries:
        journal.tried(entry)
    try:
        return recover_entries(settings, entries)
    except Exception as error:
        log.failure(log.plain(), error, "interrupted runs are not finished")
        return False


def _recursion(call: HookCall, caller: Caller, rehearsal: Rehearsal) -> Callable[[str], bool]:
    """How to find out whether a dataset is snapshotted with all below it."""
    if call.unnamed:
        return lambda _: True
    if caller.post_only_after_success:
        return lambda _: False  # zrepl snapshots each dataset by itself
    return rehearsal.takes_recursively
