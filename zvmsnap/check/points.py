"""Stored points: which of them does this host not load any more, and which are damaged?

Points that were made by one QEMU on one CPU, of one machine type, are judged once: the newest of
them stands for all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from zvmsnap.check.facts import Facts, answer_of
from zvmsnap.check.finding import Finding, green, red, yellow
from zvmsnap.common.errors import VaultMissing, ZvmsnapError
from zvmsnap.common.foreign import printable
from zvmsnap.points import compatibility, vault, verify_result
from zvmsnap.points.definition import definition_of
from zvmsnap.points.manifest import HostDescription
from zvmsnap.points.point import RestorePoint
from zvmsnap.replication import send_status

_ALL_S = 60.0
_DAMAGED_SHOWN = 5


def stored(facts: Facts) -> Iterator[Finding]:
    """All points of the vault, read once."""
    try:
        points, damaged = answer_of(lambda: vault.read(facts.config), _ALL_S)
    except VaultMissing:
        return  # check/storage has said it
    for each in damaged[:_DAMAGED_SHOWN]:
        yield yellow("points.damaged", "", printable(each.why), "zvmsnap prune tells of it, too")
    if len(damaged) > _DAMAGED_SHOWN:
        text = f"{len(damaged)} points are damaged"
        yield yellow("points.damaged", "vault", text, "zvmsnap list")
    yield from _unloadable(facts, points)
    yield from _failed(points)


def _unloadable(facts: Facts, points: list[RestorePoint]) -> Iterator[Finding]:
    host = facts.host
    if host is None:
        return
    groups: dict[tuple[str, HostDescription], list[RestorePoint]] = {}
    for point in points:
        if point.manifest.memory and not point.manifest.encrypted:
            groups.setdefault((point.manifest.uuid, point.manifest.host), []).append(point)
    ends_s = time.monotonic() + _ALL_S
    is_good = True
    for (_, made_on), own in groups.items():
        newest = own[-1]
        if time.monotonic() > ends_s:
            text = "not all points were looked at: libvirt answers slowly"
            yield yellow("points.unloadable", "vault", text, "zvmsnap check again, later")
            return
        try:
            xml = definition_of(newest, live=True)
            why = answer_of(lambda: compatibility.why_not(host, xml, made_on, cold=False))  # noqa: B023
        except ZvmsnapError as error:
            why = [str(error)]
        if why:
            is_good = False
            yield _told(own, why)
    if groups and is_good:
        yield green(
            "points.loadable", "vault", f"this host loads the RAM of all {len(points)} points"
        )


def _told(points: list[RestorePoint], why: list[str]) -> Finding:
    oldest, newest = points[0], points[-1]
    which = newest.name if len(points) == 1 else f"{len(points)} points up to {newest.name}"
    text = f"the RAM of {which} no longer loads here: {'; '.join(why)}"
    mend = f"restore their disks alone (zvmsnap restore --cold {oldest.manifest.domain}@...), or "
    mend += "bring back what is missing"
    return yellow("points.unloadable", newest.manifest.domain, text, mend)


def _failed(points: list[RestorePoint]) -> Iterator[Finding]:
    """Of each guest, the newest point that failed when it was verified."""
    failed: dict[str, RestorePoint] = {}
    for point in points:
        result = verify_result.read(point)
        if result and not result.good:
            failed[point.manifest.uuid] = point
    for point in failed.values():
        result = verify_result.read(point)
        why = result.why if result else ""
        text = f"{point.name} did not pass its verification: {why}"
        yield red("points.verify", point.manifest.domain, text, f"zvmsnap verify {point.name}")


def sent(facts: Facts) -> Iterator[Finding]:
    """Did the last send to each destination fail?"""
    statuses, unreadable = send_status.read_all(facts.config.journal_dir)
    for each in statuses:
        if each.error:
            text = f"was not sent to {each.destination}: {each.error}"
            yield yellow("points.send", each.domain, text, "zvmsnap send, and look at its errors")
    for path in unreadable:
        yield yellow("points.send", str(path), "cannot be read", "remove it, and send again")


CHECKS = (stored, sent)
