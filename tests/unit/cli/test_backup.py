"""Command lines of `zvmsnap backup` and `zvmsnap import`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.backup_scene import Scene, skip_without_qemu_img
from tests.fakes.guest import OTHER, UUID, FakeGuest
from zvmsnap.config.settings import Config
from zvmsnap.points.manifest import Manifest
from zvmsnap.terminal import several

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def backups(
    configured: None,
    tmp_path: Path,
    config: Config,
    manifest: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    skip_without_qemu_img()
    return Scene(tmp_path, config, manifest, monkeypatch)


def test_from_a_point_and_back(backups: Scene, command: Run) -> None:
    target = str(backups.directory.path)
    backups.point("one", memory=True)
    code, out, _ = command("backup", "--from", "web@latest", target)
    name = "web@2026-11-20T030001Z"
    assert code == 0 and out.startswith(f"{name}  full  memory, with RAM  vda  ")
    backups.point("two")
    code, out, _ = command("backup", "--from", "web@two", target, "--json")
    (told,) = json.loads(out)["backups"]
    assert (code, told["level"], told["parent"]) == (0, "inc", name)
    assert command("backup", "list", target)[1].count("\n") == 2
    out = command("backup", "show", f"{target}/{told['name']}")[1]
    assert f"vda: vda.qcow2, 4 MiB, on that of {name} (all of it was compared)" in out
    code, out, _ = command("backup", "verify", target)
    assert (code, out) == (0, f"{name}: is whole\n{told['name']}: is whole\n")
    code, out, err = command(
        "import", f"{target}/{name}", "--as", "web2", "--to", "tank/vm", "--resume"
    )
    assert (code, out) == (0, f"web2: running, of {name}, in tank/vm/web2\n"), err


def test_several_at_once(backups: Scene, command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by a command of its own; the exit code is that of the worst."""
    backups.host.known.append(FakeGuest("db", OTHER))
    asked: list[list[str]] = []

    def instead(*words: str) -> list[str]:
        asked.append(list(words))
        name = "web" if UUID in words else "db"
        told = json.dumps({"backups": [{"name": f"{name}@x"}]}) if "--json" in words else name
        return [sys.executable, "-c", f"print({told!r}); raise SystemExit({2 * (name == 'db')})"]

    monkeypatch.setattr(several, "command", instead)
    target = str(backups.directory.path)
    code, out, err = command("backup", "--all-running", "--level", "full", "-x", "vdb", target)
    assert (code, out) == (2, "web\n") and "db: is not backed up (exit code 2)" in err
    assert asked[0] == ["backup", "--level=full", "--exclude=vdb", "make", UUID, target]
    code, out, _ = command("backup", "web", "db", target, "--json", "--crash", "--compress")
    assert json.loads(out)["backups"] == [{"name": "web@x"}]
    assert asked[-1] == ["backup", "--crash", "--compress", "--json", "make", OTHER, target]


def test_damage_is_told(backups: Scene, command: Run) -> None:
    target = str(backups.directory.path)
    backup = backups.back_up(backups.point("one"))
    (backup.directory / "vda.qcow2").write_bytes(b"")
    code, out, _ = command("backup", "verify", f"{target}/{backup.name}", "--json")
    assert code == 1
    problems = json.loads(out)["backups"][0]["problems"]
    assert problems[0].startswith("vda.qcow2 is 0 bytes long, not ")
    (backup.directory / "manifest.json").write_text("{")
    code, out, _ = command("backup", "list", target)
    assert code == 1 and out.startswith("DAMAGED: ")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["backup", "/backup"], "say GUEST..., or --all-running, or --from a point"),
        (["backup", "web", "/no/such"], "/no/such: is no directory"),
        (["backup", "list", "/a", "/b"], "list takes one directory"),
        (["backup", "list", "/a", "--compress"], "these options are not of list"),
        (["backup", "list"], "say the DIRECTORY of the backups"),
        (["backup", "web", "/b", "--quiesce", "--crash"], "say one of --quiesce"),
        (["import", "/b/x", "--to", "t", "--start", "--resume"], "say --start or --resume"),
        (["import", "/b/x", "--to", "t", "--network", "keep"], "--network is of --as"),
    ],
)
def test_usage(configured: None, command: Run, words: list[str], why: str) -> None:
    code, _, err = command(*words)
    assert code == 2 and why in err
