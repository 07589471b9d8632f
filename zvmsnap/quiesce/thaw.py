"""A guest that stands still because of us is let go, whatever became of those who wanted it.

| level    | the guest now        | what                                             | the point   |
|----------|----------------------|--------------------------------------------------|-------------|
| paused   | stands still         | is resumed                                       | paused      |
| paused   | runs, or is off      | nothing: somebody else was there first           | crash       |
| quiesced | is frozen            | is thawed                                        | quiesced    |
| quiesced | is not, or is off    | thawed to be sure: VSS in Windows gives up alone | crash       |
| quiesced | agent does not answer| tried again, then left in the journal            | (not yet)   |

What stood still until now has stood still for every snapshot that there is now. Who is let go
before that, by the guard at its deadline, is found running here, and gets a point of level crash.
"""

from __future__ import annotations

import time
from typing import Any

from zvmsnap.common.errors import DomainGone, DomainLocked, LibvirtFailed, NotHeld, ScriptFailed
from zvmsnap.common.log import Logger
from zvmsnap.common.process import uptime_s
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter
from zvmsnap.quiesce import scripts
from zvmsnap.virt import agent, domain_xml
from zvmsnap.virt.guest import Guest, Pause

_THAW_ATTEMPTS = 3
_THAW_AGAIN_S = 1.0

# Whose RAM was dumped stands still by a job of libvirt's or, if we were impatient, by our wish.
_BY_US = (Pause.USER, Pause.JOB)


def release_guest(config: Config, guest: Guest, work: EntryWriter, log: Logger) -> None:
    """Follow the table. The caller holds the guest's lock. Raises NotHeld and LibvirtFailed."""
    if work.entry.level is ConsistencyLevel.PAUSED and work.entry.paused:
        _resume(guest, work)
    if work.entry.frozen:
        _thaw(guest, work)
    if work.entry.thaw_script_due:
        _after_thaw(config, work, log)


def note_guest_gone(config: Config, work: EntryWriter, log: Logger) -> None:
    """Of a guest that does not exist any more nobody knows until when it has stood still."""
    entry = work.entry
    if entry.frozen or (entry.level is ConsistencyLevel.PAUSED and entry.paused):
        why = "it is gone, and may have gone on before its snapshot"
        less = {"level": ConsistencyLevel.CRASH, "reason": why} if entry.disks_frozen_at_s else {}
        work.note(paused=False, frozen=False, **less)
    if entry.thaw_script_due:
        _after_thaw(config, work, log)


def thaw(config: Config, guest: Guest, work: EntryWriter, log: Logger) -> None:
    """Thaw its file systems, which must have been frozen until now; post-thaw follows at once.

    Raises NotHeld, when they were not or when they cannot be thawed, and LibvirtFailed.
    """
    if why := _thawed(guest):
        work.note(frozen=False)
        raise NotHeld(why)
    work.note(frozen=False, pause_s=_still_s(work.entry))
    if work.entry.thaw_script_due:
        _after_thaw(config, work, log)


def release(guest: Guest, entry: Entry) -> str:
    """At the deadline, without any lock: let it go; returns what it was, "" if it was not still.

    Raises LibvirtFailed. The journal is not touched: see `let_go`.
    """
    if not guest.is_active():
        return ""
    if (
        entry.level is ConsistencyLevel.PAUSED
        and entry.paused
        and _stands(guest)
        and not is_busy(guest)
    ):
        guest.resume()
        return "paused"
    if entry.frozen and agent.is_frozen(guest):
        agent.thaw(guest)
        return "frozen"
    return ""


def left_still(guest: Guest) -> dict[str, Any] | None:
    """What a journal that was lost would say of a guest that stands still.

    None: that cannot be told now. Raises DomainGone.
    """
    try:
        if not guest.is_active():
            return {}
        if is_busy(guest):
            return None
        if guest.pause() is Pause.JOB:
            return {"level": ConsistencyLevel.PAUSED, "paused": True}
        if domain_xml.parse(guest.xml()).agent == "connected" and agent.is_frozen(guest):
            return {"level": ConsistencyLevel.QUIESCED, "frozen": True}
        return {}
    except DomainGone:
        raise
    except LibvirtFailed:
        return None


def _stands(guest: Guest) -> bool:
    return guest.pause() in _BY_US


def is_busy(guest: Guest) -> bool:
    """While RAM is written, a pause is part of that."""
    try:
        return guest.is_active() and guest.has_job()
    except DomainLocked:
        return True


def _resume(guest: Guest, work: EntryWriter) -> None:
    stood = guest.is_active() and _stands(guest)
    if stood:
        guest.resume()
    if work.entry.disks_frozen_at_s and not stood:
        work.note(
            paused=False,
            level=ConsistencyLevel.CRASH,
            reason="it went on before its snapshot was known to be taken",
        )
    else:
        work.note(paused=False, pause_s=_still_s(work.entry))


def _thaw(guest: Guest, work: EntryWriter) -> None:
    why = _thawed(guest)
    if why and work.entry.disks_frozen_at_s:
        work.note(frozen=False, level=ConsistencyLevel.CRASH, reason=why)
    else:
        work.note(frozen=False, pause_s=_still_s(work.entry))


def _thawed(guest: Guest) -> str:
    """Thaw; returns why what was frozen is not as it was left, "" if it is.

    Raises NotHeld if it cannot be thawed now.
    """
    still = False
    for attempt in range(_THAW_ATTEMPTS):
        if not guest.is_active():
            return "it was shut off while its file systems were frozen"
        try:
            # A thaw that takes its time, for hooks in the guest, only seems to fail.
            still = still or agent.is_frozen(guest)
            agent.thaw(guest)
            return "" if still else "its file systems thawed before its snapshot was known"
        except LibvirtFailed as error:
            if attempt == _THAW_ATTEMPTS - 1:
                raise NotHeld(
                    f"its file systems may be frozen, and cannot be thawed now: {error}; it is "
                    f"tried again; by hand: virsh domfsthaw {guest.name}"
                ) from error
        time.sleep(_THAW_AGAIN_S)
    raise AssertionError


def _still_s(entry: Entry) -> float:
    return uptime_s() - entry.held_since_s if entry.held_since_s else 0.0


def _after_thaw(config: Config, work: EntryWriter, log: Logger) -> None:
    try:
        if scripts.exists(config, work.entry, scripts.POST_THAW):
            scripts.run(config, work.entry, scripts.POST_THAW)
    except ScriptFailed as error:
        log.error("%s", error)
    work.note(thaw_script_due=False)
