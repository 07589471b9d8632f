import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.fakes.clone_scene import make
from tests.fakes.restore_scene import NAME, Scene
from zvmsnap.cli.verify import boot_each
from zvmsnap.clone import verify
from zvmsnap.clone.plan import CloneOptions, plan_clone
from zvmsnap.common.process import Process
from zvmsnap.journal.operation import Operations
from zvmsnap.points import vault, verify_result
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.verify_result import VerifyResult

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
    (point.directory / "memory.pages").unlink()
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


@pytest.mark.parametrize("options", [[], ["--boot"]])
def test_point_that_is_removed_meanwhile(
    scene_run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    first = scene.point()
    second = scene.point(run="autosnap_2026-11-20_04:00:00")
    check = "boot" if options else "check_files"

    def overtaken(*words: Any, **_options: Any) -> VerifyResult:
        (point,) = (word for word in words if isinstance(word, RestorePoint))
        if point == first:
            vault.remove(first)
        result = VerifyResult(checked="2026-11-21T00:00:00+00:00", booted=bool(options))
        verify_result.keep(point, result)
        return result

    monkeypatch.setattr(verify, check, overtaken)
    assert scene_run("verify", *options)[0] == 0
    scene.point()
    code, out, _ = scene_run("verify", *options)
    assert (code, [line.partition(":")[0] for line in lines_of(out)]) == (
        0,
        [second.name.partition(":")[0], first.name.partition(":")[0]],
    )
    assert lines_of(out)[1] == f"{first.name}: was removed meanwhile"
    scene.point()
    report = json.loads(scene_run("verify", "--json", *options)[1])
    assert (list(report["points"]), report["removed_meanwhile"]) == ([second.name], [first.name])
    # Of one that was named, nothing is known.
    scene.point()
    assert scene_run("verify", *options, first.name)[0] == 1


def test_point_whose_snapshots_are_pruned_while_it_is_started(
    scene_run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The point is removed an instant later, by the pruning hook."""
    point = scene.point()

    def pruned(*words: Any) -> Any:
        scene.world.pool_snapshots.clear()
        return plan_clone(*words)

    monkeypatch.setattr(verify, "plan_clone", pruned)
    assert scene_run("verify", "--boot") == (0, f"{point.name}: was removed meanwhile\n", "")
    # One that had none before is bad.
    code, out, _ = scene_run("verify", "--boot")
    assert code == 1 and out.startswith(f"{point.name}: FAILED: {point.name}: has no snapshot")


def lines_of(out: str) -> list[str]:
    return out.splitlines()


@pytest.mark.parametrize("options", [[], ["--boot"]])
def test_verify_removes_the_clone_of_one_that_was_killed(
    scene_run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    point = scene.point()
    left = f"{verify.CLONES}00000001"
    operations = {}
    for name in (left, "w2"):
        operation = make(scene, point, CloneOptions(name))
        operations[name] = msgspec.structs.replace(
            operation, step="resume", owner=Process(4711, 815, "another-boot")
        )
        Operations(scene.config.journal_dir).write(operations[name])
    monkeypatch.setattr(verify, "boot", lambda *_, **__: VerifyResult(checked="", booted=True))
    assert scene_run("verify", *options)[0] == 0
    # What is no clone of verify is left to `zvmsnap recover`.
    assert scene.operations() == [operations["w2"]]
    assert [guest.name for guest in scene.host.guests()] == ["web", "w2"]
    assert f"tank/{left}" not in scene.world.pool


def test_points_that_were_just_taken(scene_run: Run, scene: Scene) -> None:
    point = scene.point()
    results = boot_each(scene.config, [point])
    assert list(results) == [point.name]
    assert "its clone was started, but did nothing for" in results[point.name].why
    assert [guest.name for guest in scene.host.guests()] == ["web"]
