import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.restore_scene import DATASET, NAME, NOW, THEN, Killed, Scene, set_scene
from zvmsnap.common import atomic_file
from zvmsnap.common.errors import DomainBusy, LibvirtFailed, RestoreFailed, RestoreImpossible
from zvmsnap.common.process import Process
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks import jobs
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import Operations, RestoreOperation
from zvmsnap.points import memory_image, vault
from zvmsnap.points.manifest import Manifest
from zvmsnap.points.point import RestorePoint, read_point
from zvmsnap.restore import in_place, plan, replaced_guest
from zvmsnap.restore.in_place import InPlaceRestore
from zvmsnap.restore.plan import RestoreOptions
from zvmsnap.virt import agent
from zvmsnap.virt.guest import Pause

ALL = ["keep", "clone", "unpack", "stop", "safety", "swap", "promote"]
END = ["definition", "load", "resume", "clock", "points", "close"]

PLAIN = RestoreOptions()


@dataclass
class Kind:
    """What is restored, and how."""

    wish: RestoreOptions = PLAIN
    guest: str = "running"
    memory: bool = True
    zstd: bool = False
    level: ConsistencyLevel | None = None
    volume: bool = False


Make = Callable[[Kind], "Case"]


class Case:
    """One restore; `again` is what another process does after this one has died."""

    def __init__(self, scene: Scene, kind: Kind) -> None:
        self.scene, self.world, self.kind = scene, scene.world, kind
        self.guest = scene.guest
        level = kind.level or (ConsistencyLevel.MEMORY if kind.memory else ConsistencyLevel.CRASH)
        self.point = scene.point(memory=kind.memory, zstd=kind.zstd, level=level)
        if kind.guest in ("off", "undefined", "transient"):
            self.guest.active = kind.guest == "transient"
            self.guest.kept = kind.guest == "off"
            self.guest.exists = kind.guest != "undefined"
        if kind.guest == "paused":
            self.guest.stands_still = Pause.USER
        self.before = self.world.shape()
        self.world.acts.clear()

    def run(self) -> None:
        memory = None if self.kind.wish.cold else self.point.manifest.memory
        image = memory_image.check(self.point.directory / memory.file, memory) if memory else None
        in_place.restore(
            self.scene.config,
            self.scene.host,
            self.point,
            self.kind.wish,
            image,
            threading.Event(),
        )

    def again(self) -> bool:
        """Go on in a new process; False if there was nothing to do, or it failed."""
        self.world.spare()
        tasks = self.scene.tasks()
        for task in tasks:
            assert isinstance(task, RestoreOperation)
            try:
                InPlaceRestore(self.scene.config, self.scene.host, task).go_on()
            except RestoreFailed:
                return False
        return bool(tasks)

    def content(self) -> str:
        return self.world.held[DATASET].content

    def is_back(self) -> bool:
        """Is the point there?"""
        return self.content().startswith(THEN)

    def check_clean(self) -> None:
        """Nothing is left of the work, and no RAM met disks that it does not fit."""
        assert self.world.torn == []
        assert self.scene.tasks() == []
        assert self.scene.staged() == []
        assert not any(".zvmsnap-" in name for name in self.world.held)
        assert Journal(self.scene.config.journal_dir).entries() == []

    def check_former(self) -> None:
        """All is as it was, but for what the guest has written since."""
        shape = self.world.shape()
        assert shape.keys() == self.before.keys()
        for name, (content, *rest) in shape.items():
            assert content.rstrip("+") == self.before[name][0]
            assert tuple(rest) == self.before[name][1:]

    def points(self) -> list[RestorePoint]:
        found = vault.entries(self.scene.config.vault_dir)
        return [
            point for point in found if isinstance(point, RestorePoint) and point.name != self.name
        ]

    @property
    def name(self) -> str:
        return self.point.name


@pytest.fixture
def make(
    config: Config,
    tmp_path: Path,
    manifest: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> Make:
    monkeypatch.setattr(jobs, "_LOOK_EVERY_S", 0.001)

    def build(kind: Kind) -> Case:
        # The next of many: nothing of the last one is left.
        for directory in (config.staging_dir, config.vault_dir, config.journal_dir):
            shutil.rmtree(directory, ignore_errors=True)
        where = "volume" if kind.volume else "filesystem"
        return Case(set_scene(config, tmp_path / "pools", manifest, monkeypatch, where), kind)

    return build


KINDS = [
    pytest.param(Kind(), [*ALL, *END], "running", id="running"),
    pytest.param(Kind(volume=True), [*ALL, *END], "running", id="on a volume"),
    pytest.param(Kind(zstd=True), [*ALL, *END], "running", id="zstd"),
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
    pytest.param(Kind(RestoreOptions(paused=True)), [*ALL, *END], "paused", id="to stand still"),
    pytest.param(
        Kind(RestoreOptions(cold=True, paused=True)),
        ["keep", "clone", "stop", "safety", "swap", "promote", *END],
        "paused",
        id="cold, to stand still",
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
    assert case.content() == (f"{THEN}+" if state == "running" else THEN)
    case.check_clean()
    loads = [THEN] if kind.memory and not kind.wish.cold else []
    assert case.world.loaded == loads
    # History stays with the name; what was there, and RAM that fits it, with the safety point.
    assert case.world.shape()[DATASET][3] == [NAME]
    aside = [name for name in case.world.held if ".before-" in name]
    assert len(aside) == (0 if kind.wish.rollback else 1)
    kept = kind.wish.safety and not kind.wish.rollback and kind.guest != "undefined"
    assert len(case.points()) == kept
    for point in case.points():
        level = ConsistencyLevel.OFFLINE if kind.guest == "off" else ConsistencyLevel.MEMORY
        assert (point.manifest.level, point.manifest.snapshots[0].current_dataset) == (
            level,
            aside[0],
        )
        assert case.world.shape()[aside[0]][3] == [point.manifest.run]
        memory = point.manifest.memory
        assert bool(memory) is (kind.guest != "off")
        if memory:
            assert NOW.encode() in (point.directory / memory.file).read_bytes()


class Later(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.now(tz) + timedelta(hours=1)


def test_points_find_snapshots_that_have_moved(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(Kind())
    case.run()
    (safety,) = case.points()
    found = safety.manifest.snapshots[0]
    assert case.world.all_snapshots().present[found.full_name].guid == found.guid
    # And forth again.
    monkeypatch.setattr(plan, "datetime", Later)
    memory = safety.manifest.memory
    assert memory
    image = memory_image.check(safety.directory / memory.file, memory)
    in_place.restore(
        case.scene.config,
        case.scene.host,
        safety,
        RestoreOptions(safety=False),
        image,
        threading.Event(),
    )
    assert case.world.torn == []
    assert case.content() == f"{NOW}+"
    for point in (case.point, safety):
        for tie in read_point(point.directory).manifest.snapshots:
            assert case.world.all_snapshots().present[tie.full_name].guid == tie.guid


def acts_of(make: Make, kind: Kind) -> list[str]:
    case = make(kind)
    case.run()
    return case.world.acts


EXHAUSTED = [
    pytest.param(Kind(), "before", id="running, before"),
    pytest.param(Kind(), "after", id="running, after"),
    pytest.param(Kind(RestoreOptions(rollback=True)), "before", id="rollback, before"),
    pytest.param(Kind(RestoreOptions(rollback=True)), "after", id="rollback, after"),
    pytest.param(Kind(guest="paused", volume=True, zstd=True), "after", id="paused, volume, zstd"),
    pytest.param(Kind(RestoreOptions(safety=False)), "after", id="no safety"),
    pytest.param(Kind(guest="off", memory=False), "after", id="off, no RAM"),
    pytest.param(Kind(guest="undefined"), "after", id="undefined"),
    pytest.param(Kind(guest="transient"), "after", id="transient"),
]


def check_one_of_both(case: Case) -> None:
    """Either the point is back, or all is as it was: never half of both."""
    case.check_clean()
    guest = case.scene.find()
    if case.is_back():
        assert guest and guest.state() == "running"
        assert case.world.shape()[DATASET][3] == [NAME]
        return
    case.check_former()
    assert case.points() == []
    if case.kind.guest == "undefined":
        assert guest is None
        return
    state = {"off": "shut off", "paused": "paused"}.get(case.kind.guest, "running")
    assert guest and guest.state() == state
    assert case.world.loaded.count(NOW) <= 1


@pytest.mark.parametrize(("kind", "when"), EXHAUSTED)
def test_failure_of_each_act_is_undone(make: Make, kind: Kind, when: str) -> None:
    for number, act in enumerate(acts_of(make, kind)):
        case = make(kind)
        case.world.errors = {(number, when)}
        with suppress(RestoreFailed, OSError, LibvirtFailed):
            case.run()
            # Of what is only told of: a clock, a vanished point.
            assert case.is_back(), act
        if case.scene.tasks():
            # A rollback that may have begun, or what comes after all was done.
            assert case.kind.wish.rollback or case.is_back(), act
            assert case.again(), act
            assert case.is_back(), act
        check_one_of_both(case)


@pytest.mark.parametrize(("kind", "when"), EXHAUSTED)
def test_death_at_each_act_is_recovered(make: Make, kind: Kind, when: str) -> None:
    outcomes = set()
    for number, act in enumerate(acts_of(make, kind)):
        case = make(kind)
        case.world.death = (number, when)
        # What comes after all was done tells of any end of it.
        with pytest.raises((Killed, RestoreFailed)):
            case.run()
        begun = bool(case.scene.tasks())
        assert case.again() is begun, act
        check_one_of_both(case)
        outcomes.add(case.is_back())
    assert outcomes == {True, False}


def undoing(make: Make, kind: Kind) -> tuple[int, list[str]]:
    """The number of the act `load`, and the acts when that fails and all is undone."""
    number = acts_of(make, kind).index("load")
    case = make(kind)
    case.world.errors = {(number, "before")}
    with pytest.raises(RestoreFailed):
        case.run()
    return number, case.world.acts


@pytest.mark.parametrize("dies", [True, False], ids=["death", "failure"])
@pytest.mark.parametrize(
    ("kind", "when"),
    [
        pytest.param(Kind(), "before", id="running, before"),
        pytest.param(Kind(), "after", id="running, after"),
        pytest.param(Kind(guest="paused", volume=True), "before", id="paused, volume"),
        pytest.param(Kind(guest="transient"), "after", id="transient"),
        pytest.param(Kind(guest="off"), "after", id="off"),
    ],
)
def test_trouble_while_it_is_undone(make: Make, kind: Kind, when: str, dies: bool) -> None:
    load, acts = undoing(make, kind)
    for number in range(load + 1, len(acts)):
        case = make(kind)
        case.world.errors = {(load, "before")}
        if dies:
            case.world.death = (number, when)
        else:
            case.world.errors |= {(number, when)}
        with pytest.raises(Killed if dies else RestoreFailed):
            case.run()
        # Nothing was done on top of what could not be undone.
        assert case.world.torn == [], acts[number]
        assert {NAME} <= {each.name for each in case.world.kept}
        if case.scene.tasks():
            assert case.again(), acts[number]
        check_one_of_both(case)
        # Before that was written down, it had died at `load`.
        assert not case.is_back() or (dies and acts[number] == "write undo load")


# -- the table of restore.py: who died where, and what somebody did to the guest meanwhile


def died_at(make: Make, kind: Kind, act: str, when: str = "before") -> Case:
    """A restore whose process died at the first act of that name."""
    number = acts_of(make, kind).index(act)
    case = make(kind)
    case.world.death = (number, when)
    with pytest.raises(Killed):
        case.run()
    case.world.spare()
    return case


def start(case: Case) -> None:
    """Somebody starts the guest: it boots, and changes its disks."""
    case.guest.start()


def start_and_suspend(case: Case) -> None:
    case.guest.start()
    case.guest.stands_still = Pause.USER


@pytest.mark.parametrize("somebody", [start, start_and_suspend])
@pytest.mark.parametrize(
    ("act", "when", "content"),
    [
        pytest.param("save", "after", NOW, id="stop"),
        pytest.param("zfs take_snapshots", "after", NOW, id="safety"),
        pytest.param("zfs unmount", "before", NOW, id="switch, not done"),
        pytest.param("zfs promote", "before", THEN, id="switched"),
        pytest.param("zfs promote", "after", THEN, id="promoted"),
        pytest.param("define", "before", THEN, id="definition"),
        pytest.param("load", "before", THEN, id="load"),
    ],
)
def test_guest_that_somebody_started_keeps_its_disks_and_no_ram_is_loaded(
    make: Make, act: str, when: str, content: str, somebody: Callable[[Case], None]
) -> None:
    case = died_at(make, Kind(), act, when)
    somebody(case)
    assert case.again()
    assert case.world.loaded == []
    assert case.content().startswith(f"{content}+")
    assert case.guest.state() == "running"
    case.check_clean()
    if content == NOW:
        case.check_former()


@pytest.mark.parametrize(
    "wish", [PLAIN, RestoreOptions(rollback=True)], ids=["switched", "rolled back"]
)
def test_guest_that_was_started_and_shut_off_keeps_its_disks(
    make: Make, wish: RestoreOptions
) -> None:
    case = died_at(make, Kind(wish), "load")
    start(case)
    case.guest.shut_off()
    assert case.again()
    assert case.world.loaded == []
    assert case.content() == f"{THEN}+"
    assert case.guest.state() == "shut off"
    case.check_clean()


@pytest.mark.parametrize("volume", [True, False], ids=["volume", "filesystem"])
def test_disks_are_not_switched_back_under_a_guest(make: Make, volume: bool) -> None:
    case = died_at(make, Kind(volume=volume), "zfs promote")
    (task,) = case.scene.tasks()
    Operations(case.scene.config.journal_dir).write(msgspec.structs.replace(task, step="undo swap"))
    case.guest.start()
    before = case.world.shape()
    assert not case.again()
    assert case.world.shape() == before
    case.guest.shut_off()
    assert case.again()
    assert case.world.loaded == [NOW]
    check_one_of_both(case)


@pytest.mark.parametrize(
    ("act", "when"), [("zfs rollback", "after"), ("define", "before"), ("load", "before")]
)
def test_rollback_that_has_begun_is_never_undone(make: Make, act: str, when: str) -> None:
    kind = Kind(RestoreOptions(rollback=True))
    number = acts_of(make, kind).index(act)
    case = make(kind)
    case.world.errors = {(number, when)}
    with pytest.raises(RestoreFailed, match="disks of it were rolled back already") as caught:
        case.run()
    assert str(caught.value).endswith(". zvmsnap recover web tries again")
    assert (case.world.loaded, case.guest.state()) == ([], "shut off")
    with pytest.raises(RestoreImpossible, match="zvmsnap recover web ends it"):
        case.run()
    assert case.again()
    assert (case.world.loaded, case.content()) == ([THEN], f"{THEN}+")
    case.check_clean()


@pytest.mark.parametrize("died", [True, False], ids=["died", "failed"])
def test_rollback_whose_guest_somebody_started_is_left_to_him(make: Make, died: bool) -> None:
    kind = Kind(RestoreOptions(rollback=True))
    number = acts_of(make, kind).index("zfs rollback")
    case = make(kind)
    if died:
        case.world.death = (number, "after")
    else:
        case.world.errors = {(number, "after")}
    with pytest.raises(Killed if died else RestoreFailed):
        case.run()
    case.world.spare()
    case.guest.start()
    case.again()
    assert (case.world.loaded, case.content()) == ([], f"{THEN}+")
    case.check_clean()


def test_rollback_that_has_not_begun_is_undone_for_who_started_the_guest(make: Make) -> None:
    case = died_at(make, Kind(RestoreOptions(rollback=True)), "save", "after")
    case.guest.start()
    assert case.again()
    assert (case.world.loaded, case.content()) == ([], f"{NOW}+")
    case.check_clean()


@pytest.mark.parametrize("when", ["before", "after"])
def test_former_ram_is_loaded_once(make: Make, when: str) -> None:
    load, acts = undoing(make, Kind())
    case = make(Kind())
    case.world.errors = {(load, "before")}
    case.world.death = (len(acts) - 1 - acts[::-1].index("resume"), when)
    with pytest.raises(Killed):
        case.run()
    assert case.world.loaded == [NOW]
    if when == "before":
        assert case.guest.state() == "paused"
    else:
        case.guest.shut_off()
    assert case.again()
    assert case.world.loaded == [NOW]
    assert case.guest.state() == "running"
    case.check_clean()


def test_former_ram_is_gone_for_good_before_its_guest_runs(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = acts_of(make, Kind()).index("load")
    case = make(Kind())
    case.world.errors = {(number, "before")}

    def sync(directory: Path) -> None:
        assert not (directory / "memory.img").exists()
        case.world.acts.append(f"sync {case.guest.state()}")
        atomic_file.sync_dir(directory)

    monkeypatch.setattr(replaced_guest, "sync_dir", sync)
    with pytest.raises(RestoreFailed):
        case.run()
    assert case.world.acts[case.world.acts.index("sync paused") + 1] == "resume"


def test_undone_without_its_point(make: Make) -> None:
    case = died_at(make, Kind(), "zfs unmount")
    vault.remove(case.point)
    (task,) = case.scene.tasks()
    Operations(case.scene.config.journal_dir).write(
        msgspec.structs.replace(task, step="undo resume")
    )
    assert case.again()
    assert case.world.loaded == [NOW]
    check_one_of_both(case)


def rebooted(case: Case) -> None:
    """The host went down: nothing runs, and the task is of another boot."""
    case.guest.active = False
    (task,) = case.scene.tasks()
    owner = Process(task.owner.pid, task.owner.started, "a-boot")
    Operations(case.scene.config.journal_dir).write(msgspec.structs.replace(task, owner=owner))


@pytest.mark.parametrize(
    ("act", "when", "state", "content", "loaded"),
    [
        pytest.param("zfs clone", "after", "shut off", NOW, [], id="clone"),
        pytest.param("save", "before", "shut off", NOW, [], id="RAM not saved"),
        pytest.param("save", "after", "running", f"{THEN}+", [THEN], id="RAM saved"),
        pytest.param("load", "after", "running", f"{THEN}+", [THEN, THEN], id="loaded"),
        pytest.param("resume", "before", "running", f"{THEN}+", [THEN], id="before it went on"),
        pytest.param("resume", "after", "running", f"{THEN}++", [THEN], id="it went on"),
    ],
)
def test_host_went_down(
    make: Make, act: str, when: str, state: str, content: str, loaded: list[str]
) -> None:
    case = died_at(make, Kind(), act, when)
    rebooted(case)
    assert case.again()
    assert (case.guest.state(), case.content()) == (state, content)
    assert case.world.loaded == loaded
    case.check_clean()


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
    where = (case.scene.config, case.scene.host, case.point, RestoreOptions(), image, cancelled)
    if before is None:
        in_place.restore(*where)
        assert case.is_back()
    else:
        with pytest.raises(RestoreFailed, match=f"interrupted before {before}. All is as it was"):
            in_place.restore(*where)
        assert case.guest.calls == []
    check_one_of_both(case)


def test_not_while_a_moment_of_its_guest_is_under_way(
    make: Make, entry: Callable[..., Entry]
) -> None:
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

    monkeypatch.setattr(agent, "_CONNECTED_WITHIN_S", -1)

    def fail() -> None:
        raise LibvirtFailed("no agent", 86)

    if fails:
        case.guest.at["set_time"] = fail
    case.run()
    assert case.guest.clock_s == (0.0 if fails else 1700000000.0)
    assert case.is_back()


def test_safety_of_two_pools_after_a_crash_between_them(make: Make) -> None:
    case = died_at(make, Kind(), "zfs take_snapshots")
    (task,) = case.scene.tasks()
    assert isinstance(task, RestoreOperation) and task.safety_entry
    case.world.add("fast")
    case.world.add("fast/db", NOW)
    case.world.snap(f"fast/db@{task.safety_entry.run}")
    safety = msgspec.structs.replace(task.safety_entry, request_datasets=("fast/db", DATASET))
    Operations(case.scene.config.journal_dir).write(
        msgspec.structs.replace(task, safety_entry=safety)
    )
    assert case.again()
    assert case.is_back()
    (point,) = case.points()
    assert point.manifest.run == task.safety_entry.run
