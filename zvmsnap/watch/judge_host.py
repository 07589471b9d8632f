"""What is wrong with open work, with sends, and with the room that is left. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from zvmsnap.common.process import uptime_s
from zvmsnap.config import destination
from zvmsnap.config.settings import Config
from zvmsnap.journal import describe
from zvmsnap.journal.entry import Entry, EntryState
from zvmsnap.replication.send_status import SendStatus
from zvmsnap.terminal.render import size
from zvmsnap.watch.facts import Facts, GuestFacts, Work
from zvmsnap.watch.finding import Finding, Kind, Severity
from zvmsnap.watch.thresholds import Thresholds, said

# The watchdog tries again once a minute at least.
_LEFT_S = 300.0
# How far beyond its deadline a guest may be released.
_RELEASE_S = 30.0
_MIB = 1 << 20
_ON_OVERLAYS = (EntryState.ON_OVERLAYS, EntryState.COMMITTING, EntryState.UNDOING)


def findings(config: Config, facts: Facts, thresholds: Thresholds) -> Iterator[Finding]:
    """All of that."""
    if facts.work is not None:
        yield from _of_work(config, facts, facts.work, thresholds)
    if facts.sent is not None:
        yield from _of_sends(config, facts, facts.sent, thresholds)
    yield from _of_rooms(config, facts, thresholds)


# -- open work


def _of_work(config: Config, facts: Facts, work: Work, thresholds: Thresholds) -> Iterator[Finding]:
    for entry in work.entries:
        idle_s = work.idle_s.get(entry.capture, 0.0)
        yield from _of_entry(config, facts.now_s, entry, idle_s, thresholds)
    for domain, count in sorted(work.waiting.items()):
        text = f"{count} points wait in staging for the vault: zvmsnap recover tries them"
        yield Finding(Severity.WARNING, Kind.WAITING, text, domain)
    for domain, text in work.interrupted:
        yield Finding(Severity.WARNING, Kind.INTERRUPTED, text, domain)
    known = {entry.uuid for entry in work.entries}
    for guest in facts.guests or ():
        if guest.overlays and guest.uuid not in known:
            text = f"is on {guest.overlays[0]}, which no journal entry names: zvmsnap recover"
            yield Finding(Severity.CRITICAL, Kind.OVERLAY, text, guest.name)


def _of_entry(
    config: Config, now_s: float, entry: Entry, idle_s: float, thresholds: Thresholds
) -> Iterator[Finding]:
    def finding(severity: Severity, kind: Kind, text: str) -> Finding:
        return Finding(severity, kind, text, entry.domain)

    if entry.is_held and entry.held_since_s:
        held_s = uptime_s() - entry.held_since_s
        if held_s > config.limits.max_freeze_s + _RELEASE_S:
            text = f"has been paused or frozen for {said(held_s)}: zvmsnap recover"
            yield finding(Severity.CRITICAL, Kind.OVERLAY, text)
            return
    age_s = max(0.0, now_s - open_since_s(entry))
    severity = thresholds.overlay.of(age_s)
    if entry.in_the_way:
        text = (
            f"stays on its overlays, for {said(age_s)} now, because of {entry.in_the_way}: they "
            "are merged when that has ended"
        )
        yield finding(max(severity, Severity.WARNING), Kind.MERGE, text)
    elif severity:
        what = "on overlays" if is_on_overlays(entry) else "open"
        text = f"{describe.work(entry)} is {what} for {said(age_s)}, {describe.progress(entry)}"
        yield finding(severity, Kind.OVERLAY, text)
    elif not entry.owner.is_alive() and idle_s > _LEFT_S:
        text = f"{describe.work(entry)} is {describe.progress(entry)}"
        yield finding(Severity.WARNING, Kind.INTERRUPTED, text)


def is_on_overlays(entry: Entry) -> bool:
    """Is its guest on overlays, as far as the journal says?"""
    return entry.may_be_on_overlay and entry.state in _ON_OVERLAYS


def open_since_s(entry: Entry) -> float:
    """When its disks were frozen, or else when it was begun: in seconds since the epoch."""
    return entry.disks_frozen_at_s or datetime.fromisoformat(entry.created).timestamp()


# -- sends


def _of_sends(
    config: Config, facts: Facts, sent: tuple[SendStatus, ...], thresholds: Thresholds
) -> Iterator[Finding]:
    for status in sent:
        name = status.destination
        if status.error:
            text = f"the last send to {name} failed: {status.error}"
            yield Finding(Severity.WARNING, Kind.OFFSITE, text, status.domain)
        if not status.newest_created:
            continue
        age_s = facts.now_s - datetime.fromisoformat(status.newest_created).timestamp()
        if severity := thresholds.offsite.of(age_s):
            text = f"its newest point at {name} is {said(age_s)} old"
            yield Finding(severity, Kind.OFFSITE, text, status.domain)
    yield from _never_sent(config, facts, sent)


def _never_sent(config: Config, facts: Facts, sent: tuple[SendStatus, ...]) -> Iterator[Finding]:
    """Guests that a [[destination]] names, or that have points, and that it has nothing of."""
    guests = facts.guests or ()
    known = {(status.destination, status.domain) for status in sent}
    for table in config.destination:
        name = destination.parse(table.target).name
        having = {guest.name for guest in guests if guest.uuid in (facts.points or {})}
        # What it names may be datasets, too: those of `zvmsnap send` alone know.
        wanted = having.intersection(table.guests) if table.guests else having
        for domain in sorted(wanted):
            if (name, domain) not in known:
                text = f"was never sent to {name}"
                yield Finding(Severity.WARNING, Kind.OFFSITE, text, domain)


# -- room


def _of_rooms(config: Config, facts: Facts, thresholds: Thresholds) -> Iterator[Finding]:
    for name, room in facts.rooms.items():
        if severity := thresholds.of_room(room.free_percent):
            text = (
                f"{name} {room.directory} has {size(room.free_bytes)} free of "
                f"{size(room.size_bytes)} ({room.free_percent:.0f} %)"
            )
            yield Finding(severity, Kind.ROOM, text)
    staging = facts.rooms.get("staging")
    largest = max(_with_ram(facts), key=lambda guest: guest.memory_bytes, default=None)
    if staging is None or largest is None:
        return
    limits = config.limits
    needed = int(largest.memory_bytes * limits.dump_max_ram_ratio) + limits.overlay_room_mib * _MIB
    if staging.free_bytes < needed:
        text = (
            f"staging {staging.directory} has {size(staging.free_bytes)} free, and the RAM and "
            f"overlay of {largest.name} may need {size(needed)}: its points will have no RAM"
        )
        yield Finding(Severity.WARNING, Kind.ROOM, text)


def _with_ram(facts: Facts) -> Iterator[GuestFacts]:
    """The guests whose newest point has RAM: the next one is to have it, too."""
    for guest in facts.guests or ():
        points = (facts.points or {}).get(guest.uuid)
        if points and points.newest and points.newest.level.has_memory:
            yield guest
