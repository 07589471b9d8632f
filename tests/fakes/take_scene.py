"""A host with two guests, web and db, on datasets of their own; and their snapshots."""

import itertools
from collections.abc import Callable, Container, Mapping
from pathlib import Path

import pytest

from tests.fakes.guest import OTHER, UUID, DumpedGuest
from tests.fakes.host import FakeHost
from tests.fakes.images import make_base
from zvmsnap.capture import take
from zvmsnap.common.errors import ZfsFailed
from zvmsnap.config.settings import Config
from zvmsnap.disks import staging
from zvmsnap.quiesce import watchdog
from zvmsnap.zfs import marks, mounts, zfs
from zvmsnap.zfs.types import (
    Dataset,
    Lineage,
    NamedSnapshots,
    Snapshot,
    SnapshotListing,
    SnapshotUsage,
)

WEB, DB = "tank/web", "tank/db"


class Pool:
    """Two datasets, and the snapshots that are taken of them."""

    def __init__(self, root: Path) -> None:
        self.datasets = {name: Dataset(name, "filesystem", False) for name in (WEB, DB)}
        self.table = [mounts.Mount(1, 0, "/", "/", "")]
        for number, name in enumerate(self.datasets, 2):
            self.table.append(mounts.Mount(number, 1, "/", f"{root}/{name}", name))
        self.present: dict[str, Snapshot] = {}
        self.groups: dict[str, str] = {}
        self.fails_after = 99
        self.usage: dict[str, SnapshotUsage] = {}
        self.changes: list[str] = []
        self._guids = itertools.count(10)
        self.when_taken: Callable[[], None] = lambda: None

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(zfs, "datasets", lambda: self.datasets)
        patch.setattr(mounts, "read_table", lambda: self.table)
        patch.setattr(zfs, "snapshots", lambda names: self._listing(set(names)))
        patch.setattr(marks, "existing", lambda names: [n for n in names if n in self.present])
        patch.setattr(zfs, "all_snapshots", self._all)
        patch.setattr(zfs, "lineages", lambda: {WEB: Lineage(71, ""), DB: Lineage(72, "")})
        patch.setattr(zfs, "pool_guids", lambda: {"tank": 70})
        patch.setattr(zfs, "snapshot_usage", self._usage)
        patch.setattr(zfs, "marked", self._marked)
        patch.setattr(zfs, "take_snapshots", self._take)
        patch.setattr(zfs, "destroy", self._destroy)
        patch.setattr(zfs, "hold", lambda names, tag: self.changes.append(f"hold {tag} {names}"))

    def _marked(self, user_property: str, *, inherited: bool = False) -> Mapping[str, str]:
        assert user_property == "zvmsnap:group" and inherited
        return self.groups

    def _listing(self, names: set[str]) -> NamedSnapshots:
        present = {name: self.present[name] for name in names & self.present.keys()}
        return NamedSnapshots(present, frozenset({"tank"}))

    def _all(self, guids: Container[int] | None = None) -> SnapshotListing:
        wanted = [each for each in self.present.values() if guids is None or each.guid in guids]
        return SnapshotListing(wanted, zfs.pool_guids(), {WEB: 71, DB: 72})

    def _usage(self, datasets: list[str]) -> list[SnapshotUsage]:
        return [
            self.usage.get(each.full_name, SnapshotUsage(each, (), 0))
            for each in self.present.values()
            if each.dataset in datasets
        ]

    def _take(self, datasets: tuple[str, ...], name: str) -> None:
        self.when_taken()
        if len(datasets) > self.fails_after:
            raise ZfsFailed("out of space")
        for dataset in datasets:
            self.present[f"{dataset}@{name}"] = self._taken(dataset, name)

    def _taken(self, dataset: str, name: str) -> Snapshot:
        """guid and createtxg both grow."""
        guid = next(self._guids)
        return Snapshot(dataset, name, guid, guid)

    def _destroy(self, name: str) -> None:
        self.changes.append(f"destroy {name}")
        del self.present[name]


def two_guests(root: Path, config: Config, patch: pytest.MonkeyPatch) -> FakeHost:
    """web and db, in place of libvirt."""
    host = FakeHost(
        DumpedGuest("web", UUID, vda=make_base(root / WEB / "a.raw")),
        DumpedGuest("db", OTHER, vda=make_base(root / DB / "a.raw")),
    )
    host.install(patch)
    patch.setattr(watchdog, "start_watchdog", lambda *_: None)
    patch.setattr(watchdog, "require_watchdog", lambda *_, **__: None)
    # So nobody lets paused guests go on before `finish` does.
    patch.setattr(take, "_GO_ON_WITHIN_S", 0.0)
    # QEMU's user, who must have access to the overlays, is no subject here.
    patch.setattr(staging, "check_usable", lambda *_: None)
    config.staging_dir.mkdir(exist_ok=True)
    return host


def configure(root: Path, config: Config, patch: pytest.MonkeyPatch) -> None:
    """Let commands find that configuration."""
    path = root / "config.toml"
    keys = ("staging", "vault", "journal", "locks")
    path.write_text("".join(f'{key} = "{getattr(config, key)}"\n' for key in keys))
    patch.setenv("ZVMSNAP_CONFIG", str(path))
