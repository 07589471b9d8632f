from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from tests.fakes.restore_case import (
    PLAIN,
    Case,
    Kind,
    Make,
    acts_of,
    check_one_of_both,
    died_at,
    undoing,
)
from tests.fakes.restore_scene import DATASET, NAME, NEW, OLD, Killed
from zvmsnap.common import safe_files
from zvmsnap.common.errors import LibvirtFailed, RestoreFailed, RestoreImpossible
from zvmsnap.common.process import Process
from zvmsnap.journal.operation import Operations, RestoreOperation
from zvmsnap.points import vault
from zvmsnap.restore import replaced_guest
from zvmsnap.restore.plan import RestoreOptions
from zvmsnap.virt.guest import Pause

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


@pytest.mark.parametrize(("kind", "when"), EXHAUSTED)
def test_failure_of_each_act_is_undone(make: Make, kind: Kind, when: str) -> None:
    for number, act in enumerate(acts_of(make, kind)):
        case = make(kind)
        case.world.errors = {(number, when)}
        with suppress(RestoreFailed, OSError, LibvirtFailed):
            case.run()
            # The act failed without harm: a clock, a vanished point.
            assert case.is_back(), act
        if case.scene.operations():
            # A rollback that may have begun, or what comes after all was done.
            assert case.kind.options.rollback or case.is_back(), act
            assert case.again(), act
            assert case.is_back(), act
        check_one_of_both(case)


@pytest.mark.parametrize(("kind", "when"), EXHAUSTED)
def test_death_at_each_act_is_recovered(make: Make, kind: Kind, when: str) -> None:
    outcomes = set()
    for number, act in enumerate(acts_of(make, kind)):
        case = make(kind)
        case.world.death = (number, when)
        # What comes after `resume` fails with RestoreFailed, also when it is killed.
        with pytest.raises((Killed, RestoreFailed)):
            case.run()
        begun = bool(case.scene.operations())
        assert case.again() is begun, act
        check_one_of_both(case)
        outcomes.add(case.is_back())
    assert outcomes == {True, False}


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
        assert case.world.mismatches == [], acts[number]
        assert {NAME} <= {each.name for each in case.world.pool_snapshots}
        if case.scene.operations():
            assert case.again(), acts[number]
        check_one_of_both(case)
        # Before that was written down, it had died at `load`.
        assert not case.is_back() or (dies and acts[number] == "write undo load")


# -- the table of in_place.py: who died where, and what somebody did to the guest meanwhile


def start(case: Case) -> None:
    """Somebody starts the guest: it boots, and changes its disks."""
    case.guest.start()


def start_and_suspend(case: Case) -> None:
    case.guest.start()
    case.guest.paused_because = Pause.USER


@pytest.mark.parametrize("somebody", [start, start_and_suspend])
@pytest.mark.parametrize(
    ("act", "when", "content"),
    [
        pytest.param("save", "after", NEW, id="stop"),
        pytest.param("zfs snapshot", "after", NEW, id="safety"),
        pytest.param("zfs unmount", "before", NEW, id="swap, not done"),
        pytest.param("zfs promote", "before", OLD, id="swapped"),
        pytest.param("zfs promote", "after", OLD, id="promoted"),
        pytest.param("define", "before", OLD, id="definition"),
        pytest.param("load", "before", OLD, id="load"),
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
    if content == NEW:
        case.check_replaced()


@pytest.mark.parametrize(
    "options", [PLAIN, RestoreOptions(rollback=True)], ids=["swapped", "rolled back"]
)
def test_guest_that_was_started_and_shut_off_keeps_its_disks(
    make: Make, options: RestoreOptions
) -> None:
    case = died_at(make, Kind(options), "load")
    start(case)
    case.guest.shut_off()
    assert case.again()
    assert case.world.loaded == []
    assert case.content() == f"{OLD}+"
    assert case.guest.state() == "shut off"
    case.check_clean()


@pytest.mark.parametrize("volume", [True, False], ids=["volume", "filesystem"])
def test_disks_are_not_swapped_back_under_a_guest(make: Make, volume: bool) -> None:
    case = died_at(make, Kind(volume=volume), "zfs promote")
    (operation,) = case.scene.operations()
    Operations(case.scene.config.journal_dir).write(
        msgspec.structs.replace(operation, step="undo swap")
    )
    case.guest.start()
    before = case.world.summary()
    assert not case.again()
    assert case.world.summary() == before
    case.guest.shut_off()
    assert case.again()
    assert case.world.loaded == [NEW]
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
    assert (case.world.loaded, case.content()) == ([OLD], f"{OLD}+")
    case.check_clean()


@pytest.mark.parametrize("died", [True, False], ids=["died", "failed"])
def test_guest_that_somebody_started_runs_on_after_a_rollback(make: Make, died: bool) -> None:
    kind = Kind(RestoreOptions(rollback=True))
    number = acts_of(make, kind).index("zfs rollback")
    case = make(kind)
    if died:
        case.world.death = (number, "after")
    else:
        case.world.errors = {(number, "after")}
    with pytest.raises(Killed if died else RestoreFailed):
        case.run()
    case.world.disarm()
    case.guest.start()
    case.again()
    assert (case.world.loaded, case.content()) == ([], f"{OLD}+")
    case.check_clean()


def test_rollback_that_has_not_begun_is_undone_for_who_started_the_guest(make: Make) -> None:
    case = died_at(make, Kind(RestoreOptions(rollback=True)), "save", "after")
    case.guest.start()
    assert case.again()
    assert (case.world.loaded, case.content()) == ([], f"{NEW}+")
    case.check_clean()


@pytest.mark.parametrize("when", ["before", "after"])
def test_saved_ram_is_loaded_once(make: Make, when: str) -> None:
    load, acts = undoing(make, Kind())
    case = make(Kind())
    case.world.errors = {(load, "before")}
    case.world.death = (len(acts) - 1 - acts[::-1].index("resume"), when)
    with pytest.raises(Killed):
        case.run()
    assert case.world.loaded == [NEW]
    if when == "before":
        assert case.guest.state() == "paused"
    else:
        case.guest.shut_off()
    assert case.again()
    assert case.world.loaded == [NEW]
    assert case.guest.state() == "running"
    case.check_clean()


def test_saved_ram_is_gone_for_good_before_its_guest_runs(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = acts_of(make, Kind()).index("load")
    case = make(Kind())
    case.world.errors = {(number, "before")}

    def sync(directory: Path) -> None:
        assert not (directory / "memory.img").exists()
        case.world.acts.append(f"sync {case.guest.state()}")
        safe_files.sync_dir(directory)

    monkeypatch.setattr(replaced_guest, "sync_dir", sync)
    with pytest.raises(RestoreFailed):
        case.run()
    assert case.world.acts[case.world.acts.index("sync paused") + 1] == "resume"


def test_undone_without_its_point(make: Make) -> None:
    case = died_at(make, Kind(), "zfs unmount")
    vault.remove(case.point)
    (operation,) = case.scene.operations()
    Operations(case.scene.config.journal_dir).write(
        msgspec.structs.replace(operation, step="undo resume")
    )
    assert case.again()
    assert case.world.loaded == [NEW]
    check_one_of_both(case)


def rebooted(case: Case) -> None:
    """The host went down: nothing runs, and the operation is of another boot."""
    case.guest.active = False
    (operation,) = case.scene.operations()
    owner = Process(operation.owner.pid, operation.owner.started, "a-boot")
    Operations(case.scene.config.journal_dir).write(msgspec.structs.replace(operation, owner=owner))


@pytest.mark.parametrize(
    ("act", "when", "state", "content", "loaded"),
    [
        pytest.param("zfs clone", "after", "shut off", NEW, [], id="clone"),
        pytest.param("save", "before", "shut off", NEW, [], id="RAM not saved"),
        pytest.param("save", "after", "running", f"{OLD}+", [OLD], id="RAM saved"),
        pytest.param("load", "after", "running", f"{OLD}+", [OLD, OLD], id="loaded"),
        pytest.param("resume", "before", "running", f"{OLD}+", [OLD], id="before it went on"),
        pytest.param("resume", "after", "running", f"{OLD}++", [OLD], id="it went on"),
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


def test_safety_of_two_pools_after_a_crash_between_them(make: Make) -> None:
    case = died_at(make, Kind(), "zfs snapshot")
    (operation,) = case.scene.operations()
    assert isinstance(operation, RestoreOperation) and operation.safety_entry
    case.world.add("fast")
    case.world.add("fast/db", NEW)
    case.world.snap(f"fast/db@{operation.safety_entry.run}")
    safety = msgspec.structs.replace(operation.safety_entry, request_datasets=("fast/db", DATASET))
    Operations(case.scene.config.journal_dir).write(
        msgspec.structs.replace(operation, safety_entry=safety)
    )
    assert case.again()
    assert case.is_back()
    (point,) = case.points()
    assert point.manifest.run == operation.safety_entry.run
