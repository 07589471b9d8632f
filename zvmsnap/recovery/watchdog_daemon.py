"""The watchdog: a process that outlives sanoid and the hooks, and ends what they leave unfinished.

The pre hook starts one for each sanoid process (quiesce/watchdog). It is outside of sanoid's
process group and, with systemd, of its control group: the timeout of a service must not kill it
too. If it is killed, systemd starts it again. It looks once a second:

| the run's owner                       | open entries | staging           | the watchdog          |
|---------------------------------------|--------------|-------------------|-----------------------|
| lives                                 | any          | enough free       | does nothing          |
| lives                                 | some         | below the reserve | merges their overlays |
| lives, but calls post no more (zrepl) | some         | any               | finishes them         |
| is dead                               | some         | any               | recovers their guests |
| is dead                               | none         | any               | exits                 |

A recovery that fails is tried again and again, at intervals that grow up to a minute: without end
while a guest may be held or on its overlays, as somebody else's job may keep it there for hours;
else up to 8 times. What is in the way is said once, and so is that staging runs low meanwhile.

It also lets paused guests go on when their snapshots exist (quiesce/snapshot_watch), and releases
those that are held for longer than limits.max_freeze_s (quiesce/deadline). The death of some
callers means nothing, as of a shell. For these that is all that it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from zvmsnap.common import log
from zvmsnap.common.errors import HookEnvironmentInvalid, LockTimeout, ZvmsnapError
from zvmsnap.common.lockfile import is_held, own_lock
from zvmsnap.common.process import Process
from zvmsnap.common.waiting import Call, sleep
from zvmsnap.config.settings import Config
from zvmsnap.disks.staging import free_bytes
from zvmsnap.journal import late
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter, Journal
from zvmsnap.notify import notices
from zvmsnap.quiesce.watchdog import unit_name

_LOOK_EVERY_S = 1.0
_MIB = 1 << 20

# Each attempt comes after twice the time of the one before, up to the latter.
_FIRST_INTERVAL_S = 2.0
_LAST_INTERVAL_S = 60.0
# How often staging is looked at meanwhile.
_ROOM_EVERY_S = 10.0
# After this many attempts what is left is for the next hook, unless a guest needs to be released.
_ATTEMPTS = 8

# A process that only looks whether there is a watchdog holds its lock for an instant.
_LOCK_LIMIT_S = 0.5


def main(words: Sequence[str]) -> int:
    """`zvmsnap watchdog PID STARTED BOOT POST_WITHIN_S`; returns the exit code."""
    from zvmsnap.config.settings import load_settings

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
        config = load_settings()
        try:
            return 0 if _run(config, owner, post_within_s) else 1
        finally:
            notices.deliver(config)
    except (ZvmsnapError, OSError) as error:
        log.plain().error("watchdog: %s", error)
        return 1


def _run(config: Config, owner: Process, post_within_s: float) -> bool:
    """Watch, unless another watchdog of the same process does; False if it gave up."""
    from zvmsnap.quiesce.deadline import enforce_deadline
    from zvmsnap.quiesce.snapshot_watch import watch_snapshots

    try:
        with (
            own_lock(config.locks_dir, unit_name(owner), "watchdog", _LOCK_LIMIT_S),
            enforce_deadline(config, owner),
            watch_snapshots(config, owner),
        ):
            if post_within_s:
                return watch(config, owner, post_within_s)
            wait_until_none_held(config, owner)
            return True
    except LockTimeout:
        return True


def watch(config: Config, owner: Process, post_within_s: float = math.inf) -> bool:
    """Follow the table until the owner is dead and all is finished; False if it was given up."""
    journal = Journal(config.journal_dir)
    recovery = _Recovery(config)
    while True:
        try:
            is_alive = owner.is_alive()
            entries = _entries_of(journal, owner)
            late_runs = [e for e in late.entries(config.journal_dir) if e.owner == owner]
            if is_alive:
                _watch_living(config, journal, entries, post_within_s)
            elif not entries and not late_runs:
                return True
            elif not recovery.go_on(entries, late_runs):
                return False
            else:
                notices.deliver(config)
        except Exception as error:  # descriptors or threads may run out
            log.failure(log.plain(), error, "watchdog: cannot look now")
        sleep(recovery.next_look_s())


def wait_until_none_held(config: Config, owner: Process) -> None:
    """Return when the owner is dead, and no guest is held because of it any more."""
    journal = Journal(config.journal_dir)

    def is_held_or_may_be(entry: Entry) -> bool:
        return entry.holds_guest or (entry.may_hold_guest and is_held(config.locks_dir, entry.uuid))

    while True:
        try:
            if not owner.is_alive() and not any(
                is_held_or_may_be(entry) for entry in _entries_of(journal, owner)
            ):
                return
        except (ZvmsnapError, OSError) as error:
            log.plain().error("watchdog: cannot look now: %s", error)
        sleep(_LOOK_EVERY_S)


def _entries_of(journal: Journal, owner: Process) -> list[Entry]:
    return [entry for entry in journal.entries() if entry.owner == owner]


# -- the owner is dead


class _Recovery:
    """Recovers the guests of a dead owner: patiently, and saying each thing once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._failures = 0
        self._wait_s = 0.0
        self._said: dict[str, str] = {}
        self._was_low = False

    def go_on(self, entries: list[Entry], late_runs: list[Entry]) -> bool:
        """Try again if it is time, and look at staging; False if it is given up."""
        if self._wait_s == 0 and not self._recovered(entries, late_runs):
            self._failures += 1
            interval_s = _FIRST_INTERVAL_S * 2 ** min(self._failures - 1, _ATTEMPTS)
            self._wait_s = min(interval_s, _LAST_INTERVAL_S)
        self._warn_of_room(entries)
        # Nobody else may ever come to release that guest.
        return self._failures < _ATTEMPTS or any(entry.may_need_release for entry in entries)

    def next_look_s(self) -> float:
        """How long to sleep now."""
        pause_s = min(self._wait_s or _LOOK_EVERY_S, _ROOM_EVERY_S)
        self._wait_s = max(0.0, self._wait_s - pause_s)
        return pause_s

    def _recovered(self, entries: list[Entry], late_runs: list[Entry]) -> bool:
        from zvmsnap.recovery.recover import recover_entries, recover_late_runs

        config = self._config
        if self._failures:
            # It comes again: nobody else waits for the guest's lock, or a guest for this one.
            limits = msgspec.structs.replace(config.limits, busy_timeout_s=0)
            config = msgspec.structs.replace(config, limits=limits)
        try:
            recovered = recover_entries(config, entries, self._said)
            return recover_late_runs(config, late_runs) and recovered
        except Exception as error:
            if self._said.get("") != str(error):
                self._said[""] = str(error)
                log.failure(log.plain(), error, "watchdog: not yet recovered")
            return False

    def _warn_of_room(self, entries: list[Entry]) -> None:
        on_overlays = [entry.domain for entry in entries if entry.may_need_release]
        if not on_overlays:
            return
        free = free_bytes(self._config.staging_dir)
        is_low = free < self._config.limits.reserve_bytes
        if is_low and not self._was_low:
            log.plain().error(
                "staging %s has %d MiB left, and %s may still be on overlays: make room there, or "
                "end what is in the way. A guest whose overlay cannot grow is paused until then",
                self._config.staging,
                free // _MIB,
                ", ".join(on_overlays),
            )
        self._was_low = is_low


# -- the owner lives


def _watch_living(
    config: Config, journal: Journal, entries: list[Entry], post_within_s: float
) -> None:
    if overdue := _overdue(config, journal, entries, post_within_s):
        for entry in overdue:
            _finish_overdue(config, journal, entry, post_within_s)
        return
    for entry in entries:
        staging = entry.directory(config.staging_dir).parent
        if free_bytes(staging) < config.limits.reserve_bytes:
            _release_early(config, journal, entry, staging)


def _overdue(
    config: Config, journal: Journal, entries: list[Entry], post_within_s: float
) -> list[Entry]:
    """The entries of runs on none of whose guests anybody works, nor has for so long."""
    busy = {
        (entry.request_datasets, entry.run)
        for entry in entries
        if journal.age_s(entry) <= post_within_s or is_held(config.locks_dir, entry.uuid)
    }
    return [entry for entry in entries if (entry.request_datasets, entry.run) not in busy]


def _finish_overdue(config: Config, journal: Journal, known: Entry, post_within_s: float) -> None:
    """Finish a run for which post is not called any more, though its caller lives."""
    from zvmsnap.finalize.after_snapshot import finish_entry
    from zvmsnap.virt.host import Host

    about = log.about(known.domain, known.subject)

    def finish(entry: Entry) -> None:
        if journal.age_s(entry) > post_within_s:
            journal.tried(entry)
            about.warning("post was not called: finishing run %s", entry.run)
            with Host.connect(config.uri) as host:
                finish_entry(config, host, entry)

    _if_free(config, journal, known, "finish", finish)


def _release_early(config: Config, journal: Journal, known: Entry, staging: Path) -> None:
    """Merge the overlays of one entry, before the guest pauses because staging is full."""
    from zvmsnap.disks import overlay_chain
    from zvmsnap.finalize.release import release
    from zvmsnap.journal import snapshot_match
    from zvmsnap.virt.host import Host

    about = log.about(known.domain, known.subject)

    def merge(entry: Entry) -> None:
        with Host.connect(config.uri) as host:
            guest = host.guest(entry.uuid)
            if not overlay_chain.of_guest(guest):
                return
            about.warning("staging %s is nearly full: merging overlays now", staging)
            writer = EntryWriter(journal, entry)
            snapshot_match.note(writer, about)
            writer.note(released_early=not snapshot_match.is_whole(writer.entry))
            release(config, guest, writer, about)

    # Not while a hook works on it: pre has reserved its space, post is merging already.
    _if_free(config, journal, known, "release early", merge)


def _if_free(
    config: Config, journal: Journal, known: Entry, intent: str, do: Callable[[Entry], None]
) -> None:
    """Do it with the entry as it is now, unless somebody works on its guest, or has closed it."""

    def do_if_free() -> None:
        with journal.if_free(config.locks_dir, known, f"{intent} {known.run}") as entry:
            if entry:
                do(entry)

    try:
        Call(do_if_free).answer()
    except Exception as error:
        about = log.about(known.domain, known.subject)
        log.failure(about, error, "watchdog")
