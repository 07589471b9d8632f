from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.restore_scene import DATASET, NAME, Scene
from zvmsnap.common.errors import FilesImpossible, SnapshotMissing
from zvmsnap.files import plan
from zvmsnap.zfs import mounts
from zvmsnap.zfs.mounts import Mount


def test_files_need_no_clone(host_with_points: Callable[..., Scene], tmp_path: Path) -> None:
    scene = host_with_points()
    view = plan.plan_view(scene.config, scene.point(), tmp_path)
    assert (view.clones, view.stays, view.mountpoint) == ((), True, str(tmp_path))
    assert view.snapshots == {DATASET: f"{DATASET}@{NAME}"}


def test_a_locked_dataset(volume_scene: Scene) -> None:
    point = volume_scene.point()
    volume_scene.world.pool[DATASET].locked = True
    with pytest.raises(FilesImpossible, match=f"zfs load-key {DATASET}"):
        plan.plan_view(volume_scene.config, point)


def test_a_snapshot_that_is_gone(volume_scene: Scene) -> None:
    point = volume_scene.point()
    volume_scene.world.pool_snapshots.clear()
    with pytest.raises(SnapshotMissing):
        plan.plan_view(volume_scene.config, point)


def test_where_a_view_may_be_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = [Mount(1, 1, "/", "/", "", "ext4")]
    monkeypatch.setattr(mounts, "read_table", lambda: table)
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "link").symlink_to("empty")
    assert plan.mountpoint(tmp_path / "link") == empty
    for path, why in ((tmp_path, "is not empty"), (tmp_path / "no", "say an empty directory")):
        with pytest.raises(FilesImpossible, match=why):
            plan.mountpoint(path)
    table.append(Mount(2, 1, "/", str(empty), "", "tmpfs"))
    with pytest.raises(FilesImpossible, match="is mounted there already"):
        plan.mountpoint(empty)
