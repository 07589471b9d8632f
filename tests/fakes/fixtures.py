"""Fixtures of all tests: a manifest, an entry, a configuration below tmp_path, a faked host."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import msgspec
import pytest

from tests.fakes import (
    json_documents,
    libvirt_module,  # noqa: F401 - before all that imports libvirt
    restore_scene,
)
from tests.fakes.agent import FakeAgent
from tests.fakes.capture_scene import Scene
from tests.fakes.clock import TestClock
from tests.fakes.guest import FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.images import RAM, make_base, write
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.bulk import progress
from zvmsnap.cli import main
from zvmsnap.common import waiting
from zvmsnap.common.process import Process, uptime_s
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks.staging import StagingDir
from zvmsnap.journal.entry import Disk as EntryDisk
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.points import compatibility
from zvmsnap.points.manifest import (
    DOMAIN_XML,
    Disk,
    HostDescription,
    Manifest,
    Memory,
    SnapshotRef,
    Timing,
)
from zvmsnap.virt.guest import Pause

hypothesis.settings.register_profile("unit", deadline=None, max_examples=60)
hypothesis.settings.load_profile("unit")

UUID = "c0ffee00-0000-4000-8000-000000000001"
RUN = "autosnap_2026-11-20_03:00:00"

_MANIFEST = Manifest(
    domain="web",
    uuid=UUID,
    run=RUN,
    created="2026-11-20T03:00:00.000+00:00",
    capture=f"{UUID}.00000001",
    level=ConsistencyLevel.MEMORY,
    reason=None,
    snapshots=(SnapshotRef("tank/web", f"{RUN}_hourly", 11, 101),),
    disks=(Disk("vda", "file", "qcow2", "/tank/web/a.qcow2", "tank/web", "a.qcow2"),),
    memory=Memory("memory.img", "raw", "none", 4, 4, "00"),
    host=HostDescription(
        "11.3.0", "10.0.2", "Skylake", "pc-q35-10.0", "x86_64", "/usr/bin/qemu", "", ""
    ),
    timing=Timing(),
)

_ENTRY = Entry(
    domain="web",
    uuid=UUID,
    run=RUN,
    request_datasets=("tank/web",),
    snapshot_names=(f"{RUN}_hourly",),
    preexisting_guids=(7,),
    owner=Process(4711, 815, "a-boot"),
    capture=f"{UUID}.00000001",
    level=ConsistencyLevel.MEMORY,
    reason=None,
    disks=(EntryDisk("vda", "file", "qcow2", "/tank/web/a.qcow2", "tank/web", "a.qcow2", "/o"),),
    created="2026-11-20T03:00:00.000+00:00",
)


@pytest.fixture(scope="session")
def manifest() -> Callable[..., Manifest]:
    """A manifest in which the named fields are changed."""

    def build(**changes: Any) -> Manifest:
        return msgspec.structs.replace(_MANIFEST, **changes)

    return build


@pytest.fixture(scope="session")
def entry() -> Callable[..., Entry]:
    """A journal entry in which the named fields are changed; its capture is of its guest."""

    def build(**changes: Any) -> Entry:
        if "uuid" in changes:
            changes = {"capture": f"{changes['uuid']}.00000001", **changes}
        return msgspec.structs.replace(_ENTRY, **changes)

    return build


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A configuration whose directories all lie below tmp_path."""
    return Config(
        staging=str(tmp_path / "staging"),
        vault=str(tmp_path / "vault"),
        journal=str(tmp_path / "journal"),
        locks=str(tmp_path / "locks"),
    )


@pytest.fixture(autouse=True, scope="session")
def umask_of_a_service() -> Iterator[None]:
    old = os.umask(0o022)
    yield
    os.umask(old)


@pytest.fixture(autouse=True)
def clock() -> Iterator[TestClock]:
    """No test really waits: see TestClock."""
    clock = TestClock()
    with waiting.clocked_by(clock):
        yield clock


@pytest.fixture(autouse=True)
def logger_as_before() -> Iterator[None]:
    logger = logging.getLogger("zvmsnap")
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture
def guest(tmp_path: Path) -> FakeGuest:
    """A guest with one disk, on no overlay."""
    return FakeGuest(vda=make_base(tmp_path / "tank" / "vda.raw"))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, guest: FakeGuest) -> FakeHost:
    """A host with that guest, in place of libvirt."""
    known = FakeHost(guest)
    known.install(monkeypatch)
    return known


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs a command line of ours in this process: exit code, stdout, stderr."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zvmsnap", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        said = capfd.readouterr()
        assert "Traceback" not in said.err
        if "--json" in arguments and said.out.startswith("{"):
            json_documents.check(arguments, said.out)
        return int(ended.value.code or 0), said.out, said.err

    # A minute of a test's clock is a millisecond: how far an image is would be logged now and then.
    monkeypatch.setattr(progress, "want", lambda _wanted: None)
    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> FakeZfs:
    """ZFS, at first without a snapshot."""
    known = FakeZfs()
    known.install(monkeypatch)
    return known


@pytest.fixture
def staged(config: Config, guest: FakeGuest, entry: Callable[..., Entry]) -> Callable[..., Entry]:
    """Puts the guest under an overlay and into the journal, as pre does; returns the entry."""

    def freeze(*, frozen: bool = True, memory: bytes = RAM, **changes: Any) -> Entry:
        capture = StagingDir(config.staging_dir / f"{guest.uuid}.00000001")
        capture.make()
        disk = EntryDisk(
            "vda",
            "file",
            "raw",
            guest.live["vda"],
            "tank/web",
            "vda.raw",
            str(capture.overlay("vda")),
        )
        (capture.point / DOMAIN_XML).write_text(guest.xml())
        if memory:
            capture.memory.write_bytes(memory)
        if frozen:
            write(guest.on_overlay("vda", capture.overlay("vda")), 7)
        defaults = {"step": "frozen", "disks_frozen_at_s": 1.0, "memory_format": "raw"}
        built = entry(uuid=guest.uuid, disks=(disk,), **{**defaults, **changes})
        Journal(config.journal_dir).write(built)
        return built

    return freeze


@pytest.fixture
def hold(config: Config, guest: FakeGuest, entry: Callable[..., Entry]) -> Callable[..., Entry]:
    """Holds the guest at a level, as pre does; returns the journal entry."""

    def hold_at(level: ConsistencyLevel, **changes: Any) -> Entry:
        capture = StagingDir(config.staging_dir / f"{guest.uuid}.00000001")
        capture.make()
        (capture.point / DOMAIN_XML).write_text(guest.xml())
        guest.agent = FakeAgent()
        held: dict[str, Any] = {}
        if level is ConsistencyLevel.PAUSED:
            capture.memory.write_bytes(RAM)
            guest.paused_because = Pause.JOB
            held = {"paused": True, "memory_format": "raw"}
        elif level is ConsistencyLevel.QUIESCED:
            guest.agent.freeze()
            held = {"frozen": True}
        disk = EntryDisk("vda", "file", "raw", guest.live["vda"], "tank/web", "vda.raw")
        since = {"disks_frozen_at_s": 1.0, "held_since_s": uptime_s() - 5}
        known = {"level": level, "disks": (disk,), "step": "frozen", **held, **since}
        built = entry(uuid=guest.uuid, **{**known, **changes})
        Journal(config.journal_dir).write(built)
        return built

    return hold_at


@pytest.fixture
def scene(
    tmp_path: Path,
    config: Config,
    host: FakeHost,
    pools: FakeZfs,
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    """A host on which pre runs."""
    return Scene(tmp_path, config, host, monkeypatch)


@pytest.fixture
def host_with_points(
    config: Config,
    tmp_path: Path,
    manifest: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., restore_scene.Scene]:
    """Makes a host with a guest on a `filesystem`, or a `volume`; `point()` makes points of it."""
    monkeypatch.setattr(compatibility, "available_memory_bytes", lambda: 1 << 30)
    return partial(restore_scene.set_scene, config, tmp_path / "pools", manifest, monkeypatch)


@pytest.fixture(autouse=True)
def no_power_cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is durable test_safe_files says; everywhere else waiting for disks proves nothing."""
    if request.module.__name__.rpartition(".")[2] != "test_safe_files":
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
