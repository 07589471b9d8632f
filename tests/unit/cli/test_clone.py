from collections.abc import Callable

from tests.fakes.restore_scene import NAME, Scene

Run = Callable[..., tuple[int, str, str]]
WEB = f"web@{NAME}"


def test_clone_and_destroy(scene_run: Run, scene: Scene) -> None:
    point = scene.point()
    code, out, _ = scene_run("clone", WEB, "w2")
    assert (code, out) == (0, f"w2: running, a clone of {point.name}\n")
    assert scene_run("clone", "--destroy", "w2")[:2] == (0, "destroyed tank/w2\n")
    assert scene_run("clone", "--cold", "--paused", WEB, "w2")[1].startswith("w2: paused")
    assert [guest.name for guest in scene.host.guests()] == ["web", "w2"]
