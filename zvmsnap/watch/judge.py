"""What is wrong with a host, by what is known of it. Pure.

A guest ought to have points if a disk that it writes to is on a dataset that is not excluded
(zvmsnap:mode=off), unless it is a clone that zvmsnap has made. Until its datasets are as old as a
point may become, it need not have one yet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from zvmsnap.common.errors import ModeInvalid
from zvmsnap.common.snapshot_name import MANUAL, TYPES, type_or_manual
from zvmsnap.config.mode import OFF, ModeSet, mode_set, parse_mode
from zvmsnap.config.properties import MODE
from zvmsnap.config.settings import Config
from zvmsnap.points.manifest import Manifest
from zvmsnap.watch import judge_host
from zvmsnap.watch.facts import Facts, GuestFacts, PointFacts
from zvmsnap.watch.finding import Finding, Kind, Severity
from zvmsnap.watch.thresholds import Limit, Thresholds, said

_CREATION = "creation"
# Clocks of two machines, or of one before and after it asks for the time.
_AHEAD_S = 300.0

Properties = Mapping[str, Mapping[str, str]]


def findings(
    config: Config, facts: Facts, thresholds: Thresholds, only: Iterable[str] = ()
) -> list[Finding]:
    """All that is wrong; of the guests of these names alone, and the host, if any are named."""
    found = [*facts.unknown, *_of_guests(config, facts, thresholds)]
    found += judge_host.findings(config, facts, thresholds)
    if names := set(only):
        known = {guest.name for guest in facts.guests or ()}
        missing = names - known if facts.guests is not None else set()
        found = [each for each in found if each.guest in names or not each.guest]
        found += [
            Finding(Severity.UNKNOWN, Kind.LIBVIRT, "there is no such guest", name)
            for name in sorted(missing)
        ]
    return found


def watched(guest: GuestFacts, properties: Properties) -> frozenset[str] | None:
    """The datasets because of which a guest ought to have points; None if that is not known."""
    if guest.is_clone:
        return frozenset()
    if guest.datasets is None:
        return None
    return frozenset(name for name in guest.datasets if not _is_excluded(properties.get(name, {})))


def _is_excluded(own: Mapping[str, str]) -> bool:
    """Is the dataset left out, whatever is snapshotted?"""
    default = own.get(MODE, "")
    return all((own.get(f"{MODE}:{each}") or default) == OFF for each in TYPES)


def age_limit(guest: GuestFacts, facts: Facts, thresholds: Thresholds) -> tuple[Limit, list[str]]:
    """From when on its newest point is too old; and what is no age."""
    properties = facts.properties or {}
    newest = _newest(facts, guest)
    datasets = watched(guest, properties)
    if datasets is None:
        datasets = newest.datasets if newest else frozenset()
    return thresholds.age_of(datasets, properties)


def _newest(facts: Facts, guest: GuestFacts) -> Manifest | None:
    points = (facts.points or {}).get(guest.uuid)
    return points.newest if points else None


def _of_guests(config: Config, facts: Facts, thresholds: Thresholds) -> Iterator[Finding]:
    if facts.guests is None or facts.points is None or facts.properties is None:
        return  # nothing can be said of points; that it is so was told
    for guest in facts.guests:
        datasets = watched(guest, facts.properties)
        if datasets is not None and not datasets:
            continue
        limit, wrong = age_limit(guest, facts, thresholds)
        for why in wrong:
            yield Finding(Severity.WARNING, Kind.CONFIG, why, guest.name)
        points = facts.points.get(guest.uuid)
        if points is None or points.newest is None:
            yield from _without_points(guest, facts, points, datasets, limit)
            continue
        yield from _of_newest(config, guest, facts, points, limit)
        yield from _of_verification(guest, facts, points, thresholds.verify)


def _without_points(
    guest: GuestFacts,
    facts: Facts,
    points: PointFacts | None,
    datasets: frozenset[str] | None,
    limit: Limit,
) -> Iterator[Finding]:
    folder = (facts.points or {}).get(guest.name)
    damaged = points.damaged if points else folder.damaged if folder else ""
    if damaged:
        yield Finding(Severity.CRITICAL, Kind.DAMAGED, damaged, guest.name)
        return
    if datasets is None or math.isinf(limit.least_s):
        return
    where = ", ".join(sorted(datasets))
    born_s = max(_created_s(facts.properties or {}, name) for name in datasets)
    if facts.now_s - born_s <= limit.least_s:
        return
    text = f"has no point: its disks are on {where}; is that in sanoid.conf?"
    yield Finding(Severity.CRITICAL, Kind.POINT, text, guest.name)


def _created_s(properties: Properties, dataset: str) -> float:
    text = properties.get(dataset, {}).get(_CREATION, "")
    return float(text) if text.isdigit() else 0.0


def _of_newest(
    config: Config, guest: GuestFacts, facts: Facts, points: PointFacts, limit: Limit
) -> Iterator[Finding]:
    newest = points.newest
    assert newest
    name = f"{newest.domain}@{points.directory.name}"
    if points.damaged:
        yield Finding(Severity.WARNING, Kind.DAMAGED, points.damaged, guest.name)
    age_s = facts.now_s - time_s(newest.created)
    if age_s < -_AHEAD_S:
        text = f"newest point {name} is of the future, by {said(-age_s)}: was a clock wrong?"
        yield Finding(Severity.WARNING, Kind.AGE, text, guest.name)
    if severity := limit.of(age_s):
        at_most = said(limit.crit_s if severity is Severity.CRITICAL else limit.warn_s)
        text = f"newest point {name} is {said(age_s)} old (more than {at_most})"
        yield Finding(severity, Kind.AGE, text, guest.name)
    yield from _of_level(config, guest, newest, facts.properties or {})


def _of_level(
    config: Config, guest: GuestFacts, newest: Manifest, properties: Properties
) -> Iterator[Finding]:
    # RAM that is kept no longer was there.
    if newest.absent_memory:
        return
    try:
        modes = demanded(config, newest, properties)
    except ModeInvalid as error:
        yield Finding(Severity.WARNING, Kind.CONFIG, str(error), guest.name)
        return
    if modes.modes and not modes.satisfied_by(newest.level):
        missed = (mode.minimum for mode in modes.modes if not mode.satisfied_by(newest.level))
        wanted = " and ".join(dict.fromkeys(missed))
        why = f": {newest.reason}" if newest.reason else ""
        text = f"newest point is of level {newest.level}, not {wanted}{why}"
        yield Finding(Severity.WARNING, Kind.LEVEL, text, guest.name)


def demanded(config: Config, newest: Manifest, properties: Properties) -> ModeSet:
    """What the datasets of a point, and the types of its snapshots, ask for. Raises ModeInvalid."""
    types = {type_or_manual(ref.name) for ref in newest.snapshots}
    modes = []
    for name in sorted(newest.datasets):
        own = properties.get(name, {})
        for kind in sorted(types):
            of_kind = own.get(f"{MODE}:{kind}") or own.get(MODE)
            text = of_kind or config.modes.get(kind) or config.mode
            if text != OFF:
                modes.append(parse_mode(text))
    asked = mode_set(modes)
    # `zvmsnap take` has guests paused where RAM is wanted.
    return asked.with_paused_for_memory() if types == {MANUAL} else asked


def _of_verification(
    guest: GuestFacts, facts: Facts, points: PointFacts, limit: Limit
) -> Iterator[Finding]:
    result = points.verified
    if result and not result.good:
        text = f"{points.verified_name} did not pass zvmsnap verify: {result.why}"
        yield Finding(Severity.CRITICAL, Kind.VERIFY, text, guest.name)
        return
    if math.isinf(limit.least_s):
        return
    if result is None:
        yield Finding(Severity.WARNING, Kind.VERIFY, "no point was ever verified", guest.name)
    elif severity := limit.of(age_s := facts.now_s - time_s(result.checked)):
        text = f"last verified {said(age_s)} ago ({points.verified_name})"
        yield Finding(severity, Kind.VERIFY, text, guest.name)


def time_s(text: str) -> float:
    """An ISO time with an offset, in seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()
