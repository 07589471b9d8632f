"""What Prometheus is told: docs/how-to/watching.md has the table of the metrics. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import msgspec

import zvmsnap
from zvmsnap.points.manifest import Manifest
from zvmsnap.points.memory_image import RamUsage
from zvmsnap.watch import judge, judge_host
from zvmsnap.watch.exposition import COUNTER, Family
from zvmsnap.watch.facts import Facts, GuestFacts, PointFacts
from zvmsnap.watch.finding import Finding, worst
from zvmsnap.watch.thresholds import Thresholds


def families(
    facts: Facts,
    findings: list[Finding],
    thresholds: Thresholds,
    usages: Mapping[str, RamUsage],
    failures: Mapping[str, int],
) -> list[Family]:
    """All of them. `usages` of RAM are by the UUID of the guest, `failures` by cause."""
    return [
        *_of_monitor(facts, findings, failures),
        *_of_guests(facts, thresholds),
        *_of_points(facts),
        *_of_ram(facts, usages),
        *_of_verification(facts),
        *_of_work(facts),
        *_of_sends(facts),
        *_of_rooms(facts),
    ]


def _of_monitor(
    facts: Facts, findings: list[Finding], failures: Mapping[str, int]
) -> Iterator[Family]:
    build = Family("zvmsnap_build_info", "The version of zvmsnap, always 1.")
    build.add(1, version=zvmsnap.__version__)
    yield build
    time = Family("zvmsnap_monitor_timestamp_seconds", "When zvmsnap monitor wrote this file.")
    time.add(facts.now_s)
    yield time
    state = Family("zvmsnap_monitor_state", "All in all: 0 well, 1 warning, 2 critical, 3 unknown.")
    state.add(worst(findings))
    yield state
    problem = Family("zvmsnap_problems", "Things that are wrong, by guest, kind and severity.")
    counts: dict[tuple[str, str, str], int] = {}
    for each in findings:
        key = (each.guest, str(each.kind), each.severity.name.lower())
        counts[key] = counts.get(key, 0) + 1
    for (guest, kind, severity), count in sorted(counts.items()):
        problem.add(count, guest=guest, kind=kind, severity=severity)
    yield problem
    failed = Family(
        "zvmsnap_failures_total", "Failures that hooks and commands have told, by cause.", COUNTER
    )
    for cause, count in sorted(failures.items()):
        failed.add(count, cause=cause)
    yield failed


def _watched(facts: Facts) -> Iterator[tuple[GuestFacts, PointFacts | None]]:
    for guest in facts.guests or ():
        datasets = judge.watched(guest, facts.properties or {})
        if datasets is None or datasets:
            yield guest, (facts.points or {}).get(guest.uuid)


def _newest(facts: Facts) -> Iterator[tuple[str, Manifest]]:
    for guest, points in _watched(facts):
        if points and points.newest:
            yield guest.name, points.newest


def _of_guests(facts: Facts, thresholds: Thresholds) -> Iterator[Family]:
    guests = Family("zvmsnap_guests", "Guests of libvirt, watched for points or not.")
    watched = list(_watched(facts))
    if facts.guests is not None:
        guests.add(len(watched), watched="yes")
        guests.add(len(facts.guests) - len(watched), watched="no")
    yield guests
    count = Family("zvmsnap_guest_points", "Restore points of a guest in the vault.")
    warn = Family("zvmsnap_guest_warn_age_seconds", "From when on its newest point is a warning.")
    crit = Family("zvmsnap_guest_crit_age_seconds", "From when on its newest point is critical.")
    for guest, points in watched:
        if facts.points is not None:
            count.add(points.count if points else 0, guest=guest.name)
        limit, _ = judge.age_limit(guest, facts, thresholds)
        for family, limit_s in ((warn, limit.warn_s), (crit, limit.crit_s)):
            if not math.isinf(limit_s):
                family.add(limit_s, guest=guest.name)
    yield from (count, warn, crit)


def _of_points(facts: Facts) -> Iterator[Family]:
    created = Family("zvmsnap_point_created_timestamp_seconds", "When the newest point was taken.")
    level = Family("zvmsnap_point_level_info", "The level of the newest point, always 1.")
    held = Family(
        "zvmsnap_point_stand_still_seconds",
        "How long the guest stood still for its newest point, paused or with frozen file systems.",
    )
    part = Family("zvmsnap_point_pause_seconds", "The same, by what it stood still for.")
    dump = Family("zvmsnap_point_dump_seconds", "How long its RAM was written.")
    overlay = Family("zvmsnap_point_overlay_seconds", "How long it was on its overlays.")
    commit = Family("zvmsnap_point_commit_seconds", "How long its overlays were merged.")
    for guest, newest in _newest(facts):
        timing = newest.timing
        created.add(judge.time_s(newest.created), guest=guest)
        level.add(1, guest=guest, level=str(newest.level))
        held.add(timing.pause_s, guest=guest)
        dump.add(timing.dump_s, guest=guest)
        overlay.add(timing.overlay_s, guest=guest)
        commit.add(timing.commit_s, guest=guest)
        for name, seconds in msgspec.structs.asdict(timing.pause_parts).items():
            part.add(seconds, guest=guest, part=name.removesuffix("_s"))
    yield from (created, level, held, part, dump, overlay, commit)


def _of_ram(facts: Facts, usages: Mapping[str, RamUsage]) -> Iterator[Family]:
    stored = Family("zvmsnap_point_memory_bytes", "RAM of the newest point, without its holes.")
    alone = Family("zvmsnap_point_memory_alone_bytes", "What becomes free if that RAM goes.")
    shared = Family("zvmsnap_point_memory_shared_bytes", "What it shares with other points.")
    for guest, points in _watched(facts):
        if points and points.newest and points.newest.memory:
            stored.add(points.newest.memory.stored_bytes, guest=guest.name)
        usage = usages.get(guest.uuid)
        if usage and usage.alone_bytes is not None and usage.shared_bytes is not None:
            alone.add(usage.alone_bytes, guest=guest.name)
            shared.add(usage.shared_bytes, guest=guest.name)
    yield from (stored, alone, shared)


def _of_verification(facts: Facts) -> Iterator[Family]:
    checked = Family("zvmsnap_verify_timestamp_seconds", "When a point was verified last.")
    good = Family("zvmsnap_verify_good", "1 if that point was good, 0 if not.")
    for guest, points in _watched(facts):
        if points and points.verified:
            checked.add(judge.time_s(points.verified.checked), guest=guest.name)
            good.add(points.verified.good, guest=guest.name)
    yield from (checked, good)


def _of_work(facts: Facts) -> Iterator[Family]:
    opened = Family("zvmsnap_run_open_seconds", "For how long a run of the guest is open.")
    on = Family("zvmsnap_guest_on_overlay", "1 while the guest is on overlays, by the journal.")
    blocked = Family("zvmsnap_merge_blocked", "1 while somebody else's job is in the way.")
    waiting = Family("zvmsnap_waiting_points", "Points that wait in staging for the vault.")
    if facts.work is not None:
        for entry in facts.work.entries:
            age_s = max(0.0, facts.now_s - judge_host.open_since_s(entry))
            opened.add(age_s, guest=entry.domain, run=entry.run)
            on.add(judge_host.is_on_overlays(entry), guest=entry.domain, run=entry.run)
            blocked.add(bool(entry.in_the_way), guest=entry.domain, run=entry.run)
        waiting.add(sum(facts.work.waiting.values()))
    yield from (opened, on, blocked, waiting)


def _of_sends(facts: Facts) -> Iterator[Family]:
    created = Family(
        "zvmsnap_offsite_point_created_timestamp_seconds",
        "When the guest's newest point at a destination was taken.",
    )
    tried = Family("zvmsnap_offsite_attempt_timestamp_seconds", "When it was sent last.")
    failed = Family("zvmsnap_offsite_failed", "1 if that has failed.")
    lasted = Family("zvmsnap_offsite_send_seconds", "How long that took.")
    for status in facts.sent or ():
        labels = {"guest": status.domain, "destination": status.destination}
        if status.newest_created:
            created.add(judge.time_s(status.newest_created), **labels)
        tried.add(judge.time_s(status.last_attempt), **labels)
        failed.add(bool(status.error), **labels)
        lasted.add(status.seconds, **labels)
    yield from (created, tried, failed, lasted)


def _of_rooms(facts: Facts) -> Iterator[Family]:
    free = Family("zvmsnap_free_bytes", "What is free where vault and staging are.")
    whole = Family("zvmsnap_size_bytes", "Of how much.")
    for name, room in facts.rooms.items():
        free.add(room.free_bytes, directory=name)
        whole.add(room.size_bytes, directory=name)
    yield from (free, whole)
