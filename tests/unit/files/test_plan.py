from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.restore_scene import Scene
from zvmsnap.common.errors import FilesImpossible
from zvmsnap.files import plan
from zvmsnap.zfs import mounts
from zvmsnap.zfs.mounts import Mount


def test_where_its_files_are_seen(host_with_points: Callable[..., Scene], tmp_path: Path) -> None:
    scene = host_with_points()
    point = scene.point()
    view = plan.plan_view(scene.config, point)
    assert view.work == f"{scene.config.staging}/views/{view.name}"
    assert (view.mountpoint, view.stays, view.datasets) == (f"{view.work}/files", False, ())
    assert (view.domain, view.uuid, view.point) == ("web", point.manifest.uuid, point.name)
    view = plan.plan_view(scene.config, point, tmp_path, by_device=True)
    assert (view.mountpoint, view.stays, view.by_device) == (str(tmp_path), True, True)


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
