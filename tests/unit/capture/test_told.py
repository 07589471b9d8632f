"""What programs of the administrator hear of a guest that pre has captured at less, or not."""

import json
from pathlib import Path
from typing import Any

from tests.fakes.capture_scene import Scene, no_dump


def noted(scene: Scene) -> list[dict[str, Any]]:
    folder = Path(scene.config.locks) / "notices"
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def said(scene: Scene) -> list[tuple[str, str, str, str]]:
    return [(each["kind"], each["guest"], each["level"], each["wanted"]) for each in noted(scene)]


def test_a_level_that_failed(scene: Scene) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": "memory,crash"}
    no_dump(scene, guest)
    scene.pre()
    assert said(scene) == []  # the mode allows less
    scene.modes["tank/web"] = {"": "memory"}
    scene.host.known.clear()
    no_dump(scene, scene.add("db", "c0ffee00-0000-4000-8000-00000000000d"))
    scene.modes = {"tank/db": {"": "memory"}}
    assert not scene.pre()
    assert said(scene) == [("level", "db", "crash", "memory")]
    assert noted(scene)[0]["error"] and noted(scene)[0]["cause"]


def test_no_point_as_less_is_not_wanted(scene: Scene) -> None:
    guest = scene.add()
    scene.modes["tank/web"] = {"": "memory,required"}
    no_dump(scene, guest)
    assert not scene.pre()
    assert said(scene) == [("no-point", "web", "", "memory,required")]


def test_nothing_is_told_of_what_is_well(scene: Scene) -> None:
    scene.add()
    assert scene.pre()
    assert said(scene) == []
