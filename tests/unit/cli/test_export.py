import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fakes.images import libvirt_image
from tests.fakes.restore_scene import NAME, OLD, Scene, fitting
from zvmsnap.config.level import ConsistencyLevel

Run = Callable[..., tuple[int, str, str]]
WEB = f"web@{NAME}"
STORED = {"pages": {}, "plain": {"plain": True}, "zstd": {"zstd": True}}


@pytest.mark.parametrize("stored", STORED)
def test_export(scene_run: Run, scene: Scene, tmp_path: Path, stored: str) -> None:
    point = scene.point(**STORED[stored])
    target = tmp_path / "web.img"
    code, out, err = scene_run("export-memory", WEB, str(target))
    assert (code, err) == (0, "")
    assert out == f"{target}: the RAM image of {point.name}, 0 MiB\n"
    xml = (point.directory / "domain.xml").read_text()
    assert target.read_bytes() == libvirt_image(xml, fitting({"vda": OLD}))
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("stored", STORED)
def test_guest_of_level_paused_runs_when_it_is_loaded(
    scene_run: Run, scene: Scene, tmp_path: Path, stored: str
) -> None:
    point = scene.point(running=False, level=ConsistencyLevel.PAUSED, **STORED[stored])
    target = tmp_path / "web.img"
    assert scene_run("export-memory", WEB, str(target))[0] == 0
    xml = (point.directory / "domain.xml").read_text()
    assert target.read_bytes() == libvirt_image(xml, fitting({"vda": OLD}), running=True)


def test_paused_guest_of_level_memory_stays_paused(
    scene_run: Run, scene: Scene, tmp_path: Path
) -> None:
    point = scene.point(running=False)
    target = tmp_path / "web.img"
    assert scene_run("export-memory", WEB, str(target))[0] == 0
    xml = (point.directory / "domain.xml").read_text()
    assert target.read_bytes() == libvirt_image(xml, fitting({"vda": OLD}), running=False)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("-", "written into a file, not to a pipe"),
        ("there", "there exists already, and is not overwritten"),
        ("dangling", "dangling exists already, and is not overwritten"),
        (".", "exists already, and is not overwritten"),
        ("nowhere/web.img", "nowhere is no directory"),
    ],
)
def test_what_cannot_be_the_file(
    scene_run: Run, scene: Scene, tmp_path: Path, file: str, says: str
) -> None:
    scene.point()
    (tmp_path / "there").write_text("precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    given = file if file == "-" else str(tmp_path / file)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = scene_run("export-memory", WEB, given)
    assert (code, out) == (2, "")
    assert says in " ".join(err.split())
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there").read_text() == "precious"


def test_a_point_without_ram(scene_run: Run, scene: Scene, tmp_path: Path) -> None:
    point = scene.point(memory=False, reason="no room")
    code, _, err = scene_run("export-memory", WEB, str(tmp_path / "web.img"))
    assert code == 1
    assert f"{point.name}: has no RAM image: no room" in err
    assert not (tmp_path / "web.img").exists()


def test_no_room(
    scene_run: Run, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.point()
    monkeypatch.setattr(shutil, "disk_usage", lambda _directory: SimpleNamespace(free=5))
    code, _, err = scene_run("export-memory", WEB, str(tmp_path / "web.img"))
    assert code == 1 and f"{tmp_path} has 0 MiB free" in err
    assert not (tmp_path / "web.img").exists()


@pytest.mark.parametrize("name", ["memory.pages", "memory.rest"])
def test_a_damaged_image(scene_run: Run, scene: Scene, tmp_path: Path, name: str) -> None:
    file = scene.point().directory / name
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    code, _, err = scene_run("export-memory", WEB, str(tmp_path / "web.img"))
    assert code == 1 and name in err and "damaged" in err
    assert not [path for path in tmp_path.iterdir() if "web.img" in path.name]
