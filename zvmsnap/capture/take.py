"""`zvmsnap take`: points of several guests, on any datasets, at one instant; all of them or none.

    capture    each guest, as in the pre hook; several guests are held together
    snapshot   all datasets of a pool in one transaction; the watchdog lets paused guests go on
    finish     the guests are released and the points published, as in the post hook
    hold       the snapshots, if asked for

If one guest does not get the level that its disks allow, no snapshot is taken, and `finish` puts
all guests back. If one turns out to have gone on before the snapshots, these are destroyed, with
all points. If this process dies, the watchdog puts all guests back, as for a run of sanoid.

The snapshot follows the dump within an instant, so no guest needs an overlay, unless it is asked
for: it is paused until then, and goes on sooner than overlays could be made.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from zvmsnap.capture import all_guests, eligibility
from zvmsnap.capture.snapshot_run import CaptureRequest
from zvmsnap.common import log, snapshot_name
from zvmsnap.common.errors import GuestNotFound, LockTimeout, TakeFailed, TakeRefused, ZfsFailed
from zvmsnap.common.json_file import Unreadable
from zvmsnap.common.process import Process
from zvmsnap.common.waiting import now_s, wait_until
from zvmsnap.config.mode import Mode, ModeSet, mode_set, parse_mode
from zvmsnap.config.properties import GROUP
from zvmsnap.config.settings import Config
from zvmsnap.disks import location
from zvmsnap.disks.location import GuestDisks
from zvmsnap.finalize import after_snapshot
from zvmsnap.inventory import coverage
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.points import vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.retention import drop
from zvmsnap.virt.host import Host
from zvmsnap.zfs import mounts, zfs
from zvmsnap.zfs.types import Dataset

# The watchdog lets paused guests go on within a fraction of that; else `finish` does.
_GO_ON_WITHIN_S = 1.0
_POLL_S = 0.02
# A pool that takes longer for a snapshot is worth a line: paused guests wait for it.
_SLOW_S = 1.0


@dataclass(frozen=True)
class TakePlan:
    """Which guests, the datasets of all their disks, and the name of the snapshots.

    `mode`: the levels that were asked for, instead of those of properties and configuration.
    """

    domains: tuple[str, ...]
    datasets: tuple[str, ...]
    name: str
    uuids: tuple[str, ...]
    mode: Mode | None = None

    @property
    def full_names(self) -> list[str]:
        """The snapshots: DATASET@NAME."""
        return [f"{dataset}@{self.name}" for dataset in self.datasets]


def default_name() -> str:
    """A name of now that sanoid never prunes."""
    return f"zvmsnap_{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}_manual"


def plan(
    host: Host,
    domains: Sequence[str],
    group: str | None,
    name: str,
    mode: str | None = None,
) -> TakePlan:
    """Find the guests, by name or UUID or by their group, and their datasets.

    Raises GuestNotFound, ModeInvalid, TakeRefused and ZfsFailed.
    """
    parsed_mode = parse_mode(mode) if mode else None
    if not snapshot_name.is_name(name):
        raise TakeRefused(f"{name!r}: is no name of a snapshot: letters, digits and _ - : .")
    known = zfs.datasets()
    table = mounts.read_table()
    allowed = eligibility.without_excluded(known, known, (snapshot_name.MANUAL,))
    guests = _named(host, domains, table) if group is None else _grouped(host, group, table)
    datasets: set[str] = set()
    for domain, disks in guests.items():
        own = _writable_datasets(disks) & allowed
        if not own:
            raise TakeRefused(f"{domain}: has no disk on ZFS, or all are left out (zvmsnap:mode)")
        datasets |= own
    uuids = tuple(disks.domain.uuid for disks in guests.values())
    planned = TakePlan(tuple(sorted(guests)), tuple(sorted(datasets)), name, uuids, parsed_mode)
    if why := snapshot_name.too_long(planned.full_names):
        raise TakeRefused(f"{why}: say a shorter --name")
    if existing := zfs.snapshots(planned.full_names).present:
        raise TakeRefused(f"{min(existing)}: exists already; say another --name")
    return planned


def _named(host: Host, domains: Sequence[str], table: list[mounts.Mount]) -> dict[str, GuestDisks]:
    disks = {}
    guests = host.guests()
    for domain in domains:
        guest = next((each for each in guests if domain in (each.name, each.uuid)), None)
        if guest is None:
            raise GuestNotFound(f"{domain}: libvirt has no such guest")
        disks[guest.name] = location.locate_disks(host, guest, table)
    return disks


def _grouped(host: Host, group: str, table: list[mounts.Mount]) -> dict[str, GuestDisks]:
    groups = zfs.marked(GROUP, inherited=True)
    datasets = {name for name, value in groups.items() if value == group}
    located = {guest.name: location.locate_disks(host, guest, table) for guest in host.guests()}
    members = {
        name: disks for name, disks in located.items() if _writable_datasets(disks) & datasets
    }
    if not members:
        raise TakeRefused(f"no guest has a disk on a dataset with {GROUP}={group}")
    return members


def _writable_datasets(disks: GuestDisks) -> set[str]:
    """Of its disks, and of the other state that must be snapshotted with them."""
    own = {
        disks.locations[disk.target].dataset
        for disk in disks.domain.disks
        if disk.writable and disk.target in disks.locations
    }
    return own | {
        place.dataset
        for resource, place in disks.others
        if place and not coverage.is_stored(resource)
    }


def execute(
    config: Config, planned: TakePlan, hold: str | None, cancelled: threading.Event
) -> list[RestorePoint]:
    """Take what was planned; returns the points. `hold`: the tag to hold the snapshots with.

    Raises TakeFailed, with no snapshot left; the log says what could not be put back.
    """
    if len(planned.domains) > 1:
        # As for with_paused_for_memory: each guest's overlays begin at an instant of its own.
        config = msgspec.structs.replace(config, quiesce_overlay=False)
    owner = Process.of(os.getpid())
    captured, snapshots, failure = _capture_and_snapshot(config, planned, owner, cancelled)
    points = _points_of(config, captured)
    unpublished = {entry.capture for entry in _open_entries(config, owner)}
    failure = failure or _missed(captured, points, unpublished) or _hold(snapshots, hold)
    if failure:
        failure += _take_back(config, snapshots, points)
        raise TakeFailed(f"{planned.name} was not taken: {failure}; the log says more")
    if unpublished:
        raise TakeFailed(f"{planned.name}: its snapshots exist, but not all of its points do")
    return points


def _capture_and_snapshot(
    config: Config, planned: TakePlan, owner: Process, cancelled: threading.Event
) -> tuple[list[Entry], list[str], str]:
    """Capture, snapshot and finish; returns the entries, the snapshots, and why there are none."""
    call = HookCall(Role.PRE, planned.datasets, (planned.name,))
    known = zfs.datasets()
    guids = {name: dataset.guid for name, dataset in known.items()}
    modes_for = _modes_for(config, planned, known)
    datasets = frozenset(planned.datasets)
    request = CaptureRequest(call, owner, datasets, datasets, modes_for, cancelled, guids=guids)
    captured: list[Entry] = []
    try:
        if not all_guests.capture_guests(config, request):
            return captured, [], "not every guest got what its disks allow"
        captured = _open_entries(config, owner)
        _take_snapshots(planned, captured)
        with suppress(Unreadable, OSError):  # `finish` looks into the journal once more
            wait_until(lambda: not _are_paused(config, owner), _GO_ON_WITHIN_S, _POLL_S)
        return captured, planned.full_names, ""
    except ZfsFailed as error:
        return captured, [], str(error)
    finally:
        after_snapshot.finish_run(call, config, owner)


def _take_snapshots(planned: TakePlan, captured: Sequence[Entry]) -> None:
    begun_s = now_s()
    zfs.take_snapshots(planned.datasets, planned.name)
    took_s = now_s() - begun_s
    held = [entry.domain for entry in captured if entry.is_held]
    if took_s > _SLOW_S and held:
        log.plain().warning(
            "%s stood still for the %.1f s that ZFS took for the snapshots; with `--mode memory` "
            "a guest alone would not",
            ", ".join(held),
            took_s,
        )


def _are_paused(config: Config, owner: Process) -> bool:
    return any(entry.is_paused_for_snapshot for entry in _open_entries(config, owner))


def _modes_for(
    config: Config, planned: TakePlan, datasets: Mapping[str, Dataset]
) -> Callable[[Iterable[str]], ModeSet]:
    def modes_for(names: Iterable[str]) -> ModeSet:
        if planned.mode:
            modes = mode_set([planned.mode])
        else:
            types = (snapshot_name.MANUAL,)
            modes = eligibility.modes_for(names, datasets, types, config.default_modes)
        is_as_asked = planned.mode and len(planned.domains) == 1
        return modes if is_as_asked else modes.with_paused_for_memory()

    return modes_for


def _open_entries(config: Config, owner: Process) -> list[Entry]:
    entries = Journal(config.journal_dir).entries()
    return [entry for entry in entries if entry.owner == owner]


def _points_of(config: Config, captured: Sequence[Entry]) -> list[RestorePoint]:
    captures = {entry.capture for entry in captured}
    points, _ = vault.all_in(config.vault_dir)
    return [point for point in points if point.manifest.capture in captures]


def _missed(
    captured: Sequence[Entry], points: Sequence[RestorePoint], unpublished: Container[str]
) -> str:
    """Which guests have less than when the snapshots were about to be taken, and why."""
    manifests = {point.manifest.capture: point.manifest for point in points}
    missed = []
    for entry in captured:
        manifest = manifests.get(entry.capture)
        if entry.capture not in unpublished and (not manifest or manifest.level is not entry.level):
            missed.append(f"{entry.domain}: {(manifest and manifest.reason) or 'has no point'}")
    return "; ".join(missed)


def _hold(snapshots: Sequence[str], tag: str | None) -> str:
    try:
        if tag:
            zfs.hold(snapshots, tag)
        return ""
    except ZfsFailed as error:
        return str(error)


def _take_back(config: Config, snapshots: Sequence[str], points: Sequence[RestorePoint]) -> str:
    """Destroy the snapshots and points again; returns what to add to the message if that fails."""
    try:
        if snapshots:
            log.plain().warning("destroying again: %s", ", ".join(snapshots))
            drop.destroy(config, points, snapshots)
        return ""
    except (ZfsFailed, LockTimeout) as error:
        return f"; {error}"
