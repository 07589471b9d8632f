"""Sends datasets and points to a destination; each run goes on where the last one was interrupted.

    plan      for each dataset: what both sides have, and what is newer on this host
    idle      wait until no guest with disks on it is in a run
    marks     hold what is sent, and bookmark it: the next send goes on from there
    bookmark  if what both sides have was pruned here: send the next snapshot, from its bookmark
    syncoid   send the dataset, if there is something to send
    settle    release what has arrived
    points    send those whose snapshots have arrived, with RAM as it is wanted
    old RAM   remove what is kept there no longer
    pruned    remove points whose snapshots the destination has pruned
    status    note what both sides have now

If one guest fails, the log and the report say so, and the others go on.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import PurePosixPath

import msgspec

from zvmsnap.common import log
from zvmsnap.common.errors import (
    Cancelled,
    SendRefused,
    SyncoidFailed,
    ZfsFailed,
    ZvmsnapError,
)
from zvmsnap.common.lockfile import lock
from zvmsnap.common.ssh import RemoteHost
from zvmsnap.config.destination import Destination, MemoryWanted
from zvmsnap.config.keep import Keep
from zvmsnap.config.settings import Config
from zvmsnap.encryption.age import NOBODY, Recipients
from zvmsnap.points import vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import DamagedPoint, folder_of
from zvmsnap.replication import (
    divergence,
    send_plan,
    send_report,
    send_status,
    syncoid,
    transfer,
    wait_idle,
)
from zvmsnap.replication.remote_vault import RemoteVault
from zvmsnap.replication.send_marks import SendMarks
from zvmsnap.replication.send_plan import DatasetSend, SendUnit
from zvmsnap.replication.send_report import SendReport, UnitOutcome
from zvmsnap.replication.syncoid import SyncoidOptions
from zvmsnap.replication.transfer import KeptThere, PointTransfer
from zvmsnap.retention.keep_memory import REMOVED
from zvmsnap.virt.host import Host
from zvmsnap.zfs import stream, zfs
from zvmsnap.zfs.dataset_swap import name_before, stamp_of
from zvmsnap.zfs.types import Subtree


@dataclass(frozen=True)
class SendOptions:
    """What may be chosen for one destination: whose RAM is sent, and how long it is kept there."""

    memory: MemoryWanted = MemoryWanted.LATEST
    syncoid: SyncoidOptions = field(default_factory=SyncoidOptions)
    keep: Keep = field(default_factory=Keep)
    recipients: Recipients = NOBODY


class Sender:
    """Sends to one destination.

    What concerns all guests is raised: DestinationUnreachable, VaultMissing, RemoteFailed,
    ZfsFailed, SyncoidFailed and LockTimeout; the send status of each guest has it too.
    """

    def __init__(
        self, settings: Config, host: Host, destination: Destination, options: SendOptions
    ) -> None:
        self._settings = settings
        self._host = host
        self._destination = destination
        self._options = options
        self._remote = RemoteHost(destination.host, settings.locks_dir)
        self._marks = SendMarks(destination.name)
        self._kept = KeptThere(options.keep, datetime.now(UTC))
        # Two guests may have disks on one dataset: it is sent once.
        self._planned: dict[str, DatasetSend] = {}
        self._marked: set[str] = set()
        self._sent: set[str] = set()
        self._log = log.about(destination.name, "send")

    def plan(self, units: Sequence[SendUnit]) -> SendReport:
        """What would be sent. Changes nothing."""
        syncoid.check(self._options.syncoid)
        subtree = self._subtree()
        remote_points, damaged = self._vault().read()
        outcomes = [
            UnitOutcome(unit, self._dataset_sends(unit, subtree), error=unit.problem)
            for unit in units
        ]
        for outcome in outcomes:
            divergence.plan(*send_plan.diverged(outcome.sends), subtree)
        sends = [send for outcome in outcomes for send in outcome.sends]
        local_points, _ = vault.read(self._settings)
        subtree = send_plan.after(subtree, sends)
        self._plan_transfers(outcomes, local_points, remote_points, damaged, subtree)
        for outcome in outcomes:
            going = self._kept.going(outcome.unit.uuid, remote_points, outcome.transfers)
            outcome.memory_removed = [point.name for point in going]
        return self._report(outcomes)

    def send(self, units: Sequence[SendUnit]) -> SendReport:
        """Send everything. What failed for one unit is in the report."""
        syncoid.check(self._options.syncoid)
        with send_lock(self._settings, self._destination.name):
            try:
                return self._report(self._send(units))
            except ZvmsnapError as error:
                for unit in units:
                    if unit.uuid:
                        self._write_failure(unit, error)
                raise

    def _send(self, units: Sequence[SendUnit]) -> list[UnitOutcome]:
        outcomes = [UnitOutcome(unit) for unit in units]
        subtree = self._subtree()
        remote_vault = self._vault()
        remote_vault.claim()
        for outcome in outcomes:
            self._attempt(outcome, self._send_datasets, subtree)
        subtree = self._subtree()
        self._settle(outcomes, subtree)
        for outcome in outcomes:
            self._attempt(outcome, self._check_arrived, subtree)
        self._send_points(remote_vault, outcomes, subtree)
        remote_points, _ = remote_vault.read()
        remove = partial(self._remove_old_memory, remote_vault, remote_points)
        for outcome in outcomes:
            self._attempt(outcome, remove, subtree)
            self._write_status(outcome, remote_points, subtree)
        for point in transfer.pruned(remote_points, self._destination, subtree):
            remote_vault.remove(point)
            self._log.info("point %s is gone there with its last snapshot", point.name)
        return outcomes

    def _subtree(self) -> Subtree:
        return zfs.subtree(self._destination.root, self._remote)

    def _vault(self) -> RemoteVault:
        recipients = self._options.recipients
        return RemoteVault.of(self._settings, self._destination, self._remote, recipients)

    def _attempt(
        self, outcome: UnitOutcome, act: Callable[[UnitOutcome, Subtree], None], subtree: Subtree
    ) -> None:
        """Do it, unless the unit has failed already. If it fails, the other units go on."""
        if outcome.error:
            return
        try:
            act(outcome, subtree)
        except Cancelled:
            raise
        except Exception as error:
            self._fail(outcome, error)

    def _fail(self, outcome: UnitOutcome, error: Exception) -> None:
        outcome.error = log.one_line(error)
        name = outcome.unit.domain or outcome.unit.datasets[0]
        log.about(name, self._destination.name).error("%s", outcome.error)

    def _dataset_sends(self, unit: SendUnit, subtree: Subtree) -> list[DatasetSend]:
        new = tuple(each for each in unit.datasets if each not in self._planned)
        sends = send_plan.dataset_sends(
            dataclasses.replace(unit, datasets=new),
            subtree,
            self._destination,
            raw=self._options.syncoid.raw,
        )
        self._planned |= {send.dataset: send for send in sends}
        return [self._planned[each] for each in unit.datasets if each in self._planned]

    def _send_datasets(self, outcome: UnitOutcome, subtree: Subtree) -> None:
        if outcome.unit.problem:
            raise SendRefused(outcome.unit.problem)
        outcome.sends = self._dataset_sends(outcome.unit, subtree)
        self._rename_diverged(outcome, subtree)
        guests = wait_idle.guests_on(self._host, outcome.unit.datasets)
        for send in outcome.sends:
            if send.dataset in self._sent:
                continue
            if not send.is_empty:
                wait_idle.wait(self._settings, guests)
            if send.dataset not in self._marked:
                self._marked.add(send.dataset)
                self._marks.make(send)
            if send.is_empty:
                continue
            self._create_parents(send.target, subtree)
            since = f"since {send.since_name}" if send.since else "all of it"
            self._log.info("%s: %s, %d bytes", send.newest.full_name, since, send.size_bytes)
            started_s = time.monotonic()
            self._send_dataset(send)
            outcome.took_s[send.dataset] = time.monotonic() - started_s
            self._sent.add(send.dataset)

    def _send_dataset(self, send: DatasetSend) -> None:
        options = dataclasses.replace(self._options.syncoid, raw=send.raw)
        if send.since_bookmark and not send.interrupted:
            stream.send_since_bookmark(
                send.since,
                send.arriving[0].full_name,
                send.target,
                self._remote,
                raw=send.raw,
                bwlimit=options.bwlimit,
            )
        try:
            # It begins with what was interrupted, if there is such.
            syncoid.run(send.dataset, self._destination.at(send.target), options, readonly=True)
        except SyncoidFailed as error:
            if not send.interrupted:
                raise
            raise SyncoidFailed(
                f"{error}; if what {send.target} has of an interrupted send cannot go on: "
                f"zfs receive -A {send.target} there, as root"
            ) from error

    def _settle(self, outcomes: Sequence[UnitOutcome], subtree: Subtree) -> None:
        try:
            for outcome in outcomes:
                for send in outcome.sends:
                    self._marks.settle(send, subtree)
            self._marks.release_replaced(self._planned)
        except ZfsFailed as error:
            self._log.warning("%s; the next send tries again", error)

    def _rename_diverged(self, outcome: UnitOutcome, subtree: Subtree) -> None:
        targets, common = send_plan.diverged(outcome.sends)
        tops = divergence.plan(targets, common, subtree)
        if not tops:
            return
        stamp = stamp_of(datetime.now())
        for top in tops:
            self._log.warning(
                "%s has newer snapshots there that %s never had: they are kept, as %s",
                *(top, outcome.unit.domain or "this host", name_before(top, stamp)),
            )
        divergence.rename_away(tops, common, subtree, stamp, self._remote)
        for send in outcome.sends:
            self._planned[send.dataset] = dataclasses.replace(send, diverged=False)

    def _create_parents(self, target: str, subtree: Subtree) -> None:
        """Create the datasets between root and target that nobody sends."""
        missing = [
            str(parent)
            for parent in reversed(PurePosixPath(target).parents)
            if self._destination.holds(str(parent)) and str(parent) not in subtree.datasets
        ]
        if not missing:
            return
        existing = self._subtree().datasets
        for name in missing:
            if name not in existing:
                zfs.create_folder(name, self._remote)

    def _check_arrived(self, outcome: UnitOutcome, subtree: Subtree) -> None:
        """syncoid also succeeds when a property has it skip a dataset. Raises SendRefused."""
        for send in outcome.sends:
            if not send.is_empty and not any(
                each.guid == send.newest.guid for each in subtree.of(send.target)
            ):
                raise SendRefused(
                    f"{send.newest.full_name}: has not arrived, though syncoid says so; is "
                    f"syncoid:sync set on {send.dataset}?"
                )

    def _send_points(
        self, remote_vault: RemoteVault, outcomes: Sequence[UnitOutcome], subtree: Subtree
    ) -> None:
        local_points, _ = vault.read(self._settings)
        remote_points, damaged = remote_vault.read()
        for entry in damaged:
            self._log.warning("%s", entry.why)
        self._plan_transfers(outcomes, local_points, remote_points, damaged, subtree)
        uuids = [outcome.unit.uuid for outcome in outcomes if outcome.unit.uuid]
        planned = chain.from_iterable(outcome.transfers for outcome in outcomes)
        remote_vault.clear(uuids, {each.manifest.capture for each in planned})
        for outcome in outcomes:
            transfers, outcome.transfers = outcome.transfers, []
            try:
                for each in transfers:
                    self._send_point(remote_vault, outcome, each, remote_points)
            except Cancelled:
                raise
            except Exception as error:
                self._fail(outcome, error)

    def _plan_transfers(
        self,
        outcomes: Iterable[UnitOutcome],
        local_points: Sequence[RestorePoint],
        remote_points: Sequence[RestorePoint],
        damaged: Sequence[DamagedPoint],
        subtree: Subtree,
    ) -> None:
        for outcome in outcomes:
            own = [point for point in local_points if point.manifest.uuid == outcome.unit.uuid]
            planned = transfer.plan(
                own, remote_points, self._destination, subtree, self._options.memory, damaged
            )
            outcome.transfers = self._kept.only_kept(outcome.unit.uuid, remote_points, planned)

    def _remove_old_memory(
        self,
        remote_vault: RemoteVault,
        remote_points: Sequence[RestorePoint],
        outcome: UnitOutcome,
        _subtree: Subtree,
    ) -> None:
        """What is kept there no longer; not of a unit that has failed, as not all has arrived."""
        if not self._options.keep.has_end or not outcome.unit.uuid:
            return
        own = [point for point in remote_points if point.manifest.uuid == outcome.unit.uuid]
        remote_vault.clear_memory(own)
        for point in self._kept.going(outcome.unit.uuid, own):
            remote_vault.remove_memory(point)
            outcome.memory_removed.append(point.name)
            self._log.info("point %s: its RAM is removed there (keep_memory)", point.name)

    def _send_point(
        self,
        remote_vault: RemoteVault,
        outcome: UnitOutcome,
        each: PointTransfer,
        arrived: list[RestorePoint],
    ) -> None:
        """Send a point, and add it to those that have `arrived`."""
        bwlimit = self._options.syncoid.bwlimit
        base = transfer.newest_pages(arrived, outcome.unit.uuid)
        try:
            outcome.points_bytes += remote_vault.put(each, bwlimit=bwlimit, base=base)
        except (ZvmsnapError, OSError) as error:
            now = vault.entry_in(each.point.directory)
            if isinstance(error, Cancelled) or not transfer.was_removed(each, now):
                raise
            what = "'s RAM" if now else ""
            self._log.info(
                "point %s%s was removed meanwhile, and is not sent", each.point.name, what
            )
            if now:
                self._send_point(remote_vault, outcome, each.without_memory(REMOVED), arrived)
            return
        outcome.transfers.append(each)
        arrived.append(each.arrived)
        self._log.info("point %s has arrived", each.point.name)

    def _write_failure(self, unit: SendUnit, error: ZvmsnapError) -> None:
        journal, destination = self._settings.journal_dir, self._destination.name
        send_status.write_failure(journal, destination, unit.domain, unit.uuid, str(error))

    def _write_status(
        self, outcome: UnitOutcome, remote_points: Sequence[RestorePoint], subtree: Subtree
    ) -> None:
        if not outcome.unit.uuid:
            return
        newest = transfer.newest_complete(remote_points, outcome.unit.uuid, subtree.by_guid)
        status = send_report.status(self._destination.name, outcome, newest)
        if self._options.recipients:
            own = (each for each in remote_points if each.manifest.uuid == outcome.unit.uuid)
            plain = tuple(each.name for each in own if not each.manifest.encrypted)
            status = msgspec.structs.replace(status, plain=plain)
        send_status.write(self._settings.journal_dir, status)

    def _report(self, outcomes: Iterable[UnitOutcome]) -> SendReport:
        units = tuple(send_report.of(outcome) for outcome in outcomes)
        encrypted = bool(self._options.recipients)
        return SendReport(destination=self._destination.name, units=units, encrypted=encrypted)


def send_lock(settings: Config, destination: str) -> AbstractContextManager[None]:
    """The lock of one destination. Raises LockTimeout."""
    name = f"send-{folder_of(destination)}"
    intent = f"send to {destination}"
    return lock(settings.locks_dir, name, intent, settings.limits.lock_timeout_s)
