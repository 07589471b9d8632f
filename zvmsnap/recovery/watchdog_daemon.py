"""The guard: a process of its own that outlives sanoid and the hooks, and ends what they left.

pre starts one for each run of sanoid, outside of its process group and, where there is systemd, of
its control group: a timeout of the service must not kill it too. It looks once a second:

| sanoid  | moments of it open | staging                 | what the guard does                    |
|---------|--------------------|-------------------------|----------------------------------------|
| runs    | any                | enough free             | nothing                                |
| runs    | some               | below the reserve       | gives them up: overlays are merged     |
| runs, calls post no more (zrepl) | some | any        | finishes them                          |
| is dead | some               | any                     | recovers their guests, then again      |
| is dead | none               | any                     | goes                                   |

Beside that, always: who stands still for longer than limits.max_freeze_s is let go (deadline). For
a caller that is no sanoid, whose death means nothing, that is all it does. systemd starts a guard
that is killed again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from zvmsnap.common import log
from zvmsnap.common.errors import HookEnvironmentInvalid, LockTimeout, ZvmsnapError
from zvmsnap.common.lockfile import is_held, lock
from zvmsnap.common.process import Process
from zvmsnap.config.settings import Config
from zvmsnap.disks.staging import free_bytes
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter, Journal
from zvmsnap.quiesce.watchdog import unit_name

_LOOK_EVERY_S = 1.0
_MIB = 1 << 20

# After this many attempts, farther and farther apart, it is left to the next hook.
_ATTEMPTS = 8

# Who only looks whether there is a guard holds its lock for an instant.
_ANOTHER_IS_THERE_S = 0.5


def main(words: Sequence[str]) -> int:
    """`zvmsnap watchdog PID STARTED BOOT POST_WITHIN_S`; returns the exit code."""
    from zvmsnap.config.settings import load_settings
    from zvmsnap.quiesce import deadline

    log.setup()
    try:
        pid, started, boot, within_s = words
        post_within_s = float(within_s)
        owner = Process(int(pid), int(started), boot)
    except ValueError:
        log.plain().error(
            "usage: zvmsnap watchdog PID STARTED BOOT POST_WITHIN_S; the pre hook starts it"
        )
        return HookEnvironmentInvalid.exit_code
    try:
        settings = load_settings()
        with lock(settings.locks_dir, unit_name(owner), "guard", _ANOTHER_IS_THERE_S):
            try:
                with deadline.enforce_deadline(settings, owner):
                    if post_within_s:
                        return 0 if watch(settings, owner, post_within_s) else 1
                    wait_for_still(settings, owner)
                    return 0
            finally:
                # Nobody but the guard of this very process ever takes it.
                (settings.locks_dir / f"{unit_name(owner)}.lock").unlink(missing_ok=True)
    except LockTimeout:
        return 0
    except (ZvmsnapError, OSError) as error:
        log.plain().error("guard: %s", error)
        return 1


def watch(config: Config, owner: Process, post_within_s: float = math.inf) -> bool:
    """Follow the table until sanoid is dead and all is well; False if it did not become so."""
    journal = Journal(config.journal_dir)
    failures = 0
    while True:
        try:
            alive = owner.is_alive()
            entries = [entry for entry in journal.entries() if entry.owner == owner]
            if not alive and not entries:
                return True
            if not alive:
                if not _recovered(config, entries):
                    failures += 1
                if failures == _ATTEMPTS:
                    if not any(entry.holds_guest for entry in entries):
                        return False
                    failures -= 1  # nobody else may ever come who lets it go
            elif overdue := _overdue(config, journal, entries, post_within_s):
                for entry in overdue:
                    _finish_overdue(config, journal, entry, post_within_s)
            elif entries and free_bytes(config.staging_dir) < _reserve_bytes(config):
                for entry in entries:
                    _give_up(config, journal, entry)
        except Exception as error:  # descriptors or threads may run out
            log.plain().error("guard: cannot look now: %s", error)
        time.sleep(_LOOK_EVERY_S * 2**failures)


def _overdue(
    config: Config, journal: Journal, entries: list[Entry], post_within_s: float
) -> list[Entry]:
    """Of moments on none of whose guests anybody works, nor has for so long."""
    busy = {
        (entry.request_datasets, entry.run)
        for entry in entries
        if journal.age_s(entry) <= post_within_s or is_held(config.locks_dir, entry.uuid)
    }
    return [entry for entry in entries if (entry.request_datasets, entry.run) not in busy]


def wait_for_still(config: Config, owner: Process) -> None:
    """Return when the owner is dead and nobody stands still because of it any more."""
    journal = Journal(config.journal_dir)
    while True:
        try:
            if not owner.is_alive() and not any(
                entry.holds_guest
                or (entry.may_hold_guest and is_held(config.locks_dir, entry.uuid))
                for entry in journal.entries()
                if entry.owner == owner
            ):
                return
        except (ZvmsnapError, OSError) as error:
            log.plain().error("guard: cannot look now: %s", error)
        time.sleep(_LOOK_EVERY_S)


def _recovered(config: Config, entries: list[Entry]) -> bool:
    from zvmsnap.recovery import recover

    try:
        return recover.each(config, entries)
    except (ZvmsnapError, OSError) as error:
        log.plain().error("guard: not yet recovered: %s", error)
        return False


def _finish_overdue(config: Config, journal: Journal, seen: Entry, post_within_s: float) -> None:
    """Post does not come any more, though its caller lives."""
    from zvmsnap.finalize.after_snapshot import end
    from zvmsnap.virt.host import Host

    about = log.about(seen.domain, ",".join(seen.request_datasets))
    try:
        with journal.if_free(config.locks_dir, seen, f"finish {seen.run}") as entry:
            if entry and journal.age_s(entry) > post_within_s:
                journal.tried(entry)
                about.warning("post was not called: finishing moment %s", entry.run)
                with Host(config.uri) as hypervisor:
                    end(config, hypervisor, entry)
    except (ZvmsnapError, OSError) as error:
        about.error("guard: %s", error)


def _give_up(config: Config, journal: Journal, seen: Entry) -> None:
    """Merge the overlays of one moment, before the guest pauses for want of room."""
    from zvmsnap.disks import overlay_chain
    from zvmsnap.finalize.release import release
    from zvmsnap.journal import snapshot_match
    from zvmsnap.virt.host import Host

    about = log.about(seen.domain, ",".join(seen.request_datasets))
    try:
        # Not while a hook works on it: pre has reserved its room, post is merging already.
        with journal.if_free(config.locks_dir, seen, f"give up {seen.run}") as entry:
            if not entry:
                return
            with Host(config.uri) as hypervisor:
                guest = hypervisor.guest(entry.uuid)
                if not overlay_chain.of_guest(guest):
                    return
                about.warning("staging %s is nearly full: merging overlays now", config.staging)
                work = EntryWriter(journal, entry)
                snapshot_match.note(work, about)
                work.note(released_early=not snapshot_match.is_whole(work.entry))
                release(config, guest, work, about)
    except (ZvmsnapError, OSError) as error:
        about.error("guard: %s", error)


def _reserve_bytes(config: Config) -> int:
    # Never more than what pre saw to: else every point would be given up at once.
    return min(config.limits.staging_reserve_mib, config.limits.overlay_room_mib) * _MIB
