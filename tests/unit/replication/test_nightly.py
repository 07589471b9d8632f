"""Sends of many nights, while sanoid prunes on both sides: the replica never forks for that."""

from datetime import timedelta
from pathlib import Path

import pytest

from tests.fakes.send_scene import DATA, DATASETS, WEB, SendScene
from zvmsnap.common.errors import ZfsFailed
from zvmsnap.replication import send_marks
from zvmsnap.replication.send_marks import SendMarks
from zvmsnap.replication.send_plan import DatasetSend, SendUnit
from zvmsnap.zfs.types import Subtree

NAS, USB, DEAD = "nas/off", "usb/off", "dead/off"


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SendScene:
    scene = SendScene(tmp_path, monkeypatch)
    for name in (NAS, USB, DEAD):
        scene.destination(name)
    return scene


def sent(scene: SendScene, name: str) -> None:
    assert not scene.send(name).has_failed
    assert scene.complete(name)


def bookmarks(scene: SendScene, dataset: str) -> list[str]:
    return [each.full_name for each in scene.pool.bookmarks([dataset])]


def test_forty_days_two_destinations_and_one_that_dies(scene: SendScene) -> None:
    for night in range(40):
        scene.hours(24)
        if night % 7 < 4:  # gaps of three days
            sent(scene, NAS)
        if night % 10 < 7:
            sent(scene, USB)
        if night < 5:
            sent(scene, DEAD)
        elif night == 5:
            scene.cuts_after = 3
            assert scene.send(DEAD).has_failed
            scene.cuts_after = None
            held = scene.pool.held_snapshots()
        else:
            scene.unreachable.add(DEAD)
            with pytest.raises(ZfsFailed):
                scene.send(DEAD)
    assert scene.forks == []
    # Only what a receive there was interrupted in is held, and kept sanoid from pruning.
    assert len(held) == 1 and scene.pool.held_snapshots() == held
    assert set(scene.refused) == set(held)
    assert send_marks.held_by_destination() == {DEAD: held}
    assert all(len(bookmarks(scene, dataset)) <= 3 * 51 for dataset in DATASETS)
    # It comes back after 34 days, and goes on where it was interrupted.
    scene.unreachable.clear()
    sent(scene, DEAD)
    assert (scene.forks, scene.pool.held_snapshots()) == ([], [])


def test_one_command_drops_a_dead_destination(scene: SendScene) -> None:
    scene.hours(3)
    sent(scene, NAS)
    scene.cuts_after = 1
    assert scene.send(DEAD).has_failed
    assert send_marks.held_by_destination() == {DEAD: [f"{WEB}@{scene.pool.history(WEB)[1]}"]}
    before = bookmarks(scene, WEB)
    bookmarked, held = SendMarks(DEAD).forget()
    assert (bookmarked > 0, held) == (True, 1)
    assert scene.pool.held_snapshots() == []
    kept = bookmarks(scene, WEB)
    assert len(kept) == len(scene.pool.history(WEB)) < len(before)
    sent(scene, NAS)


def test_destination_that_keeps_the_daily_ones_alone(scene: SendScene) -> None:
    for night in range(40):
        scene.hours(24)
        if night % 20 < 3:  # gaps longer than sanoid keeps the daily ones here
            sent(scene, NAS)
        for dataset in DATASETS:
            none = {"hourly": (0, timedelta()), "daily": (90, timedelta(days=90))}
            scene.prune(f"{NAS}/{dataset}", none)
    assert scene.forks == []


def test_time_was_turned_back_by_a_rollback(scene: SendScene) -> None:
    scene.hours(30)
    sent(scene, NAS)
    for dataset in DATASETS:
        scene.pool.rollback(f"{dataset}@{scene.pool.history(dataset)[-3]}")
    scene.hours(1)
    sent(scene, NAS)
    assert scene.forks == [f"{NAS}/{WEB}"]
    scene.hours(24)
    sent(scene, NAS)
    assert scene.forks == [f"{NAS}/{WEB}"]


def test_snapshot_there_that_was_never_here(scene: SendScene) -> None:
    scene.hours(3)
    sent(scene, NAS)
    scene.pool.take_snapshots([f"{NAS}/{DATA}"], "by hand")
    scene.hours(24)
    sent(scene, NAS)
    assert scene.forks == [f"{NAS}/{DATA}"]


def test_interrupted_and_pruned_meanwhile(scene: SendScene) -> None:
    """A receive goes on with its very snapshot alone, and only root can give it up there."""
    scene.hours(30)
    sent(scene, NAS)
    scene.hours(24)
    scene.cuts_after = 5
    assert scene.send(NAS).has_failed
    assert len(scene.pool.held_snapshots()) == 1
    scene.cuts_after = None
    scene.hours(72)
    sent(scene, NAS)
    assert (scene.forks, scene.pool.held_snapshots()) == ([], [])


def test_what_has_arrived_is_pruned_there_while_it_is_sent(
    scene: SendScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held is the snapshot that was under way, and none that has been there."""
    scene.hours(3)
    sent(scene, NAS)
    scene.hours(5)
    scene.cuts_after = 2
    new = [f"{WEB}@{name}" for name in scene.pool.history(WEB)][3:]
    settle = SendMarks.settle

    def pruned_before(self: SendMarks, send: DatasetSend, _subtree: Subtree) -> None:
        for name in scene.pool.history(f"{NAS}/{WEB}")[:4]:
            scene.pool.destroy(f"{NAS}/{WEB}@{name}")
        settle(self, send, scene.pool.subtree(NAS))

    with monkeypatch.context() as patched:
        patched.setattr(SendMarks, "settle", pruned_before)
        assert scene.send(NAS).has_failed
    assert scene.pool.held_snapshots() == [new[2]]


def test_killed_while_it_sends(scene: SendScene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.hours(30)
    sent(scene, NAS)
    scene.hours(24)
    scene.cuts_after = 5
    with monkeypatch.context() as killed:
        killed.setattr(SendMarks, "settle", lambda *_: None)
        assert scene.send(NAS).has_failed
    # All of it is held: which snapshot was under way is known when the destination is asked.
    assert len(scene.pool.held_snapshots()) > 20
    scene.cuts_after = None
    scene.hours(72)
    sent(scene, NAS)
    assert (scene.forks, scene.pool.held_snapshots()) == ([], [])


def test_restored_here_to_a_moment_after_the_last_send(scene: SendScene) -> None:
    """What was sent last has been pruned: only the dataset that lives on can have its bookmark."""
    scene.hours(30)
    sent(scene, NAS)
    scene.hours(26)
    top = f"{WEB}.before-1"
    scene.pool.rename(WEB, top)
    for dataset, old in ((WEB, top), (DATA, f"{top}/data")):
        scene.pool.clone(f"{old}@{scene.pool.history(old)[-3]}", dataset, {})
        scene.pool.promote(dataset)
    scene.hours(24)
    sent(scene, NAS)
    assert scene.forks == []


def test_what_a_restore_sets_aside_is_not_held(scene: SendScene) -> None:
    scene.hours(30)
    sent(scene, NAS)
    scene.hours(2)
    scene.cuts_after = 0
    assert scene.send(NAS).has_failed
    scene.cuts_after = None
    (held,) = scene.pool.held_snapshots()
    top = f"{WEB}.before-20261101T000000"
    scene.pool.rename(WEB, top)
    for dataset, old in ((WEB, top), (DATA, f"{top}/data")):
        scene.pool.clone(f"{old}@{scene.pool.history(old)[-3]}", dataset, {})
        scene.pool.promote(dataset)
    assert scene.pool.held_snapshots() == [held.replace(WEB, top)]
    scene.hours(1)
    report = scene.send(NAS)
    assert held.replace(WEB, top) not in scene.pool.held_snapshots()
    # Only root can end there what can never go on; this is said.
    assert f"zfs receive -A {NAS}/{WEB} there, as root" in report.units[0].error
    scene.pool.by_name[f"{NAS}/{WEB}"].partial = None
    sent(scene, NAS)
    assert (scene.forks, scene.pool.held_snapshots()) == ([], [])


def test_two_guests_on_one_dataset(scene: SendScene) -> None:
    """It is sent, held and bookmarked once."""
    scene.hours(3)
    units = [SendUnit(f"guest{n}", "", (WEB, dataset)) for n, dataset in enumerate((DATA, WEB))]
    report = scene.send(NAS, *units)
    assert not report.has_failed and scene.complete(NAS)
    scene.hours(24)
    scene.cuts_after = 0
    report = scene.send(NAS, *units)
    assert all("cut" in unit.error or "contains" in unit.error for unit in report.units)
    scene.cuts_after = None
    assert not scene.send(NAS, *units).has_failed
    assert scene.complete(NAS) and scene.pool.held_snapshots() == []


def test_nothing_is_marked_by_a_dry_run(scene: SendScene) -> None:
    scene.hours(3)
    report = scene.sender(NAS).plan([SendUnit("", "", DATASETS)])
    assert len(report.units[0].datasets) == 2
    assert bookmarks(scene, WEB) == [] and scene.pool.held_snapshots() == []
