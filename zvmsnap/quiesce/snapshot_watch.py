"""A guest that is paused for its snapshot goes on the instant that ZFS has it, not when post runs.

A thread of the watchdog looks for entries of level `paused`, and starts one for each. That one
connects to libvirt while RAM is dumped. When the disks are frozen, it asks ZFS every few
milliseconds, by one ioctl and without a process, for the announced snapshots of all datasets of the
run, one after the other. When all exist:

| what is done                                      | whoever dies after it                       |
|---------------------------------------------------|---------------------------------------------|
| their guids are listed                            | post, or the finisher, does it all          |
| the guest's lock is taken, its entry read anew    | the same                                    |
| is it still paused? If not, this is left to post  | the same                                    |
| the entry: which snapshots, and that it was held  | post resumes it; the point is `paused`      |
| the guest is resumed                              | post finds it running; that proves no less  |
| the entry: it runs                                | post publishes the point                    |

So the snapshots were taken while it was paused: all exist, none did when its disks were frozen, and
it was seen paused after that. post does it as before where that cannot be told so: no names are
announced, one of them can never appear as it exists already, a snapshot fails, ZFS or libvirt does
not answer, the guest runs. The deadline does not wait for any of these threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zvmsnap.common import log
from zvmsnap.common.errors import DomainGone, LockTimeout
from zvmsnap.common.process import Process
from zvmsnap.common.snapshot_name import spellings
from zvmsnap.common.waiting import wait
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter, Journal

# Imported where they are used: most watchdogs never see a paused guest, and need no libvirt.
if TYPE_CHECKING:
    from zvmsnap.points.manifest import SnapshotRef
    from zvmsnap.virt.guest import Guest

_LOOK_EVERY_S = 0.25
# Each question takes about 0.1 ms: 100 guests do not keep more than a fraction of a CPU busy.
_ASK_EVERY_S = 0.005
_ASK_EVERY_S_PER_GUEST = 0.001
# Who only looks whether somebody has the lock holds it for an instant. post has it for longer.
_LOCK_LIMIT_S = 0.5


@contextmanager
def watch_snapshots(config: Config, owner: Process) -> Iterator[None]:
    """Let this owner's paused guests go on when their snapshots exist, until the block ends."""
    ended = threading.Event()
    watch = SnapshotWatch(config, owner, ended)
    thread = threading.Thread(target=watch.run, name="snapshots", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class SnapshotWatch:
    """The thread that looks for entries, and those that follow one each."""

    def __init__(self, config: Config, owner: Process, ended: threading.Event) -> None:
        self._config = config
        self._owner = owner
        self._ended = ended
        self._journal = Journal(config.journal_dir)
        # Captures that were followed, or are. Whatever goes wrong with one is left to post.
        self._known: set[str] = set()
        self._under_way: set[str] = set()
        self._error = ""

    def run(self) -> None:
        """Look until `ended` is set; whatever goes wrong, look again."""
        while not wait(self._ended, _LOOK_EVERY_S):
            try:
                for entry in self._journal.entries():
                    if self._concerns(entry):
                        self._start(entry)
            except Exception as error:  # threads may run out, too
                if self._error != str(error):
                    self._error = str(error)
                    log.failure(log.plain(), error, "watchdog: paused guests wait for post")

    def _concerns(self, entry: Entry) -> bool:
        return (
            entry.owner == self._owner
            and entry.level is ConsistencyLevel.PAUSED
            and entry.may_hold_guest
            and entry.newest_txg_before is None
            and not entry.is_recovery
            and entry.capture not in self._known
        )

    def _start(self, entry: Entry) -> None:
        threading.Thread(target=self._follow, args=(entry,), daemon=True).start()
        self._known.add(entry.capture)

    def _follow(self, known: Entry) -> None:
        about = log.about(known.domain, ",".join(known.request_datasets))
        self._under_way.add(known.capture)
        try:
            from zvmsnap.virt.host import Host

            with Host.connect(self._config.uri) as host:
                guest = host.guest(known.uuid)
                entry = self._wait_for_snapshots(known)
                if entry and self._let_go(guest, entry):
                    about.debug("resumed: ZFS has its snapshots")
        except (DomainGone, LockTimeout):
            return
        except Exception as error:
            log.failure(about, error, "watchdog: it waits for post")
        finally:
            self._under_way.discard(known.capture)

    def _wait_for_snapshots(self, known: Entry) -> Entry | None:
        """The entry, when the guest is held and all snapshots of its run seem to exist.

        None if it is not to be waited for any more, or they cannot all appear.
        """
        from zvmsnap.zfs import marks

        followed = _Followed(self._journal, known)
        awaited = _announced(known)
        marks.seems_to_exist(awaited[-1][0])  # all that this needs is loaded by now
        is_frozen = False
        while (entry := followed.entry()) and entry.may_hold_guest:
            if entry.disks_frozen_at_s and not is_frozen:
                awaited = _may_appear(entry, awaited)
                if not all(awaited):
                    return None
                is_frozen = True
            while is_frozen and awaited and any(map(marks.seems_to_exist, awaited[-1])):
                awaited.pop()
            if not awaited:
                return entry
            if wait(self._ended, _ASK_EVERY_S + _ASK_EVERY_S_PER_GUEST * len(self._under_way)):
                return None
        return None

    def _let_go(self, guest: Guest, known: Entry) -> bool:
        """Note which snapshots exist, and resume the guest; False if that is left to post."""
        from zvmsnap.journal import snapshot_match
        from zvmsnap.quiesce import thaw

        refs = snapshot_match.candidates(known)
        if not _are_all(refs, known):
            return False
        intent = f"resume {known.domain}"
        with self._journal.if_same(self._config.locks_dir, known, intent, _LOCK_LIMIT_S) as entry:
            if not entry or not entry.is_paused_for_snapshot or entry.was_held_at_release:
                return False
            return thaw.resume_with_snapshots(guest, EntryWriter(self._journal, entry), refs)


class _Followed:
    """An entry that is read anew when its file has changed."""

    def __init__(self, journal: Journal, known: Entry) -> None:
        self._journal = journal
        self._known = known
        self._stamp: tuple[int, int] | None = None
        self._entry: Entry | None = known

    def entry(self) -> Entry | None:
        """The entry as it is now; None if it was closed."""
        stamp = self._journal.stamp(self._known)
        if stamp is None or stamp != self._stamp:
            entry = self._journal.read(self._known.uuid)
            self._entry = entry if entry and entry.capture == self._known.capture else None
            self._stamp = stamp
        return self._entry


def _announced(entry: Entry) -> list[list[str]]:
    """Under which full names each snapshot of the run may appear, the one taken first last.

    Those of all its datasets: guests of one `zvmsnap take` are held until all are taken.
    """
    datasets = sorted({*entry.request_datasets, *entry.datasets})
    return [
        [f"{dataset}@{spelling}" for spelling in spellings(name)]
        for name in reversed(entry.snapshot_names)
        for dataset in datasets
    ]


def _may_appear(entry: Entry, announced: list[list[str]]) -> list[list[str]]:
    """The same without the snapshots that existed when the guest's disks were frozen."""
    from zvmsnap.zfs import zfs

    if not entry.preexisting_guids:
        return announced
    existing = zfs.snapshots(name for names in announced for name in names).present
    earlier = {
        name for name, snapshot in existing.items() if snapshot.guid in entry.preexisting_guids
    }
    return [[name for name in names if name not in earlier] for names in announced]


def _are_all(refs: tuple[SnapshotRef, ...], entry: Entry) -> bool:
    """Is each announced snapshot of the guest's own datasets one of these?"""
    existing = {(ref.dataset, ref.name) for ref in refs}
    return all(
        any((dataset, spelling) in existing for spelling in spellings(name))
        for dataset in entry.datasets
        for name in entry.snapshot_names
    )
