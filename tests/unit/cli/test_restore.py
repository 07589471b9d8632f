import os
import re
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
import typer

from tests.fakes.guest import UUID
from tests.fakes.restore_scene import DATASET, NAME, Scene
from zvmsnap.cli.restore import Shown, bring_back
from zvmsnap.common.errors import LockTimeout, RestoreFailed
from zvmsnap.common.lockfile import lock
from zvmsnap.points import memory_image, vault
from zvmsnap.ram import check
from zvmsnap.restore import plan
from zvmsnap.restore.observe import observe as observe_host

Run = Callable[..., tuple[int, str, str]]
WEB = f"web@{NAME}"


def test_restore(scene_run: Run, scene: Scene) -> None:
    point = scene.point()
    code, out, err = scene_run("restore", "--yes", WEB)
    assert (code, out.splitlines()[0]) == (0, f"restore {point.name}:")
    assert "web@" in err.splitlines()[-1] and err.endswith(" is back: web is running\n")
    assert scene.world.loaded == ["old"]


def test_what_was_said_is_what_is_done(
    scene_run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock goes on between plan and deed, as while somebody reads what is asked."""
    scene.point()
    times = (datetime.now(UTC) + timedelta(minutes=number) for number in count())

    class Passing(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return next(times)

    monkeypatch.setattr(plan, "datetime", Passing)
    _, out, err = scene_run("restore", "--yes", WEB)
    (safety,) = re.findall(r"becomes the point (web@\S+)", out)
    (before,) = re.findall(r"are on (\S+) afterwards", out)
    assert before in scene.world.pool
    (made,) = [point for point in vault.all_in(scene.config.vault_dir)[0] if "safety" in point.name]
    assert made.name == safety
    assert made.manifest.snapshots[0].current_dataset == before
    assert f"point {safety}" in err


@pytest.mark.parametrize(
    ("options", "change", "says"),
    [
        (
            ["--rollback"],
            lambda scene: scene.world.snap(f"{DATASET}@later"),
            f"now it would be: DESTROYS snapshot {DATASET}@later: look at it again",
        ),
        (
            [],
            lambda scene: scene.guest.destroy(),
            "now it would be: ",
        ),
        (
            [],
            lambda scene: scene.world.add(f"{DATASET}/notes"),
            "something about the guest or its datasets has changed: look at it again",
        ),
    ],
    ids=["a snapshot more", "shut off", "a dataset below"],
)
def test_plan_that_does_not_fit_any_more_is_refused(
    scene_run: Run,
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    change: Callable[[Scene], object],
    says: str,
) -> None:
    scene.point()

    class Terminal:
        def isatty(self) -> bool:
            return True

    def confirm(text: str, abort: bool) -> None:
        change(scene)
        scene.world.acts.clear()
        scene.guest.calls.clear()

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(typer, "confirm", confirm)
    code, _, err = scene_run("restore", *options, WEB)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "web: the plan does not fit any more" in err and says in err
    assert (scene.world.acts, scene.operations(), scene.guest.calls) == ([], [], [])


@pytest.mark.parametrize(("options", "times"), [(["--yes"], 1), ([], 2), (["--dry-run"], 1)])
def test_planned_once_unless_somebody_is_asked(
    scene_run: Run,
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    times: int,
) -> None:
    scene.point()
    observed: list[object] = []
    observe = observe_host

    def observing(*arguments: Any, **options: Any) -> object:
        observed.append(lock_is_held(scene))
        return observe(*arguments, **options)

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(plan, "observe", observing)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(typer, "confirm", lambda *_, **__: True)
    assert scene_run("restore", *options, WEB)[0] == 0
    assert len(observed) == times
    # What is carried out was planned under the guest's lock.
    assert observed[-1] is ("--dry-run" not in options)


def lock_is_held(scene: Scene) -> bool:
    try:
        with lock(scene.config.locks_dir, UUID, "test", 0):
            return False
    except LockTimeout:
        return True


def test_dry_run(scene_run: Run, scene: Scene) -> None:
    scene.point()
    for options in ([], ["--yes"], ["--rollback"], ["--cold"], ["--no-safety", "--paused"]):
        code, out, _ = scene_run("restore", "--dry-run", *options, WEB)
        assert (code, len(out.splitlines()) > 2) == (0, True)
    runs, paused = (
        scene_run("restore", "-n", *options, WEB)[1].splitlines()[-1]
        for options in ([], ["--paused"])
    )
    assert runs != paused
    assert (scene.world.acts, scene.operations(), scene.staged()) == ([], [], [])
    assert scene.guest.calls == []


def test_no_terminal_to_ask_on(scene_run: Run, scene: Scene) -> None:
    scene.point()
    code, out, err = scene_run("restore", WEB)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "say --yes to do this, --dry-run to only see it" in err
    assert f"holds tank/web@{NAME} again" in out
    assert scene.world.acts == []


@pytest.mark.parametrize("agrees", [True, False])
def test_a_no_on_the_terminal(
    scene_run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch, agrees: bool
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
    assert scene_run("restore", WEB)[0] == (0 if agrees else 1)
    assert bool(scene.world.acts) is agrees


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["restore", "--yes", "web@nothing"], 2, "no such point; the last of"),
        (["restore", "--yes", "nobody@latest"], 2, "nobody has no point"),
        (["restore"], 2, "Missing argument"),
        (["clone", WEB], 2, "say NEWNAME for the clone"),
        (["clone", "--destroy", "w2", "w3"], 2, "say only the clone's name"),
        (["clone", "web@nothing", "w2"], 2, "no such point; the last of"),
        (["clone", WEB, "web"], 1, "web: there is a guest of that name already"),
        (["clone", WEB, "a/b"], 1, "no name for a clone"),
        (["clone", "--network", "all", WEB, "w2"], 2, "Invalid value"),
        (["clone", "--destroy", "w2"], 2, "w2: there is no clone of that name"),
        (["clone", "--destroy", "web"], 1, "this guest is no clone that zvmsnap made"),
        (["verify", "web@nothing"], 2, "no such point; the last of"),
        (["verify", "nobody"], 2, "nobody: has no point"),
    ],
)
def test_errors_that_change_nothing(
    scene_run: Run, scene: Scene, arguments: list[str], code: int, says: str
) -> None:
    scene.point()
    exit_code, _, err = scene_run(*arguments)
    assert (exit_code, says in err) == (code, True), err
    assert scene.world.acts == []
    assert scene.guest.calls == []


def test_failures_exit_1_with_one_line(scene_run: Run, scene: Scene) -> None:
    point = scene.point()
    scene.world.errors = {(0, "before")}
    code, _, err = scene_run("restore", "--yes", WEB)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "All is as it was: web is running" in err
    path = point.directory / "memory.pages"
    path.write_bytes(path.read_bytes()[:-1])
    for arguments in (["restore", "--yes", WEB], ["clone", WEB, "w2"]):
        scene.world.acts.clear()
        code, _, err = scene_run(*arguments)
        assert (code, len(err.splitlines()), scene.world.acts) == (1, 1, [])
        assert "it is damaged" in err
    assert scene_run("restore", "--dry-run", "--cold", WEB)[0] == 0


@pytest.mark.parametrize(
    ("options", "file"),
    [
        (["--dry-run"], "memory.pages"),
        (["--dry-run"], "memory.rest"),
        (["--yes"], "memory.rest"),
        (["--yes", "--no-safety"], "memory.rest"),
    ],
)
def test_damaged_image_touches_nothing(
    scene_run: Run, scene: Scene, options: list[str], file: str
) -> None:
    """Though it may be found only when the plan is made: the image is read meanwhile."""
    point = scene.point()
    with (point.directory / file).open("r+b") as damaged:
        damaged.seek(-1, os.SEEK_END)
        damaged.write(b"?")
    scene.world.acts.clear()
    code, out, err = scene_run("restore", *options, WEB)
    assert (code, out) == (1, "")
    damaged_file = f"{file} of {point.directory}"
    assert err.endswith(f"{damaged_file} does not match its checksum: it is damaged\n")
    assert (scene.world.acts, scene.operations(), scene.guest.calls) == ([], [], [])


@pytest.mark.parametrize("options", [[], ["--no-safety"], ["--rollback"]])
def test_damaged_pages_stop_no_guest(scene_run: Run, scene: Scene, options: list[str]) -> None:
    """They are checked as they are put together."""
    point = scene.point()
    with (point.directory / "memory.pages").open("r+b") as file:
        file.write(b"?")
    before = scene.world.summary()
    code, _, err = scene_run("restore", "--yes", *options, WEB)
    pages = f"memory.pages of {point.directory}"
    says = f"{pages} does not match its checksum: it is damaged. All is as it was: web is running\n"
    assert code == 1
    assert err.endswith(says)
    assert (scene.world.summary(), scene.world.loaded) == (before, [])
    assert (scene.operations(), scene.staged(), scene.guest.calls) == ([], [], [])


@pytest.mark.parametrize("words", [["restore", "--yes", WEB], ["clone", WEB, "w2"]])
def test_pages_are_read_once(
    scene_run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    point = scene.point()
    read = []
    preadv = os.preadv

    def counted(file: int, *arguments: Any) -> int:
        read.append(os.readlink(f"/proc/self/fd/{file}"))
        return preadv(file, *arguments)

    monkeypatch.setattr(os, "preadv", counted)
    monkeypatch.setattr(check, "read_all", pytest.fail)
    assert scene_run(*words)[0] == 0
    assert read == [str(point.directory / "memory.pages")]


def test_image_is_checked_while_the_restore_is_planned(
    scene_run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not taken apart, as libvirt will load that file."""
    scene.point(plain=True)
    is_planned = threading.Event()
    check_all = memory_image.check

    def check_late(*arguments: Any) -> Any:
        assert is_planned.wait(60)
        return check_all(*arguments)

    def observing(*arguments: Any, **options: Any) -> object:
        is_planned.set()
        return observe_host(*arguments, **options)

    monkeypatch.setattr(memory_image, "check", check_late)
    monkeypatch.setattr(plan, "observe", observing)
    code, _, _ = scene_run("restore", "--yes", WEB)
    assert (code, scene.world.loaded) == (0, ["old"])


@pytest.mark.parametrize("damaged", [False, True])
def test_a_fetched_point_is_brought_back(scene: Scene, damaged: bool) -> None:
    point = scene.point()
    if damaged:
        with (point.directory / "memory.pages").open("r+b") as file:
            file.write(b"?")
    before = scene.world.summary()
    expected = pytest.raises(RestoreFailed, match="damaged") if damaged else nullcontext()
    with expected:
        shown = Shown(as_json=False)
        bring_back(scene.config, scene.host, point, shown, cold=False, paused=False, trust=False)
    assert scene.world.loaded == ([] if damaged else ["old"])
    assert (scene.world.summary() == before) is damaged
