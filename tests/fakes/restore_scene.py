"""A host whose disks remember what was written to them, so that RAM over other disks is noticed.

ZFS is a small world in memory, in place of the functions of zvmsnap.zfs; its guests are Machines.
Each change of the outside world is an act: it can fail, or the process can die, before the act or
after it.
"""

import json
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.guest import UUID, FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.images import libvirt_image
from tests.fakes.zfs_pool import allow_text, delegation
from zvmsnap.common import log
from zvmsnap.common.errors import LibvirtFailed, ZfsFailed
from zvmsnap.common.snapshot_name import is_within
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks import changes, location, qemu_img, staging
from zvmsnap.finalize.store import RamStore
from zvmsnap.journal.operation import CloneOperation, Operations, RestoreOperation
from zvmsnap.points import definition, vault
from zvmsnap.points.manifest import DOMAIN_XML, PERSISTENT_XML, Disk, Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.virt.guest import Guest
from zvmsnap.zfs import branches, mounts, sends, types, volume, zfs
from zvmsnap.zfs.branches import Fresh, Properties
from zvmsnap.zfs.mounts import DiskLocation
from zvmsnap.zfs.sends import Sender
from zvmsnap.zfs.types import Room

NAME = "autosnap_2026-11-20_03:00:00_hourly"
DATASET = "tank/web"
OLD, NEW = "old", "new"
_write = Operations.write


class Killed(BaseException):
    """The process dies."""


@dataclass
class PoolDataset:
    """A dataset: its content, and the guid of the snapshot of which it is a clone."""

    guid: int
    type: str
    content: str
    origin: int = 0
    mounted: bool = False
    locked: bool = False
    delegated: set[tuple[tuple[str, ...], str]] = field(default_factory=set)
    properties: dict[str, str] = field(default_factory=dict)


@dataclass
class PoolSnapshot:
    """A snapshot."""

    dataset_guid: int
    name: str
    guid: int
    content: str
    holds: int = 0


class World:
    """The pools, and the acts that fail."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pool: dict[str, PoolDataset] = {}
        self.pool_snapshots: list[PoolSnapshot] = []
        self.machines: list[Machine] = []
        self.mismatches: list[str] = []
        self.loaded: list[str] = []
        self.acts: list[str] = []
        # Links by content, to the paths of devices; those of partitions; devices by number.
        self.links: dict[str, str] = {}
        self.partitions: tuple[types.Partition, ...] = ()
        self.part_links: dict[str, tuple[int, types.Partition]] = {}
        self.devices: list[tuple[int, types.Partition | None]] = []
        # Devices that are no volumes, by their paths; their numbers below zero stand for guids.
        self.others: dict[str, int] = {}
        self.below: dict[int, list[str]] = {}
        # Acts that fail, and the one at which the process dies: number, "before" or "after".
        self.errors: set[tuple[int, str]] = set()
        self.death: tuple[int, str] | None = None
        self.dead = False
        self._guid = 0
        # Snapshots that are being sent, and the processes.
        self.sent: set[str] = set()
        self.sending: list[Sender] = []
        self.room: dict[str, Room] = {}

    # -- for the tests

    def add(
        self, name: str, content: str = "", kind: str = "filesystem", **more: Any
    ) -> PoolDataset:
        dataset = self.pool[name] = PoolDataset(self._next(), kind, content, **more)
        self.rename_partitions(name)
        if kind == "filesystem" and dataset.properties.get("canmount", "on") == "on":
            self._mount(name)
        return dataset

    def snap(self, full_name: str, content: str | None = None) -> types.Snapshot:
        dataset_name, _, name = full_name.partition("@")
        dataset = self.pool[dataset_name]
        self.pool_snapshots.append(
            PoolSnapshot(dataset.guid, name, self._next(), content or dataset.content)
        )
        return self._listed(self.pool_snapshots[-1])

    def disk_of(self, dataset: str) -> str:
        if self.pool[dataset].type == "volume":
            return f"/dev/zvol/{dataset}"
        return str(self.root / dataset / "vda.raw")

    def of_path(self, path: str) -> PoolDataset:
        place = location.locate_path(path, mounts.read_table())
        assert place, path
        return self.pool[place.dataset]

    def summary(self) -> dict[str, tuple[str, str, bool, list[str]]]:
        """Each dataset: content, origin, whether it is mounted, names of snapshots."""
        return {
            name: (
                dataset.content,
                self._origin(dataset),
                dataset.mounted,
                [each.name for each in self.pool_snapshots if each.dataset_guid == dataset.guid],
            )
            for name, dataset in self.pool.items()
        }

    def disarm(self) -> None:
        """No act fails any more."""
        self.dead, self.death = False, None
        self.errors = set()

    @contextmanager
    def act(self, name: str) -> Iterator[None]:
        if self.dead:
            raise Killed
        number = len(self.acts)
        self.acts.append(name)
        self._fail_if_due(number, "before", name)
        yield
        self._fail_if_due(number, "after", name)

    def _fail_if_due(self, number: int, when: str, name: str) -> None:
        if self.death == (number, when):
            self.dead = True
            raise Killed
        if (number, when) not in self.errors:
            return
        if name.startswith("write"):
            raise OSError(28, "No space left on device")
        raise (ZfsFailed if name.startswith("zfs") else LibvirtFailed)(f"{name}: failed here")

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(sends, "held", lambda names: sorted(set(names) & self.sent))
        patch.setattr(sends, "senders", self.senders)
        patch.setattr(zfs, "command", self.command)
        patch.setattr(branches, "rooms", self.rooms)
        asked = ("datasets", "all_snapshots", "snapshots", "snapshot_usage", "marked")
        for verb in (*asked, "lineages", "pool_guids"):
            patch.setattr(zfs, verb, getattr(self, verb))
        patch.setattr(mounts, "read_table", self.mounts)
        # Its images are words, which name no other files.
        patch.setattr(qemu_img, "header", lambda *_: qemu_img.Header("", "", ""))
        patch.setattr(branches, "below", self.branches)
        patch.setattr(branches, "everything", self.datasets)
        patch.setattr(zfs, "properties", lambda name, _: {"mountpoint": self._mountpoint(name)})
        patch.setattr(branches, "snapshot", self._acting("snapshot", self.take_snapshots))
        patch.setattr(branches, "properties", self.properties)
        patch.setattr(branches, "fresh", self.fresh)
        patch.setattr(volume, "device_number", self.device_number)
        patch.setattr(volume, "location_at", self.location_at)
        patch.setattr(volume, "below", lambda number: self.below.get(self.devices[number][0], []))
        patch.setattr(volume, "rename_partitions", self.rename_partitions)
        patch.setattr(changes, "written_to", self.written_to)
        for verb in ("clone", "promote", "rename", "set_property", "destroy"):
            patch.setattr(zfs, verb, self._acting(verb, getattr(self, verb)))
        for verb in ("mount", "unmount", "rollback"):
            patch.setattr(zfs, verb, self._acting(verb, getattr(self, verb)))

    def _acting(self, verb: str, do: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **options: Any) -> None:
            with self.act(f"zfs {verb}"):
                do(*arguments, **options)

        return call

    # -- the verbs of zvmsnap.zfs

    def datasets(self, _tops: Sequence[str] = ()) -> dict[str, types.Dataset]:
        return {
            name: types.Dataset(
                name,
                dataset.type,
                compressed=False,
                guid=dataset.guid,
                origin=self._origin(dataset),
                mounted=dataset.mounted,
                mountpoint=self._mountpoint(name) if dataset.type == "filesystem" else "",
                canmount=dataset.properties.get("canmount", "on")
                if dataset.type == "filesystem"
                else "",
                locked=dataset.locked,
            )
            for name, dataset in self.pool.items()
        }

    def all_snapshots(self, guids: Container[int] | None = None) -> types.SnapshotListing:
        listed = [self._listed(each) for each in self.pool_snapshots]
        wanted = [each for each in listed if guids is None or each.guid in guids]
        datasets = {name: dataset.guid for name, dataset in self.pool.items()}
        return types.SnapshotListing(wanted, self.pool_guids(), datasets)

    def snapshots(self, names: Iterable[str]) -> types.NamedSnapshots:
        listing = self.all_snapshots()
        wanted = set(names)
        present = {each.full_name: each for each in listing.snapshots if each.full_name in wanted}
        return types.NamedSnapshots(present, frozenset(listing.pools))

    def lineages(self) -> dict[str, types.Lineage]:
        return {
            name: types.Lineage(each.guid, each.origin.partition("@")[0])
            for name, each in self.datasets().items()
        }

    def pool_guids(self) -> dict[str, int]:
        pools = sorted({name.partition("/")[0] for name in self.pool})
        return {name: number for number, name in enumerate(pools, 70)}

    def snapshot_usage(self, datasets: Sequence[str]) -> list[types.SnapshotUsage]:
        guids = {self.pool[name].guid for name in datasets}
        return [
            types.SnapshotUsage(
                self._listed(each),
                tuple(name for name, dataset in self.pool.items() if dataset.origin == each.guid),
                each.holds,
            )
            for each in self.pool_snapshots
            if each.dataset_guid in guids
        ]

    def branches(self, tops: Iterable[str]) -> dict[str, types.Dataset]:
        wanted = list(tops)
        return {
            name: each
            for name, each in self.datasets().items()
            if any(is_within(name, top) for top in wanted)
        }

    def properties(self, names: Sequence[str]) -> dict[str, Properties]:
        return {name: Properties(dict(self.pool[name].properties)) for name in names}

    def fresh(self, names: Sequence[str]) -> dict[str, Fresh]:
        made = {name: self.pool[name] for name in names}
        return {name: Fresh(each.guid, len(each.content)) for name, each in made.items()}

    def senders(self, datasets: Iterable[str]) -> list[Sender]:
        wanted = set(datasets)
        return [each for each in self.sending if each.command.split()[-1].split("@")[0] in wanted]

    def command(self, verb: str, *words: str) -> str:
        dataset = self.pool[words[-1]]
        if len(words) == 1:
            told = [name for name in self.pool if is_within(words[-1], name)]
            return "".join(allow_text(name, self.pool[name].delegated) for name in told)
        with self.act(f"zfs {verb}"):
            if verb == "set":
                values = dict(word.split("=", 1) for word in words if "=" in word)
                for name in (word for word in words if "=" not in word):
                    self.pool[name].properties |= values
            elif verb == "inherit":
                dataset.properties.pop(words[-2], None)
            else:
                delegation(dataset.delegated, verb, words)
        return ""

    def rooms(self, datasets: Iterable[str]) -> dict[str, Room]:
        return {name: self.room.get(name, Room(available=1 << 60)) for name in datasets}

    def marked(self, user_property: str) -> dict[str, str]:
        return {
            name: dataset.properties[user_property]
            for name, dataset in self.pool.items()
            if user_property in dataset.properties
        }

    def written_to(
        self,
        places: Mapping[str, DiskLocation],
        snapshots: Iterable[str],
        _fresh: Mapping[str, int],
    ) -> list[str]:
        """As changes.written_to, of disks whose content is a word here."""
        names = dict(snapshot.split("@", 1) for snapshot in snapshots)
        return [
            target
            for target, place in places.items()
            if self.pool[place.dataset].content
            != self._find(f"{place.dataset}@{names[place.dataset]}").content
        ]

    def mounts(self) -> list[mounts.Mount]:
        table = [mounts.Mount(1, 0, "/", "/", "")]
        for number, name in enumerate(sorted(self.pool), 2):
            if not self.pool[name].mounted:
                continue
            point = self._mountpoint(name)
            above = max(
                (m for m in table if point.startswith(f"{m.mountpoint.rstrip('/')}/")),
                key=lambda mount: len(mount.mountpoint),
            )
            table.append(mounts.Mount(number, above.number, "/", point, name))
        return table

    def partition(self, *parts: types.Partition) -> None:
        """All volumes have these partitions, and so have their clones."""
        self.partitions = parts
        for name in self.pool:
            self.rename_partitions(name)

    def rename_partitions(self, name: str) -> None:
        """As udev does when it is told. It does not follow a rename by itself."""
        dataset = self.pool.get(name)
        if dataset is None or dataset.type != "volume":
            return
        links = self.part_links.items()
        self.part_links = {path: own for path, own in links if own[0] != dataset.guid}
        for part in self.partitions:
            self.part_links[volume.device_of(name, part)] = dataset.guid, part

    def device_number(self, path: str) -> int | None:
        """The number of the device to which a path leads, by udev's links of now."""
        path = self.links.get(path, path)
        device: tuple[int, types.Partition | None] | None = self.part_links.get(path)
        for name, dataset in self.pool.items():
            if dataset.type == "volume" and volume.device_of(name) == path:
                device = dataset.guid, None
        if path in self.others:
            device = self.others[path], None
        if device is None:
            return None
        if device not in self.devices:
            self.devices.append(device)
        return self.devices.index(device)

    def location_at(self, number: int) -> DiskLocation | None:
        """What the kernel says."""
        guid, part = self.devices[number]
        names = [name for name, dataset in self.pool.items() if dataset.guid == guid]
        return DiskLocation(names[0], "", part) if names else None

    def take_snapshots(self, datasets: Iterable[str], name: str) -> None:
        for dataset in datasets:
            if any(
                e.dataset_guid == self.pool[dataset].guid and e.name == name
                for e in self.pool_snapshots
            ):
                raise ZfsFailed(f"{dataset}@{name}: exists")
            self.snap(f"{dataset}@{name}")

    def clone(self, origin: str, name: str, properties: Mapping[str, str]) -> None:
        if name in self.pool or name.rpartition("/")[0] not in self.pool:
            raise ZfsFailed(f"{name}: exists, or its parent does not")
        snapshot = self._find(origin)
        source = next(
            dataset for dataset in self.pool.values() if dataset.guid == snapshot.dataset_guid
        )
        self.add(
            name, snapshot.content, source.type, origin=snapshot.guid, properties=dict(properties)
        )

    def promote(self, name: str) -> None:
        dataset = self.pool[name]
        origin = next(each for each in self.pool_snapshots if each.guid == dataset.origin)
        other = next(each for each in self.pool.values() if each.guid == origin.dataset_guid)
        for each in self.pool_snapshots:
            if each.dataset_guid == other.guid and each.guid <= origin.guid:
                each.dataset_guid = dataset.guid
        dataset.origin, other.origin = other.origin, origin.guid

    def rename(self, name: str, new_name: str) -> None:
        if new_name in self.pool:
            raise ZfsFailed(f"{new_name}: exists")
        for each in [one for one in self.pool if one == name or one.startswith(f"{name}/")]:
            self.pool[new_name + each.removeprefix(name)] = self.pool.pop(each)

    def set_property(self, name: str, user_property: str, value: str) -> None:
        self.pool[name].properties[user_property] = value
        if user_property == "mountpoint":
            self._mount(name)

    def mount(self, name: str) -> None:
        self._mount(name)

    def unmount(self, name: str) -> None:
        for machine in self.machines:
            paths = machine.live.values() if machine.active else ()
            if any(path.startswith(f"{self._mountpoint(name)}/") for path in paths):
                raise ZfsFailed(f"{name}: busy")
        self.pool[name].mounted = False

    def rollback(self, snapshot: str) -> None:
        target = self._find(snapshot)
        dataset = next(each for each in self.pool.values() if each.guid == target.dataset_guid)
        newer = [
            e
            for e in self.pool_snapshots
            if e.dataset_guid == dataset.guid and e.guid > target.guid
        ]
        if {each.guid for each in newer} & {each.origin for each in self.pool.values()}:
            raise ZfsFailed(f"{snapshot}: a newer one has clones")
        self.pool_snapshots = [each for each in self.pool_snapshots if each not in newer]
        dataset.content = target.content

    def destroy(self, name: str, *, with_snapshots: bool = False) -> None:
        if "@" in name:
            snapshot = self._find(name)
            if any(each.origin == snapshot.guid for each in self.pool.values()):
                raise ZfsFailed(f"{name}: has clones")
            self.pool_snapshots.remove(snapshot)
            return
        if with_snapshots:
            for use in self.snapshot_usage([name]):
                self.destroy(use.snapshot.full_name)
        if any(each.startswith(f"{name}/") for each in self.pool) or self.snapshot_usage([name]):
            raise ZfsFailed(f"{name}: has children")
        del self.pool[name]

    # -- helpers

    def _next(self) -> int:
        self._guid += 1
        return self._guid

    def _mountpoint(self, name: str) -> str:
        return self.pool[name].properties.get("mountpoint") or str(self.root / name)

    def _mount(self, name: str) -> None:
        point = Path(self._mountpoint(name))
        if not point.is_absolute():
            # none, legacy
            return
        self.pool[name].mounted = True
        point.mkdir(parents=True, exist_ok=True)
        (point / "vda.raw").touch()

    def _find(self, full_name: str) -> PoolSnapshot:
        for each in self.pool_snapshots:
            if self._listed(each).full_name == full_name:
                return each
        raise ZfsFailed(f"{full_name}: does not exist")

    def _listed(self, snapshot: PoolSnapshot) -> types.Snapshot:
        dataset_name = next(
            name for name, dataset in self.pool.items() if dataset.guid == snapshot.dataset_guid
        )
        return types.Snapshot(dataset_name, snapshot.name, snapshot.guid, snapshot.guid)

    def _origin(self, dataset: PoolDataset) -> str:
        origins = (
            each for each in self.pool_snapshots if dataset.origin and each.guid == dataset.origin
        )
        return next((self._listed(each).full_name for each in origins), "")


class Machine(FakeGuest):
    """A guest that writes to its disks as soon as it runs, and whose RAM fits its disks."""

    def __init__(self, world: World, name: str = "web", uuid: str = UUID, **disks: Path) -> None:
        super().__init__(name, uuid, **disks)
        self.world = world
        world.machines.append(self)

    def ram(self) -> bytes:
        return fitting({target: self.world.of_path(path).content for target, path in self._open()})

    def loads(self, ram: bytes) -> None:
        fits: dict[str, str] = json.loads(ram)
        self.world.loaded.append(",".join(fits.values()))
        for target, path in self._at():
            if self.world.of_path(path).content != fits[target]:
                self.world.mismatches.append(
                    f"RAM of {fits[target]} over {self.world.of_path(path).content}"
                )

    def runs(self) -> None:
        for _, path in self._open():
            self.world.of_path(path).content += "+"

    def _open(self) -> list[tuple[str, str]]:
        instead = self.qemu.instead if self.qemu else {}
        return [(target, instead.get(path, path)) for target, path in self._at()]

    def _at(self) -> list[tuple[str, str]]:
        return sorted(self.live.items())

    def resume(self) -> None:
        with self.world.act("resume"):
            super().resume()

    def create(self, *, paused: bool = False) -> None:
        with self.world.act("create"):
            super().create(paused=paused)

    def destroy(self) -> None:
        with self.world.act("destroy"):
            super().destroy()

    def save(self, image: str) -> None:
        with self.world.act("save"):
            super().save(image)

    def load(self, image: Path, xml: str | None, *, paused: bool) -> None:
        with self.world.act("load"):
            super().load(image, xml, paused=paused)

    def undefine(self) -> None:
        with self.world.act("undefine"):
            super().undefine()

    def define(self, xml: str) -> None:
        with self.world.act("define"):
            super().define(xml)


class MachineHost(FakeHost):
    """A host of such machines."""

    def __init__(self, world: World, *guests: FakeGuest) -> None:
        super().__init__(*guests)
        self.world = world

    def new_guest(self, name: str, uuid: str) -> FakeGuest:
        return Machine(self.world, name, uuid)


def fitting(contents: Mapping[str, str]) -> bytes:
    """RAM that fits disks of these contents."""
    return json.dumps(contents).encode()


class Scene:
    """A guest `web` on tank/web, whose disk holds "new"; and a point of when it held "old"."""

    def __init__(
        self,
        config: Config,
        world: World,
        manifest: Callable[..., Manifest],
        kind: str = "filesystem",
    ) -> None:
        self.config = config
        self.world = world
        self._manifest = manifest
        world.add("tank", properties={"canmount": "off"})
        self.dataset = world.add(DATASET, OLD, kind)
        self.guest = Machine(world, vda=Path(world.disk_of(DATASET)))
        self.host = MachineHost(world, self.guest)
        self.snapshot = world.snap(f"{DATASET}@{NAME}")
        self.trace: list[str] = []
        self.dataset.content = NEW
        # Points are of this host, and sealed, whatever a test changes of their files.
        self.made_here = True

    def point(
        self,
        *,
        memory: bool = True,
        zstd: bool = False,
        plain: bool = False,
        running: bool = True,
        persistent: bool = True,
        **changes: Any,
    ) -> RestorePoint:
        """The point, published."""
        capture = f"{UUID}.0000000a"
        directory = vault.incoming(self.config.vault_dir, "web", capture)
        xml = self.guest.xml_of(self.guest.live)
        (directory / DOMAIN_XML).write_text(xml)
        if persistent:
            (directory / PERSISTENT_XML).write_text(xml)
        data = libvirt_image(xml, fitting(dict.fromkeys(self.guest.live, OLD)), running=running)
        dump = directory / "dump"
        dump.write_bytes(data)
        ram = RamStore(
            directory, "web", UUID, not (zstd or plain), 3 if zstd else None, log.about("web", "")
        )
        stored = ram.store(dump, "raw") if memory else None
        dump.unlink()
        place = location.locate_path(self.guest.live["vda"], mounts.read_table())
        assert place
        own = self.snapshot
        known = {
            "capture": capture,
            "level": ConsistencyLevel.MEMORY if memory else ConsistencyLevel.CRASH,
            "snapshots": (SnapshotRef(DATASET, NAME, own.guid, own.createtxg),),
            "disks": (
                Disk("vda", "file", "qcow2", self.guest.live["vda"], place.dataset, place.path),
            ),
            "memory": stored,
        }
        built = self._manifest(**{**known, **changes})
        return vault.publish(directory, built)

    def operations(self) -> list[RestoreOperation | CloneOperation]:
        return Operations(self.config.journal_dir).all()

    def staged(self) -> list[str]:
        directory = self.config.staging_dir
        return sorted(os.listdir(directory)) if directory.exists() else []

    def find(self, uuid: str = UUID) -> Guest | None:
        return next((guest for guest in self.host.guests() if guest.uuid == uuid), None)


def watch(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    """Trace the steps, and let a write of the operation fail as any other act."""

    def write(operations: Operations, operation: RestoreOperation | CloneOperation) -> None:
        with scene.world.act(f"write {operation.step}"):
            _write(operations, operation)
        if scene.trace[-1:] != [operation.step]:
            scene.trace.append(operation.step)

    patch.setattr(Operations, "write", write)
    # QEMU's user, who must have access to staging, is no subject here.
    patch.setattr(staging, "check_usable", lambda *_arguments: None)
    scene.config.staging_dir.mkdir(parents=True)


def set_scene(
    config: Config,
    root: Path,
    manifest: Callable[..., Manifest],
    patch: pytest.MonkeyPatch,
    kind: str = "filesystem",
) -> Scene:
    """A scene that is watched, in place of ZFS and libvirt."""
    world = World(root)
    world.install(patch)
    scene = Scene(config, world, manifest, kind)
    patch.setattr(definition, "is_made_here", lambda *_arguments: scene.made_here)
    watch(scene, patch)
    return scene
