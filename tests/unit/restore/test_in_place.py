import os
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.guest import FakeGuest
from tests.fakes.restore_case import Kind, Make, check_one_of_both, put_back
from tests.fakes.restore_scene import DATASET, NAME, NEW, OLD, Scene
from zvmsnap.common.errors import DomainBusy, LibvirtFailed, RestoreFailed
from zvmsnap.common.process import Process
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.points import memory_image, vault
from zvmsnap.points.manifest import PERSISTENT_XML
from zvmsnap.points.point import read_point
from zvmsnap.restore import plan
from zvmsnap.restore.plan import RestoreOptions
from zvmsnap.restore.replaced_guest import ReplacedGuest
from zvmsnap.retention import old_memory
from zvmsnap.retention.keep_memory import REMOVED

ALL = ["keep", "clone", "unpack", "stop", "safety", "swap", "promote"]
END = ["definition", "load", "check", "resume", "clock", "points", "close"]

KINDS = [
    pytest.param(Kind(), [*ALL, *END], "running", id="running"),
    pytest.param(Kind(volume=True), [*ALL, *END], "running", id="on a volume"),
    pytest.param(Kind(zstd=True), [*ALL, *END], "running", id="zstd"),
    pytest.param(Kind(plain=True), [*ALL, *END], "running", id="plain"),
    pytest.param(
        Kind(guest="off"),
        ["keep", "clone", "unpack", "safety", "swap", "promote", *END],
        "running",
        id="off",
    ),
    pytest.param(
        Kind(guest="undefined"),
        ["keep", "clone", "unpack", "swap", "promote", *END],
        "running",
        id="undefined",
    ),
    pytest.param(
        Kind(RestoreOptions(cold=True)),
        ["keep", "clone", "stop", "safety", "swap", "promote", *END],
        "running",
        id="cold",
    ),
    pytest.param(Kind(RestoreOptions(paused=True)), [*ALL, *END], "paused", id="to be paused"),
    pytest.param(
        Kind(RestoreOptions(cold=True, paused=True)),
        ["keep", "clone", "stop", "safety", "swap", "promote", *END],
        "paused",
        id="cold, to be paused",
    ),
    pytest.param(Kind(guest="paused"), [*ALL, *END], "running", id="paused"),
    pytest.param(Kind(guest="transient"), [*ALL, *END], "running", id="transient"),
    pytest.param(
        Kind(RestoreOptions(rollback=True)),
        ["keep", "unpack", "stop", "rollback", *END],
        "running",
        id="rollback",
    ),
    pytest.param(
        Kind(RestoreOptions(rollback=True, safety=False, cold=True)),
        ["keep", "stop", "rollback", *END],
        "running",
        id="rollback, no safety, cold",
    ),
    pytest.param(
        Kind(RestoreOptions(safety=False)),
        ["keep", "clone", "unpack", "stop", "swap", "promote", *END],
        "running",
        id="no safety",
    ),
    pytest.param(
        Kind(memory=False),
        ["keep", "clone", "stop", "safety", "swap", "promote", *END],
        "running",
        id="no RAM",
    ),
    pytest.param(
        Kind(memory=False, level=ConsistencyLevel.OFFLINE),
        ["keep", "clone", "stop", "safety", "swap", "promote", *END],
        "shut off",
        id="was off",
    ),
]


@pytest.mark.parametrize(("kind", "trace", "state"), KINDS)
def test_trace(make: Make, kind: Kind, trace: list[str], state: str) -> None:
    case = make(kind)
    case.run()
    publish = ["publish"] if "safety" in trace else []
    assert case.scene.trace == [*trace[:-1], *publish, trace[-1]]
    guest = case.scene.find()
    assert guest and guest.state() == state
    assert case.content() == (f"{OLD}+" if state == "running" else OLD)
    case.check_clean()
    loads = [OLD] if kind.memory and not kind.options.cold else []
    assert case.world.loaded == loads
    # History stays with the name; the replaced disks, and RAM that fits, with the safety point.
    assert case.world.summary()[DATASET][3] == [NAME]
    replaced = [name for name in case.world.pool if ".before-" in name]
    assert len(replaced) == (0 if kind.options.rollback else 1)
    kept = kind.options.safety and not kind.options.rollback and kind.guest != "undefined"
    assert len(case.points()) == kept
    for point in case.points():
        level = ConsistencyLevel.OFFLINE if kind.guest == "off" else ConsistencyLevel.MEMORY
        assert (point.manifest.level, point.manifest.snapshots[0].current_dataset) == (
            level,
            replaced[0],
        )
        assert case.world.summary()[replaced[0]][3] == [point.manifest.run]
        memory = point.manifest.memory
        assert bool(memory) is (kind.guest != "off")
        if memory:
            assert NEW.encode() in (point.directory / memory.file).read_bytes()


class Later(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.now(tz) + timedelta(hours=1)


def test_points_find_snapshots_that_have_moved(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(Kind())
    case.run()
    (safety,) = case.points()
    reference = safety.manifest.snapshots[0]
    assert case.world.snapshots([reference.full_name]).present
    # And back again.
    monkeypatch.setattr(plan, "datetime", Later)
    memory = safety.manifest.memory
    assert memory
    image = memory_image.check(safety.directory / memory.file, memory)
    put_back(case.scene, safety, RestoreOptions(safety=False), image)
    assert case.world.mismatches == []
    assert case.content() == f"{NEW}+"
    for point in (case.point, safety):
        for reference in read_point(point.directory).manifest.snapshots:
            present = case.world.snapshots([reference.full_name]).present
            assert present[reference.full_name].guid == reference.guid


# -- before anything is touched


class After(threading.Event):
    """Set as soon as that step was written down."""

    def __init__(self, scene: Scene, step: str) -> None:
        super().__init__()
        self._scene, self._step = scene, step

    def is_set(self) -> bool:
        return self._step in ("", *self._scene.trace)


@pytest.mark.parametrize(
    ("step", "before"),
    [
        ("", "keep"),
        ("keep", "clone"),
        ("clone", "unpack"),
        ("unpack", "stop"),
        ("stop", None),
        ("promote", None),
    ],
)
def test_a_signal_undoes_all_until_the_guest_is_stopped(
    make: Make, step: str, before: str | None
) -> None:
    case = make(Kind())
    cancelled = After(case.scene, step)
    memory = case.point.manifest.memory
    assert memory
    image = memory_image.check(case.point.directory / memory.file, memory)
    what = (case.scene, case.point, RestoreOptions(), image, cancelled)
    if before is None:
        put_back(*what)
        assert case.is_back()
    else:
        with pytest.raises(RestoreFailed, match=f"interrupted before {before}. All is as it was"):
            put_back(*what)
        assert case.guest.calls == []
    check_one_of_both(case)


@pytest.mark.parametrize("force", [False, True])
def test_keep_memory_takes_no_ram_from_a_restore(
    make: Make, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    """Whoever takes it all the same stops no guest."""
    case = make(Kind())
    keep = ReplacedGuest.keep

    def overtaken(replaced: ReplacedGuest) -> None:
        keep(replaced)
        assert old_memory.remove(case.scene.config, [case.point]) == []
        if force:
            vault.rewrite(case.point, case.point.manifest.without_memory(REMOVED))
            vault.remove_files(case.point.directory, case.point.memory.files)

    monkeypatch.setattr(ReplacedGuest, "keep", overtaken)
    if force:
        with pytest.raises(RestoreFailed, match=f"unpack: .*has no RAM: {REMOVED}. All is as it"):
            case.run()
        assert case.guest.calls == []
    else:
        case.run()
        assert case.is_back()
    check_one_of_both(case)


def test_image_to_load_is_durable_before_the_guest_stops(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a restore that has begun to swap disks goes on, and loads it."""
    case = make(Kind())
    fsync, stop = os.fsync, ReplacedGuest.stop
    synced: dict[str, int] = {}

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced[path.name] = os.fstat(descriptor).st_size

    def stopping(replaced: ReplacedGuest) -> None:
        image = replaced.kept.path / "loading.img"
        assert synced[image.name] == image.stat().st_size > 0
        assert image.parent.name in synced
        stop(replaced)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(ReplacedGuest, "stop", stopping)
    case.run()
    assert case.is_back()


def test_not_while_a_run_of_its_guest_is_under_way(make: Make, entry: Callable[..., Entry]) -> None:
    case = make(Kind())
    journal = Journal(case.scene.config.journal_dir)
    journal.write(entry(owner=Process.of(1)))
    with pytest.raises(DomainBusy, match="sanoid has pid 1"):
        case.run()
    assert case.guest.calls == []
    journal.write(entry(disks=()))
    case.run()
    assert case.is_back()
    case.check_clean()


AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"


@pytest.mark.parametrize("fails", [True, False])
def test_clock(make: Make, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    monkeypatch.setattr(time, "time", lambda: 1700000000.0)
    case = make(Kind())
    case.guest.equipment = AGENT
    case.point = case.scene.point(run="with an agent")

    def fail(now_s: float) -> None:
        raise LibvirtFailed("no agent", 86)

    if fails:
        monkeypatch.setattr(case.guest, "set_time", fail)
    case.run()
    assert case.guest.clock_s == (0.0 if fails else 1700000000.0)
    assert case.is_back()


def test_next_start_has_its_own_disks(make: Make) -> None:
    case = make(Kind(guest="undefined"))
    was = case.world.disk_of(DATASET)
    (case.point.directory / PERSISTENT_XML).write_text(
        case.guest.xml_of({"vda": was.replace("vda.raw", "new.raw"), "vdb": was})
    )
    case.world.unmount(DATASET)
    case.world.rename(DATASET, "tank/old")
    case.world.mount("tank/old")
    case.run()
    now = case.world.disk_of("tank/old")
    guest = case.scene.find()
    assert isinstance(guest, FakeGuest)
    assert guest.live == {"vda": now}
    assert guest.persistent == {"vda": now.replace("vda.raw", "new.raw"), "vdb": now}
    case.check_clean()


@pytest.mark.parametrize("closes", [True, False])
def test_overlay_that_qemu_has_open_and_no_disk_uses(
    make: Make, tmp_path: Path, closes: bool
) -> None:
    """With it QEMU could not write its RAM."""
    case = make(Kind())
    overlay = tmp_path / "old" / f"{case.guest.uuid}.00000001" / "vda.zvmsnap.qcow2"
    overlay.parent.mkdir(parents=True)
    overlay.touch()
    assert case.guest.qemu
    nodes = case.guest.qemu.nodes
    nodes.open(overlay)
    nodes.in_use = set() if closes else {"libvirt-1-format"}
    case.guest.at["save"] = lambda: closed.append(not nodes.paths)
    closed: list[bool] = []
    if closes:
        case.run()
        assert closed == [True]
    else:
        with pytest.raises(RestoreFailed, match="shut down and started again"):
            case.run()
        assert case.guest.state() == "running"
    check_one_of_both(case)
