"""Guests, faked: as libvirt shows them, over real images.

Subclasses of the real one: a verb that a test did not expect fails, and mypy checks that the
signatures stay the same.
"""

import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from tests.fakes.agent import FakeAgent
from tests.fakes.images import RAM, libvirt_image, make_overlay, ram_in, run_qemu_img
from tests.fakes.qemu_nodes import FakeNodes
from zvmsnap.common.errors import DomainGone, LibvirtFailed
from zvmsnap.virt import domain_xml, save_image
from zvmsnap.virt.domain_xml import Metadata
from zvmsnap.virt.guest import Guest, JobProgress, Pause
from zvmsnap.virt.guest_state import BlockJob, PauseClock
from zvmsnap.virt.qemu_process import QemuProcess
from zvmsnap.zfs import volume

UUID = "c0ffee00-0000-4000-8000-000000000001"
OTHER = "c0ffee00-0000-4000-8000-000000000002"


class FakeProcess(QemuProcess):
    """A QEMU process that has opened what the paths of its guest's disks led to.

    `instead` has the path of what it has opened in fact; "" if nothing. With `own_names` its paths
    lead to that, too.
    """

    def __init__(self, instead: dict[str, str], *, own_names: bool) -> None:
        self.instead = instead
        self.own_names = own_names
        self.used_bytes = 0
        self.nodes = FakeNodes()

    @property
    def has_own_names(self) -> bool:
        return self.own_names

    @property
    def open_paths(self) -> list[str]:
        return self.nodes.paths

    def has_file(self, path: str) -> bool:
        return self.instead.get(path, path) == path

    def memory_bytes(self) -> int:
        return self.used_bytes

    def device(self, path: str) -> int | None:
        opened = self.instead.get(path, path)
        return volume.device_number(opened) if opened == path or self.own_names else None


class FakeGuest(Guest):
    """A domain whose disks qemu-img really commits, at once.

    `at` has what happens before the call of that name: what libvirt or somebody else does.
    """

    def __init__(self, name: str = "web", uuid: str = UUID, **disks: Path) -> None:
        self.name = name
        self.uuid = uuid
        self.live = {target: str(path) for target, path in disks.items()}
        self.persistent = dict(self.live)
        self.below: dict[str, str] = {}
        self.active = True
        self.is_defined = True
        self.exists = True
        self.job = False
        self.kind_of_job = ""
        self.block_jobs: set[str] = set()
        self.mirrors: dict[str, str] = {}
        self.pulls: set[str] = set()
        self.paused_because: Pause | None = None
        self.allowed_ms = 300
        self.allowed_mib_per_s = 100
        self.snapshots: list[str] = []
        # What libvirt keeps of checkpoints; and when its snapshots were made.
        self.checkpoints: list[Metadata] = []
        self.without_bitmap: set[str] = set()
        self.snapshots_made_s: dict[str, int] = {}
        self.snapshot_images: dict[str, frozenset[str]] = {}
        self.saved = ""
        self.calls: list[str] = []
        self.at: dict[str, Callable[[], None]] = {}
        # Parts of its definition that `xml_of` does not make itself.
        self.metadata = ""
        self.equipment = ""
        self.worked_s = 0.0
        self.picture = b""
        self.agent: FakeAgent | None = None
        self.qemu: FakeProcess | None = FakeProcess({}, own_names=True)
        self.asked: list[str] = []
        self.clock_s = 0.0

    @contextmanager
    def apart(self) -> Iterator[Guest]:
        yield self

    def check_answers(self) -> None:
        self._called("check_answers")

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
            of_file = self.format_of(source)
            disks.append(
                f"<disk type='{kind}' device='disk'><driver name='qemu' type='{of_file}'/>"
                f"<source {attribute}={quoteattr(source)}/>{below}{mirror}"
                f"<target dev='{target}'/></disk>"
            )
        if live and self.agent:
            disks.append(self.agent.channel)
        return (
            f"<domain><name>{self.name}</name><uuid>{self.uuid}</uuid>{self.metadata}"
            f"<memory>1024</memory><devices>{''.join(disks)}{self.equipment}</devices></domain>"
        )

    def format_of(self, source: str) -> str:
        """The format of a disk, as its definition says."""
        return "qcow2"

    def learn(self, xml: str) -> dict[str, str]:
        """Take over a definition; returns its disks."""
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
        return self.is_defined

    def process(self) -> QemuProcess | None:
        return self.qemu if self.active else None

    def state(self) -> str:
        if not self.active:
            return "shut off"
        return "paused" if self.paused_because else "running"

    def pause_reason(self) -> Pause | None:
        self._called("pause_reason")
        return self.paused_because if self.active else None

    def resume(self) -> None:
        self._does("resume")
        self.paused_because = None
        self.runs()

    def define(self, xml: str) -> None:
        self._does("define")
        self.persistent = self.learn(xml)
        self.is_defined = True

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
        self.exists = self.is_defined

    def save(self, image: str) -> None:
        self._does("save")
        running = self.paused_because is None
        Path(image).write_bytes(libvirt_image(self.xml(), self.ram(), running=running))
        self.shut_off()
        self.exists = self.is_defined

    def load(self, image: Path, xml: str | None, *, paused: bool) -> None:
        """As libvirt does it."""
        self._does("load")
        if self.active:
            raise LibvirtFailed(f"{self.name}: loading: domain is already active", 55)
        with image.open("rb") as file:
            head = save_image.read_head(file, str(image))
            ram = ram_in(head.opening + file.read())
        self.live = self.learn(xml or head.xml)
        self.active = True
        self.paused_because = Pause.USER if paused or not head.header.was_running else None
        self.loads(ram)
        if not self.paused_because:
            self.runs()

    def pull_plugs(self) -> None:
        self._does("pull plugs")

    def undefine(self) -> None:
        self._does("undefine")
        self.is_defined = False
        self.exists = self.active

    def ram(self) -> bytes:
        """What its RAM begins with."""
        return b"RAM"

    def loads(self, ram: bytes) -> None:
        """Its RAM was loaded from an image."""

    def runs(self) -> None:
        """Its CPUs begin to run."""

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

    def ask_qemu(self, command: str, arguments: Mapping[str, str]) -> Any:
        self.asked.append(command)
        self._called("ask_qemu")
        assert self.qemu
        return self.qemu.nodes.answer(command, arguments)

    def fs_freeze(self) -> int:
        self._does("freeze")
        return self._agent().freeze()

    def fs_thaw(self) -> int:
        self._does("thaw")
        return self._agent().thaw()

    def _agent(self) -> FakeAgent:
        if not self.agent or not self.active or self.paused_because or not self.agent.answering:
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

    def job_kind(self) -> str:
        self._called("job_kind")
        return self.kind_of_job

    def has_block_job(self, target: str) -> bool:
        self._called("has_block_job")
        return target in self.block_jobs

    def block_job(self, target: str) -> BlockJob | None:
        self._called("block_job")
        if target in self.mirrors:
            return BlockJob("active-commit")
        if target in self.pulls:
            return BlockJob("pull")
        return BlockJob("copy") if target in self.block_jobs else None

    def block_pull(self, target: str) -> None:
        self._does(f"pull {target}")
        self.pulls.add(target)
        self.at.setdefault("block_job", lambda: self.end_pull(target))

    def end_pull(self, target: str) -> None:
        """QEMU has pulled all."""
        run_qemu_img("rebase", "-q", "-f", "qcow2", "-b", "", self.live[target])
        self.below.pop(self.live[target], None)
        self.pulls.discard(target)

    def block_job_abort(self, target: str) -> None:
        self._does(f"abort {target}")
        self.mirrors.pop(target, None)
        self.pulls.discard(target)

    def migrate_set_max_downtime_ms(self, pause_ms: int) -> None:
        self._does(f"allow {pause_ms}")
        self.allowed_ms = pause_ms

    def migrate_max_speed_mib(self) -> int:
        self._called("migrate_max_speed_mib")
        return self.allowed_mib_per_s

    def migrate_set_max_speed_mib(self, mib_per_s: int) -> None:
        self._does(f"speed {mib_per_s}")
        self.allowed_mib_per_s = mib_per_s

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

    def snapshot_metadata(self) -> list[Metadata]:
        self._called("snapshot_metadata")
        made_s, images = self.snapshots_made_s, self.snapshot_images
        return [
            Metadata(name, made_s.get(name, 0), {}, images.get(name, frozenset()))
            for name in self.snapshots
        ]

    def checkpoint_metadata(self) -> list[Metadata]:
        self._called("checkpoint_metadata")
        return list(self.checkpoints)

    def checkpoint_delete(self, name: str, *, metadata_only: bool) -> None:
        self._does(f"forget checkpoint {name}" if metadata_only else f"delete checkpoint {name}")
        if not metadata_only and (not self.active or name in self.without_bitmap):
            raise LibvirtFailed(f"{self.name}: forgetting checkpoint {name}: bitmap not found")
        (known,) = (each for each in self.checkpoints if each.name == name)
        self.checkpoints.remove(known)

    def shut_off(self) -> None:
        """Its process ends."""
        self.active = False
        self.paused_because = None
        self.mirrors.clear()
        if self.agent:
            self.agent.frozen = False

    def start(self, *, paused: bool = False) -> None:
        """Somebody starts it."""
        self.active = True
        self.live = dict(self.persistent)
        self.paused_because = Pause.USER if paused else None
        if not paused:
            self.runs()


class PausedClock(PauseClock):
    """The clock of one pause of 0.1 s, 0.06 s of it for RAM, without events."""

    def __init__(self) -> None:
        super().__init__()
        now_s = time.monotonic()
        self.began_s, self.ram_ended_s = now_s - 0.1, now_s - 0.04

    def total_s(self) -> float:
        self.ended_s = time.monotonic()
        return 0.1

    def paused_since_s(self) -> float:
        return time.monotonic()


class DumpedGuest(FakeGuest):
    """A guest whose RAM can be dumped."""

    tpm = ""
    dumped = RAM
    reused = False

    def format_of(self, source: str) -> str:
        return "raw" if source.endswith(".raw") else "qcow2"

    def xml_of(self, sources: dict[str, str], *, live: bool = False) -> str:
        return super().xml_of(sources, live=live).replace("<devices>", f"<devices>{self.tpm}")

    def migrate_max_downtime_ms(self) -> int:
        return self.allowed_ms

    def job_progress(self) -> JobProgress:
        self._called("job_progress")
        return JobProgress()

    def abort_job(self) -> None:
        self._called("abort_job")
        raise LibvirtFailed(f"{self.name}: aborting its dump: no job is active", 55)

    def is_dumped(self) -> bool:
        self._called("is_dumped")
        return self.job

    @contextmanager
    def pauses(self) -> Iterator[PauseClock]:
        yield PausedClock()

    def snapshot_create(
        self, xml: str, *, disk_only: bool = False, reuse_overlays: bool = False
    ) -> None:
        self._does("disk snapshot" if disk_only else "snapshot")
        self.reused = reuse_overlays
        root = ET.fromstring(xml)
        memory = root.find("memory")
        assert (memory is None) is disk_only
        if memory is not None:
            Path(memory.get("file", "")).write_bytes(self.dumped)
        if root.find("disks/disk[@snapshot='manual']") is not None:
            self.paused_because = Pause.JOB
        for disk in root.findall("disks/disk[@snapshot='external']"):
            source = disk.find("source")
            assert source is not None
            assert Path(source.get("file", "")).exists() is reuse_overlays
            self.on_overlay(disk.get("name", ""), Path(source.get("file", "")))
