"""The two seams, faked: guests as libvirt shows them, over real images; and what ZFS has or does.

Subclasses of the real ones, so that a verb that a test did not expect fails, and mypy sees to
it that the signatures stay the same.
"""

import struct
import subprocess
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest

from tests.fakes.agent import FakeAgent
from zvmsnap.common.errors import DomainGone, HypervisorUnreachable, LibvirtFailed, ZfsFailed
from zvmsnap.virt import domain_xml, save_image
from zvmsnap.virt.downtime import PauseClock
from zvmsnap.virt.guest import Guest, Pause
from zvmsnap.virt.host import Host
from zvmsnap.zfs import types, volume, zfs

UUID = "c0ffee00-0000-4000-8000-000000000001"
OTHER = "c0ffee00-0000-4000-8000-000000000002"
SIZE = 1 << 20
# What saveimage.judge takes for an image that libvirt can load: header without XML, then a stream.
RAM = b"LibvirtQemudSave" + bytes(19 * 4) + b"QEVM and RAM"


def run_qemu_img(*arguments: str | Path) -> None:
    """Run qemu-img, which the tests need (tests/lab/needs)."""
    subprocess.run(["qemu-img", *arguments], check=True, capture_output=True)


def make_base(path: Path) -> Path:
    """A raw disk of zeros, so that what is merged into it can simply be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


def make_overlay(path: Path, below: Path, kind: str = "raw") -> Path:
    """A qcow2 overlay on `below`, to which nothing was written yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    run_qemu_img("create", "-q", "-f", "qcow2", "-F", kind, "-b", below, path)
    return path


def write(image: Path, byte: int, at_kib: int = 0) -> None:
    """Write 64 KiB of a byte into a qcow2 image, as its guest would."""
    command = f"write -q -P {byte} {at_kib}k 64k"
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", command, str(image)], check=True, capture_output=True
    )


def holds(base: Path, byte: int, at_kib: int = 0) -> bool:
    """Does a raw disk hold what `write` wrote?"""
    with base.open("rb") as file:
        file.seek(at_kib << 10)
        return file.read(65536) == bytes([byte]) * 65536


_MAGIC = b"LibvirtQemudSave"
_QEMU = b"QEVM"


def libvirt_image(xml: str, ram: bytes = b"RAM", *, running: bool = True) -> bytes:
    """What libvirt writes when it saves a machine; `ram` is all that QEMU has to say."""
    data = xml.encode() + b"\0"
    return _MAGIC + struct.pack("=19I", 2, len(data), running, *bytes(16)) + data + _QEMU + ram


class FakeGuest(Guest):
    """A domain whose commits and merges are done by qemu-img, at once and really.

    `at` holds what happens before the call of that name, as libvirt or somebody else would do.
    """

    def __init__(self, name: str = "web", uuid: str = UUID, **disks: Path) -> None:
        self.name = name
        self.uuid = uuid
        self.live = {target: str(path) for target, path in disks.items()}
        self.persistent = dict(self.live)
        self.below: dict[str, str] = {}
        self.active = True
        self.kept = True
        self.exists = True
        self.job = False
        self.mirrors: dict[str, str] = {}
        self.stands_still: Pause | None = None
        self.allowed_ms = 300
        self.snapshots: list[str] = []
        self.saved = ""
        self.calls: list[str] = []
        self.at: dict[str, Callable[[], None]] = {}
        # Of its definition what `xml_of` does not make up itself: metadata, other devices.
        self.metadata = ""
        self.equipment = ""
        self.worked_s = 0.0
        self.picture = b""
        self.agent: FakeAgent | None = None
        self.asked: list[str] = []
        self.clock_s = 0.0

    def on_overlay(self, target: str, overlay: Path, below: Path | None = None) -> Path:
        """Put a disk under an overlay, as libvirt's snapshot does."""
        base = below or Path(self.live[target])
        make_overlay(overlay, base, "raw" if base.suffix == ".raw" else "qcow2")
        self.below[str(overlay)] = str(base)
        self.live[target] = str(overlay)
        self.persistent[target] = str(overlay)
        return overlay

    def _called(self, call: str) -> None:
        if not self.exists:
            raise DomainGone(f"{self.name}: {call}: no such domain", 42)
        self.at.pop(call, lambda: None)()
        if not self.exists:
            raise DomainGone(f"{self.name}: {call}: no such domain", 42)

    def _does(self, call: str) -> None:
        self.calls.append(call)
        self._called(call)

    def xml(self, *, persistent: bool = False, secure: bool = False) -> str:
        self._called("xml")
        live = self.active and not persistent
        return self.xml_of(self.live if live else self.persistent, live=live)

    def xml_of(self, sources: dict[str, str], *, live: bool = False) -> str:
        """The definition with these sources; libvirt shows chains and jobs of live ones alone."""
        disks = []
        for target, source in sources.items():
            chain, path = [], source
            while live and (path := self.below.get(path, "")):
                chain.append(f"<backingStore type='file'><source file={quoteattr(path)}/>")
            below = "".join(chain) + "</backingStore>" * len(chain)
            mirror = self.mirrors.get(target, "") if live else ""
            kind, attribute = ("block", "dev") if source.startswith("/dev/") else ("file", "file")
            disks.append(
                f"<disk type='{kind}' device='disk'><driver name='qemu' type='qcow2'/>"
                f"<source {attribute}={quoteattr(source)}/>{below}{mirror}"
                f"<target dev='{target}'/></disk>"
            )
        if live and self.agent:
            disks.append(self.agent.channel)
        return (
            f"<domain><name>{self.name}</name><uuid>{self.uuid}</uuid>{self.metadata}"
            f"<memory>1024</memory><devices>{''.join(disks)}{self.equipment}</devices></domain>"
        )

    def learn(self, xml: str) -> dict[str, str]:
        """Be what a definition says; returns its disks."""
        root = ET.fromstring(xml)
        metadata = root.find("metadata")
        self.metadata = "" if metadata is None else ET.tostring(metadata, encoding="unicode")
        others = (one for one in root.findall("devices/*") if one.tag != "disk")
        self.equipment = "".join(ET.tostring(one, encoding="unicode") for one in others)
        return {disk.target: disk.source for disk in domain_xml.parse(xml).disks}

    def is_active(self) -> bool:
        self._called("is_active")
        return self.active

    def is_persistent(self) -> bool:
        self._called("is_persistent")
        return self.kept

    def state(self) -> str:
        if not self.active:
            return "shut off"
        return "paused" if self.stands_still else "running"

    def pause(self) -> Pause | None:
        self._called("pause")
        return self.stands_still if self.active else None

    def resume(self) -> None:
        self._does("resume")
        self.stands_still = None
        self.runs()

    def define(self, xml: str) -> None:
        self._does("define")
        self.persistent = self.learn(xml)
        self.kept = True

    def create(self, *, paused: bool = False) -> None:
        self._does("create paused" if paused else "create")
        if self.active:
            raise LibvirtFailed(f"{self.name}: starting: domain is already running", 55)
        self.start(paused=paused)

    def destroy(self) -> None:
        self._does("destroy")
        if not self.active:
            raise LibvirtFailed(f"{self.name}: stopping: domain is not running", 55)
        self.shut_off()
        self.exists = self.kept

    def save(self, image: str) -> None:
        self._does("save")
        running = self.stands_still is None
        Path(image).write_bytes(libvirt_image(self.xml(), self.ram(), running=running))
        self.shut_off()
        self.exists = self.kept

    def load(self, image: Path, xml: str | None, *, paused: bool) -> None:
        """As the hypervisor does it."""
        self._does("load")
        if self.active:
            raise LibvirtFailed(f"{self.name}: loading: domain is already active", 55)
        with image.open("rb") as file:
            head = save_image.read_head(file, str(image))
            ram = file.read()
        self.live = self.learn(xml or head.xml)
        self.active = True
        self.stands_still = Pause.USER if paused or not head.header.was_running else None
        self.loads(ram)
        if not self.stands_still:
            self.runs()

    def pull_plugs(self) -> None:
        self._does("pull plugs")

    def undefine(self) -> None:
        self._does("undefine")
        self.kept = False
        self.exists = self.active

    def ram(self) -> bytes:
        """What its RAM image says beyond its head."""
        return b"RAM"

    def loads(self, ram: bytes) -> None:
        """Its RAM has become what an image says."""

    def runs(self) -> None:
        """Its CPUs begin to work."""

    def cpu_time_s(self) -> float:
        self._called("cpu_time_s")
        return self.worked_s

    def screenshot(self) -> bytes:
        self._called("screenshot")
        if not self.picture:
            raise LibvirtFailed(f"{self.name}: taking a screenshot: no screen", 84)
        return self.picture

    def agent_set_timeout(self, timeout_s: int) -> None:
        self._called("agent_set_timeout")

    def agent_command(self, command: str, timeout_s: int) -> str:
        self.asked.append(command)
        self._called("agent_command")
        return self._agent().answer(command)

    def fs_freeze(self) -> int:
        self._does("freeze")
        return self._agent().freeze()

    def fs_thaw(self) -> int:
        self._does("thaw")
        return self._agent().thaw()

    def _agent(self) -> FakeAgent:
        if not self.agent or not self.active or self.stands_still or not self.agent.answering:
            raise LibvirtFailed(f"{self.name}: asking its agent: not connected", 86)
        return self.agent

    def set_time(self, now_s: float) -> None:
        self._does("set_time")
        self.clock_s = now_s

    def managed_save_xml(self) -> str | None:
        return self.saved or None

    def managed_save_define(self, xml: str) -> None:
        self._does("define saved")
        self.saved = xml

    def has_job(self) -> bool:
        self._called("has_job")
        return self.job

    def migrate_set_max_downtime_ms(self, pause_ms: int) -> None:
        self._does(f"allow {pause_ms}")
        self.allowed_ms = pause_ms

    def block_commit(self, target: str, base: str) -> None:
        self._does(f"commit {target}")
        if not self.active:
            raise LibvirtFailed(f"{self.name}: commit of {target}: domain is not running", 55)
        if base not in self.below.values():
            raise LibvirtFailed(f"{self.name}: commit of {target}: {base} is not below it", 8)
        self.mirrors[target] = "<mirror type='file' job='active-commit' ready='yes'/>"

    def block_job_pivot(self, target: str) -> None:
        self._does(f"pivot {target}")
        if not self.active:
            raise LibvirtFailed(f"{self.name}: pivot of {target}: domain is not running", 55)
        while below := self.below.get(self.live[target]):
            run_qemu_img("commit", "-q", "-d", "-f", "qcow2", self.live[target])
            self.live[target] = below
        self.persistent[target] = self.live[target]
        del self.mirrors[target]

    @contextmanager
    def block_job_events(self) -> Iterator[threading.Event]:
        yield threading.Event()

    def snapshot_names(self) -> list[str]:
        self._called("snapshot_names")
        return self.snapshots

    def snapshot_delete_metadata(self, name: str) -> None:
        self._does(f"forget {name}")
        self.snapshots.remove(name)

    def shut_off(self) -> None:
        """Its process ends; what it ran on is what its next start uses."""
        self.active = False
        self.stands_still = None
        self.mirrors.clear()
        if self.agent:
            self.agent.frozen = False

    def start(self, *, paused: bool = False) -> None:
        """Somebody starts it."""
        self.active = True
        self.live = dict(self.persistent)
        self.stands_still = Pause.USER if paused else None
        if not paused:
            self.runs()


class PausedClock(PauseClock):
    """What libvirt's events told of one pause."""

    def seconds(self) -> float:
        return 0.1

    def stopped_at_s(self) -> float:
        return time.monotonic()


class DumpedGuest(FakeGuest):
    """A guest whose RAM can be dumped."""

    tpm = ""
    dumped = RAM

    def xml_of(self, sources: dict[str, str], *, live: bool = False) -> str:
        return super().xml_of(sources, live=live).replace("<devices>", f"<devices>{self.tpm}")

    def migrate_max_downtime_ms(self) -> int:
        return self.allowed_ms

    def abort_job(self) -> None:
        self._called("abort_job")
        raise LibvirtFailed(f"{self.name}: aborting its dump: no job is active", 55)

    @contextmanager
    def pauses(self) -> Iterator[PauseClock]:
        yield PausedClock()

    def snapshot_create(self, xml: str, *, disk_only: bool = False) -> None:
        self._does("disk snapshot" if disk_only else "snapshot")
        root = ET.fromstring(xml)
        memory = root.find("memory")
        assert (memory is None) is disk_only
        if memory is not None:
            Path(memory.get("file", "")).write_bytes(self.dumped)
        if root.find("disks/disk[@snapshot='manual']") is not None:
            self.stands_still = Pause.JOB
        for disk in root.findall("disks/disk[@snapshot='external']"):
            source = disk.find("source")
            assert source is not None
            self.on_overlay(disk.get("name", ""), Path(source.get("file", "")))


class FakeHypervisor(Host):
    """A host with these guests."""

    def __init__(self, *guests: FakeGuest) -> None:
        self.known = list(guests)
        self.reachable = True
        self.networks: list[str] = []
        self.no_machine: str | None = None
        self.any_cpu = True

    def connect(self, uri: str) -> "FakeHypervisor":
        """In place of the class itself."""
        if not self.reachable:
            raise HypervisorUnreachable(f"{uri}: no")
        return self

    def __exit__(self, *_exception: object) -> None:
        return

    def guests(self) -> list[Guest]:
        return [guest for guest in self.known if guest.exists]

    def guest(self, uuid: str) -> Guest:
        for guest in self.guests():
            if guest.uuid == uuid:
                return guest
        raise DomainGone(f"looking up {uuid}: no such domain", 42)

    def define(self, xml: str) -> Guest:
        guest = self._guest_of(xml)
        guest.define(xml)
        return self._known(guest)

    def restore(self, image: str, xml: str | None = None, *, paused: bool = False) -> None:
        stored = save_image.xml_of(Path(image))
        guest = self._guest_of(stored)
        guest.load(Path(image), xml, paused=paused)
        self._known(guest)

    def _known(self, guest: FakeGuest) -> FakeGuest:
        if guest not in self.known:
            self.known.append(guest)
        return guest

    def _guest_of(self, xml: str) -> FakeGuest:
        seen = domain_xml.parse(xml)
        guest = next((one for one in self.known if one.uuid == seen.uuid and one.exists), None)
        if guest is None:
            guest = self.new_guest(seen.name, seen.uuid)
            guest.active = guest.kept = False
        return guest

    def new_guest(self, name: str, uuid: str) -> FakeGuest:
        """A guest of which nothing was known."""
        return FakeGuest(name, uuid)

    def has_network(self, name: str) -> bool:
        return name in self.networks

    def start_network(self, xml: str) -> None:
        self.networks.append(ET.fromstring(xml).findtext("name", ""))

    def stop_network(self, name: str) -> None:
        self.networks.remove(name)

    def why_no_machine(self, emulator: str, arch: str, machine: str, kind: str) -> str | None:
        return self.no_machine

    def has_cpu(self, emulator: str, arch: str, machine: str, kind: str, cpu_xml: str) -> bool:
        return self.any_cpu

    def versions(self) -> dict[str, str]:
        return {"libvirt": "11.3.0", "qemu": "10.0.2", "host_cpu": "Skylake"}


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
