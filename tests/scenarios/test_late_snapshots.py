"""No point claims an instant at which its guest was already released."""

from collections.abc import Callable, Iterable

import pytest

from tests.fakes.capture_scene import (
    CRASH,
    MEMORY,
    OWNER,
    PAUSED,
    QUIESCED,
    RUN,
    Away,
    Scene,
    agent_of,
    failing,
    thaws_under_the_overlay,
)
from tests.fakes.zfs_pool import FakeZfs, never
from zvmsnap.capture import all_guests
from zvmsnap.common.errors import Cancelled, ZfsFailed
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.finalize import after_snapshot
from zvmsnap.finalize.publish import publish
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.points import vault
from zvmsnap.points.manifest import Manifest
from zvmsnap.points.point import RestorePoint
from zvmsnap.quiesce.barrier import FreezeBarrier
from zvmsnap.zfs import types, zfs

NAME = f"{RUN}_hourly"
LATER = "zrepl_20261120_040000_000"
POST = HookCall(Role.POST, ("tank/web",), (NAME,))
ALL = pytest.mark.parametrize("mode", ["memory", "paused", "quiesced"])


class Killed(BaseException):
    """kill -9"""


def manifests(scene: Scene) -> list[Manifest]:
    entries = vault.entries(scene.config.vault_dir)
    return [point.manifest for point in entries if isinstance(point, RestorePoint)]


def take(pools: FakeZfs, name: str = NAME, guid: int = 11) -> None:
    pools.present[f"tank/web@{name}"] = guid


def after_the_release(patch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    """Let something happen when the guest is released, and its point is about to be published."""

    def published(*arguments: object) -> None:
        happens()
        publish(*arguments)  # type: ignore[arg-type]

    patch.setattr("zvmsnap.finalize.after_snapshot.publish", published)


def levels_of(scene: Scene) -> list[ConsistencyLevel]:
    return [manifest.level for manifest in manifests(scene)]


def test_thaws_by_itself_and_cannot_be_brought_to_its_base(scene: Scene, pools: FakeZfs) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": "quiesced"}
    thaws_under_the_overlay(scene, guest)
    guest.at["commit vda"] = failing("Permission denied")
    assert not scene.pre()
    # sanoid takes its snapshot all the same; the guest is on its base when post has ended.
    take(pools)
    after_snapshot.finish_run(POST, scene.config, OWNER)
    assert levels_of(scene) == []
    assert scene.entries() == []


@ALL
def test_another_sanoid_takes_a_snapshot_of_the_same_name_while_the_guest_runs(
    scene: Scene, pools: FakeZfs, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    """Two that were started in the same second announce the same names."""
    guest = scene.add()
    scene.modes["tank/web"] = {"": mode}
    guest.at["freeze" if mode == "quiesced" else "snapshot"] = lambda: take(pools)
    assert scene.pre()
    after_snapshot.finish_run(POST, scene.config, OWNER)
    assert levels_of(scene) == []
    assert f"none of {NAME} was taken after pre" in caplog.text
    assert scene.entries() == []
    scene.assert_at_rest()


@ALL
def test_killed_after_undoing(
    scene: Scene, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": mode}
    guest.at["freeze" if mode == "quiesced" else "snapshot"] = scene.cancelled.set

    def die(*_arguments: object) -> None:
        raise Killed

    scene.when["> undo staging"] = die
    monkeypatch.setattr(all_guests, "_put_back", die)
    with pytest.raises(Killed):
        scene.pre()
    assert guest.paused_because is None and not agent_of(guest).frozen
    take(pools)
    after_snapshot.finish_run(POST, scene.config, OWNER)
    assert levels_of(scene) == ([] if mode == "memory" else [CRASH])


@pytest.mark.parametrize(("mode", "last"), [("memory", "pivot vda"), ("paused", "allow 300")])
def test_interrupted_and_put_back_but_zfs_fails(
    scene: Scene, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch, mode: str, last: str
) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": mode}
    finish, answers = FreezeBarrier.finish, zfs.snapshots

    def captured(barrier: FreezeBarrier, uuid: str) -> None:
        scene.cancelled.set()
        finish(barrier, uuid)

    monkeypatch.setattr(FreezeBarrier, "finish", captured)

    def fails(names: Iterable[str]) -> types.NamedSnapshots:
        if guest.calls and guest.calls[-1] == last:
            monkeypatch.setattr(zfs, "snapshots", answers)
            raise ZfsFailed("no answer")
        return answers(names)

    monkeypatch.setattr(zfs, "snapshots", fails)
    with pytest.raises(Cancelled, match="interrupted"):
        scene.pre()
    (left,) = scene.entries()
    assert left.snapshots_at_release == ()
    take(pools)
    after_snapshot.finish_run(POST, scene.config, OWNER)
    assert levels_of(scene) == ([] if mode == "memory" else [CRASH])


def test_in_the_middle_of_a_merge(
    scene: Scene, pools: FakeZfs, caplog: pytest.LogCaptureFixture
) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": "memory"}
    scene.when["> frozen"] = scene.cancelled.set
    guest.at["pivot vda"] = failing("cannot pivot")
    with pytest.raises(Cancelled, match="interrupted"):
        scene.pre()
    take(pools)
    after_snapshot.finish_run(POST, scene.config, OWNER)
    assert levels_of(scene) == []
    assert "may hold disks in the middle of a merge: tank/web@" in caplog.text
    assert scene.entries() == []


@ALL
def test_snapshot_that_appears_after_the_release(
    scene: Scene, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """sanoid was killed, but not its `zfs snapshot`, which was in the kernel."""
    guest = scene.add()
    scene.modes["tank/web"] = {"": mode}
    assert scene.pre()
    (entry,) = scene.entries()
    after_the_release(monkeypatch, lambda: take(pools))
    after_snapshot.finish_entry(scene.config, scene.host, entry)
    assert levels_of(scene) == ([] if mode == "memory" else [CRASH])
    assert guest.paused_because is None


@ALL
def test_zfs_does_not_say_what_there_is(
    scene: Scene, pools: FakeZfs, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The guest was not held, and nobody knows when the snapshot was taken."""
    guest = scene.add()
    scene.modes["tank/web"] = {"": mode}
    assert scene.pre()
    take(pools)
    answers = zfs.snapshots

    def fails(names: Iterable[str]) -> types.NamedSnapshots:
        monkeypatch.setattr(zfs, "snapshots", answers)
        raise ZfsFailed("no answer")

    monkeypatch.setattr(zfs, "snapshots", fails)
    after_snapshot.finish_run(POST, scene.config, OWNER)
    assert guest.paused_because is None and not agent_of(guest).frozen
    assert levels_of(scene) == ([] if mode == "memory" else [CRASH])


def test_snapshots_of_the_next_round_are_not_of_this_one(scene: Scene, pools: FakeZfs) -> None:
    """zrepl is one process for all rounds, and the vault was away for a while."""
    scene.add()
    scene.modes["tank/web"] = {"": "memory"}
    assert scene.pre()
    take(pools)
    with Away(scene):
        assert not after_snapshot.finish_run(POST, scene.config, OWNER)
        call = HookCall(Role.PRE, ("tank/web",), (LATER,))
        # The first one's point waits, and does not keep the guest from the next.
        assert all_guests.begin(call, scene.config, OWNER, never, scene.cancelled, 120.0)
        take(pools, LATER, 12)
    after_snapshot.finish_run(HookCall(Role.POST, ("tank/web",), (LATER,)), scene.config, OWNER)
    assert [
        (manifest.level, [tie.name for tie in manifest.snapshots]) for manifest in manifests(scene)
    ] == [(MEMORY, [NAME]), (MEMORY, [LATER])]


def test_destroyed_meanwhile_and_made_anew(scene: Scene, pools: FakeZfs) -> None:
    scene.add()
    scene.modes["tank/web"] = {"": "memory"}
    assert scene.pre()
    take(pools)
    with Away(scene):
        assert not after_snapshot.finish_run(POST, scene.config, OWNER)
    take(pools, NAME, 12)
    assert not after_snapshot.finish_run(POST, scene.config, OWNER)
    assert (levels_of(scene), scene.entries()) == ([], [])


class Uses:
    """What zfs.uses says: snapshots that are taken of tank/web, one after the other."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._usage: list[types.SnapshotUsage] = []
        patch.setattr(zfs, "snapshot_usage", lambda _datasets: list(self._usage))

    def take(self, name: str) -> None:
        number = len(self._usage) + 1
        self._usage.append(
            types.SnapshotUsage(types.Snapshot("tank/web", name, number, number), (), 0)
        )


UNNAMED = HookCall(Role.PRE, ("tank/web",), ("zvmsnap_x_unnamed",), unnamed=True)
UNNAMED_POST = HookCall(Role.POST, ("tank/web",), ("zvmsnap_y_unnamed",), unnamed=True)
LEVELS = [
    pytest.param("memory", "snapshot", MEMORY, id="memory"),
    pytest.param("paused", "snapshot", PAUSED, id="paused"),
    pytest.param("quiesced", "freeze", QUIESCED, id="quiesced"),
]


@pytest.mark.parametrize(("mode", "call", "level"), LEVELS)
def test_where_names_are_not_announced(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, mode: str, call: str, level: ConsistencyLevel
) -> None:
    """Snapshots that anybody takes while the guest runs are not of the run."""
    guest = scene.add()
    scene.modes["tank/web"] = {"": mode}
    uses = Uses(monkeypatch)
    uses.take("old")
    if mode == "quiesced":
        frozen: Callable[[], int] = agent_of(guest).freeze

        def freeze() -> int:
            uses.take("while-it-runs")
            return frozen()

        monkeypatch.setattr(agent_of(guest), "freeze", freeze)
    else:
        guest.at[call] = lambda: uses.take("while-it-runs")
    assert all_guests.begin(UNNAMED, scene.config, OWNER, never, scene.cancelled, 0)
    uses.take("offsite-1")
    with Away(scene):
        assert not after_snapshot.finish_run(UNNAMED_POST, scene.config, OWNER)
    uses.take("an-hour-later")
    assert after_snapshot.finish_run(UNNAMED_POST, scene.config, OWNER)
    (manifest,) = manifests(scene)
    assert (manifest.level, [tie.name for tie in manifest.snapshots]) == (level, ["offsite-1"])


@ALL
def test_where_no_names_are_announced_and_none_was_taken_in_time(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    scene.add()
    scene.modes["tank/web"] = {"": mode}
    uses = Uses(monkeypatch)
    assert all_guests.begin(UNNAMED, scene.config, OWNER, never, scene.cancelled, 0)
    after_the_release(monkeypatch, lambda: uses.take("somebodys"))
    assert not after_snapshot.finish_run(UNNAMED_POST, scene.config, OWNER)
    assert (manifests(scene), scene.entries()) == ([], [])


@ALL
def test_dataset_that_is_gone_where_no_names_are_announced(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": mode}
    Uses(monkeypatch)
    assert all_guests.begin(UNNAMED, scene.config, OWNER, never, scene.cancelled, 0)
    del scene.modes["tank/web"]

    def snapshot_usage(datasets: list[str]) -> list[types.SnapshotUsage]:
        assert not datasets
        return []

    monkeypatch.setattr(zfs, "snapshot_usage", snapshot_usage)
    assert not after_snapshot.finish_run(UNNAMED_POST, scene.config, OWNER)
    assert (guest.paused_because, manifests(scene), scene.entries()) == (None, [], [])
