import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes.guest import FakeGuest
from tests.fakes.guestfs_module import FakeMachine
from tests.fakes.host import FakeHost
from tests.fakes.restore_scene import NAME, Scene
from zvmsnap.files import ending, opening, plan
from zvmsnap.files.keeper import Opened
from zvmsnap.files.record import View

Run = Callable[..., tuple[int, str, str]]
WEB = f"web@{NAME}"


@pytest.fixture
def guest_files(tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is seen of the point while it is open."""
    scene.point()
    top = tmp_path / "guest"
    (top / "etc").mkdir(parents=True)
    (top / "etc" / "a\x1b[2J").write_text("abc")
    (top / "etc" / "shadow").symlink_to("/etc/shadow")
    monkeypatch.setitem(sys.modules, "guestfs", FakeMachine().library())
    planned = plan.plan_view

    @contextmanager
    def opened(view: View) -> Iterator[Opened]:
        assert view.mountpoint == str(top)
        yield Opened(places=("/",), left_out=("vdb is left out: why",), size_bytes=1 << 20)

    def at_top(*arguments: object, **options: bool) -> View:
        return planned(scene.config, arguments[1], top, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(opening, "opened", opened)
    monkeypatch.setattr(plan, "plan_view", at_top)
    return top


def test_a_listing(scene_run: Run, guest_files: Path) -> None:
    code, out, err = scene_run("files", WEB, "/etc")
    assert code == 0 and "vdb is left out: why" in err
    assert [line.split()[0] for line in out.splitlines()] == ["file", "symlink"]
    assert "a\\x1b[2J" in out and "\x1b" not in out
    code, out, _ = scene_run("files", WEB, "/etc", "--json")
    told = json.loads(out)
    assert (told["path"], told["entries"][0]["name"]) == ("/etc", "a\x1b[2J")
    assert scene_run("files", WEB, "/no")[0] == 1


def test_a_copy(scene_run: Run, guest_files: Path, tmp_path: Path) -> None:
    out_dir = tmp_path / "out"
    code, out, err = scene_run("files", WEB, "/etc", "--to", str(out_dir))
    assert (code, out) == (0, f"{out_dir}/etc: 1 files, 3 bytes, 1 left out, 0 not copied\n")
    assert "left out: etc/shadow: is a symlink" in err
    assert [path.name for path in (out_dir / "etc").iterdir()] == ["a\x1b[2J"]
    code, _, err = scene_run("files", WEB, "/etc", "--to", str(out_dir))
    assert code == 1 and "exists already" in err


def test_mount_and_off(
    scene_run: Run, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = scene.point().name
    directory = tmp_path / "mnt"
    directory.mkdir()
    monkeypatch.setitem(sys.modules, "guestfs", FakeMachine().library())
    views: list[View] = []

    def leave_open(view: View) -> Opened:
        views.append(view)
        return Opened()

    monkeypatch.setattr(opening, "leave_open", leave_open)
    monkeypatch.setattr(opening, "close", lambda config, at: f"{at} of web")
    code, out, _ = scene_run("mount", "--by-device", WEB, str(directory))
    assert (code, out) == (0, f"{directory}: {name}, until zvmsnap mount --off {directory}\n")
    assert (views[0].mountpoint, views[0].by_device) == (str(directory), True)
    assert scene_run("mount", "--off", str(directory))[:2] == (
        0,
        f"{directory}: unmounted, it was {directory} of web\n",
    )
    assert scene_run("mount", WEB)[0] == scene_run("mount", "--off", WEB, "/mnt")[0] == 2


def test_without_libguestfs(scene_run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "guestfs", None)
    code, _, err = scene_run("files", WEB)
    assert code == 2 and "apt install python3-guestfs" in err


def test_what_is_left_of_others_is_told(
    scene_run: Run, guest_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "tidy", lambda config: ["the view of web@x: busy"])
    assert "the view of web@x: busy" in scene_run("files", WEB)[2]


@pytest.fixture
def formats(guest: FakeGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        guest, "format_of", lambda source: "raw" if source.endswith(".raw") else "qcow2"
    )


def test_flatten(run: Run, host: FakeHost, guest: FakeGuest, tmp_path: Path, formats: None) -> None:
    base = guest.live["vda"]
    assert run("flatten", "web")[:2] == (0, "web: no disk is on a chain of images\n")
    top = str(guest.on_overlay("vda", tmp_path / "left\u202e"))
    said = f"vda: 2 images become {base}:\n  {tmp_path}/left\\u202e\n  {base}\n"
    assert run("flatten", "web", "--dry-run")[:2] == (0, said)
    code, out, err = run("flatten", "web")
    assert (code, out) == (2, said) and "--yes" in err and guest.live["vda"] == top
    code, out, _ = run("flatten", guest.uuid, "--yes")
    left = f"vda: is on {base} alone; not needed any more:\n  {tmp_path}/left\\u202e\n"
    assert (code, out, guest.live["vda"]) == (0, said + left, base)


def test_which_disk_and_which_guest(
    run: Run, host: FakeHost, guest: FakeGuest, tmp_path: Path, formats: None
) -> None:
    guest.on_overlay("vda", tmp_path / "left")
    assert run("flatten", "w9")[0] == 2
    code, _, err = run("flatten", "web", "--disk", "vdz", "-n")
    assert code == 1 and "has no disk vdz" in err
    assert (
        "become " + str(tmp_path / "left")
        in run(*("flatten", "web", "--disk", "vda", "--method", "pull", "-n"))[1]
    )
