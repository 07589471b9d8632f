"""Asks everybody at once, each for a limited time: nobody's silence keeps the others from telling.

| who                  | what is asked                                                         |
|----------------------|-----------------------------------------------------------------------|
| libvirt              | the definition of each guest; no QEMU is asked                        |
| ZFS                  | the properties of all datasets, by one `zfs`; the kernel, which pools |
|                      | are suspended                                                         |
| the vault            | the newest point of each guest                                        |
| the journal          | what is open, and what was sent                                       |
| staging, the vault   | what is free                                                          |

Nothing is changed, and no lock is taken.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from zvmsnap.clone.domain_xml import cloned_from
from zvmsnap.common import log, snapshot_name
from zvmsnap.common.errors import DomainGone, GivenUp
from zvmsnap.common.waiting import Call
from zvmsnap.config.properties import CRIT_AGE, MODE, WARN_AGE
from zvmsnap.config.settings import Config
from zvmsnap.disks import location
from zvmsnap.disks.staging import is_overlay
from zvmsnap.journal import describe, late, other_versions
from zvmsnap.journal.fetches import Fetches
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import Operations
from zvmsnap.journal.waiting import WaitingEntries
from zvmsnap.points import vault
from zvmsnap.replication import send_status
from zvmsnap.replication.send_status import SendStatus
from zvmsnap.virt import domain_xml
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.watch import newest_points
from zvmsnap.watch.facts import Facts, GuestFacts, PointFacts, Room, Work
from zvmsnap.watch.finding import Finding, Kind, Severity
from zvmsnap.zfs import mounts, zfs

CREATION = "creation"
ASKED = (MODE, *(f"{MODE}:{each}" for each in snapshot_name.TYPES), WARN_AGE, CRIT_AGE, CREATION)
_POOL_STATES = Path("/proc/spl/kstat/zfs")
_SUSPENDED = "SUSPENDED"
_GUEST_LESS_S = 1.0

Answer = TypeVar("Answer")


def observe(config: Config, limit_s: float) -> Facts:
    """Find out all that can be found out in that time. Raises nothing that a source raises."""
    observation = _Observation(time.monotonic() + limit_s, limit_s)
    suspended = _suspended_pools()
    guests = Call(partial(_guests, config, observation))
    properties = Call(partial(zfs.properties_of, ASKED, ()))
    points = Call(partial(_points, config))
    work = Call(partial(_work, config))
    sent = Call(partial(_sent, config))
    rooms = {
        name: Call(partial(_room, directory))
        for name, directory in (("vault", config.vault_dir), ("staging", config.staging_dir))
    }
    free = {name: observation.answer(Kind.ROOM, call, name) for name, call in rooms.items()}
    return Facts(
        guests=observation.answer(Kind.LIBVIRT, guests),
        points=observation.answer(Kind.VAULT, points),
        properties=observation.answer(Kind.ZFS, properties),
        work=observation.answer(Kind.JOURNAL, work),
        sent=observation.answer(Kind.OFFSITE, sent),
        now_s=time.time(),
        rooms={name: room for name, room in free.items() if room},
        unknown=(*suspended, *observation.unknown),
    )


class _Observation:
    """What is known to be unknown, and until when is waited."""

    def __init__(self, until_s: float, limit_s: float) -> None:
        self._until_s = until_s
        self._limit_s = limit_s
        self.unknown: list[Finding] = []

    def answer(self, kind: Kind, call: Call[Answer], who: str = "") -> Answer | None:
        """What it says; None if it fails, or says nothing until the time is over."""
        try:
            return call.answer(max(0.0, self._until_s - time.monotonic()))
        except GivenUp:
            why = f"no answer within {self._limit_s:g} s"
        except Exception as error:
            why = log.one_line(error)
        self.tell(kind, f"{who or kind}: {why}")
        return None

    def tell(self, kind: Kind, text: str, guest: str = "") -> None:
        """Something is not known, so nothing is said to be well."""
        self.unknown.append(Finding(Severity.UNKNOWN, kind, text, guest))

    def of_guest(self, guest: Guest, call: Call[GuestFacts]) -> GuestFacts:
        """What is known of a guest; its name alone if that is all. Raises DomainGone."""
        try:
            # A little less than all others: so it is told, and not libvirt as a whole.
            return call.answer(max(0.0, self._until_s - time.monotonic() - _GUEST_LESS_S))
        except DomainGone:
            raise
        except GivenUp:
            why = f"its definition, or what it names, was not seen within {self._limit_s:g} s"
        except Exception as error:
            why = log.one_line(error)
        self.tell(Kind.LIBVIRT, why, guest.name)
        return GuestFacts(guest.name, guest.uuid)


def _suspended_pools() -> list[Finding]:
    """By the kernel, which answers for a suspended pool, too (OpenZFS 0.8 and later)."""
    found = []
    for path in sorted(_POOL_STATES.glob("*/state")):
        try:
            state = path.read_text().strip()
        except OSError:
            continue
        if state == _SUSPENDED:
            text = f"pool {path.parent.name} is suspended: zpool status -x, zpool clear"
            found.append(Finding(Severity.CRITICAL, Kind.ZFS, text))
    return found


def _guests(config: Config, observation: _Observation) -> tuple[GuestFacts, ...]:
    """All guests; one of which nothing is known has no datasets."""
    table = mounts.read_table()
    host = Host.connect(config.uri)
    guests = host.guests()
    # All at once: libvirt keeps the definition of some for half a minute, if their QEMU hangs.
    begun = [(guest, Call(partial(_guest, guest, table))) for guest in guests]
    known = []
    for guest, call in begun:
        with suppress(DomainGone):
            known.append(observation.of_guest(guest, call))
    if all(call.ended() for _, call in begun):
        with host:  # closes it; else a call may be under way, and the end of the process does
            pass
    return tuple(known)


def _guest(guest: Guest, table: Sequence[mounts.Mount]) -> GuestFacts:
    xml = guest.xml()
    domain = domain_xml.parse(xml)
    overlays, datasets = [], set()
    for disk in domain.disks:
        if not disk.writable:
            continue
        overlays += [disk.source] if is_overlay(disk.source) else []
        base = next((each for each in (disk.source, *disk.chain) if not is_overlay(each)), "")
        place = location.locate_path(base, list(table)) if base else None
        if place:
            datasets.add(place.dataset)
    return GuestFacts(
        guest.name,
        guest.uuid,
        frozenset(datasets),
        tuple(overlays),
        domain.memory_kib << 10,
        cloned_from(xml) is not None,
    )


def _points(config: Config) -> dict[str, PointFacts]:
    vault.check(config)
    return newest_points.of_all(config.vault_dir)


def _work(config: Config) -> Work:
    journal_dir = config.journal_dir
    journal = Journal(journal_dir)
    entries = (*journal.entries(), *late.entries(journal_dir))
    waiting: dict[str, int] = {}
    for entry in WaitingEntries(journal_dir).all():
        waiting[entry.domain] = waiting.get(entry.domain, 0) + 1
    interrupted = [
        (operation.domain, describe.operation(operation))
        for operation in Operations(journal_dir).all()
        if not operation.owner.is_alive()
    ]
    interrupted += [("", line) for line in Fetches(journal_dir).interrupted(config)]
    interrupted += [("", str(file)) for file in other_versions.files(journal_dir)]
    return Work(
        entries=entries,
        idle_s={entry.capture: journal.age_s(entry) for entry in entries},
        waiting=waiting,
        interrupted=tuple(interrupted),
    )


def _sent(config: Config) -> tuple[SendStatus, ...]:
    statuses, _ = send_status.read_all(config.journal_dir)
    return tuple(statuses)


def _room(directory: Path) -> Room:
    """Of the file system that it is in, or will be. Raises OSError."""
    existing = directory
    while not existing.exists():
        existing = existing.parent
    status = os.statvfs(existing)
    free, taken = status.f_bavail, status.f_blocks - status.f_bfree
    return Room(directory, free * status.f_frsize, (free + taken) * status.f_frsize)
