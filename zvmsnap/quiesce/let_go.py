"""Lets a paused guest go on the instant that ZFS has its snapshots, not when post runs.

It is connected to libvirt before RAM is dumped, which waits for that. When the disks are frozen, it
asks ZFS every few milliseconds, by one ioctl and without a process, for the announced snapshots of
all datasets of the run, one after the other. When all exist:

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
from collections.abc import Callable

from zvmsnap.common.errors import DomainGone, LockTimeout
from zvmsnap.common.lockfile import own_lock
from zvmsnap.common.process import uptime_s
from zvmsnap.common.snapshot_name import spellings
from zvmsnap.common.waiting import wait
from zvmsnap.config.settings import Config
from zvmsnap.journal import snapshot_match
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter, Journal
from zvmsnap.points.manifest import SnapshotRef
from zvmsnap.quiesce import thaw
from zvmsnap.quiesce.watchdog import follower
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs import marks, zfs

# A dump may last for an hour. After it the pre hook and its caller need longer than that.
_LOOK_EVERY_S = 0.03
# ZFS answers within 0.1 ms: 100 guests do not keep more than a fraction of a CPU busy.
_ASK_EVERY_S = 0.008
_ASK_EVERY_S_PER_GUEST = 0.001
# Who only looks whether somebody has the lock holds it for an instant. post has it for longer.
_LOCK_LIMIT_S = 0.5


def follow(config: Config, known: Entry, ended: threading.Event, guests: Callable[[], int]) -> bool:
    """Follow an entry of level `paused` to the end of the table; False if post does it all.

    `guests`: how many are followed now. Raises ZvmsnapError and OSError: then post does, too.
    """
    journal = Journal(config.journal_dir)
    try:
        with Host.connect(config.uri) as host:
            guest = host.guest(known.uuid)
            guest.state()  # libvirt has looked it up by then
            awaited = _announced(known)
            marks.seems_to_exist(awaited[-1][0])  # and all that this needs is loaded
            with own_lock(config.locks_dir, follower(known), "follow", _LOCK_LIMIT_S):
                entry = _when_all_exist(_Followed(journal, known), awaited, ended, guests)
            return entry is not None and _let_go(config, journal, guest, entry, uptime_s())
    except (DomainGone, LockTimeout):
        return False


def _when_all_exist(
    followed: _Followed,
    awaited: list[list[str]],
    ended: threading.Event,
    guests: Callable[[], int],
) -> Entry | None:
    """The entry, when the guest is held and all snapshots of its run seem to exist.

    None if it is not to be waited for any more, or they cannot all appear.
    """
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
        ask_every_s = _ASK_EVERY_S + _ASK_EVERY_S_PER_GUEST * guests()
        if wait(ended, ask_every_s if is_frozen else _LOOK_EVERY_S):
            return None
    return None


def _let_go(
    config: Config, journal: Journal, guest: Guest, known: Entry, all_exist_s: float
) -> bool:
    """Note which snapshots exist, and resume the guest; False if that is left to post.

    `all_exist_s`: the `uptime_s` at which all were seen.
    """
    refs = snapshot_match.candidates(known)
    if not _are_all(refs, known):
        return False
    with journal.if_same(config.locks_dir, known, f"resume {known.domain}", _LOCK_LIMIT_S) as entry:
        if not entry or not entry.is_paused_for_snapshot or entry.was_held_at_release:
            return False
        return thaw.resume_with_snapshots(guest, EntryWriter(journal, entry), refs, all_exist_s)


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
