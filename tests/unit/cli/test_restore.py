import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from tests.fakes.restore_scene import NAME, Scene, set_scene
from zvmsnap.clone import destroy, verify
from zvmsnap.common.process import Process
from zvmsnap.config.settings import Config
from zvmsnap.journal.operation import CloneOperation, Operations, StartState
from zvmsnap.points import compatibility
from zvmsnap.points.manifest import Manifest

Run = Callable[..., tuple[int, str, str]]
WEB = f"web@{NAME}"


@pytest.fixture
def scene(
    config: Config,
    tmp_path: Path,
    manifest: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    monkeypatch.setattr(destroy, "_RELEASED_AFTER_S", 0)
    monkeypatch.setattr(compatibility, "available_memory_bytes", lambda: 1 << 30)
    monkeypatch.setattr(verify, "_LIVES_WITHIN_S", 0.01)
    monkeypatch.setattr(verify, "_LOOK_EVERY_S", 0.001)
    found = set_scene(config, tmp_path / "pools", manifest, monkeypatch)
    found.host.install(monkeypatch)
    return found


@pytest.fixture
def run(
    scene: Scene,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Run,
) -> Run:
    conf = tmp_path / "config.toml"
    keys = ("staging", "vault", "journal", "locks")
    conf.write_text("".join(f'{key} = "{getattr(config, key)}"\n' for key in keys))
    monkeypatch.setenv("ZVMSNAP_CONFIG", str(conf))

    return command


def test_restore(run: Run, scene: Scene) -> None:
    point = scene.point()
    code, out, err = run("restore", "--yes", WEB)
    assert (code, out.splitlines()[0]) == (0, f"restore {point.name}:")
    assert "web@" in err.splitlines()[-1] and err.endswith(" is back: web is running\n")
    assert scene.world.loaded == ["then"]


def test_dry_run_says_what_would_be_done_and_does_nothing(run: Run, scene: Scene) -> None:
    scene.point()
    for options in ([], ["--yes"], ["--rollback"], ["--cold"], ["--no-safety", "--paused"]):
        code, out, _ = run("restore", "--dry-run", *options, WEB)
        assert (code, len(out.splitlines()) > 2) == (0, True)
    assert run("restore", "-n", "--paused", WEB)[1].splitlines()[-1].endswith("stands still")
    assert (scene.world.acts, scene.tasks(), scene.staged()) == ([], [], [])
    assert scene.guest.calls == []


def test_nobody_to_ask(run: Run, scene: Scene) -> None:
    scene.point()
    code, out, err = run("restore", WEB)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "say --yes to do this, --dry-run to only see it" in err
    assert f"holds tank/web@{NAME} again" in out
    assert scene.world.acts == []


@pytest.mark.parametrize("agrees", [True, False])
def test_who_is_asked_may_say_no(
    run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch, agrees: bool
) -> None:
    scene.point()

    class Terminal:
        def isatty(self) -> bool:
            return True

    def confirm(text: str, abort: bool) -> None:
        assert (text, abort) == ("Do it?", True)
        if not agrees:
            raise typer.Abort

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(typer, "confirm", confirm)
    assert run("restore", WEB)[0] == (0 if agrees else 1)
    assert bool(scene.world.acts) is agrees


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["restore", "--yes", "web@nothing"], 2, "there is no such point"),
        (["restore", "--yes", "nobody@latest"], 2, "nobody has no point"),
        (["restore"], 2, "Missing argument"),
        (["clone", WEB], 2, "say NEWNAME for the clone"),
        (["clone", "--destroy", "w2", "w3"], 2, "say only the clone's name"),
        (["clone", "web@nothing", "w2"], 2, "there is no such point"),
        (["clone", WEB, "web"], 1, "web: there is a guest of that name already"),
        (["clone", WEB, "a/b"], 1, "no name for a clone"),
        (["clone", "--network", "all", WEB, "w2"], 2, "Invalid value"),
        (["clone", "--destroy", "w2"], 2, "w2: there is no clone of that name"),
        (["clone", "--destroy", "web"], 1, "this guest is no clone that zvmsnap made"),
        (["verify", "web@nothing"], 2, "there is no such point"),
        (["verify", "nobody"], 2, "nobody: has no point"),
    ],
)
def test_what_cannot_be_is_told(
    run: Run, scene: Scene, arguments: list[str], code: int, says: str
) -> None:
    scene.point()
    found, _, err = run(*arguments)
    assert (found, says in err) == (code, True), err
    assert scene.world.acts == []
    assert scene.guest.calls == []


def test_failures_exit_1_with_one_line(run: Run, scene: Scene) -> None:
    point = scene.point()
    scene.world.errors = {(0, "before")}
    code, _, err = run("restore", "--yes", WEB)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "All is as it was: web is running" in err
    path = point.directory / "memory.img"
    path.write_bytes(path.read_bytes()[:-1])
    for arguments in (["restore", "--yes", WEB], ["clone", WEB, "w2"]):
        scene.world.acts.clear()
        code, _, err = run(*arguments)
        assert (code, len(err.splitlines()), scene.world.acts) == (1, 1, [])
        assert "it is damaged" in err
    assert run("restore", "--dry-run", "--cold", WEB)[0] == 0


def test_clone_and_its_end(run: Run, scene: Scene) -> None:
    point = scene.point()
    code, out, _ = run("clone", WEB, "w2")
    assert (code, out) == (0, f"w2: running, a clone of {point.name}\n")
    assert run("clone", "--destroy", "w2")[:2] == (0, "destroyed tank/w2\n")
    assert run("clone", "--cold", "--paused", WEB, "w2")[1].startswith("w2: paused")
    assert [guest.name for guest in scene.host.guests()] == ["web", "w2"]


def test_verify(run: Run, scene: Scene) -> None:
    point = scene.point()
    whole = f"{point.name}: whole: files, checksums and snapshots are there\n"
    for which in ([], ["web"], [WEB], ["web@latest"]):
        assert run("verify", *which)[:2] == (0, whole)
    code, out, _ = run("verify", "--json")
    said = json.loads(out)
    assert (code, list(said["points"]), said["damaged"]) == (0, [point.name], [])
    assert said["points"][point.name]["why"] == ""
    (point.directory / "memory.img").unlink()
    code, out, _ = run("verify", "web")
    assert (code, out.startswith(f"{point.name}: FAILED: ")) == (1, True)
    assert json.loads(run("verify", "--json")[1])["points"][point.name]["why"]
    assert scene.world.acts == []


def test_verify_tells_of_damaged_points(run: Run, scene: Scene) -> None:
    point = scene.point()
    (point.directory / "manifest.json").write_text("{")
    for which in ([], ["web"]):
        code, out, _ = run("verify", *which)
        assert (code, out.startswith("damaged: ")) == (1, True)
        code, out, _ = run("verify", "--json", *which)
        said = json.loads(out)
        assert (code, said["points"], len(said["damaged"])) == (1, {}, 1)


@pytest.mark.parametrize("option", [["--boot"], ["--expect-command", "true"]])
def test_verify_by_starting_it(run: Run, scene: Scene, option: list[str]) -> None:
    point = scene.point()
    code, out, _ = run("verify", *option, WEB)
    assert code == 1
    assert out.startswith(f"{point.name}: FAILED: its clone was started, but did nothing for")
    assert [guest.name for guest in scene.host.guests()] == ["web"]


def test_list_shows_verdicts_and_tasks(run: Run, scene: Scene) -> None:
    point = scene.point()
    run("verify")
    heading, line = run("list")[1].splitlines()
    assert line[heading.index("VERIFIED") :].startswith("read ")
    (point.directory / "memory.img").unlink()
    run("verify")
    assert "FAILED " in run("list")[1]
    assert json.loads(run("list", "--json")[1])["points"][0]["verified"]["why"]
    task = CloneOperation(
        domain="w2",
        uuid=scene.guest.uuid,
        point=point.name,
        directory=str(point.directory),
        owner=Process.of(os.getpid()),
        step="disks",
        memory=True,
        start_state=StartState.RUNNING,
        capture=f"{scene.guest.uuid}.00000001",
        network="none",
    )
    Operations(scene.config.journal_dir).write(task)
    under_way = f"w2: clone of {point.name} is under way at step disks (pid {os.getpid()})"
    assert run("list", "w2")[1].splitlines()[-1] == under_way
    assert json.loads(run("list", "--json")[1])["interrupted"] == [under_way]
