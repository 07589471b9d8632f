"""post: bring each guest back to its bases, and publish its point.

Works from the journal, for sanoid tells post neither whether the snapshot worked nor, always, its
real name. Everything here may be repeated after a crash, by the next hook for the guest, by
`zvmsnap recover` or by the guard:

    leave      every overlay back into its base, proven by the XML (leave)
    publish    a point that names exactly the snapshots that ZFS has (publish)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

import msgspec

from zvmsnap.common import log
from zvmsnap.common.errors import (
    DomainGone,
    LevelMissed,
    SnapshotMissing,
    WorkOfOtherVersion,
    ZvmsnapError,
)
from zvmsnap.common.lockfile import lock
from zvmsnap.common.process import Process
from zvmsnap.common.snapshot_name import spellings
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks import overlay_chain
from zvmsnap.disks.staging import StagingDir
from zvmsnap.finalize.publish import publish
from zvmsnap.finalize.release import release
from zvmsnap.journal import snapshot_match
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter, Journal
from zvmsnap.journal.request import HookCall
from zvmsnap.quiesce import thaw
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host

_PARALLEL_GUESTS = 16


def finish(call: HookCall, config: Config, owner: Process) -> bool:
    """Finish the moment of this call for every guest in the journal; True if all went well.

    First all guests leave their overlays, in parallel; only then images are moved, one by one.
    """
    journal = Journal(config.journal_dir)
    entries = [entry for entry in journal.entries() if belongs(entry, call, owner)]
    if not entries:
        log.plain().debug("%s: nothing was begun here", ",".join(call.datasets))
        return True
    with (
        Host(config.uri) as hypervisor,
        ThreadPoolExecutor(min(_PARALLEL_GUESTS, len(entries))) as pool,
    ):
        finishing = [_Finish(config, hypervisor, journal, entry) for entry in entries]
        left = list(pool.map(lambda each: each.guarded(each.leave), finishing))
        published = [
            ok and each.guarded(each.publish) for each, ok in zip(finishing, left, strict=True)
        ]
    return all(published)


def belongs(entry: Entry, call: HookCall, owner: Process) -> bool:
    """Is that entry of the moment that this post ends?

    Same datasets, and the same sanoid (strictly serial: pre, snapshot, post). Where each hook has
    a shell of its own between it and sanoid, a name in common must do; but never for the moment of
    a process that still runs: of two sanoids that began in the same second, with the same names,
    the other one has not taken its snapshots yet.
    """
    if entry.request_datasets != call.datasets:
        return False
    announced = {spelling for name in entry.snapshot_names for spelling in spellings(name)}
    return entry.owner == owner or (
        bool(announced & set(call.names)) and not entry.owner.is_alive()
    )


def finish_interrupted(config: Config, hypervisor: Host, guest: Guest, entry: Entry | None) -> None:
    """End what an earlier moment left open for this guest, whose lock the caller holds.

    Without a journal entry the overlays' names and the backing chain in the XML are enough; whether
    a guest stands still because of us is looked at if there was one that could not be read.
    Raises CommitFailed and others if it cannot be ended; nothing is lost then. Raises
    WorkOfOtherVersion if its entry is of another version: the guest was brought back, unless the
    owner of the run lives; entry, staging directory and RAM image stay for that version.
    """
    journal = Journal(config.journal_dir)
    other = journal.of_other_version(guest.uuid)
    if other and other.owner.is_alive():
        raise WorkOfOtherVersion(str(other))
    held = thaw.held_fields(guest) if other or journal.is_lost(guest.uuid) else {}
    if entry:
        log.about(guest.name, ",".join(entry.request_datasets)).warning(
            "finishing moment %s, which nobody finished", entry.run or "of an earlier recovery"
        )
    else:
        entry = _unknown(config, guest, held)
    if entry:
        end(config, hypervisor, entry)
    if held is not None:
        journal.forget_lost(guest.uuid)
    if other:
        raise WorkOfOtherVersion(str(other))


def _unknown(config: Config, guest: Guest, held: dict[str, Any] | None) -> Entry | None:
    """What there is to end of a guest of which no journal knows."""
    about = log.about(guest.name, "no journal")
    if held is None:
        about.warning("whether it stands still because of us cannot be told yet")
    if held:
        about.warning("letting it go, as its journal was lost")
    on_overlay = bool(overlay_chain.of_guest(guest))
    if on_overlay:
        about.warning("leaving overlays that no journal knows")
    if not on_overlay and not held:
        return None
    return msgspec.structs.replace(_nameless(config, guest), **(held or {}))


def end(config: Config, hypervisor: Host, entry: Entry) -> None:
    """Leave and publish, without the lock of the guest, which the caller holds."""
    done = _Finish(config, hypervisor, Journal(config.journal_dir), entry)
    done.leave_locked()
    try:
        done.publish_locked()
    except (SnapshotMissing, LevelMissed) as error:
        log.about(entry.domain, ",".join(entry.request_datasets)).warning("%s", error)


def _nameless(config: Config, guest: Guest) -> Entry:
    return Entry(
        domain=guest.name,
        uuid=guest.uuid,
        run="",
        request_datasets=(),
        snapshot_names=(),
        preexisting_guids=(),
        owner=Process.none(),
        capture=StagingDir.fresh(config.staging_dir, guest.uuid).path.name,
        level=ConsistencyLevel.CRASH,
        reason="the journal was lost",
        disks=(),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


class _Finish:
    """One guest's entry, on its way out of the journal."""

    def __init__(
        self,
        config: Config,
        hypervisor: Host,
        journal: Journal,
        entry: Entry,
    ) -> None:
        self._config = config
        self._hypervisor = hypervisor
        self._journal = journal
        self._work = EntryWriter(journal, entry)
        self._log = log.about(entry.domain, ",".join(entry.request_datasets))

    def guarded(self, work: Callable[[], None]) -> bool:
        """Do `work`; False, with the cause in the log, if it failed."""
        try:
            work()
            return True
        except (ZvmsnapError, OSError) as error:
            self._log.error("%s", error)
            return False

    def leave(self) -> None:
        """Leave overlays, under the guest's lock."""
        with self._lock("commit"):
            if self._is_ours():
                self.leave_locked()

    def publish(self) -> None:
        """Publish and close, under the guest's lock."""
        with self._lock("publish"):
            if self._is_ours():
                self.publish_locked()

    def leave_locked(self) -> None:
        """Leave overlays; a guest that does not exist any more keeps them."""
        begun_s = time.monotonic()
        try:
            guest = self._hypervisor.guest(self._work.entry.uuid)
            release(self._config, guest, self._work, self._log)
        except DomainGone:
            self._log.warning("the guest does not exist any more; its overlays, if any, are kept")
            snapshot_match.note(self._work, self._log)
            thaw.note_guest_gone(self._config, self._work, self._log)
        entry = self._work.entry
        if entry.disks_frozen_at_s and entry.may_be_on_overlay and not entry.overlay_s:
            self._work.note(
                commit_s=time.monotonic() - begun_s, overlay_s=time.time() - entry.disks_frozen_at_s
            )

    def publish_locked(self) -> None:
        """Publish and close. Raises SnapshotMissing and LevelMissed, after closing."""
        publish(self._config, self._hypervisor, self._work, self._log)

    def _is_ours(self) -> bool:
        """Is this moment still open, or has another hook finished it while we waited?"""
        now = self._journal.read(self._work.entry.uuid)
        if now is None or now.capture != self._work.entry.capture:
            self._log.warning("moment %s was finished by another hook", self._work.entry.run)
            return False
        self._work = EntryWriter(self._journal, now)  # the guard may have let it go meanwhile
        return True

    def _lock(self, intent: str) -> AbstractContextManager[None]:
        entry = self._work.entry
        return lock(
            self._config.locks_dir,
            entry.uuid,
            f"{intent} {entry.domain}",
            self._config.limits.lock_timeout_s,
        )
