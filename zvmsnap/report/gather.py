"""Asks for all that a report tells: what `zvmsnap monitor` asks for, and all points.

No destination is asked, so it also works when one cannot be reached.
"""

from __future__ import annotations

import socket
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import groupby

import zvmsnap
from zvmsnap.config.settings import Config
from zvmsnap.points import vault, verify_result
from zvmsnap.points.liveness import Liveness, guids_of
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.verify_result import VerifyResult
from zvmsnap.replication import remote_vault
from zvmsnap.replication.send_status import SendStatus
from zvmsnap.report import screens
from zvmsnap.report.facts import (
    TABLED,
    GuestFacts,
    HostFacts,
    PointFacts,
    Sent,
    Verified,
)
from zvmsnap.terminal import render
from zvmsnap.virt import qemu_conf
from zvmsnap.watch import judge
from zvmsnap.watch.facts import Facts
from zvmsnap.watch.observe import observe
from zvmsnap.watch.thresholds import thresholds
from zvmsnap.zfs import zfs

# As `zvmsnap monitor`: nobody is waited for without end.
_LIMIT_S = 20.0

_Offsite = Mapping[str, frozenset[str]]  # the captures that each destination has


def gather(settings: Config, now: datetime) -> HostFacts:
    """All facts, as of `now`, which has the time zone of this host.

    Raises VaultMissing and ZfsFailed.
    """
    points, damaged = vault.read(settings)
    guids = guids_of(point.manifest for point in points)
    liveness = Liveness.by(zfs.all_snapshots(guids)) if guids else Liveness((), {})
    seen = replace(observe(settings, _LIMIT_S), now_s=now.timestamp())
    statuses = seen.sent or ()
    offsite = {
        name: _captures(settings, name)
        for name in sorted({status.destination for status in statuses})
    }
    defined = None if seen.guests is None else frozenset(guest.name for guest in seen.guests)
    guests = [
        _guest(name, list(own), liveness, now, statuses, offsite, defined)
        for name, own in groupby(points, key=lambda point: point.manifest.domain)
    ]
    guests += _without_points(seen, {guest.name for guest in guests})
    unloadable = qemu_conf.why_unloadable()
    return HostFacts(
        name=socket.gethostname(),
        version=zvmsnap.__version__,
        now=now,
        guests=sorted(_with_screens(guests), key=lambda guest: guest.name),
        vault=seen.rooms.get("vault"),
        destinations=tuple(offsite),
        found=judge.findings(settings, seen, thresholds(settings)),
        damaged=[each.why for each in damaged],
        problems=[unloadable] if unloadable else [],
    )


def _without_points(seen: Facts, known: Container[str]) -> list[GuestFacts]:
    """The guests of libvirt that ought to have points, and have none."""
    return [
        GuestFacts(guest.name, is_defined=True)
        for guest in seen.guests or ()
        if guest.name not in known and judge.watched(guest, seen.properties or {})
    ]


def _captures(settings: Config, destination: str) -> frozenset[str]:
    """The captures of all points that a destination had when it was last read."""
    points, _ = vault.all_in(remote_vault.mirror_of(settings, destination))
    return frozenset(point.manifest.capture for point in points)


def _guest(
    name: str,
    points: Sequence[RestorePoint],
    liveness: Liveness,
    now: datetime,
    statuses: Sequence[SendStatus],
    offsite: _Offsite,
    defined: frozenset[str] | None,
) -> GuestFacts:
    results = [verify_result.read(point) for point in points]
    first_tabled = len(points) - TABLED
    # A send knows the guest by the name that it had.
    uuids = {point.manifest.uuid for point in points}
    started = [
        (point, result)
        for point, result in zip(points, results, strict=True)
        if result and result.booted and result.good
    ]
    return GuestFacts(
        name=name,
        points=tuple(
            _point(point, result, liveness, now, offsite, is_tabled=number >= first_tabled)
            for number, (point, result) in enumerate(zip(points, results, strict=True))
        ),
        sent=tuple(_sent(status) for status in statuses if status.uuid in uuids),
        screens=screens.screens_of(started),
        is_defined=None if defined is None else name in defined,
    )


def _sent(status: SendStatus) -> Sent:
    newest = datetime.fromisoformat(status.newest_created) if status.newest_created else None
    return Sent(status.destination, newest, status.error)


def _point(
    point: RestorePoint,
    result: VerifyResult | None,
    liveness: Liveness,
    now: datetime,
    offsite: _Offsite,
    *,
    is_tabled: bool,
) -> PointFacts:
    manifest = point.manifest
    memory = manifest.memory
    # To ask what to know of a point takes longer than all else: only of those that are told.
    note = render.note(manifest, liveness) if is_tabled else ""
    return PointFacts(
        run=point.directory.name,
        created=point.created.astimezone(now.tzinfo),
        level=manifest.level,
        lost_memory=memory is None and bool(manifest.absent_memory),
        pause_s=manifest.timing.pause_s,
        memory_bytes=memory.stored_bytes if memory else 0,
        verified=_verified(result),
        verified_at=datetime.fromisoformat(result.checked) if result else None,
        verified_why=result.why if result else "",
        destinations=tuple(name for name, own in offsite.items() if manifest.capture in own),
        has_snapshots=not liveness.orphaned(manifest),
        note=note,
        warning="" if note == manifest.reason else note,
    )


def _verified(result: VerifyResult | None) -> Verified:
    if result is None:
        return Verified.NEVER
    if not result.good:
        return Verified.FAILED
    return Verified.STARTED if result.booted else Verified.READ


def _with_screens(guests: Sequence[GuestFacts]) -> list[GuestFacts]:
    """The same guests, with as many screens as the page may have."""
    kept = screens.within_limit([guest.screens for guest in guests])
    return [
        guest if own == list(guest.screens) else replace(guest, screens=own)
        for guest, own in zip(guests, kept, strict=True)
    ]
