"""Datasets and points go to a destination; each run goes on where the last one was interrupted.

    streams   for each dataset: what both sides have, and what is newer here
    turn      nobody whose disks these are is in the middle of a moment
    syncoid   the dataset, if there is something to send
    points    those whose snapshots have arrived (parcel), RAM as it is wanted
    gone      points whose snapshots the destination has pruned
    receipt   what both sides have now

What fails for one guest is told, and the others go on.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath

from zvmsnap.common import log
from zvmsnap.common.errors import Cancelled, SendRefused, ZvmsnapError
from zvmsnap.common.lockfile import lock
from zvmsnap.common.ssh import RemoteHost
from zvmsnap.config.destination import Destination, MemoryWanted
from zvmsnap.config.settings import Config
from zvmsnap.points import vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import folder_of
from zvmsnap.replication import divergence, remote_vault, send_status, syncoid, transfer, wait_idle
from zvmsnap.replication.remote_vault import RemoteVault
from zvmsnap.replication.send_plan import DatasetSend, SendUnit, dataset_sends, diverged
from zvmsnap.replication.send_status import SendStatus, SentDataset
from zvmsnap.replication.syncoid import Options
from zvmsnap.replication.transfer import PointTransfer
from zvmsnap.virt.host import Host
from zvmsnap.zfs import zfs
from zvmsnap.zfs.types import Snapshot, Subtree


@dataclass(frozen=True)
class SendOptions:
    """What was asked for."""

    memory: MemoryWanted = MemoryWanted.LATEST
    options: Options = field(default_factory=Options)


@dataclass
class UnitOutcome:
    """What became of one load; `failed` says why not all went well."""

    load: SendUnit
    streams: list[DatasetSend] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    points: list[PointTransfer] = field(default_factory=list)
    points_bytes: int = 0
    failed: str = ""


class Sending:
    """One run to one destination.

    What concerns all guests is raised: DestinationUnreachable, VaultMissing, RemoteFailed,
    ZfsFailed, SyncoidFailed and LockTimeout; the receipts tell of it too.
    """

    def __init__(
        self, config: Config, hypervisor: Host, destination: Destination, wish: SendOptions
    ) -> None:
        self._config = config
        self._hypervisor = hypervisor
        self._destination = destination
        self._wish = wish
        self._far = RemoteHost(destination.host, config.locks_dir)
        self._log = log.about(destination.name, "send")

    def plan(self, wanted: Sequence[SendUnit]) -> list[UnitOutcome]:
        """What would be sent."""
        syncoid.check(self._wish.options)
        branch = zfs.subtree(self._destination.root, self._far)
        there, _ = self._vault().read()
        outcomes = [UnitOutcome(load, self._streams(load, branch)) for load in wanted]
        for outcome in outcomes:
            divergence.plan(*diverged(outcome.streams), branch)
        arriving = {
            f"{stream.target}@{each.name}": Snapshot(
                stream.target, each.name, each.guid, each.createtxg
            )
            for outcome in outcomes
            for stream in outcome.streams
            for each in stream.arriving
        }
        afterwards = Subtree(branch.datasets, {**branch.snapshots, **arriving})
        here, _ = vault.read(self._config)
        self._choose(outcomes, here, there, afterwards)
        return outcomes

    def run(self, wanted: Sequence[SendUnit]) -> list[UnitOutcome]:
        """Send everything; what went wrong stands in each outcome."""
        syncoid.check(self._wish.options)
        name = f"send-{folder_of(self._destination.name)}"
        timeout_s = self._config.limits.lock_timeout_s
        with lock(self._config.locks_dir, name, f"send to {self._destination.name}", timeout_s):
            try:
                return self._run([UnitOutcome(load) for load in wanted])
            except ZvmsnapError as error:
                journal = self._config.journal_dir
                for load in wanted:
                    if load.uuid:
                        send_status.keep_failure(
                            journal, self._destination, load.domain, load.uuid, str(error)
                        )
                raise

    def _run(self, outcomes: list[UnitOutcome]) -> list[UnitOutcome]:
        branch = zfs.subtree(self._destination.root, self._far)
        far_vault = self._vault()
        far_vault.claim()
        for outcome in outcomes:
            self._guarded(outcome, self._send_datasets, branch)
        branch = zfs.subtree(self._destination.root, self._far)
        for outcome in outcomes:
            self._guarded(outcome, self._check_arrived, branch)
        self._send_points(far_vault, outcomes, branch)
        there, _ = far_vault.read()
        for outcome in outcomes:
            self._keep_receipt(outcome, there, branch)
        for point in transfer.gone(there, self._destination, branch):
            far_vault.remove(point)
            self._log.info("point %s is gone with its last snapshot there", point.name)
        return outcomes

    def _vault(self) -> RemoteVault:
        place = remote_vault.place_of(self._destination, self._far)
        return RemoteVault(self._config, self._destination, self._far, place)

    def _guarded(
        self, outcome: UnitOutcome, act: Callable[[UnitOutcome, Subtree], None], branch: Subtree
    ) -> None:
        if outcome.failed:
            return
        try:
            act(outcome, branch)
        except Cancelled:
            raise
        except ZvmsnapError as error:
            self._fail(outcome, error)

    def _fail(self, outcome: UnitOutcome, error: Exception) -> None:
        outcome.failed = str(error)
        name = outcome.load.domain or outcome.load.datasets[0]
        log.about(name, self._destination.name).error("%s", error)

    def _streams(self, load: SendUnit, branch: Subtree) -> list[DatasetSend]:
        return dataset_sends(load, branch, self._destination, raw=self._wish.options.raw)

    def _send_datasets(self, outcome: UnitOutcome, branch: Subtree) -> None:
        outcome.streams = self._streams(outcome.load, branch)
        self._set_aside(outcome, branch)
        guests = wait_idle.guests_on(self._hypervisor, outcome.load.datasets)
        for stream in outcome.streams:
            if stream.is_empty:
                continue
            wait_idle.wait(self._config, guests)
            self._make_folders(stream.target, branch)
            self._log.info("%s: %s", stream.newest.full_name, _amount(stream))
            begun_s = time.monotonic()
            syncoid.run(
                stream.dataset,
                self._destination.at(stream.target),
                dataclasses.replace(self._wish.options, raw=stream.raw),
                readonly=True,
            )
            outcome.seconds[stream.dataset] = time.monotonic() - begun_s

    def _set_aside(self, outcome: UnitOutcome, branch: Subtree) -> None:
        elsewhere, common = diverged(outcome.streams)
        tops = divergence.plan(elsewhere, common, branch)
        if tops:
            stamp = f"{datetime.now():%Y%m%dT%H%M%S}"
            for top in tops:
                self._log.warning(
                    "%s has newer snapshots than are here: they stay there, as %s.before-%s",
                    *(top, top, stamp),
                )
            divergence.set_aside(tops, common, branch, stamp, self._far)

    def _make_folders(self, target: str, branch: Subtree) -> None:
        """The datasets between the root and the target that nobody sends."""
        missing = [
            str(parent)
            for parent in reversed(PurePosixPath(target).parents)
            if self._destination.holds(str(parent)) and str(parent) not in branch.datasets
        ]
        if not missing:
            return
        now = zfs.subtree(self._destination.root, self._far)
        for name in missing:
            if name not in now.datasets:
                zfs.create_folder(name, self._far)

    def _check_arrived(self, outcome: UnitOutcome, branch: Subtree) -> None:
        """syncoid also ends well when a property has it leave a dataset out."""
        for stream in outcome.streams:
            if not any(s.guid == stream.newest.guid for s in branch.of(stream.target)):
                raise SendRefused(
                    f"{stream.newest.full_name}: has not arrived, though syncoid says so; is "
                    f"syncoid:sync set on {stream.dataset}?"
                )

    def _send_points(
        self, far_vault: RemoteVault, outcomes: Sequence[UnitOutcome], branch: Subtree
    ) -> None:
        here, _ = vault.read(self._config)
        there, damaged = far_vault.read()
        for entry in damaged:
            self._log.warning("%s", entry.why)
        captures = {point.manifest.capture for point in here}
        far_vault.clear([outcome.load.uuid for outcome in outcomes if outcome.load.uuid], captures)
        self._choose(outcomes, here, there, branch)
        for outcome in outcomes:
            chosen, outcome.points = outcome.points, []
            try:
                for each in chosen:
                    self._put(far_vault, outcome, each)
            except Cancelled:
                raise
            except (ZvmsnapError, OSError) as error:
                # OSError: it was pruned here while it was sent.
                self._fail(outcome, error)

    def _choose(
        self,
        outcomes: Iterable[UnitOutcome],
        here: Sequence[RestorePoint],
        there: Sequence[RestorePoint],
        branch: Subtree,
    ) -> None:
        for outcome in outcomes:
            mine = [point for point in here if point.manifest.uuid == outcome.load.uuid]
            outcome.points = transfer.parcels(
                mine, there, self._destination, branch, self._wish.memory
            )

    def _put(self, far_vault: RemoteVault, outcome: UnitOutcome, each: PointTransfer) -> None:
        outcome.points_bytes += far_vault.put(each, bwlimit=self._wish.options.bwlimit)
        outcome.points.append(each)
        self._log.info("point %s is there", each.point.name)

    def _keep_receipt(
        self, outcome: UnitOutcome, there: Sequence[RestorePoint], branch: Subtree
    ) -> None:
        load = outcome.load
        if not load.uuid:
            return
        guids = [snapshot.guid for snapshot in branch.snapshots.values()]
        newest = transfer.newest_complete(there, load.uuid, guids)
        manifest = newest[0].manifest if newest else None
        send_status.keep(
            self._config.journal_dir,
            self._destination,
            SendStatus(
                destination=self._destination.name,
                domain=load.domain,
                uuid=load.uuid,
                last_attempt=datetime.now(UTC).isoformat(timespec="seconds"),
                error=outcome.failed,
                seconds=round(sum(outcome.seconds.values()), 2),
                datasets=tuple(_sent(stream, outcome) for stream in outcome.streams),
                points=tuple(each.point.name for each in outcome.points),
                points_bytes=outcome.points_bytes,
                newest=newest[1] if newest else "",
                newest_created=manifest.created if manifest else "",
                newest_has_memory=bool(manifest and manifest.memory),
            ),
        )


def _sent(stream: DatasetSend, outcome: UnitOutcome) -> SentDataset:
    return SentDataset(
        dataset=stream.dataset,
        target=stream.target,
        newest=stream.newest.name,
        guid=stream.newest.guid,
        stream_bytes=stream.size_bytes,
        seconds=round(outcome.seconds.get(stream.dataset, 0.0), 2),
    )


def _amount(stream: DatasetSend) -> str:
    what = f"since {stream.since.partition('@')[2]}" if stream.since else "all of it"
    return f"{what}, {stream.size_bytes} bytes"
