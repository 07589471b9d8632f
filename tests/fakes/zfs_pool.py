"""ZFS, faked: which snapshots exist; or whole pools, and what OpenZFS does and refuses."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import pytest

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.common.snapshot_name import is_within
from zvmsnap.common.ssh import HERE, RemoteHost
from zvmsnap.zfs import branches, marks, types, volume, zfs
from zvmsnap.zfs.branches import Fresh, Properties


def named(guids: Mapping[str, int]) -> list[types.Snapshot]:
    """Snapshots of these full names and guids; these are also their transaction groups."""
    split = [(full_name.partition("@"), guid) for full_name, guid in guids.items()]
    return [types.Snapshot(dataset, name, guid, guid) for (dataset, _, name), guid in split]


def listed(
    snapshots: Iterable[types.Snapshot], *pools: str, guids: Container[int] | None = None
) -> types.SnapshotListing:
    """What zfs.all_snapshots answers; nothing is known of guids of pools and datasets."""
    wanted = [each for each in snapshots if guids is None or each.guid in guids]
    return types.SnapshotListing(wanted, dict.fromkeys(pools, 0), {})


def never(_dataset: str) -> bool:
    """A caller that takes no recursive snapshots."""
    return False


class FakeZfs:
    """Which snapshots exist: full name to guid. The pool tank has the guid 70."""

    def __init__(self) -> None:
        self.present: dict[str, int] = {}
        self.properties: list[tuple[str, str, str]] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put it in place of ZFS."""
        for verb in (
            "snapshots",
            "all_snapshots",
            "snapshot_usage",
            "lineages",
            "pool_guids",
            "user_properties",
            "properties_of",
        ):
            monkeypatch.setattr(zfs, verb, getattr(self, verb))
        for verb in ("existing", "seems_to_exist"):
            monkeypatch.setattr(marks, verb, getattr(self, verb))

    def existing(self, snapshots: Iterable[str]) -> list[str]:
        """As marks.existing."""
        return [snapshot for snapshot in snapshots if snapshot in self.present]

    def seems_to_exist(self, snapshot: str) -> bool:
        """As marks.seems_to_exist."""
        return snapshot in self.present

    def user_properties(self, datasets: Sequence[str], prefix: str) -> list[tuple[str, str, str]]:
        """As zfs.user_properties, of `properties`."""
        return [
            each
            for each in self.properties
            if each[1].startswith(prefix) and any(is_within(name, each[0]) for name in datasets)
        ]

    def properties_of(
        self, names: Sequence[str], datasets: Sequence[str]
    ) -> dict[str, dict[str, str]]:
        """As zfs.properties_of, of `properties`: those that are set nearest to the dataset."""
        return {
            name: {
                "guid": str(each.guid),
                **{
                    own: value
                    for top, own, value in sorted(self.properties)
                    if is_within(name, top) and own in names
                },
            }
            for name, each in self.lineages().items()
            if not datasets or name in datasets
        }

    def lineages(self) -> dict[str, types.Lineage]:
        """As zfs.lineages, of tank/web and the datasets that have snapshots."""
        datasets = {"tank/web", *(each.dataset for each in named(self.present))}
        return {
            name: types.Lineage(number, "") for number, name in enumerate(sorted(datasets), 700)
        }

    def all_snapshots(self, guids: Container[int] | None = None) -> types.SnapshotListing:
        """As zfs.all_snapshots."""
        listing = listed(named(self.present), guids=guids)
        datasets = {name: each.guid for name, each in self.lineages().items()}
        return types.SnapshotListing(listing.snapshots, self.pool_guids(), datasets)

    def snapshot_usage(self, datasets: Sequence[str]) -> list[types.SnapshotUsage]:
        """As zfs.snapshot_usage, without clones and holds."""
        own = (each for each in named(self.present) if each.dataset in datasets)
        return [types.SnapshotUsage(each, (), 0) for each in own]

    def pool_guids(self) -> dict[str, int]:
        """As zfs.pool_guids."""
        return {"tank": 70}

    def snapshots(self, names: Iterable[str]) -> types.NamedSnapshots:
        """As zfs.snapshots."""
        existing = {}
        for full_name in names:
            dataset, _, name = full_name.partition("@")
            if full_name in self.present:
                existing[full_name] = types.Snapshot(dataset, name, self.present[full_name], 1)
        return types.NamedSnapshots(existing, frozenset({"tank"}))


def allow_text(name: str, delegated: Iterable[tuple[tuple[str, ...], str]]) -> str:
    """What `zfs allow` prints of a dataset."""
    sections: dict[str, list[str]] = {}
    for options, permissions in sorted(delegated):
        if options[0] == "-c":
            sections.setdefault("Create time permissions:", []).append(permissions)
            continue
        if options[0] == "-s":
            sections.setdefault("Permission sets:", []).append(f"{options[1]} {permissions}")
            continue
        scope = {"-l": "Local", "-d": "Descendent"}.get(options[0], "Local+Descendent")
        own = [word for word in options if word not in ("-l", "-d")]
        whom = {"-u": "user ", "-g": "group ", "-e": "everyone"}[own[0]] + "".join(own[1:])
        sections.setdefault(f"{scope} permissions:", []).append(f"{whom} {permissions}")
    if not sections:
        return ""
    lines = [f"---- Permissions on {name} ".ljust(70, "-")]
    for section, entries in sections.items():
        lines += [section, *(f"\t{entry}" for entry in entries)]
    return "\n".join(lines) + "\n"


def delegation(
    delegated: set[tuple[tuple[str, ...], str]], verb: str, words: Sequence[str]
) -> None:
    """What `zfs allow` or `zfs unallow` does."""
    change = delegated.add if verb == "allow" else delegated.discard
    change((tuple(words[:-2]), words[-2]))


class PowerCut(Exception):
    """The process dies."""


@dataclass
class _PoolSnapshot:
    """A snapshot in a FakePool."""

    name: str
    guid: int
    createtxg: int
    content: str
    holds: set[str] = field(default_factory=set)


@dataclass
class _PoolDataset:
    """A dataset in a FakePool; `origin` is the guid of a snapshot, 0 if it is no clone.

    `partial` is the snapshot of which a receive was interrupted, and the guid of its base.
    """

    guid: int
    type: str = "filesystem"
    origin: int = 0
    mounted: bool = False
    content: str = ""
    own: dict[str, str] = field(default_factory=dict)
    # What came with a stream, which outlives `zfs inherit`; and what of it counts now.
    stream: dict[str, str] = field(default_factory=dict)
    received: set[str] = field(default_factory=set)
    delegated: set[tuple[tuple[str, ...], str]] = field(default_factory=set)
    snapshots: list[_PoolSnapshot] = field(default_factory=list)
    bookmarks: dict[str, _PoolSnapshot] = field(default_factory=dict)
    partial: tuple[_PoolSnapshot, int] | None = None


class FakePool:
    """Datasets in memory, and the verbs of zvmsnap.zfs with what OpenZFS does and refuses.

    After `dies_after` changes the next one is a PowerCut. `busy` filesystems cannot be unmounted.
    """

    VERBS = (
        *(
            "datasets",
            "snapshots",
            "all_snapshots",
            "lineages",
            "pool_guids",
            "snapshot_usage",
            "properties_of",
            "take_snapshots",
        ),
        *("clone", "promote", "rename", "set_property", "mount", "unmount", "rollback", "destroy"),
        *("subtree", "create_folder", "stream_bytes", "bookmarks", "held_snapshots"),
        "command",
        "wait_device",
    )
    BRANCHES = ("below", "fresh", "properties")
    MARKS = ("bookmark", "destroy_bookmarks", "hold", "release", "tags")

    def __init__(self) -> None:
        self.by_name: dict[str, _PoolDataset] = {}
        self.busy: set[str] = set()
        self.changes = 0
        self.dies_after: int | None = None
        self.room_bytes = 1 << 60
        self._dataset_guids = count(1)
        self._snapshot_guids = count(1001)
        self._txgs = count(1)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put it in place of ZFS."""
        for verb in self.VERBS:
            module = volume if verb == "wait_device" else zfs
            monkeypatch.setattr(module, verb, getattr(self, verb))
        for verb in self.BRANCHES:
            monkeypatch.setattr(branches, verb, getattr(self, verb))
        for verb in self.MARKS:
            monkeypatch.setattr(marks, verb, getattr(self, verb))

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

    def came_with_a_stream(self, name: str, **properties: str) -> None:
        """Let properties come with a stream."""
        dataset = self.by_name[name]
        dataset.stream |= properties
        dataset.own |= properties
        dataset.received |= properties.keys()

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
                self._origin(name),
                {**dataset.own, "canmount": dataset.own.get("canmount", "on")},
                (sorted(dataset.received & dataset.own.keys()), sorted(dataset.delegated)),
                [snapshot for snapshot in dataset.snapshots if snapshot.name != without],
            )
            for name, dataset in sorted(self.by_name.items())
        }

    # -- the verbs

    def datasets(self, _tops: Sequence[str] = ()) -> dict[str, types.Dataset]:
        return {
            name: types.Dataset(
                name=name,
                type=dataset.type,
                compressed=False,
                guid=dataset.guid,
                origin=self._origin(name),
                mounted=dataset.mounted,
                mountpoint=self._where(name),
                canmount="" if dataset.type == "volume" else dataset.own.get("canmount", "on"),
            )
            for name, dataset in self.by_name.items()
        }

    def snapshots(self, names: Iterable[str]) -> types.NamedSnapshots:
        everything, wanted = self.all_snapshots(), set(names)
        present = {each.full_name: each for each in everything.snapshots}
        return types.NamedSnapshots(
            {name: each for name, each in present.items() if name in wanted},
            frozenset(everything.pools),
        )

    def all_snapshots(self, guids: Container[int] | None = None) -> types.SnapshotListing:
        existing = [each.snapshot for each in self.snapshot_usage(list(self.by_name))]
        return types.SnapshotListing(
            [each for each in existing if guids is None or each.guid in guids],
            self.pool_guids(),
            {name: dataset.guid for name, dataset in self.by_name.items()},
        )

    def lineages(self) -> dict[str, types.Lineage]:
        return {
            name: types.Lineage(each.guid, each.origin.partition("@")[0])
            for name, each in self.datasets().items()
        }

    def pool_guids(self) -> dict[str, int]:
        return {name: 9000 + self.guid(name) for name in self.by_name if "/" not in name}

    def snapshot_usage(self, datasets: Sequence[str]) -> list[types.SnapshotUsage]:
        return [
            types.SnapshotUsage(
                types.Snapshot(name, snapshot.name, snapshot.guid, snapshot.createtxg),
                self._clones(f"{name}@{snapshot.name}"),
                len(snapshot.holds),
            )
            for name in datasets
            for snapshot in self._dataset(name).snapshots
        ]

    def properties_of(
        self, names: Sequence[str], datasets: Sequence[str]
    ) -> dict[str, dict[str, str]]:
        having = {}
        for name, each in self.by_name.items():
            if not datasets or name in datasets:
                own = {key: value for key, value in each.own.items() if key in names}
                having[name] = {"guid": str(each.guid), **own}
        return having

    def below(self, tops: Iterable[str]) -> dict[str, types.Dataset]:
        wanted = list(tops)
        return {
            name: each
            for name, each in self.datasets().items()
            if any(is_within(name, top) for top in wanted)
        }

    def fresh(self, names: Sequence[str]) -> dict[str, Fresh]:
        return {name: Fresh(self._dataset(name).guid, 0) for name in names}

    def properties(self, names: Sequence[str]) -> dict[str, Properties]:
        return {name: self._properties(name) for name in names}

    def _properties(self, name: str) -> Properties:
        dataset = self._dataset(name)
        above = [each for each in self.by_name if name.startswith(f"{each}/")]
        inherited = {key for each in above for key in self.by_name[each].own if ":" in key}
        return Properties(
            dict(dataset.own),
            frozenset(dataset.received & dataset.own.keys()),
            frozenset(inherited - dataset.own.keys()),
        )

    def take_snapshots(self, datasets: Iterable[str], name: str) -> None:
        wanted = sorted(datasets)
        self._refuse(any(name in self.history(each) for each in wanted), f"{name}: exists")
        self._change()
        txg = next(self._txgs)
        for dataset in (self._dataset(each) for each in wanted):
            dataset.snapshots.append(
                _PoolSnapshot(name, next(self._snapshot_guids), txg, dataset.content)
            )

    def clone(
        self, origin: str, name: str, properties: Mapping[str, str], _remote: RemoteHost = HERE
    ) -> None:
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

    def promote(self, name: str, _remote: RemoteHost = HERE) -> None:
        dataset = self._dataset(name)
        self._refuse(not dataset.origin, f"{name}: is no clone")
        origin = self._origin(name)
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
        for mark, each in list(other.bookmarks.items()):
            if each.createtxg <= moving[-1].createtxg:
                dataset.bookmarks[mark] = other.bookmarks.pop(mark)

    def rename(self, name: str, new_name: str, _remote: RemoteHost = HERE) -> None:
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

    def _set(self, name: str, values: Mapping[str, str]) -> None:
        dataset = self._dataset(name)
        self._refuse(dataset.type == "volume" and "canmount" in values, f"{name}: is a volume")
        self._refuse(self._lacks_room(name, values), f"{name}: out of space")
        for key, value in values.items():
            dataset.own[key] = value
            dataset.received.discard(key)
            if value == "none":
                del dataset.own[key]

    def _inherit(self, name: str, user_property: str, *, received: bool) -> None:
        dataset = self._dataset(name)
        self._change()
        if received and user_property in dataset.stream:
            dataset.own[user_property] = dataset.stream[user_property]
            dataset.received.add(user_property)
        else:
            dataset.own.pop(user_property, None)
            dataset.received.discard(user_property)

    def command(self, verb: str, *words: str) -> str:
        name = words[-1]
        if verb == "set":
            self._change()
            values = dict(word.split("=", 1) for word in words if "=" in word)
            for each in (word for word in words if "=" not in word):
                self._set(each, values)
        elif verb == "inherit":
            self._inherit(name, words[-2], received=words[0] == "-S")
        elif len(words) == 1:
            names = [each for each in self.by_name if name == each or name.startswith(f"{each}/")]
            return "".join(allow_text(each, self.by_name[each].delegated) for each in names)
        else:
            self._change()
            delegation(self._dataset(name).delegated, verb, words)
        return ""

    def _lacks_room(self, name: str, values: Mapping[str, str]) -> bool:
        """Are all reservations, with these new ones, more than the pool has?"""
        reserved = {
            each: dict(dataset.own) | (dict(values) if each == name else {})
            for each, dataset in self.by_name.items()
        }
        sizes = [own.get("refreservation", "none") for own in reserved.values()]
        return sum(int(size) for size in sizes if size != "none") > self.room_bytes

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
        name = snapshot.partition("@")[0]
        dataset, target = self._dataset(name), self._snapshot(snapshot)
        newer = [each for each in dataset.snapshots if each.createtxg > target.createtxg]
        self._refuse(
            any(self._clones(f"{name}@{each.name}") for each in newer), f"{snapshot}: newer clones"
        )
        self._refuse(any(each.holds for each in newer), f"{snapshot}: newer ones are held")
        self._change()
        for mark, each in list(dataset.bookmarks.items()):
            if each.createtxg > target.createtxg:
                del dataset.bookmarks[mark]
        dataset.snapshots = [each for each in dataset.snapshots if each not in newer]
        dataset.content = target.content

    def destroy(self, name: str, *, with_snapshots: bool = False) -> None:
        dataset_name, is_snapshot, _ = name.partition("@")
        dataset = self._dataset(dataset_name)
        for snapshot in dataset.snapshots[:] if with_snapshots else ():
            self.destroy(f"{name}@{snapshot.name}")
        if is_snapshot:
            gone = self._snapshot(name)
            self._refuse(bool(self._clones(name)), f"{name}: has clones")
            self._refuse(bool(gone.holds), f"{name}: is held")
            self._change()
            dataset.snapshots.remove(gone)
            return
        self._refuse(bool(dataset.snapshots) or len(self._tree(name)) > 1, f"{name}: has children")
        self._change()
        del self.by_name[name]

    def wait_device(self, volume: str, timeout_s: float) -> None:
        self._refuse(self._dataset(volume).type != "volume", f"{volume}: no volume, no device")

    # -- bookmarks, holds and streams

    def subtree(self, root: str, _remote: RemoteHost = HERE) -> types.Subtree:
        names = frozenset(self._tree(root))
        self._refuse(not names, f"cannot open '{root}': dataset does not exist")
        usages = self.snapshot_usage(sorted(names))
        return types.Subtree(
            names,
            {usage.snapshot.full_name: usage.snapshot for usage in usages},
            frozenset(name for name in names if self.by_name[name].type == "filesystem"),
            frozenset(name for name in names if self.by_name[name].partial),
        )

    def create_folder(self, name: str, _remote: RemoteHost = HERE) -> None:
        self._check_free(name)
        self.add(name, canmount="off")

    def stream_bytes(self, newest: str, since: str = "", *, raw: bool = False) -> int:
        self._snapshot(newest)
        self.source(since) if since else None
        return 1000

    def bookmarks(self, datasets: Sequence[str] = ()) -> list[types.Bookmark]:
        return [
            types.Bookmark(name, mark, each.guid, each.createtxg)
            for name in datasets or self.by_name
            for mark, each in self._dataset(name).bookmarks.items()
        ]

    def held_snapshots(self) -> list[str]:
        usages = self.snapshot_usage(list(self.by_name))
        return [usage.snapshot.full_name for usage in usages if usage.holds]

    def bookmark(self, names: Mapping[str, str]) -> None:
        for name, snapshot in names.items():
            dataset, _, mark = name.partition("#")
            self._refuse(mark in self._dataset(dataset).bookmarks, f"{name}: exists")
            self._dataset(dataset).bookmarks[mark] = self._snapshot(snapshot)

    def destroy_bookmarks(self, names: Iterable[str]) -> None:
        for name in names:
            dataset, _, mark = name.partition("#")
            self._dataset(dataset).bookmarks.pop(mark, None)

    def hold(self, snapshots: Iterable[str], tag: str) -> set[str]:
        missing = set()
        for name in snapshots:
            dataset, _, bare = name.partition("@")
            if bare not in self.history(dataset):
                missing.add(name)
                continue
            self._refuse(tag in self._snapshot(name).holds, f"{name}: hold {tag} exists")
            self._snapshot(name).holds.add(tag)
        return missing

    def release(self, snapshots: Iterable[str], tag: str) -> None:
        for name in snapshots:
            dataset, _, bare = name.partition("@")
            if bare in self.history(dataset):
                self._snapshot(name).holds.discard(tag)

    def tags(self, snapshot: str) -> set[str]:
        dataset, _, bare = snapshot.partition("@")
        return self._snapshot(snapshot).holds if bare in self.history(dataset) else set()

    def source(self, name: str) -> _PoolSnapshot:
        """The snapshot `dataset@name`, or what a bookmark `dataset#name` has kept of it."""
        dataset, _, mark = name.partition("#")
        if not mark:
            return self._snapshot(name)
        self._refuse(mark not in self._dataset(dataset).bookmarks, f"{name}: does not exist")
        return self._dataset(dataset).bookmarks[mark]

    def receive(self, newest: str, since: str, target: str, *, cut: bool = False) -> None:
        """`zfs send [-i since] newest | zfs receive -s target`; `cut`: only a part arrives."""
        sent = self._snapshot(newest)
        base = self.source(since).guid if since else 0
        self._refuse("@" in since and base == sent.guid, f"{newest}: is the base itself")
        if target not in self.by_name:
            self._refuse(bool(since), f"{target}: does not exist")
            self._check_free(target)
            self.add(target, mounted=False)
        elif not since:
            self._refuse(True, f"{target}: exists")
        there = self.by_name[target]
        self._refuse(there.partial is not None, f"{target}: contains partially-complete state")
        last = there.snapshots[-1].guid if there.snapshots else 0
        self._refuse(last != base, f"{target}: most recent snapshot does not match {since}")
        if cut:
            there.partial = (sent, base)
        else:
            self._arrive(there, sent)

    def resume(self, source: str, target: str) -> None:
        """`zfs send -t TOKEN | zfs receive -s target`: only what was interrupted can go on."""
        there = self._dataset(target)
        assert there.partial
        sent, base = there.partial
        own = self._dataset(source)
        known = {each.guid for each in (*own.snapshots, *own.bookmarks.values())} | {0}
        gone = sent.guid not in {each.guid for each in own.snapshots}
        self._refuse(gone, f"{source}@{sent.name} used in the initial send no longer exists")
        self._refuse(base not in known, f"incremental source {base:#x} no longer exists")
        there.partial = None
        self._arrive(there, sent)

    def _arrive(self, there: _PoolDataset, sent: _PoolSnapshot) -> None:
        there.content = sent.content
        there.snapshots.append(_PoolSnapshot(sent.name, sent.guid, next(self._txgs), sent.content))

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

    def _origin(self, name: str) -> str:
        """The snapshot of which a dataset is a clone; other pools may have one of that guid."""
        for other, dataset in self.by_name.items():
            for snapshot in dataset.snapshots if _pool(other) == _pool(name) else ():
                if snapshot.guid == self.by_name[name].origin:
                    return f"{other}@{snapshot.name}"
        return ""

    def _clones(self, full_name: str) -> tuple[str, ...]:
        guid, pool = self._snapshot(full_name).guid, _pool(full_name)
        return tuple(
            name
            for name, dataset in self.by_name.items()
            if dataset.origin == guid and _pool(name) == pool
        )

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


def _pool(name: str) -> str:
    return name.partition("@")[0].partition("/")[0]
