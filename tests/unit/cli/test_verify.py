import json
from collections.abc import Callable

import pytest

from tests.fakes.restore_scene import NAME, Scene

Run = Callable[..., tuple[int, str, str]]
WEB = f"web@{NAME}"


def test_verify(scene_run: Run, scene: Scene) -> None:
    point = scene.point()
    good = f"{point.name}: good: its files have their checksums, and its snapshots exist\n"
    for which in ([], ["web"], [WEB], ["web@latest"]):
        assert scene_run("verify", *which)[:2] == (0, good)
    code, out, _ = scene_run("verify", "--json")
    report = json.loads(out)
    assert (code, list(report["points"]), report["damaged"]) == (0, [point.name], [])
    assert report["points"][point.name]["why"] == ""
    (point.directory / "memory.img").unlink()
    code, out, _ = scene_run("verify", "web")
    assert (code, out.startswith(f"{point.name}: FAILED: ")) == (1, True)
    assert json.loads(scene_run("verify", "--json")[1])["points"][point.name]["why"]
    assert scene.world.acts == []


def test_verify_reports_damaged_points(scene_run: Run, scene: Scene) -> None:
    point = scene.point()
    (point.directory / "manifest.json").write_text("{")
    for which in ([], ["web"]):
        code, out, _ = scene_run("verify", *which)
        assert (code, out.startswith("damaged: ")) == (1, True)
        code, out, _ = scene_run("verify", "--json", *which)
        report = json.loads(out)
        assert (code, report["points"], len(report["damaged"])) == (1, {}, 1)


@pytest.mark.parametrize("option", [["--boot"], ["--expect-command", "true"]])
def test_verify_by_starting_a_clone(scene_run: Run, scene: Scene, option: list[str]) -> None:
    point = scene.point()
    code, out, _ = scene_run("verify", *option, WEB)
    assert code == 1
    assert out.startswith(f"{point.name}: FAILED: its clone was started, but did nothing for")
    assert [guest.name for guest in scene.host.guests()] == ["web"]
