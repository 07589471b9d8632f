"""post: bring each guest of a run to its bases, and publish its point.

This works from the journal, because sanoid tells post neither whether the snapshot was taken nor,
always, its real name. All of it may be repeated after a crash: by the next hook for the guest, by
`zvmsnap recover`, or by the watchdog.

    release    the guest is resumed or thawed, and taken off its overlays (release)
    publish    a point that names exactly the snapshots that ZFS has (publish)
    old RAM    of older points goes, if the hook has published new ones (retention/old_memory)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec

from zvmsnap.common import log
from zvmsnap.common.errors import (
    DomainGone,
    LevelMissed,
    SnapshotMissing,
    VaultDamaged,
    VaultMissing,
    WorkOfOtherVersion,
    ZvmsnapError,
)
from zvmsnap.common.process import Process
from zvmsnap.common.snapshot_name import spellings
from zvmsnap.common.steps import StepFailed
from zvmsnap.common.waiting import Call, in_parallel
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks import overlay_chain
from zvmsnap.disks.staging import StagingDir
from zvmsnap.finalize import late_run, told
from zvmsnap.finalize.publish import publish
from zvmsnap.finalize.release import release
from zvmsnap.journal import describe, late, snapshot_match
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter, Journal
from zvmsnap.journal.request import HookCall
from zvmsnap.journal.waiting import WaitingEntries, put_by
from zvmsnap.notify.event import Kind
from zvmsnap.quiesce import thaw
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host

_PARALLEL_GUESTS = 16


def finish_and_tidy(call: HookCall, config: Config, owner: Process) -> bool:
    """As `finish_run`; after that, RAM of the guests' older points goes that is kept no longer."""
    finished, well = _finish_run(call, config, owner)
    if finished:
        from zvmsnap.retention import old_memory  # recovery and take load it for nothing

        guests = {each.uuid: (each.domain, each.datasets) for each in finished}
        old_memory.tidy(config, guests)
    return well


def finish_run(call: HookCall, config: Config, owner: Process) -> bool:
    """Finish the run of this call for every guest in the journal; True if all went well.

    All guests are released first, in parallel. After that the points are published one by one, as
    images may be copied for it.
    """
    return _finish_run(call, config, owner)[1]


def _finish_run(call: HookCall, config: Config, owner: Process) -> tuple[list[Entry], bool]:
    """The entries of which it went well; did it go well with all?"""
    journal = Journal(config.journal_dir)
    for file in journal.of_other_versions():
        log.plain().warning("%s", file)
    entries = [entry for entry in journal.entries() if belongs(entry, call, owner)]
    late_runs = [entry for entry in late.entries(config.journal_dir) if belongs(entry, call, owner)]
    if not entries and not late_runs:
        log.plain().debug("%s: no run is under way", ",".join(call.datasets))
        return [], True
    with Host.connect(config.uri) as host:
        finishers = [Finisher(config, host, journal, entry) for entry in entries]
        well = _publish_all(_released(finishers))
        for entry in late_runs:
            late_run.finish(config, host, entry)  # else the watchdog does it; pre has said so
    return [each.entry for each in well], len(well) == len(finishers)


def _released(finishers: list[Finisher]) -> list[Finisher]:
    """Release all guests, in parallel; returns those of which it went well."""
    works = {each: partial(each.locked, "release", each.release) for each in finishers}
    well = set()
    for each, work in in_parallel(works, _PARALLEL_GUESTS):
        try:
            if work.answer():
                well.add(each)
        except Exception as error:  # it hangs in the kernel
            each.log_failure(error)
    return [each for each in finishers if each in well]


def _publish_all(finishers: list[Finisher]) -> list[Finisher]:
    """Publish the points one by one; returns those of which it went well."""
    well = []
    for each in finishers:
        try:
            if Call(partial(each.locked, "publish", each.publish)).answer():
                well.append(each)
        except Exception as error:
            each.log_failure(error)
            break  # it hangs in the kernel: so would the others, as all have one vault
    return well


def belongs(entry: Entry, call: HookCall, owner: Process) -> bool:
    """Is that entry of the run that this post ends?

    It is, with the same datasets and the same sanoid (strictly serial: pre, snapshot, post). If
    each hook has a shell of its own between it and sanoid, a name in common is enough, but never
    for the run of a process that lives: of two sanoids that began in the same second, with the
    same names, the other one has not taken its snapshots yet.
    """
    if entry.request_datasets != call.datasets:
        return False
    announced = {spelling for name in entry.snapshot_names for spelling in spellings(name)}
    return entry.owner == owner or (
        bool(announced & set(call.names)) and not entry.owner.is_alive()
    )


def finish_interrupted(
    config: Config, host: Host, guest: Guest, entry: Entry | None, *, may_wait: bool = False
) -> None:
    """End what an earlier run has left unfinished for this guest, whose lock the caller holds.

    Without a journal entry, the names of the overlays and their backing files in the XML are
    enough. If an entry could not be read, the guest is asked whether it is held. Raises
    CommitFailed and others if the run cannot be ended; nothing is lost by that. Raises
    WorkOfOtherVersion if the entry is of another version: the guest was brought back, unless the
    owner of the run lives; entry, staging directory and RAM image stay for that version.

    With `may_wait`, a point that cannot be published waits for the vault, and is no failure.
    """
    journal = Journal(config.journal_dir)
    other = journal.of_other_version(guest.uuid)
    if other and other.owner.is_alive():
        raise WorkOfOtherVersion(str(other))
    held = thaw.held_fields(guest) if other or journal.is_lost(guest.uuid) else {}
    if entry:
        # What is in the way was said when it was met first; the watchdog tries again and again.
        log.about(guest.name, entry.subject).log(
            logging.DEBUG if entry.in_the_way else logging.WARNING,
            "finishing what was interrupted: %s",
            describe.work(entry),
        )
    else:
        entry = _recovery(config, guest, held)
    if entry:
        finish_entry(config, host, entry, may_wait=may_wait)
    if held is not None:
        journal.forget_lost(guest.uuid)
    _finish_late_runs(config, host, guest)
    if other:
        raise WorkOfOtherVersion(str(other))


def _finish_late_runs(config: Config, host: Host, guest: Guest) -> None:
    """Make the points of late runs whose owner is dead; no failure of these stops a new run."""
    for entry in late.entries(config.journal_dir):
        if entry.uuid == guest.uuid and not entry.owner.is_alive():
            try:
                late_run.finish_locked(config, host, entry)
            except Exception as error:
                log.failure(log.about(entry.domain, entry.subject), error)


def finish_entry(config: Config, host: Host, entry: Entry, *, may_wait: bool = False) -> None:
    """Release and publish; the caller holds the guest's lock. Raises as release and publish.

    That no point is made is no failure: it is logged.
    """
    finisher = Finisher(config, host, Journal(config.journal_dir), entry)
    finisher.release()
    about = log.about(entry.domain, entry.subject)
    try:
        finisher.publish()
    except (SnapshotMissing, LevelMissed) as error:
        about.warning("%s", error)
        told.tell(config, finisher.entry, Kind.NO_POINT, error)
    except (ZvmsnapError, OSError) as error:
        if not may_wait or not _is_of_vault(error):
            raise
        about.warning("the point of run %s waits in staging: %s", entry.run, error)
        told.tell(config, finisher.entry, Kind.UNFINISHED, error)
        put_by(Journal(config.journal_dir), WaitingEntries(config.journal_dir), finisher.entry)


def publish_waiting(config: Config, host: Host, uuid: str) -> None:
    """Publish the points of a guest that wait for the vault; the caller holds the guest's lock.

    Raises VaultMissing, VaultDamaged, StepFailed and OSError if the vault cannot be used yet.
    """
    waiting = WaitingEntries(config.journal_dir)
    for entry in waiting.of(uuid):
        about = log.about(entry.domain, entry.subject)
        try:
            publish(config, host, EntryWriter(waiting, entry), about)
        except (SnapshotMissing, LevelMissed) as error:
            about.warning("%s", error)


def _is_of_vault(error: BaseException | None) -> bool:
    """Is the error one of storing a point, which does not concern the guest?"""
    if isinstance(error, StepFailed):
        return _is_of_vault(error.cause)
    return isinstance(error, OSError | VaultMissing | VaultDamaged)


def _recovery(config: Config, guest: Guest, held: dict[str, Any] | None) -> Entry | None:
    """An entry made anew for a guest that no journal knows; None if it needs nothing.

    `held` has the fields that say how the guest is held; None if that cannot be found out now.
    """
    about = log.about(guest.name, "no journal")
    if held is None:
        about.warning("cannot find out yet whether zvmsnap has paused or frozen it")
    if held:
        about.warning("resuming or thawing it, as its journal entry was lost")
    is_on_overlay = bool(overlay_chain.of_guest(guest))
    if is_on_overlay:
        about.warning("taking it off overlays that no journal entry names")
    if not is_on_overlay and not held:
        return None
    entry = Entry(
        domain=guest.name,
        uuid=guest.uuid,
        run="",
        request_datasets=(),
        snapshot_names=(),
        preexisting_guids=(),
        owner=Process.none(),
        capture=StagingDir.fresh(config.staging_dir, guest.uuid).path.name,
        staging=config.staging,
        level=ConsistencyLevel.CRASH,
        reason="the journal was lost",
        disks=(),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    return msgspec.structs.replace(entry, **(held or {}))


class Finisher:
    """Brings one guest's entry to its end: `release` first, `publish` after that.

    Whoever calls these holds the guest's lock, or calls them by `locked`.
    """

    def __init__(self, config: Config, host: Host, journal: Journal, entry: Entry) -> None:
        self._config = config
        self._host = host
        self._journal = journal
        self._writer = EntryWriter(journal, entry)
        self._log = log.about(entry.domain, entry.subject)

    def locked(self, intent: str, do: Callable[[], None]) -> bool:
        """Do it under the guest's lock, unless somebody else has closed the entry meanwhile.

        False, with the cause in the log, if it failed.
        """
        entry, config = self._writer.entry, self._config
        try:
            with self._journal.if_same(
                config.locks_dir, entry, f"{intent} {entry.domain}", config.limits.lock_timeout_s
            ) as now:
                if now is None:
                    self._log.warning("%s was finished by somebody else", describe.work(entry))
                else:
                    # The watchdog may have changed it since it was read.
                    self._writer = EntryWriter(self._journal, now)
                    do()
            return True
        except Exception as error:
            self.log_failure(error)
            return False

    def log_failure(self, error: Exception) -> None:
        """Tell why this guest was not served; whoever comes next tries again."""
        log.failure(self._log, error)
        is_over = isinstance(error, SnapshotMissing | LevelMissed)
        told.tell(self._config, self.entry, Kind.NO_POINT if is_over else Kind.UNFINISHED, error)

    def release(self) -> None:
        """Take the guest off its overlays; one that does not exist any more keeps them."""
        begun_s = time.monotonic()
        try:
            with self._host.guest(self._writer.entry.uuid).apart() as guest:
                release(self._config, guest, self._writer, self._log)
        except DomainGone:
            self._log.warning("the guest does not exist any more; its overlays, if any, are kept")
            snapshot_match.note(self._writer, self._log)
            thaw.note_guest_gone(self._config, self._writer, self._log)
        entry = self._writer.entry
        if entry.disks_frozen_at_s and entry.may_be_on_overlay and not entry.overlay_s:
            self._writer.note(
                commit_s=time.monotonic() - begun_s, overlay_s=time.time() - entry.disks_frozen_at_s
            )

    def let_go(self, guest: Guest) -> None:
        """Resume or thaw the guest at once, if it is held; `release` does all else after that.

        Raises NotHeld and LibvirtFailed.
        """
        thaw.resume_or_thaw(self._config, guest, self._writer, self._log)

    @property
    def entry(self) -> Entry:
        """The entry as it is now."""
        return self._writer.entry

    def publish(self) -> None:
        """Publish and close. Raises SnapshotMissing and LevelMissed, after closing.

        Older points of the guest, which have waited for the vault, come after it.
        """
        publish(self._config, self._host, self._writer, self._log)
        try:
            publish_waiting(self._config, self._host, self.entry.uuid)
        except Exception as error:
            self._log.warning("older points still wait in staging: %s", log.one_line(error))
