"""No guest stays on an overlay, whatever died: by hand, at boot, by every hook, by the guard.

For each guest, the journal and what libvirt says now decide together:

| journal                  | on an overlay of ours | what happens                               |
|--------------------------|-----------------------|--------------------------------------------|
| open, its sanoid runs    | yes or no             | nothing: the moment is under way           |
| open, its sanoid is dead | yes or no             | finished: base, point published, closed    |
| none, lost or damaged    | yes                   | brought to base; the point is lost         |
| damaged                  | no                    | let go, if it stands still                 |
| of another version       | yes or no             | the same; it stays, and is left to a person|
| none                     | no                    | nothing                                    |

Overlays that no definition names are removed if nothing was ever written to them, else kept and
reported; so is whatever somebody else has made. Restores and clones that were interrupted come
first: a restore goes on or back (restore), a clone is removed.
"""

from __future__ import annotations

from collections.abc import Iterable

from zvmsnap.clone.create import CloneCreation
from zvmsnap.common import log
from zvmsnap.common.errors import DomainGone, GuestNotFound, LibvirtFailed, ZvmsnapError
from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config
from zvmsnap.disks import overlay_chain
from zvmsnap.finalize.after_snapshot import end, finish_interrupted
from zvmsnap.journal import describe, other_versions
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import CloneOperation, Operations, RestoreOperation
from zvmsnap.recovery.orphan_overlays import clear
from zvmsnap.recovery.report import Outcome, Report, Result
from zvmsnap.restore.in_place import InPlaceRestore
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host


def recover(config: Config, domain: str | None = None, *, dry_run: bool = False) -> Report:
    """Recover every guest, or the one of that name or UUID, and what runs have left behind.

    Raises GuestNotFound and HypervisorUnreachable.
    """
    journal = Journal(config.journal_dir)
    report = Report()
    with Host(config.uri) as hypervisor:
        ended = _tasks(config, hypervisor, domain, report, dry_run=dry_run)
        guests = {guest.uuid: guest for guest in hypervisor.guests()}
        entries = {entry.uuid: entry for entry in journal.entries()}
        report.problems.extend(_of_other_versions(config, guests, domain))
        wanted = [] if ended and domain else _wanted(guests, entries, domain, report.problems)
        for uuid in wanted:
            outcome = _one(config, hypervisor, guests.get(uuid), entries.get(uuid), dry_run=dry_run)
            if outcome:
                report.outcomes.append(outcome)
            if uuid in guests:
                report.foreign.extend(_foreign(guests[uuid]))
        if domain is None:
            clear(config, guests.values(), report, dry_run=dry_run)
    return report


def each(config: Config, entries: Iterable[Entry]) -> bool:
    """Finish these moments; True if all could be. Raises HypervisorUnreachable."""
    complete = True
    with Host(config.uri) as hypervisor:
        for entry in entries:
            guest = hypervisor.find(entry.uuid)
            outcome = _one(config, hypervisor, guest, entry, dry_run=False)
            if outcome and outcome.result is Result.FAILED:
                complete = False
                log.about(entry.domain, ",".join(entry.request_datasets)).error("%s", outcome.why)
    return complete


def _tasks(
    config: Config, hypervisor: Host, domain: str | None, report: Report, *, dry_run: bool
) -> bool:
    """End restores and clones that were interrupted; True if there were any of that guest."""
    found = [t for t in Operations(config.journal_dir).all() if domain in (None, t.domain, t.uuid)]
    for task in found:
        report.outcomes.append(_task(config, hypervisor, task, dry_run=dry_run))
    return bool(found)


def _task(
    config: Config, hypervisor: Host, task: RestoreOperation | CloneOperation, *, dry_run: bool
) -> Outcome:
    def outcome(result: Result, why: str = "") -> Outcome:
        return Outcome(task.domain, task.uuid, (describe.task(task),), result, why)

    if task.owner.is_alive():
        return outcome(Result.UNDER_WAY, f"pid {task.owner.pid}")
    if dry_run:
        return outcome(Result.NEEDED)
    try:
        intent = f"recover {task.domain}"
        with lock(config.locks_dir, task.uuid, intent, config.limits.lock_timeout_s):
            # Somebody else may have ended it, or begun another, while we waited.
            now = Operations(config.journal_dir).read(task.uuid)
            if now and now.owner.is_alive():
                return outcome(Result.UNDER_WAY, f"pid {now.owner.pid}")
            if isinstance(now, RestoreOperation):
                InPlaceRestore(config, hypervisor, now).go_on()
            elif now:
                CloneCreation(config, hypervisor, now).discard()
        return outcome(Result.RECOVERED)
    except (ZvmsnapError, OSError) as error:
        return outcome(Result.FAILED, str(error))


def _of_other_versions(config: Config, guests: dict[str, Guest], domain: str | None) -> list[str]:
    """What is left to a person; an entry whose guest exists is told of with it."""
    return [
        str(file)
        for file in other_versions.files(config.journal_dir)
        if (file.is_operation or file.uuid not in guests)
        and (
            domain in (None, file.uuid)
            or (file.uuid in guests and domain == guests[file.uuid].name)
        )
    ]


def _wanted(
    guests: dict[str, Guest], entries: dict[str, Entry], domain: str | None, problems: list[str]
) -> list[str]:
    names = {uuid: guest.name for uuid, guest in guests.items()}
    names |= {uuid: entry.domain for uuid, entry in entries.items() if uuid not in names}
    found = sorted(names, key=lambda uuid: names[uuid])
    if domain is not None:
        found = [uuid for uuid in found if domain in (uuid, names[uuid])]
        if not found and not problems:
            raise GuestNotFound(f"{domain}: libvirt has no such guest, nor has the journal")
    return found


def _one(
    config: Config,
    hypervisor: Host,
    guest: Guest | None,
    entry: Entry | None,
    *,
    dry_run: bool,
) -> Outcome | None:
    name = guest.name if guest else entry.domain if entry else ""
    uuid = guest.uuid if guest else entry.uuid if entry else ""
    found: tuple[str, ...] = ()

    def outcome(result: Result, why: str = "") -> Outcome:
        return Outcome(name, uuid, found, result, why)

    try:
        found = _findings(guest, entry)
        journal = Journal(config.journal_dir)
        if guest and not entry and journal.is_lost(uuid):
            found += ("its journal could not be read",)
        if guest and journal.of_other_version(uuid):
            found += ("its journal is of another version",)
        if not found:
            return None
        if entry and entry.owner.is_alive():
            return outcome(Result.UNDER_WAY, f"sanoid has pid {entry.owner.pid}")
        if dry_run:
            return outcome(Result.NEEDED)
        with lock(config.locks_dir, uuid, f"recover {name}", config.limits.lock_timeout_s):
            # Somebody else may have finished it, or begun another moment, while we waited.
            entry = journal.read(uuid)
            if entry and entry.owner.is_alive():
                return outcome(Result.UNDER_WAY, f"sanoid has pid {entry.owner.pid}")
            if guest:
                finish_interrupted(config, hypervisor, guest, entry)
            elif entry:
                end(config, hypervisor, entry)
        if guest and journal.is_lost(uuid):
            return outcome(Result.FAILED, "it may stand still because of us: cannot be told yet")
        return outcome(Result.RECOVERED)
    except DomainGone:
        return None
    except (ZvmsnapError, OSError) as error:
        return outcome(Result.FAILED, str(error))


def _findings(guest: Guest | None, entry: Entry | None) -> tuple[str, ...]:
    found = []
    if entry:
        found.append(f"{describe.work(entry)} is open at step {entry.step or 'none'}")
    if guest:
        found += [
            f"{stack.target} is on {stack.top}" + (f" ({stack.problem})" if stack.problem else "")
            for stack in overlay_chain.of_guest(guest).values()
        ]
    return tuple(found)


def _foreign(guest: Guest) -> list[str]:
    try:
        return [
            f"{guest.name}: libvirt's snapshot {name} was made by somebody else; not touched"
            for name in guest.snapshot_names()
        ]
    except DomainGone:
        return []
    except LibvirtFailed as error:
        # Of a kind of guest that has none, say: no reason to leave the others where they are.
        return [str(error)]
