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
        found = {}
        for full_name in names:
            dataset, _, name = full_name.partition("@")
            if full_name in self.present:
                found[full_name] = types.Snapshot(dataset, name, self.present[full_name], 1)
        return types.SnapshotListing(found, frozenset({"tank"}))


class PowerCut(Exception):
    """The process dies."""


@dataclass
class _Kept:
    """A snapshot in a FakePool."""

    name: str
    guid: int
    createtxg: int
    content: str


@dataclass
class _Held:
    """A dataset in a FakePool; `origin` is the guid of a snapshot, 0 if it is no clone."""

    guid: int
    type: str = "filesystem"
    origin: int = 0
    mounted: bool = False
    content: str = ""
    own: dict[str, str] = field(default_factory=dict)
    snapshots: list[_Kept] = field(default_factory=list)


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
        self.held: dict[str, _Held] = {}
        self.busy: set[str] = set()
        self.changes = 0
        self.dies_after: int | None = None
        self._dataset_guids = count(1)
        self._snapshot_guids = count(1001)
        self._txgs = count(1)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put it in place of ZFS."""
        for verb in self.VERBS:
            room = volume if verb == "wait_device" else zfs
            monkeypatch.setattr(room, verb, getattr(self, verb))

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
        held = _Held(next(self._dataset_guids), kind, content=content, own=own)
        self.held[name] = held
        held.mounted = mounted and not volume and self._where(name).startswith("/")

    def guid(self, full_name: str) -> int:
        """The guid of a dataset or snapshot."""
        return self._kept(full_name).guid if "@" in full_name else self.held[full_name].guid

    def history(self, name: str) -> list[str]:
        """Names of a dataset's own snapshots, oldest first."""
        return [kept.name for kept in self.held[name].snapshots]

    def reboot(self) -> None:
        """What is mounted by itself when a host comes up."""
        for held in self.held.values():
            held.mounted = False
        for name, held in sorted(self.held.items()):
            if held.own.get("canmount", "on") == "on" and self._may_mount(name):
                held.mounted = True

    def state(self, without: str = "") -> dict[str, object]:
        """All there is, as it would be compared by eye; `without` are names of snapshots."""
        return {
            name: (
                (held.guid, held.type, held.mounted, held.content, self._where(name)),
                self._full_name(held.origin),
                {**held.own, "canmount": held.own.get("canmount", "on")},
                [kept for kept in held.snapshots if kept.name != without],
            )
            for name, held in sorted(self.held.items())
        }

    # -- the verbs

    def datasets(self) -> dict[str, types.Dataset]:
        return {
            name: types.Dataset(
                name=name,
                type=held.type,
                compressed=False,
                guid=held.guid,
                origin=self._full_name(held.origin),
                mounted=held.mounted,
                mountpoint=self._where(name),
                canmount="" if held.type == "volume" else held.own.get("canmount", "on"),
            )
            for name, held in self.held.items()
        }

    def snapshots(self, names: Iterable[str]) -> types.SnapshotListing:
        everything, wanted = self.all_snapshots(), set(names)
        return types.SnapshotListing(
            {name: found for name, found in everything.present.items() if name in wanted},
            everything.pools,
            frozenset(name for name in wanted if name.partition("@")[0] not in self.held),
        )

    def all_snapshots(self) -> types.SnapshotListing:
        found = [use.snapshot for use in self.snapshot_usage(list(self.held))]
        pools = frozenset(name for name in self.held if "/" not in name)
        return types.SnapshotListing({snapshot.full_name: snapshot for snapshot in found}, pools)

    def snapshot_usage(self, datasets: Sequence[str]) -> list[types.SnapshotUsage]:
        return [
            types.SnapshotUsage(
                types.Snapshot(name, kept.name, kept.guid, kept.createtxg),
                self._clones(kept.guid),
                0,
            )
            for name in datasets
            for kept in self._dataset(name).snapshots
        ]

    def local_properties(self, datasets: Sequence[str]) -> dict[str, dict[str, str]]:
        return {name: dict(self._dataset(name).own) for name in datasets}

    def take_snapshots(self, datasets: Iterable[str], name: str) -> None:
        wanted = sorted(datasets)
        self._refuse(any(name in self.history(each) for each in wanted), f"{name}: exists")
        self._change()
        txg = next(self._txgs)
        for held in (self._dataset(each) for each in wanted):
            held.snapshots.append(_Kept(name, next(self._snapshot_guids), txg, held.content))

    def clone(self, origin: str, name: str, properties: Mapping[str, str]) -> None:
        kept = self._kept(origin)
        self._check_free(name)
        source = self._dataset(origin.partition("@")[0])
        volume = source.type == "volume"
        self._refuse(volume and "canmount" in properties, "canmount: not of a volume")
        self._change()
        own = dict(properties)
        self.held[name] = _Held(
            next(self._dataset_guids), source.type, kept.guid, content=kept.content, own=own
        )
        automatic = own.get("canmount", "on") == "on"
        self.held[name].mounted = automatic and self._may_mount(name)

    def promote(self, name: str) -> None:
        held = self._dataset(name)
        self._refuse(not held.origin, f"{name}: is no clone")
        origin = self._full_name(held.origin)
        other = self._dataset(origin.partition("@")[0])
        position = 1 + [kept.guid for kept in other.snapshots].index(held.origin)
        moving, staying = other.snapshots[:position], other.snapshots[position:]
        clash = {kept.name for kept in moving} & {kept.name for kept in held.snapshots}
        self._refuse(bool(clash), f"{name}: has snapshots of these names: {clash}")
        self._change()
        held.origin, other.origin = other.origin, held.origin
        held.snapshots, other.snapshots = moving + held.snapshots, staying

    def rename(self, name: str, new_name: str) -> None:
        self._dataset(name)
        self._refuse(new_name.startswith(f"{name}/"), f"{new_name}: lies below itself")
        self._check_free(new_name)
        self._change()
        for each in self._tree(name):
            self.held[new_name + each.removeprefix(name)] = self.held.pop(each)

    def set_property(self, name: str, user_property: str, value: str) -> None:
        held = self._dataset(name)
        self._refuse(held.type == "volume" and user_property == "canmount", f"{name}: is a volume")
        self._change()
        held.own[user_property] = value

    def mount(self, name: str) -> None:
        held = self._dataset(name)
        self._refuse(held.mounted, f"{name}: is mounted already")
        self._refuse(not self._may_mount(name), f"{name}: cannot be mounted at {self._where(name)}")
        self._change()
        held.mounted = True

    def unmount(self, name: str) -> None:
        held, where = self._dataset(name), self._where(name)
        self._refuse(not held.mounted, f"{name}: is not mounted")
        inside = [n for n in self.held if self._where(n).startswith(f"{where}/")]
        mounted = any(self.held[each].mounted for each in inside)
        self._refuse(name in self.busy or mounted, f"{name}: is busy")
        self._change()
        held.mounted = False

    def rollback(self, snapshot: str) -> None:
        held = self._dataset(snapshot.partition("@")[0])
        kept = self._kept(snapshot)
        newer = [each for each in held.snapshots if each.createtxg > kept.createtxg]
        self._refuse(any(self._clones(each.guid) for each in newer), f"{snapshot}: newer clones")
        self._change()
        held.snapshots = [each for each in held.snapshots if each not in newer]
        held.content = kept.content

    def destroy(self, name: str, *, with_snapshots: bool = False) -> None:
        dataset, is_snapshot, _ = name.partition("@")
        held = self._dataset(dataset)
        for kept in held.snapshots[:] if with_snapshots else ():
            self.destroy(f"{name}@{kept.name}")
        if is_snapshot:
            gone = self._kept(name)
            self._refuse(bool(self._clones(gone.guid)), f"{name}: has clones")
            self._change()
            held.snapshots.remove(gone)
            return
        self._refuse(bool(held.snapshots) or len(self._tree(name)) > 1, f"{name}: has children")
        self._change()
        del self.held[name]

    def wait_device(self, volume: str, timeout_s: float) -> None:
        self._refuse(self._dataset(volume).type != "volume", f"{volume}: no volume, no device")

    # -- what they are made of

    def _change(self) -> None:
        if self.changes == self.dies_after:
            raise PowerCut
        self.changes += 1

    def _refuse(self, reason: bool, message: str) -> None:
        if reason:
            raise ZfsFailed(message)

    def _dataset(self, name: str) -> _Held:
        self._refuse(name not in self.held, f"{name}: does not exist")
        return self.held[name]

    def _kept(self, full_name: str) -> _Kept:
        dataset, _, name = full_name.partition("@")
        found = [kept for kept in self._dataset(dataset).snapshots if kept.name == name]
        self._refuse(not found, f"{full_name}: does not exist")
        return found[0]

    def _full_name(self, guid: int) -> str:
        for name, held in self.held.items():
            for kept in held.snapshots:
                if kept.guid == guid:
                    return f"{name}@{kept.name}"
        return ""

    def _clones(self, guid: int) -> tuple[str, ...]:
        return tuple(name for name, held in self.held.items() if held.origin == guid)

    def _tree(self, name: str) -> list[str]:
        return [each for each in self.held if each == name or each.startswith(f"{name}/")]

    def _check_free(self, name: str) -> None:
        self._refuse(name in self.held, f"{name}: exists")
        self._refuse(name.rpartition("/")[0] not in self.held, f"{name}: its parent does not exist")

    def _where(self, name: str) -> str:
        held = self.held.get(name)
        if held and held.type == "volume":
            return ""
        if held and "mountpoint" in held.own:
            return held.own["mountpoint"]
        parent, _, last = name.rpartition("/")
        above = self._where(parent) if parent else "/"
        return above if above in ("none", "legacy") else f"{above.rstrip('/')}/{last}"

    def _may_mount(self, name: str) -> bool:
        where = self._where(name)
        taken = any(held.mounted and self._where(n) == where for n, held in self.held.items())
        off = self.held[name].own.get("canmount") == "off"
        return where.startswith("/") and not off and not taken
