"""ZFS, faked: which snapshots exist; or whole pools, and what OpenZFS does and refuses."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import pytest

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.zfs import types, volume, zfs


class FakeZfs:
    """Which snapshots exist: full name to guid."""

    def __init__(self) -> None:
        self.present: dict[str, int] = {}

    def snapshots(self, names: Iterable[str]) -> types.SnapshotListing:
        """As zfs.snapshots."""
        existing = {}
        for full_name in names:
            dataset, _, name = full_name.partition("@")
            if full_name in self.present:
                existing[full_name] = types.Snapshot(dataset, name, self.present[full_name], 1)
        return types.SnapshotListing(existing, frozenset({"tank"}))


class PowerCut(Exception):
    """The process dies."""


@dataclass
class _PoolSnapshot:
    """A snapshot in a FakePool."""

    name: str
    guid: int
    createtxg: int
    content: str


@dataclass
class _PoolDataset:
    """A dataset in a FakePool; `origin` is the guid of a snapshot, 0 if it is no clone."""

    guid: int
    type: str = "filesystem"
    origin: int = 0
    mounted: bool = False
    content: str = ""
    own: dict[str, str] = field(default_factory=dict)
    snapshots: list[_PoolSnapshot] = field(default_factory=list)


class FakePool:
    """Datasets in memory, and the verbs of zvmsnap.zfs with what OpenZFS does and refuses.

    After `dies_after` changes the next one is a PowerCut. `busy` filesystems cannot be unmounted.
    """

    VERBS = (
        *(
            "datasets",
            "snapshots",
            "all_snapshots",
            "snapshot_usage",
            "local_properties",
            "take_snapshots",
        ),
        *("clone", "promote", "rename", "set_property", "mount", "unmount", "rollback", "destroy"),
        "wait_device",
    )

    def __init__(self) -> None:
        self.by_name: dict[str, _PoolDataset] = {}
        self.busy: set[str] = set()
        self.changes = 0
        self.dies_after: int | None = None
        self._dataset_guids = count(1)
        self._snapshot_guids = count(1001)
        self._txgs = count(1)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put it in place of ZFS."""
        for verb in self.VERBS:
            module = volume if verb == "wait_device" else zfs
            monkeypatch.setattr(module, verb, getattr(self, verb))

    def add(
        self,
        name: str,
        content: str = "",
        *,
        volume: bool = False,
        mounted: bool = True,
        **own: str,
    ) -> None:
        """Make a dataset, with these local properties."""
        kind = "volume" if volume else "filesystem"
        dataset = _PoolDataset(next(self._dataset_guids), kind, content=content, own=own)
        self.by_name[name] = dataset
        dataset.mounted = mounted and not volume and self._where(name).startswith("/")

    def guid(self, full_name: str) -> int:
        """The guid of a dataset or snapshot."""
        return self._snapshot(full_name).guid if "@" in full_name else self.by_name[full_name].guid

    def history(self, name: str) -> list[str]:
        """Names of a dataset's own snapshots, oldest first."""
        return [snapshot.name for snapshot in self.by_name[name].snapshots]

    def reboot(self) -> None:
        """Mount what a booting host mounts by itself."""
        for dataset in self.by_name.values():
            dataset.mounted = False
        for name, dataset in sorted(self.by_name.items()):
            if dataset.own.get("canmount", "on") == "on" and self._may_mount(name):
                dataset.mounted = True

    def state(self, without: str = "") -> dict[str, object]:
        """All datasets and snapshots, to be compared; `without` is the name of one to omit."""
        return {
            name: (
                (dataset.guid, dataset.type, dataset.mounted, dataset.content, self._where(name)),
                self._full_name(dataset.origin),
                {**dataset.own, "canmount": dataset.own.get("canmount", "on")},
                [snapshot for snapshot in dataset.snapshots if snapshot.name != without],
            )
            for name, dataset in sorted(self.by_name.items())
        }

    # -- the verbs

    def datasets(self) -> dict[str, types.Dataset]:
        return {
            name: types.Dataset(
                name=name,
                type=dataset.type,
                compressed=False,
                guid=dataset.guid,
                origin=self._full_name(dataset.origin),
                mounted=dataset.mounted,
                mountpoint=self._where(name),
                canmount="" if dataset.type == "volume" else dataset.own.get("canmount", "on"),
            )
            for name, dataset in self.by_name.items()
        }

    def snapshots(self, names: Iterable[str]) -> types.SnapshotListing:
        everything, wanted = self.all_snapshots(), set(names)
        return types.SnapshotListing(
            {name: each for name, each in everything.present.items() if name in wanted},
            everything.pools,
            frozenset(name for name in wanted if name.partition("@")[0] not in self.by_name),
        )

    def all_snapshots(self) -> types.SnapshotListing:
        existing = [each.snapshot for each in self.snapshot_usage(list(self.by_name))]
        pools = frozenset(name for name in self.by_name if "/" not in name)
        return types.SnapshotListing({snapshot.full_name: snapshot for snapshot in existing}, pools)

    def snapshot_usage(self, datasets: Sequence[str]) -> list[types.SnapshotUsage]:
        return [
            types.SnapshotUsage(
                types.Snapshot(name, snapshot.name, snapshot.guid, snapshot.createtxg),
                self._clones(snapshot.guid),
                0,
            )
            for name in datasets
            for snapshot in self._dataset(name).snapshots
        ]

    def local_properties(self, datasets: Sequence[str]) -> dict[str, dict[str, str]]:
        return {name: dict(self._dataset(name).own) for name in datasets}

    def take_snapshots(self, datasets: Iterable[str], name: str) -> None:
        wanted = sorted(datasets)
        self._refuse(any(name in self.history(each) for each in wanted), f"{name}: exists")
        self._change()
        txg = next(self._txgs)
        for dataset in (self._dataset(each) for each in wanted):
            dataset.snapshots.append(
                _PoolSnapshot(name, next(self._snapshot_guids), txg, dataset.content)
            )

    def clone(self, origin: str, name: str, properties: Mapping[str, str]) -> None:
        snapshot = self._snapshot(origin)
        self._check_free(name)
        source = self._dataset(origin.partition("@")[0])
        volume = source.type == "volume"
        self._refuse(volume and "canmount" in properties, "canmount: not of a volume")
        self._change()
        own = dict(properties)
        self.by_name[name] = _PoolDataset(
            next(self._dataset_guids), source.type, snapshot.guid, content=snapshot.content, own=own
        )
        automatic = own.get("canmount", "on") == "on"
        self.by_name[name].mounted = automatic and self._may_mount(name)

    def promote(self, name: str) -> None:
        dataset = self._dataset(name)
        self._refuse(not dataset.origin, f"{name}: is no clone")
        origin = self._full_name(dataset.origin)
        other = self._dataset(origin.partition("@")[0])
        position = 1 + [snapshot.guid for snapshot in other.snapshots].index(dataset.origin)
        moving, staying = other.snapshots[:position], other.snapshots[position:]
        clash = {snapshot.name for snapshot in moving} & {
            snapshot.name for snapshot in dataset.snapshots
        }
        self._refuse(bool(clash), f"{name}: has snapshots of these names: {clash}")
        self._change()
        dataset.origin, other.origin = other.origin, dataset.origin
        dataset.snapshots, other.snapshots = moving + dataset.snapshots, staying

    def rename(self, name: str, new_name: str) -> None:
        self._dataset(name)
        self._refuse(new_name.startswith(f"{name}/"), f"{new_name}: is below itself")
        self._check_free(new_name)
        self._change()
        for each in self._tree(name):
            self.by_name[new_name + each.removeprefix(name)] = self.by_name.pop(each)

    def set_property(self, name: str, user_property: str, value: str) -> None:
        dataset = self._dataset(name)
        self._refuse(
            dataset.type == "volume" and user_property == "canmount", f"{name}: is a volume"
        )
        self._change()
        dataset.own[user_property] = value

    def mount(self, name: str) -> None:
        dataset = self._dataset(name)
        self._refuse(dataset.mounted, f"{name}: is mounted already")
        self._refuse(not self._may_mount(name), f"{name}: cannot be mounted at {self._where(name)}")
        self._change()
        dataset.mounted = True

    def unmount(self, name: str) -> None:
        dataset, where = self._dataset(name), self._where(name)
        self._refuse(not dataset.mounted, f"{name}: is not mounted")
        inside = [n for n in self.by_name if self._where(n).startswith(f"{where}/")]
        mounted = any(self.by_name[each].mounted for each in inside)
        self._refuse(name in self.busy or mounted, f"{name}: is busy")
        self._change()
        dataset.mounted = False

    def rollback(self, snapshot: str) -> None:
        dataset = self._dataset(snapshot.partition("@")[0])
        target = self._snapshot(snapshot)
        newer = [each for each in dataset.snapshots if each.createtxg > target.createtxg]
        self._refuse(any(self._clones(each.guid) for each in newer), f"{snapshot}: newer clones")
        self._change()
        dataset.snapshots = [each for each in dataset.snapshots if each not in newer]
        dataset.content = target.content

    def destroy(self, name: str, *, with_snapshots: bool = False) -> None:
        dataset_name, is_snapshot, _ = name.partition("@")
        dataset = self._dataset(dataset_name)
        for snapshot in dataset.snapshots[:] if with_snapshots else ():
            self.destroy(f"{name}@{snapshot.name}")
        if is_snapshot:
            gone = self._snapshot(name)
            self._refuse(bool(self._clones(gone.guid)), f"{name}: has clones")
            self._change()
            dataset.snapshots.remove(gone)
            return
        self._refuse(bool(dataset.snapshots) or len(self._tree(name)) > 1, f"{name}: has children")
        self._change()
        del self.by_name[name]

    def wait_device(self, volume: str, timeout_s: float) -> None:
        self._refuse(self._dataset(volume).type != "volume", f"{volume}: no volume, no device")

    # -- helpers

    def _change(self) -> None:
        if self.changes == self.dies_after:
            raise PowerCut
        self.changes += 1

    def _refuse(self, reason: bool, message: str) -> None:
        if reason:
            raise ZfsFailed(message)

    def _dataset(self, name: str) -> _PoolDataset:
        self._refuse(name not in self.by_name, f"{name}: does not exist")
        return self.by_name[name]

    def _snapshot(self, full_name: str) -> _PoolSnapshot:
        dataset_name, _, name = full_name.partition("@")
        named = [each for each in self._dataset(dataset_name).snapshots if each.name == name]
        self._refuse(not named, f"{full_name}: does not exist")
        return named[0]

    def _full_name(self, guid: int) -> str:
        for name, dataset in self.by_name.items():
            for snapshot in dataset.snapshots:
                if snapshot.guid == guid:
                    return f"{name}@{snapshot.name}"
        return ""

    def _clones(self, guid: int) -> tuple[str, ...]:
        return tuple(name for name, dataset in self.by_name.items() if dataset.origin == guid)

    def _tree(self, name: str) -> list[str]:
        return [each for each in self.by_name if each == name or each.startswith(f"{name}/")]

    def _check_free(self, name: str) -> None:
        self._refuse(name in self.by_name, f"{name}: exists")
        self._refuse(
            name.rpartition("/")[0] not in self.by_name, f"{name}: its parent does not exist"
        )

    def _where(self, name: str) -> str:
        dataset = self.by_name.get(name)
        if dataset and dataset.type == "volume":
            return ""
        if dataset and "mountpoint" in dataset.own:
            return dataset.own["mountpoint"]
        parent, _, last = name.rpartition("/")
        above = self._where(parent) if parent else "/"
        return above if above in ("none", "legacy") else f"{above.rstrip('/')}/{last}"

    def _may_mount(self, name: str) -> bool:
        where = self._where(name)
        taken = any(
            dataset.mounted and self._where(n) == where for n, dataset in self.by_name.items()
        )
        off = self.by_name[name].own.get("canmount") == "off"
        return where.startswith("/") and not off and not taken
