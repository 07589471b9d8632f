"""JSON of every command is as docs/reference/json.md says; the fixture `command` checks each."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import typer

from tests.fakes import json_documents
from tests.fakes.restore_scene import NAME, Scene
from zvmsnap.capture.take import TakePlan
from zvmsnap.cli import main
from zvmsnap.cli.restore import Shown, tell_restored
from zvmsnap.cli.take import TakeReport
from zvmsnap.points.manifest import Manifest
from zvmsnap.points.point import RestorePoint
from zvmsnap.replication.send_report import DatasetReport, PointReport, SendReport, UnitReport
from zvmsnap.terminal.options import print_json

Run = Callable[..., tuple[int, str, str]]
WEB = f"web@{NAME}"


def test_every_command_with_json_has_its_section() -> None:
    commands, _ = json_documents.tables()
    group = typer.main.get_command(main.app_of())
    having = {
        name
        for name, command in group.commands.items()  # type: ignore[attr-defined]
        if any("--json" in each.opts for each in command.params)
    }
    assert having == {name for name in commands if " " not in name}


def test_a_restore(scene_run: Run, scene: Scene) -> None:
    point = scene.point()
    for words, is_dry in ((("--dry-run",), True), (("--yes",), False)):
        code, out, _ = scene_run("restore", "--json", *words, WEB)
        said = json.loads(out)
        assert (code, said["point"], said["dry_run"]) == (0, point.name, is_dry)
        assert said["guest"] == "web" and said["plan"]
    assert scene.world.loaded == ["old"]


def test_nothing_is_asked(scene_run: Run, scene: Scene) -> None:
    scene.point()
    for command in ("restore", "drop"):
        code, out, err = scene_run(command, "--json", WEB)
        assert (code, out) == (2, "") and "--yes" in err
    assert scene.world.loaded == []


def test_a_clone(scene_run: Run, scene: Scene) -> None:
    point = scene.point()
    made = json.loads(scene_run("clone", "--json", WEB, "w2")[1])["created"]
    assert (made["name"], made["point"], made["state"]) == ("w2", point.name, "running")
    said = json.loads(scene_run("clone", "--json", "--destroy", "w2")[1])
    assert (said["created"], said["destroyed"]) == (None, ["tank/w2"])


def test_an_export(scene_run: Run, scene: Scene, tmp_path: Path) -> None:
    point = scene.point()
    file = tmp_path / "web.img"
    said = json.loads(scene_run("export-memory", "--json", WEB, str(file))[1])
    assert (said["point"], said["file"]) == (point.name, str(file))
    assert said["size_bytes"] == file.stat().st_size


def test_what_only_reads(scene_run: Run, scene: Scene) -> None:
    scene.point()
    for words in (["list"], ["verify"], ["list"]):
        code, out, _ = scene_run(*words, "--json")
        assert code == 0 and json.loads(out)["json_version"] == 1


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Checks what was printed as that of a command."""

    def check(*arguments: str) -> None:
        json_documents.check(arguments, capsys.readouterr().out)

    return check


def test_what_needs_another_host(
    printed: Callable[..., None], manifest: Callable[..., Manifest]
) -> None:
    point = RestorePoint(Path("/v/web/x"), manifest())
    shown = Shown(as_json=True)
    shown.lines(["  a", "b"])
    tell_restored(point, shown, dry_run=True)
    printed("fetch")
    unit = UnitReport(
        domain="web",
        datasets=(
            DatasetReport(
                dataset="a", target="b", newest="c", since="", stream_bytes=1, raw=True, seconds=2.5
            ),
        ),
        points=(PointReport(name="web@x", memory_bytes=3),),
        points_bytes=4,
        error="",
    )
    report = SendReport(destination="d", units=(unit,))
    print_json({"dry_run": False, "sent": [msgspec.to_builtins(report)]})
    printed("send")
    print_json({"destination": "d", "forgotten": {"bookmarks": 1, "holds": 0, "statuses": 2}})
    printed("send", "--forget")
    plan = TakePlan(("web",), ("tank/web",), "x", ("u",))
    print_json(TakeReport(plan, [point], ["web@old"], dry_run=False).as_json())
    printed("take")


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"points": [], "interrupted": []}, ".damaged: is missing"),
        ({"points": [], "interrupted": [], "damaged": [], "x": 1}, ".x: is not described"),
        ({"points": [], "interrupted": [1], "damaged": []}, ".interrupted: 1 is no text"),
        ({"points": [{}], "interrupted": [], "damaged": []}, ".points.uuid: is missing"),
    ],
)
def test_what_is_not_described_is_found(document: dict[str, object], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        json_documents.check(("list",), json.dumps({"json_version": 1, **document}))
