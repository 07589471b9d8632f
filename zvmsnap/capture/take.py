"""A moment by hand: several guests, on any datasets, at one instant; all of them or none.

    begin      each guest's part (capture, as in the pre hook); several guests stand still together
    snapshot   all datasets of a pool in one transaction
    finish     overlays back, points published (finish, as in the post hook)
    hold       if it was asked for

If one guest does not get what its disks allow, no snapshot is taken, and finish puts all of them
back. If one turns out to have gone on before the snapshots, these go again, and all points. Should
we die, the guard puts all of them back, as for a run of sanoid.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from zvmsnap.capture import all_guests, eligibility
from zvmsnap.common import log, snapshot_name
from zvmsnap.common.errors import GuestNotFound, LockTimeout, TakeFailed, TakeRefused, ZfsFailed
from zvmsnap.common.process import Process
from zvmsnap.config import mode
from zvmsnap.config.mode import Mode, ModeSet, parse_mode
from zvmsnap.config.settings import Config
from zvmsnap.disks import location
from zvmsnap.disks.location import GuestDisks
from zvmsnap.finalize import after_snapshot
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.points import vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.retention import drop
from zvmsnap.virt.host import Host
from zvmsnap.zfs import mounts, zfs

_GROUP = "zvmsnap:group"


@dataclass(frozen=True)
class TakePlan:
    """Which guests, the datasets of all their disks, and the name of the snapshots.

    `order` of levels is what was asked for instead of what properties and configuration say.
    """

    domains: tuple[str, ...]
    datasets: tuple[str, ...]
    name: str
    uuids: tuple[str, ...]
    order: Mode | None = None


def default_name() -> str:
    """No name that sanoid would prune."""
    return f"zvmsnap_{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}_manual"


def plan(
    hypervisor: Host,
    domains: Sequence[str],
    group: str | None,
    name: str,
    mode: str | None = None,
) -> TakePlan:
    """Find the guests and their datasets.

    Raises GuestNotFound, ModeInvalid, TakeRefused and ZfsFailed.
    """
    order = parse_mode(mode) if mode else None
    if not snapshot_name.is_name(name):
        raise TakeRefused(f"{name!r}: is no name of a snapshot: letters, digits and _ - : .")
    there = zfs.datasets()
    table = mounts.read_table()
    allowed = eligibility.without_excluded(there, there, (snapshot_name.MANUAL,))
    if group is None:
        wanted = _named(hypervisor, domains, table)
    else:
        wanted = _members(hypervisor, group, table)
    datasets: set[str] = set()
    for domain, seen in wanted.items():
        own = _datasets(seen) & allowed
        if not own:
            raise TakeRefused(f"{domain}: has no disk on ZFS, or all are left out (zvmsnap:mode)")
        datasets |= own
    names = [f"{dataset}@{name}" for dataset in sorted(datasets)]
    if taken := zfs.snapshots(names).present:
        raise TakeRefused(f"{min(taken)}: exists already; say another --name")
    uuids = tuple(seen.domain.uuid for seen in wanted.values())
    return TakePlan(tuple(sorted(wanted)), tuple(sorted(datasets)), name, uuids, order)


def _named(
    hypervisor: Host, domains: Sequence[str], table: list[mounts.Mount]
) -> dict[str, GuestDisks]:
    found = {}
    guests = hypervisor.guests()
    for domain in domains:
        guest = next((each for each in guests if domain in (each.name, each.uuid)), None)
        if guest is None:
            raise GuestNotFound(f"{domain}: libvirt has no such guest")
        found[guest.name] = location.locate_disks(hypervisor, guest, table)
    return found


def _members(hypervisor: Host, group: str, table: list[mounts.Mount]) -> dict[str, GuestDisks]:
    marked = {name for name, value in zfs.marked(_GROUP, inherited=True).items() if value == group}
    found = {}
    for guest in hypervisor.guests():
        seen = location.locate_disks(hypervisor, guest, table)
        if _datasets(seen) & marked:
            found[guest.name] = seen
    if not found:
        raise TakeRefused(f"no guest has a disk on a dataset with {_GROUP}={group}")
    return found


def _datasets(seen: GuestDisks) -> set[str]:
    return {
        seen.places[disk.target].dataset
        for disk in seen.domain.disks
        if disk.writable and disk.target in seen.places
    }


def take(
    config: Config, wanted: TakePlan, hold: str | None, cancelled: threading.Event
) -> list[RestorePoint]:
    """Take the moment; returns its points.

    Raises TakeFailed with no snapshot left; what could not be put back, the log says.
    """
    if len(wanted.domains) > 1:
        # As for Demand.together: overlays begin at an instant of each guest's own.
        config = msgspec.structs.replace(config, quiesce_overlay=False)
    call = HookCall(Role.PRE, wanted.datasets, (wanted.name,))
    demanded = _demanded(config, wanted)
    owner = Process.of(os.getpid())
    datasets = frozenset(wanted.datasets)
    why = ""
    begun: list[Entry] = []
    taken: list[str] = []
    try:
        if not all_guests.begin_on(datasets, datasets, demanded, call, config, owner, cancelled):
            why = "not every guest got what its disks allow"
        else:
            begun = _open(config, owner)
            zfs.take_snapshots(wanted.datasets, wanted.name)
            taken = [f"{dataset}@{wanted.name}" for dataset in wanted.datasets]
    except ZfsFailed as error:
        why = str(error)
    finally:
        after_snapshot.finish(call, config, owner)
    points = _points(config, begun)
    waiting = {entry.capture for entry in _open(config, owner)}
    why = why or _less(begun, points, waiting) or _hold(taken, hold)
    if why:
        why += _take_back(config, taken, points)
        raise TakeFailed(f"{wanted.name} was not taken: {why}; the log says more")
    if waiting:
        raise TakeFailed(f"{wanted.name}: its snapshots are there, but not all of its points are")
    return points


def _open(config: Config, owner: Process) -> list[Entry]:
    entries = Journal(config.journal_dir).entries()
    return [entry for entry in entries if entry.owner == owner]


def _points(config: Config, begun: Sequence[Entry]) -> list[RestorePoint]:
    captures = {entry.capture for entry in begun}
    points, _ = vault.all_in(config.vault_dir)
    return [point for point in points if point.manifest.capture in captures]


def _less(begun: Sequence[Entry], points: Sequence[RestorePoint], waiting: Container[str]) -> str:
    """Who has less than it had when the snapshots were about to be taken, and why."""
    found = {point.manifest.capture: point.manifest for point in points}
    less = []
    for entry in begun:
        manifest = found.get(entry.capture)
        if entry.capture not in waiting and (not manifest or manifest.level is not entry.level):
            less.append(f"{entry.domain}: {(manifest and manifest.reason) or 'has no point'}")
    return "; ".join(less)


def _hold(taken: Sequence[str], tag: str | None) -> str:
    try:
        if tag:
            zfs.hold(taken, tag)
        return ""
    except ZfsFailed as error:
        return str(error)


def _take_back(config: Config, taken: Sequence[str], points: Sequence[RestorePoint]) -> str:
    """Destroy what was taken, and its points; says what cannot be."""
    try:
        if taken:
            log.plain().warning("destroying again: %s", ", ".join(taken))
            drop.drop(config, points, taken)
        return ""
    except (ZfsFailed, LockTimeout) as error:
        return f"; {error}"


def _demanded(config: Config, wanted: TakePlan) -> Callable[[Iterable[str]], ModeSet]:
    there = zfs.datasets()

    def demanded(of: Iterable[str]) -> ModeSet:
        if wanted.order:
            found = mode.mode_set([wanted.order])
        else:
            found = eligibility.modes_for(of, there, (snapshot_name.MANUAL,), config.default_modes)
        return found.together() if len(wanted.domains) > 1 else found

    return demanded
