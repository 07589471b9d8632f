"""The vault is away for several rounds, and `staging` is changed: no point is lost by it."""

import shutil
import threading

import pytest

from tests.fakes.capture_scene import CRASH, MEMORY, OWNER, Away, Scene
from tests.fakes.guest import OTHER
from tests.fakes.zfs_pool import FakeZfs, never
from zvmsnap.capture import all_guests
from zvmsnap.config.settings import Limits
from zvmsnap.finalize import after_snapshot
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.journal.waiting import WaitingEntries
from zvmsnap.points import vault
from zvmsnap.points.manifest import Manifest
from zvmsnap.recovery.recover import recover_guests
from zvmsnap.recovery.report import Result
from zvmsnap.retention import leftovers


def name(number: int) -> str:
    return f"autosnap_2026-11-20_{number:02}:00:00_hourly"


def begin(scene: Scene, number: int) -> bool:
    call = HookCall(Role.PRE, ("tank/web",), (name(number),))
    return all_guests.begin(call, scene.config, OWNER, never, threading.Event())


def end(scene: Scene, number: int) -> bool:
    return after_snapshot.finish_run(
        HookCall(Role.POST, ("tank/web",), (name(number),)), scene.config, OWNER
    )


def a_round(scene: Scene, pools: FakeZfs, number: int) -> tuple[bool, bool]:
    began = begin(scene, number)
    pools.present[f"tank/web@{name(number)}"] = 10 + number
    return began, end(scene, number)


def manifests(scene: Scene) -> list[Manifest]:
    points, damaged = vault.all_in(scene.config.vault_dir)
    assert not damaged
    return [point.manifest for point in points]


def levels(scene: Scene) -> dict[str, object]:
    return {m.snapshots[0].name: m.level for m in manifests(scene)}


def waiting(scene: Scene) -> list[str]:
    return [entry.run for entry in WaitingEntries(scene.config.journal_dir).all()]


def run(number: int) -> str:
    return name(number).removesuffix("_hourly")


def test_all_rounds_wait_in_staging_and_are_published_by_the_next(
    scene: Scene, pools: FakeZfs
) -> None:
    scene.add()
    with Away(scene):
        for number in (1, 2, 3):
            assert a_round(scene, pools, number) == (True, False)
        assert waiting(scene) == [run(1), run(2)]
        assert [entry.run for entry in scene.entries()] == [run(3)]
        assert leftovers.find(scene.config).paths == []
        # One of them is pruned meanwhile: then its RAM is for nothing.
        del pools.present[f"tank/web@{name(2)}"]
    assert a_round(scene, pools, 4) == (True, True)
    assert levels(scene) == {name(1): MEMORY, name(3): MEMORY, name(4): MEMORY}
    assert waiting(scene) == []
    scene.assert_at_rest()


def test_without_room_the_next_level_waits(scene: Scene, pools: FakeZfs) -> None:
    scene.add()
    scene.modes["tank/web"] = {"": "memory,crash"}
    with Away(scene):
        assert a_round(scene, pools, 1) == (True, False)
        scene.change(limits=Limits(overlay_room_mib=1 << 40))
        assert a_round(scene, pools, 2)[1] is False
    scene.change(limits=Limits())
    assert a_round(scene, pools, 3) == (True, True)
    assert levels(scene) == {name(1): MEMORY, name(2): CRASH, name(3): MEMORY}


@pytest.mark.parametrize("exists", [True, False])
def test_recover_publishes_them(
    scene: Scene, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    guest = scene.add()
    with Away(scene):
        for number in (1, 2, 3):
            a_round(scene, pools, number)
        report = recover_guests(scene.config)
        assert [each.result for each in report.outcomes] == [Result.FAILED, Result.FAILED]
        assert "is not the vault that was used so far" in report.outcomes[0].why
    guest.exists = exists
    dry = recover_guests(scene.config, dry_run=True)
    assert dry.outcomes[0].result is Result.NEEDED
    assert "waits in staging for the vault" in dry.outcomes[0].findings[0]
    assert waiting(scene) == [run(1), run(2)]
    report = recover_guests(scene.config)
    assert {each.result for each in report.outcomes} == {Result.RECOVERED}
    assert list(levels(scene)) == [name(1), name(2), name(3)]
    assert (waiting(scene), scene.entries()) == ([], [])


def test_killed_while_it_is_put_by(
    scene: Scene, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both files of the entry exist: its point is made once."""
    scene.add()
    with Away(scene):
        a_round(scene, pools, 1)
        WaitingEntries(scene.config.journal_dir).write(scene.entries()[0])
        a_round(scene, pools, 2)
    a_round(scene, pools, 3)
    assert [m.run for m in manifests(scene)] == [run(1), run(2), run(3)]


def test_no_room_in_the_vault_is_no_reason_to_stop_making_points(
    scene: Scene, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.add()
    full = OSError(28, "No space left on device")

    def store(*_arguments: object, **_options: object) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr("zvmsnap.finalize.store.RamStore.store", store)
        assert a_round(scene, pools, 1) == (True, False)
        assert a_round(scene, pools, 2) == (True, False)
    assert a_round(scene, pools, 3) == (True, True)
    assert levels(scene) == {name(number): MEMORY for number in (1, 2, 3)}


def test_staging_that_was_changed_meanwhile(scene: Scene, pools: FakeZfs) -> None:
    scene.add()
    former = scene.config.staging_dir
    with Away(scene):
        a_round(scene, pools, 1)
        assert begin(scene, 2)
        elsewhere = former.with_name("elsewhere")
        elsewhere.mkdir()
        scene.change(staging=str(elsewhere))
        pools.present[f"tank/web@{name(2)}"] = 12
        assert not end(scene, 2)
    assert a_round(scene, pools, 3) == (True, True)
    assert levels(scene) == {name(number): MEMORY for number in (1, 2, 3)}
    assert (list(former.iterdir()), list(elsewhere.iterdir())) == ([], [])


def test_staging_that_is_gone_is_the_reason(
    scene: Scene, pools: FakeZfs, caplog: pytest.LogCaptureFixture
) -> None:
    scene.add()
    with Away(scene):
        a_round(scene, pools, 1)
    (entry,) = scene.entries()
    directory = entry.directory(scene.config.staging_dir)
    shutil.rmtree(directory)
    assert end(scene, 1)
    assert f"no point: {directory} is gone, with all that pre had stored" in caplog.text


@pytest.mark.parametrize("key", ["vault", "journal", "staging", "locks"])
def test_own_directory_among_the_disks_of_a_guest(
    scene: Scene, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    """No restore could work, so no point is made, of this guest alone."""
    scene.add()
    other = scene.add("db", OTHER)
    where = scene.root / "tank" / "web" / "ours"
    where.mkdir()
    scene.change(**{key: str(where)})
    assert not scene.pre()
    assert f"web (tank/web,tank/db): no point: {key} {where} is on tank/web, which holds" in (
        caplog.text
    )
    assert [entry.uuid for entry in scene.entries()] == [other.uuid]
