"""No guest stays on an overlay, whatever died: by hand, at boot, by every hook, by the watchdog.

For each guest, its journal entry and what libvirt says now decide together:

| journal entry            | on an overlay of ours | what happens                               |
|--------------------------|-----------------------|--------------------------------------------|
| open, its owner lives    | yes or no             | nothing: the run is under way              |
| open, its owner is dead  | yes or no             | released, point published, entry closed    |
| none, lost or damaged    | yes                   | released; the point is lost                |
| damaged                  | no                    | resumed or thawed, if it is held           |
| of another version       | yes or no             | the same as damaged; the entry is kept     |
| none                     | no                    | nothing                                    |

Overlays that no definition names are removed if nothing was ever written to them, else kept and
reported; so is everything that zvmsnap did not make. Interrupted restores and clones come first: a
restore is finished or undone (restore/in_place), a clone is removed. What other commands have left
is ended by recovery/interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from zvmsnap.backup import leftovers
from zvmsnap.clone.create import CloneCreation
from zvmsnap.common import log
from zvmsnap.common.errors import DomainGone, GuestNotFound, LibvirtFailed
from zvmsnap.common.lockfile import lock
from zvmsnap.common.waiting import Call
from zvmsnap.config.settings import Config
from zvmsnap.disks import overlay_chain
from zvmsnap.finalize import late_run, told
from zvmsnap.finalize.after_snapshot import finish_entry, finish_interrupted, publish_waiting
from zvmsnap.journal import describe, late, other_versions
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.fetches import Fetches
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import CloneOperation, Operations, RestoreOperation
from zvmsnap.journal.waiting import WaitingEntries
from zvmsnap.notify.event import Kind
from zvmsnap.recovery import interrupted
from zvmsnap.recovery.orphan_overlays import clear_leftovers
from zvmsnap.recovery.report import Outcome, Report, Result
from zvmsnap.restore.in_place import InPlaceRestore
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host


def recover_guests(config: Config, domain: str | None = None, *, dry_run: bool = False) -> Report:
    """Recover every guest, or the one of that name or UUID, and clear what runs have left behind.

    Raises GuestNotFound and HypervisorUnreachable.
    """
    report = Report()
    with Host.connect(config.uri) as host:
        operations = [
            operation
            for operation in Operations(config.journal_dir).all()
            if domain in (None, operation.domain, operation.uuid)
        ]
        for operation in operations:
            report.outcomes.append(_end_operation(config, host, operation, dry_run=dry_run))
        report.outcomes.extend(_end_backups(config, host, report, domain, dry_run=dry_run))
        guests = {guest.uuid: guest for guest in host.guests()}
        entries = {entry.uuid: entry for entry in Journal(config.journal_dir).entries()}
        report.problems.extend(_of_other_versions(config, guests, domain))
        report.outcomes.extend(_publish_waiting(config, host, domain, dry_run=dry_run))
        interrupted.end(config, host, domain, report, dry_run=dry_run)
        subjects = [] if operations and domain else _subjects(guests, entries, domain)
        if domain and not (report.outcomes or subjects or report.problems):
            raise GuestNotFound(f"{domain}: libvirt has no such guest, nor has the journal")
        for subject in subjects:
            outcome = _recover(config, host, subject, dry_run=dry_run)
            if outcome:
                report.outcomes.append(outcome)
            if subject.guest:
                report.foreign.extend(_foreign(subject.guest))
        for entry in late.entries(config.journal_dir):
            if domain in (None, entry.domain, entry.uuid):
                report.outcomes.append(_end_late_run(config, host, entry, dry_run=dry_run))
        if domain is None:
            report.problems.extend(Fetches(config.journal_dir).interrupted(config))
            clear_leftovers(config, guests.values(), report, dry_run=dry_run)
    return report


def recover_entries(
    config: Config, entries: Iterable[Entry], said: dict[str, str] | None = None
) -> bool:
    """Finish the runs of these entries; True if all could be. Raises HypervisorUnreachable.

    `said` has, by UUID, why it failed before, or what was in the way: the same is not logged again.
    """
    said = {} if said is None else said
    complete = True
    with Host.connect(config.uri) as host:
        for entry in entries:
            about = log.about(entry.domain, entry.subject)
            try:
                subject = _Subject(entry.uuid, entry.domain, host.find(entry.uuid), entry)
                outcome = _recover(config, host, subject, dry_run=False)
            except Exception as error:
                complete = False
                log.failure(about, error)
                if said.get(entry.uuid) != str(error):
                    said[entry.uuid] = str(error)
                    told.tell(config, entry, Kind.UNFINISHED, error)
                continue
            if outcome and outcome.result is Result.FAILED:
                complete = False
                now = Journal(config.journal_dir).read(entry.uuid)
                why = (now and now.in_the_way) or outcome.why
                if said.get(entry.uuid) != why:
                    said[entry.uuid] = why
                    about.error("%s", outcome.why)
                    told.tell(config, entry, Kind.UNFINISHED, outcome.why)
    return complete


def recover_late_runs(config: Config, entries: Iterable[Entry]) -> bool:
    """Make the points of these late runs; True if all could be. Raises HypervisorUnreachable."""
    with Host.connect(config.uri) as host:
        finished = [late_run.finish(config, host, entry) for entry in entries]
    return all(finished)


def _end_late_run(config: Config, host: Host, entry: Entry, *, dry_run: bool) -> Outcome:
    findings = (f"{describe.work(entry)} waits for the end of another run",)
    if entry.owner.is_alive():
        result, why = _under_way(entry)
    elif dry_run:
        result, why = Result.NEEDED, ""
    elif late_run.finish(config, host, entry):
        result, why = Result.RECOVERED, ""
    else:
        result, why = Result.FAILED, "its point cannot be made yet"
    return Outcome(entry.domain, entry.uuid, findings, result, why)


# -- interrupted backups and imports


def _end_backups(
    config: Config, host: Host, report: Report, domain: str | None, *, dry_run: bool
) -> Iterator[Outcome]:
    """Remove what they have left; an import that was all but done is finished."""
    interrupted, problems = leftovers.works(config, host)
    report.problems.extend(problems)
    for each in interrupted:
        if domain not in (None, each.domain, each.uuid):
            continue
        result, why = Result.RECOVERED, ""
        if each.pid:
            result, why = Result.UNDER_WAY, f"pid {each.pid}"
        elif dry_run:
            result = Result.NEEDED
        else:
            try:
                Call(each.end).answer()
            except Exception as error:
                result, why = Result.FAILED, log.one_line(error)
        how = "is under way" if each.pid else "was interrupted"
        yield Outcome(each.domain, each.uuid, (f"{each.what} {how}",), result, why)


# -- interrupted restores and clones


def end_clones(config: Config, prefix: str) -> list[str]:
    """Remove the clones with such names whose process has died; returns why some are left.

    libvirt is asked only if there are any. Raises HypervisorUnreachable.
    """
    interrupted = [
        operation
        for operation in Operations(config.journal_dir).all()
        if isinstance(operation, CloneOperation)
        and operation.domain.startswith(prefix)
        and not operation.owner.is_alive()
    ]
    if not interrupted:
        return []
    with Host.connect(config.uri) as host:
        outcomes = [_end_operation(config, host, each, dry_run=False) for each in interrupted]
    return [f"{each.domain}: {each.why}" for each in outcomes if each.result is Result.FAILED]


def _end_operation(
    config: Config, host: Host, operation: RestoreOperation | CloneOperation, *, dry_run: bool
) -> Outcome:
    findings = (describe.operation(operation),)
    if operation.owner.is_alive():
        result, why = Result.UNDER_WAY, f"pid {operation.owner.pid}"
    elif dry_run:
        result, why = Result.NEEDED, ""
    else:
        try:
            result, why = Call(partial(_end_interrupted, config, host, operation)).answer()
        except Exception as error:
            result, why = Result.FAILED, log.one_line(error)
    return Outcome(operation.domain, operation.uuid, findings, result, why)


def _end_interrupted(
    config: Config, host: Host, operation: RestoreOperation | CloneOperation
) -> tuple[Result, str]:
    intent = f"recover {operation.domain}"
    with lock(config.locks_dir, operation.uuid, intent, config.limits.lock_timeout_s):
        # Somebody else may have ended it, or begun another, while the lock was waited for.
        now = Operations(config.journal_dir).read(operation.uuid)
        if now and now.owner.is_alive():
            return Result.UNDER_WAY, f"pid {now.owner.pid}"
        if isinstance(now, RestoreOperation):
            InPlaceRestore(config, host, now).go_on()
        elif now:
            CloneCreation(config, host, now).discard()
    return Result.RECOVERED, ""


# -- points that wait for the vault


def _publish_waiting(
    config: Config, host: Host, domain: str | None, *, dry_run: bool
) -> Iterator[Outcome]:
    """Publish them, guest by guest."""
    by_guest: dict[str, list[Entry]] = {}
    for entry in WaitingEntries(config.journal_dir).all():
        if domain in (None, entry.domain, entry.uuid):
            by_guest.setdefault(entry.uuid, []).append(entry)
    for uuid, entries in by_guest.items():
        name = entries[-1].domain
        result, why = Result.NEEDED, ""
        if not dry_run:
            intent, limit_s = f"recover {name}", config.limits.lock_timeout_s
            try:
                with lock(config.locks_dir, uuid, intent, limit_s):
                    publish_waiting(config, host, uuid)
                result = Result.RECOVERED
            except Exception as error:
                result, why = Result.FAILED, log.one_line(error)
        yield Outcome(name, uuid, tuple(map(describe.waiting, entries)), result, why)


# -- interrupted runs


@dataclass(frozen=True)
class _Subject:
    """A guest that libvirt knows, or the journal, or both."""

    uuid: str
    name: str
    guest: Guest | None
    entry: Entry | None


def _subjects(
    guests: Mapping[str, Guest], entries: Mapping[str, Entry], domain: str | None
) -> list[_Subject]:
    """All guests by name, or the one of that name or UUID."""
    names = {uuid: entry.domain for uuid, entry in entries.items()}
    names |= {uuid: guest.name for uuid, guest in guests.items()}
    subjects = [
        _Subject(uuid, name, guests.get(uuid), entries.get(uuid))
        for uuid, name in names.items()
        if domain in (None, uuid, name)
    ]
    return sorted(subjects, key=lambda subject: subject.name)


def _recover(config: Config, host: Host, subject: _Subject, *, dry_run: bool) -> Outcome | None:
    """None if the guest needs nothing, or does not exist any more."""
    findings: tuple[str, ...] = ()
    try:
        findings = Call(partial(_inspect, config, subject)).answer()
        if not findings:
            return None
        if subject.entry and subject.entry.owner.is_alive():
            result, why = _under_way(subject.entry)
        elif dry_run:
            result, why = Result.NEEDED, ""
        else:
            result, why = Call(partial(_finish, config, host, subject)).answer()
    except DomainGone:
        return None
    except Exception as error:
        result, why = Result.FAILED, log.one_line(error)
    return Outcome(subject.name, subject.uuid, findings, result, why)


def _inspect(config: Config, subject: _Subject) -> tuple[str, ...]:
    """Why the guest needs recovery, one line for each cause; nothing if it needs none."""
    findings, journal = [], Journal(config.journal_dir)
    if subject.entry:
        step = subject.entry.step or "none"
        findings.append(f"{describe.work(subject.entry)} is open at step {step}")
        if subject.entry.in_the_way:
            findings.append(f"it waits for {subject.entry.in_the_way}, which is not zvmsnap's")
    if subject.guest:
        findings += [
            f"{chain.target} is on {chain.top}" + (f" ({chain.problem})" if chain.problem else "")
            for chain in overlay_chain.of_guest(subject.guest).values()
        ]
        if not subject.entry and journal.is_lost(subject.uuid):
            findings.append("its journal entry could not be read")
        if journal.of_other_version(subject.uuid):
            findings.append("its journal entry is of another version")
    return tuple(findings)


def _finish(config: Config, host: Host, subject: _Subject) -> tuple[Result, str]:
    """Finish what is open of the guest, under its lock."""
    journal = Journal(config.journal_dir)
    intent = f"recover {subject.name}"
    with lock(config.locks_dir, subject.uuid, intent, config.limits.lock_timeout_s):
        # Somebody else may have finished it, or begun another run, while the lock was waited for.
        entry = journal.read(subject.uuid)
        if entry and entry.owner.is_alive():
            return _under_way(entry)
        if subject.guest:
            finish_interrupted(config, host, subject.guest, entry)
        elif entry:
            finish_entry(config, host, entry)
    if subject.guest and journal.is_lost(subject.uuid):
        return Result.FAILED, "cannot find out yet whether zvmsnap has paused or frozen it"
    return Result.RECOVERED, ""


def _under_way(entry: Entry) -> tuple[Result, str]:
    return Result.UNDER_WAY, describe.owner(entry)


def _of_other_versions(
    config: Config, guests: Mapping[str, Guest], domain: str | None
) -> list[str]:
    """Files of other versions, for a person; an open entry whose guest exists is told with it."""
    problems = []
    told = {str(file) for file in Journal(config.journal_dir).of_other_versions()}
    for file in other_versions.files(config.journal_dir):
        guest = guests.get(file.uuid)
        names = (file.uuid, guest.name) if guest else (file.uuid,)
        if (not guest or str(file) not in told) and (domain is None or domain in names):
            problems.append(str(file))
    return problems


def _foreign(guest: Guest) -> list[str]:
    try:
        return [
            f"{guest.name}: libvirt's snapshot {name} was made by somebody else; not touched"
            for name in guest.snapshot_names()
        ]
    except DomainGone:
        return []
    except LibvirtFailed as error:
        # Some kinds of guests have no snapshots: no reason not to recover the others.
        return [str(error)]
