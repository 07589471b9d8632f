"""Makes the point of a late run (journal/late): its snapshot was taken during another run."""

from __future__ import annotations

import msgspec

from zvmsnap.common import log
from zvmsnap.common.errors import LevelMissed, SnapshotMissing
from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config
from zvmsnap.disks.staging import StagingDir
from zvmsnap.finalize.publish import publish
from zvmsnap.journal import describe, late, snapshot_match
from zvmsnap.journal.entry import Disk, Entry
from zvmsnap.journal.journal import EntryWriter, Journal
from zvmsnap.points import definition
from zvmsnap.virt import domain_xml
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host


def finish(config: Config, host: Host, known: Entry) -> bool:
    """Make its point, unless another run of the guest is open: then it waits for that.

    True if it is done, with or without a point; else the cause is in the log.
    """
    about = log.about(known.domain, known.subject)
    try:
        intent = f"publish {known.domain}"
        with lock(config.locks_dir, known.uuid, intent, config.limits.lock_timeout_s):
            other = Journal(config.journal_dir).read(known.uuid)
            if other:
                about.info("the point of %s is made when %s has ended", known.run, _name(other))
                return False
            finish_locked(config, host, known)
        return True
    except Exception as error:
        log.failure(about, error)
        return False


def finish_locked(config: Config, host: Host, known: Entry) -> None:
    """The same, for whoever holds the guest's lock while no other run is open.

    May be repeated after any interruption. Raises ZvmsnapError and OSError.
    """
    journal = late.journal_of(config.journal_dir, known.capture)
    entry = journal.read(known.uuid)
    if entry is None:
        return
    about = log.about(entry.domain, entry.subject)
    writer = EntryWriter(journal, entry)
    existing = snapshot_match.candidates(entry)
    whole = late.not_spoilt(entry, existing)
    writer.note(
        snapshots_at_release=tuple(ref.guid for ref in whole),
        released_early=bool(existing) and not whole,
    )
    guest = host.find(entry.uuid)
    if guest and whole:
        writer.step("definition", lambda: _store(config, guest, writer))
    try:
        publish(config, host, writer, about)
    except (SnapshotMissing, LevelMissed) as error:
        about.warning("%s", error)
    late.close(config.journal_dir, entry.capture)


def _store(config: Config, guest: Guest, writer: EntryWriter) -> None:
    """Store its definition, now that it is on its own disks again."""
    staging = StagingDir(writer.entry.directory(config.staging_dir))
    staging.make()
    warning = definition.store(guest, staging.point, (), [])
    now = {disk.target: disk for disk in domain_xml.parse(guest.xml()).disks}
    disks = tuple(_as_now(disk, now.get(disk.target)) for disk in writer.entry.disks)
    writer.note(tpm_warning=warning, disks=disks)


def _as_now(disk: Disk, now: domain_xml.Disk | None) -> Disk:
    if now is None:
        return disk
    return msgspec.structs.replace(disk, type=now.type, format=now.format, base=now.source)


def _name(entry: Entry) -> str:
    return describe.work(entry)
