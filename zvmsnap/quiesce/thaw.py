"""Resumes or thaws a guest that zvmsnap holds, whatever became of those who held it.

| level    | the guest now         | what is done                               | the point       |
|----------|-----------------------|--------------------------------------------|-----------------|
| paused   | is paused             | it is resumed                              | paused          |
| paused   | runs, or is off       | nothing: somebody else resumed it          | crash; paused,  |
|          |                       |                                            | if it was held  |
|          |                       |                                            | at release      |
| quiesced | is frozen             | it is thawed                               | quiesced        |
| quiesced | is not, or is off     | it is thawed to be sure: VSS in Windows    | crash           |
|          |                       | ends a freeze by itself                    |                 |
| quiesced | agent does not answer | tried again; if in vain, the entry stays   | not yet decided |

A guest that was held until now was held for every snapshot that exists now. One that the watchdog
resumed or thawed before, at the deadline, runs by now, and gets a point of level crash. One that it
resumed because its snapshots exist runs as well: its entry proves that it was held for them.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from zvmsnap.common.errors import DomainGone, DomainLocked, LibvirtFailed, NotHeld, ScriptFailed
from zvmsnap.common.log import Logger
from zvmsnap.common.process import uptime_s
from zvmsnap.common.waiting import sleep
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter
from zvmsnap.points.manifest import SnapshotRef
from zvmsnap.quiesce import scripts
from zvmsnap.virt import agent, domain_xml
from zvmsnap.virt.guest import Guest, Pause

# Why a point is of level crash though its guest was held.
WENT_ON = "it went on before its snapshot was known to be taken"

_THAW_ATTEMPTS = 3
_THAW_POLL_S = 1.0

# After a dump the guest is paused by libvirt's job or, where the dump was cut short, by zvmsnap.
_PAUSED_BY_ZVMSNAP = (Pause.USER, Pause.JOB)


def resume_or_thaw(config: Config, guest: Guest, writer: EntryWriter, log: Logger) -> None:
    """Follow the table. The caller holds the guest's lock. Raises NotHeld and LibvirtFailed."""
    if writer.entry.is_paused_for_snapshot:
        _resume(guest, writer)
    if writer.entry.frozen:
        _thaw(guest, writer)
    if writer.entry.thaw_script_due:
        _run_post_thaw(config, writer, log)


def resume_or_thaw_unlocked(guest: Guest, entry: Entry) -> str:
    """At the deadline, without any lock: resume or thaw the guest, but do not touch the journal.

    Returns what it was: "paused", "frozen", or "" if it was not held. Raises LibvirtFailed.
    `resume_or_thaw` must follow, under the lock.
    """
    if not guest.is_active():
        return ""
    if entry.is_paused_for_snapshot and _is_paused_by_zvmsnap(guest) and not is_busy(guest):
        guest.resume()
        return "paused"
    if entry.frozen and agent.is_frozen(guest):
        agent.thaw(guest)
        return "frozen"
    return ""


def note_guest_gone(config: Config, writer: EntryWriter, log: Logger) -> None:
    """Note that nobody knows until when a guest was held, as it does not exist any more."""
    entry = writer.entry
    if entry.is_held:
        why = "it is gone, and may have gone on before its snapshot"
        is_less = entry.disks_frozen_at_s and not entry.was_held_at_release
        less = {"level": ConsistencyLevel.CRASH, "reason": why} if is_less else {}
        writer.note(paused=False, frozen=False, **less)
    if entry.thaw_script_due:
        _run_post_thaw(config, writer, log)


def resume_with_snapshots(
    guest: Guest, writer: EntryWriter, refs: tuple[SnapshotRef, ...], all_exist_s: float
) -> bool:
    """Resume a guest that is paused until now, as these are all its snapshots, and exist.

    The caller has seen all of them at the `uptime_s` of `all_exist_s`, has listed them, and holds
    the guest's lock. False, with nothing done, if it is not paused by zvmsnap any more. Raises
    LibvirtFailed and OSError.
    """
    if not _is_paused_by_zvmsnap(guest):
        return False
    writer.note(
        snapshots_at_release=tuple(ref.guid for ref in refs),
        refs_at_release=refs,
        was_held_at_release=True,
        pause_s=_held_s(writer.entry),
    )
    _resume_paused(guest)
    parts = replace(writer.entry.pause_parts, resume_s=uptime_s() - all_exist_s)
    writer.note(paused=False, pause_s=_held_s(writer.entry), pause_parts=parts)
    return True


def thaw_file_systems(config: Config, guest: Guest, writer: EntryWriter, log: Logger) -> None:
    """Thaw file systems that must have been frozen until now, and run post-thaw at once.

    Raises NotHeld if they were not frozen, or cannot be thawed, and LibvirtFailed.
    """
    if why := _thaw_by_agent(guest):
        writer.note(frozen=False)
        raise NotHeld(why)
    writer.note(frozen=False, pause_s=_held_s(writer.entry))
    if writer.entry.thaw_script_due:
        _run_post_thaw(config, writer, log)


def held_fields(guest: Guest) -> dict[str, Any] | None:
    """The fields of an entry that say how this guest is held, for an entry that was lost.

    None: that cannot be told now. Raises DomainGone.
    """
    try:
        if not guest.is_active():
            return {}
        if is_busy(guest):
            return None
        if guest.pause_reason() is Pause.JOB:
            return {"level": ConsistencyLevel.PAUSED, "paused": True}
        if domain_xml.parse(guest.xml()).agent == "connected" and agent.is_frozen(guest):
            return {"level": ConsistencyLevel.QUIESCED, "frozen": True}
        return {}
    except DomainGone:
        raise
    except LibvirtFailed:
        return None


def is_busy(guest: Guest) -> bool:
    """Is a job of libvirt under way? While it writes RAM, a pause is part of that."""
    try:
        return guest.is_active() and guest.has_job()
    except DomainLocked:
        return True


def _is_paused_by_zvmsnap(guest: Guest) -> bool:
    return guest.pause_reason() in _PAUSED_BY_ZVMSNAP


def _resume(guest: Guest, writer: EntryWriter) -> None:
    was_paused = guest.is_active() and _is_paused_by_zvmsnap(guest)
    if was_paused:
        _resume_paused(guest)
        writer.note(paused=False, pause_s=_held_s(writer.entry))
    elif writer.entry.was_held_at_release or not writer.entry.disks_frozen_at_s:
        writer.note(paused=False)
    else:
        writer.note(paused=False, level=ConsistencyLevel.CRASH, reason=WENT_ON)


def _resume_paused(guest: Guest) -> None:
    """Resume a guest that was paused an instant ago; the deadline may be faster."""
    try:
        guest.resume()
    except LibvirtFailed:
        if guest.pause_reason():
            raise


def _thaw(guest: Guest, writer: EntryWriter) -> None:
    why = _thaw_by_agent(guest)
    if why and writer.entry.disks_frozen_at_s:
        writer.note(frozen=False, level=ConsistencyLevel.CRASH, reason=why)
    else:
        writer.note(frozen=False, pause_s=_held_s(writer.entry))


def _thaw_by_agent(guest: Guest) -> str:
    """Thaw the file systems; return why they were not frozen until now, "" if they were.

    Raises NotHeld if they cannot be thawed now.
    """
    was_frozen = False
    for attempt in range(1, _THAW_ATTEMPTS + 1):
        if not guest.is_active():
            return "it was shut off while its file systems were frozen"
        try:
            # A thaw that takes long, because of hooks in the guest, only seems to fail.
            was_frozen = was_frozen or agent.is_frozen(guest)
            agent.thaw(guest)
            return "" if was_frozen else "its file systems thawed before its snapshot was known"
        except LibvirtFailed as error:
            if attempt == _THAW_ATTEMPTS:
                raise NotHeld(
                    f"its file systems may be frozen, and cannot be thawed now: {error}; it is "
                    f"tried again; by hand: virsh domfsthaw {guest.name}"
                ) from error
        sleep(_THAW_POLL_S)
    raise AssertionError


def _held_s(entry: Entry) -> float:
    return uptime_s() - entry.held_since_s if entry.held_since_s else 0.0


def _run_post_thaw(config: Config, writer: EntryWriter, log: Logger) -> None:
    try:
        if scripts.exists(config, writer.entry, scripts.POST_THAW):
            scripts.run(config, writer.entry, scripts.POST_THAW)
    except ScriptFailed as error:
        log.error("%s", error)
    writer.note(thaw_script_due=False)
