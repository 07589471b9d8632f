import os
import subprocess
from pathlib import Path

import pytest

from zvmsnap.common.process import Process
from zvmsnap.journal.round import Expected, Notes, Round

OWNER = Process.of(os.getpid())
A, B = Expected(True, "tank/a/1"), Expected(False, "tank/b/1")


def test_hooks_of_one_round_read_what_the_others_noted(tmp_path: Path) -> None:
    assert Round(tmp_path, OWNER).notes == Notes()
    Round(tmp_path, OWNER).note(recursive=("tank/a",))
    Round(tmp_path, OWNER).expect({"tank/a": A})
    Round(tmp_path, OWNER).expect({"tank/b": B})
    expected = Notes(recursive=("tank/a",), expected={"tank/a": A, "tank/b": B})
    assert Round(tmp_path, OWNER).notes == expected
    assert Round(tmp_path, Process.of(1)).notes == Notes()


def test_a_warning_comes_once_in_a_round(tmp_path: Path) -> None:
    assert Round(tmp_path, OWNER).new(["a", "b", "a"]) == ["a", "b"]
    assert Round(tmp_path, OWNER).new(["b", "c"]) == ["c"]
    assert Round(tmp_path, Process.of(1)).new(["b"]) == ["b"]


def test_nothing_is_noted_for_nothing(tmp_path: Path) -> None:
    Round(tmp_path, OWNER).expect({})
    assert Round(tmp_path, OWNER).new([]) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", '{"schema": 99}', '{"schema": 1, "expected": 3}'])
def test_notes_that_cannot_be_read_are_none(tmp_path: Path, text: str) -> None:
    own = Round(tmp_path, OWNER)
    (own.directory / "notes.json").write_text(text)
    assert own.notes == Notes()
    own.note(unanswered="x")
    assert own.notes == Notes(unanswered="x")


def test_what_cannot_be_noted_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "locks").touch()
    Round(tmp_path / "locks", OWNER).expect({"tank/a": A})
    (record,) = caplog.records
    assert "nothing is noted there" in record.getMessage()


def test_all_is_for_root_alone(tmp_path: Path) -> None:
    Round(tmp_path / "locks", OWNER).expect({"tank/a": A})
    made = [tmp_path / "locks", Round(tmp_path / "locks", OWNER).directory]
    assert [path.stat().st_mode & 0o777 for path in made] == [0o700, 0o700]


def test_rounds_that_have_ended_leave_nothing(tmp_path: Path) -> None:
    done = subprocess.Popen(["sleep", "300"])
    other = Process.of(done.pid)
    Round(tmp_path, other).expect({"tank/a": A})
    done.kill()
    done.wait()
    Round(tmp_path, Process.of(1)).expect({"tank/a": A})
    (tmp_path / "guest.lock").touch()
    Round(tmp_path, OWNER).expect({"tank/a": A})
    kept = [f"round-{each.pid}-{each.started}" for each in (Process.of(1), OWNER)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "guest.lock"])
