"""The two processes of a view: what one says to the other, and who ends what."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.fakes.guestfs_module import FakeMachine
from zvmsnap.common.errors import FilesImpossible
from zvmsnap.common.process import Process
from zvmsnap.config.settings import Config
from zvmsnap.files import ending, opening
from zvmsnap.files.keeper import Opened
from zvmsnap.files.record import View, Views

# Says what it was told: the view, the answer of argv[2], and what comes after that.
KEEPER = """
import sys
view = sys.stdin.readline()
print(sys.argv[2], flush=True)
said = view + sys.stdin.read() + "ended"
open(sys.argv[1], "w").write(said)
"""
Play = Callable[[Opened | str], Path]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Puts a process in place of the one that holds a view; returns the file that it writes."""

    def arrange(answer: Opened | str) -> Path:
        said = answer if isinstance(answer, str) else msgspec.json.encode(answer).decode()
        program = tmp_path / "keeper.py"
        program.write_text(KEEPER)
        words = [sys.executable, str(program), str(tmp_path / "told"), said]
        popen = subprocess.Popen

        def start(_words: object, **options: object) -> object:
            assert options.pop("start_new_session")
            return popen(words, **options)  # type: ignore[call-overload]

        monkeypatch.setattr(subprocess, "Popen", start)
        return tmp_path / "told"

    return arrange


def test_a_view_for_a_time_ends_with_it(play: Play, view: View) -> None:
    told = play(Opened(places=("/",), size_bytes=9))
    with opening.opened(view) as opened:
        assert (opened.places, opened.size_bytes) == (("/",), 9)
        assert not told.exists()
    first, rest = told.read_text().split("\n")
    assert msgspec.json.decode(first, type=View) == view and rest == "ended"


def test_a_view_that_stays_is_told_so(play: Play, view: View) -> None:
    told = play(Opened())
    opening.leave_open(view)
    while not told.exists() or not told.read_text().endswith("ended"):
        pass
    assert told.read_text().split("\n")[1:] == ["stay", "ended"]


def test_why_it_was_not_opened(play: Play, view: View) -> None:
    play(Opened(error="no disk can be opened"))
    with pytest.raises(FilesImpossible, match="no disk can be opened"), opening.opened(view):
        pass
    with pytest.raises(FilesImpossible, match="no disk can be opened"):
        opening.leave_open(view)


def test_a_process_that_dies_at_once(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(FilesImpossible, match="has died"), opening.opened(view):
        pass


def test_closing(config: Config, view: View, machine: FakeMachine) -> None:
    Views(config.journal_dir).write(view)
    machine.here.add(view.mountpoint)
    with pytest.raises(FilesImpossible, match="/elsewhere: zvmsnap has mounted nothing there"):
        opening.close(config, Path("/elsewhere"))
    # Its process does not end, for the clock of a test.
    with pytest.raises(FilesImpossible, match=f"process {os.getpid()} still tidies up"):
        opening.close(config, Path(view.mountpoint))
    assert not machine.here
    Views(config.journal_dir).write(msgspec.structs.replace(view, owner=Process.none()))
    assert opening.close(config, Path(view.mountpoint)) == "web@x"
    assert Views(config.journal_dir).all() == ([], [])


def test_a_view_in_use_stays(
    config: Config, view: View, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    Views(config.journal_dir).write(view)
    machine.here.add(view.mountpoint)

    def busy(directory: str, *, at_once: bool = False) -> None:
        assert not at_once
        raise FilesImpossible("umount: target is busy.")

    monkeypatch.setattr(ending, "unmount", busy)
    with pytest.raises(FilesImpossible, match="busy"):
        opening.close(config, Path(view.mountpoint))
