"""sanoid takes more, or less, than pre has expected: post says so, and no point is wrong."""

import threading

import pytest

from tests.fakes.capture_scene import MEMORY, OWNER, RUN, Scene
from tests.fakes.images import make_base
from tests.fakes.zfs_pool import FakeZfs
from zvmsnap.capture import all_guests
from zvmsnap.finalize import after_snapshot
from zvmsnap.hooks import surprise
from zvmsnap.journal.request import HookCall, Role
from zvmsnap.journal.round import Round
from zvmsnap.points import vault
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs import zfs

NAME = f"{RUN}_hourly"


@pytest.fixture
def tree(scene: Scene) -> Scene:
    """The dataset `tank`, and below it `tank/web` with a guest, and `tank/web/data`."""
    scene.add()
    scene.modes["tank"] = {}
    scene.modes["tank/web/data"] = {}
    return scene


def pre(scene: Scene, target: str, *, recursive: bool) -> None:
    call = HookCall(Role.PRE, (target,), (NAME,))
    stop = threading.Event()
    assert all_guests.begin(call, scene.config, OWNER, lambda _: recursive, stop, 0)


def post(scene: Scene, target: str) -> tuple[bool, bool]:
    """Did all guests get what they should, and was all as expected?"""
    call = HookCall(Role.POST, (target,), (NAME,))
    complete = after_snapshot.finish_run(call, scene.config, OWNER)
    scene.assert_at_rest()
    assert scene.entries() == []
    return complete, surprise.as_expected(call, Round(scene.config.locks_dir, OWNER))


def points(scene: Scene) -> list[RestorePoint]:
    return [
        each for each in vault.entries(scene.config.vault_dir) if isinstance(each, RestorePoint)
    ]


@pytest.mark.parametrize("recursive", [True, False])
def test_as_expected(tree: Scene, pools: FakeZfs, recursive: bool) -> None:
    pre(tree, "tank/web", recursive=recursive)
    pools.present = {f"tank/web@{NAME}": 11}
    if recursive:
        pools.present[f"tank/web/data@{NAME}"] = 12
    assert post(tree, "tank/web") == (True, True)
    (point,) = points(tree)
    assert point.manifest.level is MEMORY


def test_less_than_expected(
    tree: Scene,
    pools: FakeZfs,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(zfs, "properties", lambda *_: {"inconsistent": "0"})
    pre(tree, "tank", recursive=True)
    assert tree.entries()
    pools.present = {f"tank@{NAME}": 11}
    assert post(tree, "tank") == (False, False)
    assert points(tree) == []
    assert "tank was snapshotted without the datasets below it, and that was not" in caplog.text


def test_more_than_expected(tree: Scene, pools: FakeZfs, caplog: pytest.LogCaptureFixture) -> None:
    pre(tree, "tank", recursive=False)
    assert tree.entries() == []
    pools.present = {f"tank{each}@{NAME}": 11 + len(each) for each in ("", "/web", "/web/data")}
    assert post(tree, "tank") == (True, False)
    assert points(tree) == []
    assert "tank was snapshotted with all datasets below it, and that was not" in caplog.text


def test_a_guest_of_whose_disks_only_some_are_in_the_snapshot(
    tree: Scene, pools: FakeZfs, caplog: pytest.LogCaptureFixture
) -> None:
    (guest,) = tree.host.known
    guest.persistent["vdb"] = guest.live["vdb"] = str(
        make_base(tree.mount("tank/web/data") / "b.raw")
    )
    pre(tree, "tank/web", recursive=True)
    (entry,) = tree.entries()
    assert (entry.datasets, entry.level) == (("tank/web", "tank/web/data"), MEMORY)
    pools.present = {f"tank/web@{NAME}": 11}
    complete, _ = post(tree, "tank/web")
    assert not complete
    assert points(tree) == []
    assert (
        f"no point, as not all disks are in one snapshot: there is tank/web@{NAME}, but nothing of "
        "tank/web/data" in caplog.text
    )
