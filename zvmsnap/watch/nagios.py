"""The answer of a plugin of Nagios or Icinga: one line, with perfdata behind a bar. Pure.

The guidelines of the Monitoring Plugins project say how the line is read: no bar in the text,
labels without quotes and equal signs in them, `value;warn;crit;min;max`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator

from zvmsnap.common import foreign
from zvmsnap.watch import judge
from zvmsnap.watch.facts import Facts
from zvmsnap.watch.finding import Finding, Severity, by_rank, worst
from zvmsnap.watch.thresholds import Thresholds, said

# NRPE of version 2 cuts after 1023 bytes, Nagios after 8 KiB.
_TOLD_MAX = 6
_TEXT_MAX = 160
_NAME = "ZVMSNAP"


def line(
    facts: Facts, findings: list[Finding], thresholds: Thresholds, only: Iterable[str] = ()
) -> str:
    """What is wrong, the worst first, and perfdata: of the guests named in `only` one by one."""
    ordered = by_rank(findings)
    told = [foreign.line(str(each), _TEXT_MAX) for each in ordered[:_TOLD_MAX]]
    if len(ordered) > _TOLD_MAX:
        told.append(f"and {len(ordered) - _TOLD_MAX} more: zvmsnap monitor --json")
    text = "; ".join(told) or _well(facts)
    measured = " ".join(_perfdata(facts, findings, thresholds, sorted(set(only))))
    return f"{_NAME} {worst(findings).name} - {text.replace('|', '/')} | {measured}"


def failure(why: str) -> str:
    """That nothing can be said, and why."""
    return f"{_NAME} {Severity.UNKNOWN.name} - {foreign.line(why).replace('|', '/')}"


def _well(facts: Facts) -> str:
    guests = facts.guests or ()
    ages = _ages(facts)
    oldest = f", the oldest newest point is {said(max(ages.values()))} old" if ages else ""
    return f"{len(ages)} of {len(guests)} guests have points{oldest}"


def _ages(facts: Facts) -> dict[str, float]:
    """Of the newest point of each guest that is watched."""
    ages = {}
    for guest in facts.guests or ():
        points = (facts.points or {}).get(guest.uuid)
        datasets = judge.watched(guest, facts.properties or {})
        if points and points.newest and (datasets is None or datasets):
            ages[guest.name] = facts.now_s - judge.time_s(points.newest.created)
    return ages


def _perfdata(
    facts: Facts, findings: list[Finding], thresholds: Thresholds, only: list[str]
) -> Iterator[str]:
    counts = Counter(finding.severity for finding in findings)
    ages = _ages(facts)
    yield f"guests={len(facts.guests or ())};;;0"
    yield f"guests_with_points={len(ages)};;;0"
    for severity in (Severity.WARNING, Severity.CRITICAL, Severity.UNKNOWN):
        yield f"{severity.name.lower()}={counts[severity]};;;0"
    if ages:
        yield _age("age_max", max(ages.values()), thresholds.age.warn_s, thresholds.age.crit_s)
    for guest in facts.guests or ():
        if guest.name in only and guest.name in ages:
            limit, _ = judge.age_limit(guest, facts, thresholds)
            yield _age(f"{guest.name}_age", ages[guest.name], limit.warn_s, limit.crit_s)
    for name, room in facts.rooms.items():
        warn, crit = (
            int(room.size_bytes * percent / 100)
            for percent in (thresholds.warn_room_percent, thresholds.crit_room_percent)
        )
        # A colon: it is too little that alerts.
        yield f"{name}_free={room.free_bytes}B;{warn}:;{crit}:;0;{room.size_bytes}"


def _age(label: str, age_s: float, warn_s: float, crit_s: float) -> str:
    limits = ["" if math.isinf(limit_s) else f"{limit_s:.0f}" for limit_s in (warn_s, crit_s)]
    return f"{_label(label)}={max(0.0, age_s):.0f}s;{';'.join(limits)};0"


def _label(text: str) -> str:
    safe = foreign.printable(text).translate({ord("'"): "_", ord("="): "_", ord("|"): "_"})
    return f"'{safe}'" if " " in safe or safe != text else safe
