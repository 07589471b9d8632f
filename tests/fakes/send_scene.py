"""Months of sends, on one FakePool that has the pools of this host and those of destinations.

syncoid and `zfs send` do what they do, as read in syncoid 2.2; sanoid takes and prunes as
sanoid.conf.example says. What the destinations have of points is left out: ZFS alone is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.fakes.host import FakeHost
from tests.fakes.zfs_pool import FakePool
from zvmsnap.common.errors import SyncoidFailed, ZfsFailed
from zvmsnap.common.ssh import HERE, RemoteHost
from zvmsnap.config import destination
from zvmsnap.config.settings import Config
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import DamagedPoint
from zvmsnap.replication import syncoid, wait_idle
from zvmsnap.replication.remote_vault import RemoteVault
from zvmsnap.replication.send import Sender, SendOptions
from zvmsnap.replication.send_plan import SendUnit
from zvmsnap.replication.send_report import SendReport
from zvmsnap.replication.syncoid import SyncoidOptions
from zvmsnap.zfs import stream, types, zfs

WEB, DATA = "tank/vm/web", "tank/vm/web/data"
DATASETS = (WEB, DATA)

# Of sanoid.conf.example: how many, and how old they may become.
RETENTION = {
    "hourly": (24, timedelta(hours=24)),
    "daily": (14, timedelta(days=14)),
    "monthly": (3, timedelta(days=93)),
}
_STAMP = "%Y-%m-%d_%H:%M:%S"


class _NoPoints:
    """The vault of a destination, without points."""

    def read(self) -> tuple[list[RestorePoint], list[DamagedPoint]]:
        return [], []

    def claim(self) -> None:
        """There is nothing to claim."""

    def clear(self, _uuids: Iterable[str], _captures: Iterable[str]) -> None:
        """There is nothing to clear."""


class SendScene:
    """A host and its destinations: `now` is the time, `forks` the datasets renamed away there."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pool = FakePool()
        for name in ("tank", "tank/vm", *DATASETS):
            self.pool.add(name)
        self.config = Config(
            vault=f"{tmp_path}/vault", journal=f"{tmp_path}/journal", locks=f"{tmp_path}/locks"
        )
        self.now = datetime(2026, 10, 1, 2, 30)
        self.unreachable: set[str] = set()
        self.cuts_after: int | None = None  # so many snapshots arrive, and a part of the next
        self.refused: list[str] = []  # snapshots that sanoid could not prune
        self.forks: list[str] = []
        self.pool.install(monkeypatch)
        monkeypatch.setattr(zfs, "subtree", self._subtree)
        monkeypatch.setattr(zfs, "rename", self._rename)
        monkeypatch.setattr(syncoid, "check", lambda _options: None)
        monkeypatch.setattr(syncoid, "run", self._syncoid)
        monkeypatch.setattr(stream, "send_since_bookmark", self._send_since_bookmark)
        monkeypatch.setattr(wait_idle, "guests_on", lambda *_: [])
        monkeypatch.setattr(RemoteVault, "of", lambda *_: _NoPoints())

    def destination(self, root: str) -> str:
        """Make a destination; its name."""
        self.pool.add(root.partition("/")[0])
        self.pool.add(root)
        return root

    def hours(self, count: int) -> None:
        """Let so many hours pass: sanoid takes at each full hour, and prunes half an hour later."""
        for _ in range(count):
            self.now += timedelta(hours=1)
            taken = self.now.replace(minute=0)
            kinds = ["monthly"] if taken.day == 1 and taken.hour == 0 else []
            kinds += ["daily"] if taken.hour == 0 else []
            for each in (*kinds, "hourly"):
                self.pool.take_snapshots(DATASETS, f"autosnap_{taken:{_STAMP}}_{each}")
            for dataset in DATASETS:
                self.prune(dataset, RETENTION)

    def prune(self, dataset: str, retention: dict[str, tuple[int, timedelta]]) -> None:
        """As sanoid: what is older than it may be, while more than enough are left."""
        for kind, (count, age) in retention.items():
            names = [n for n in self.pool.history(dataset) if n.endswith(f"_{kind}")]
            old = [n for n in names if self.now - _time(n) > age]
            for name in old[: max(0, len(names) - count)]:
                try:
                    self.pool.destroy(f"{dataset}@{name}")
                except ZfsFailed:
                    self.refused.append(f"{dataset}@{name}")

    def sender(self, name: str) -> Sender:
        """Who sends to that destination."""
        return Sender(self.config, FakeHost(), destination.parse(name), SendOptions())

    def send(self, name: str, *units: SendUnit) -> SendReport:
        """Send both datasets, or these units."""
        return self.sender(name).send(units or (SendUnit("", "", DATASETS),))

    def complete(self, name: str) -> bool:
        """Has the destination the newest snapshot of each dataset?"""
        return all(
            self.pool.history(f"{name}/{each}")[-1] == self.pool.history(each)[-1]
            for each in DATASETS
        )

    def _subtree(self, root: str, remote: RemoteHost = HERE) -> types.Subtree:
        if root in self.unreachable:
            raise ZfsFailed(f"cannot open '{root}': dataset does not exist")
        return self.pool.subtree(root, remote)

    def _rename(self, name: str, new_name: str, remote: RemoteHost = HERE) -> None:
        self.forks.append(name)
        self.pool.rename(name, new_name, remote)

    def _send_since_bookmark(
        self, bookmark: str, snapshot: str, target: str, *_: object, **__: object
    ) -> None:
        self._receive([snapshot], bookmark, target)

    def _syncoid(
        self, source: str, target: str, options: SyncoidOptions, *, readonly: bool
    ) -> None:
        try:
            if target in self.pool.by_name and self.pool.by_name[target].partial:
                self.pool.resume(source, target)
            here = self.pool.by_name[source].snapshots
            names = [f"{source}@{each.name}" for each in here]
            if target not in self.pool.by_name:
                self._receive(names, "", target)
                return
            there = {(each.name, each.guid) for each in self.pool.by_name[target].snapshots}
            common = [n for n, each in enumerate(here) if (each.name, each.guid) in there]
            if not common:
                raise SyncoidFailed(f"Target {target} exists but has no snapshots matching")
            last = max(common)
            if last + 1 < len(here):
                self._receive(names[last + 1 :], names[last], target)
        except ZfsFailed as error:
            raise SyncoidFailed(str(error)) from error

    def _receive(self, names: Sequence[str], since: str, target: str) -> None:
        for name in names:
            if self.cuts_after == 0:
                self.pool.receive(name, since, target, cut=True)
                raise SyncoidFailed("cut")
            if self.cuts_after:
                self.cuts_after -= 1
            self.pool.receive(name, since, target)
            since = name


def _time(name: str) -> datetime:
    return datetime.strptime(name.removeprefix("autosnap_").rpartition("_")[0], _STAMP)
