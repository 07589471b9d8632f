"""One reader for all our JSON: what is wrong with a file is told apart."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import zvmsnap
from zvmsnap.common import json_file
from zvmsnap.common.json_file import Damaged, OtherSchema, Unreadable


class Note(msgspec.Struct, frozen=True):
    """A file of ours."""

    text: str
    schema: int = 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "note.json"


def test_what_was_written_is_read(path: Path) -> None:
    json_file.write(path, Note("a"))
    assert json_file.read(path, Note, 2) == Note("a")
    assert path.read_bytes() == b'{\n  "text": "a",\n  "schema": 2\n}\n'


def test_no_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        json_file.read(path, Note, 2)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"schema": 3}', id="nothing else in it is as we know it"),
        pytest.param(b'{"schema": 3, "text": 5}', id="a field of another type"),
        pytest.param(b'{"schema": 3, "text": "a"}', id="everything else is as we know it"),
    ],
)
def test_other_schema_is_told_by_its_number(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(OtherSchema) as caught:
        json_file.read(path, Note, 2)
    assert (caught.value.path, caught.value.schema) == (path, 3)
    assert str(caught.value) == f"{path}: schema 3 is not one this version reads"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"text": "a"}',
        b'{"schema": "2", "text": "a"}',
        b'{"schema": 2.5, "text": "a"}',
        b'{"schema": null, "text": "a"}',
        b'{"schema": 2}',
        b'{"schema": 2, "text": 5}',
        b'{"schema": 2, "text": "\xff"}',
        b'{"schema": 2, "text": "a"} {}',
        pytest.param(b'{"schema": 2, "text": ' + b"[" * 100_000, id="deep"),
        pytest.param(b'{"schema": 3, "more": ' + b"[" * 100_000, id="deep, of another schema"),
    ],
)
def test_damaged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(Damaged) as caught:
        json_file.read(path, Note, 2)
    assert caught.value.path == path
    assert str(caught.value) == f"{path}: {caught.value.why}"


def test_what_cannot_be_read_now_is_not_damaged(path: Path) -> None:
    path.mkdir()
    with pytest.raises(Unreadable, match="Is a directory") as caught:
        json_file.read(path, Note, 2)
    assert type(caught.value) is Unreadable


def test_pipe_does_not_block(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(Damaged):
        json_file.read(path, Note, 2)


def test_symlinks_are_followed_unless_they_must_not_be(path: Path, tmp_path: Path) -> None:
    json_file.write(tmp_path / "elsewhere", Note("a"))
    path.symlink_to("elsewhere")
    assert json_file.read(path, Note, 2) == Note("a")
    with pytest.raises(Unreadable, match="is a symlink; not followed") as caught:
        json_file.read(path, Note, 2, follow_symlinks=False)
    assert type(caught.value) is Unreadable


TWO_THREADS = """\
from __future__ import annotations
import threading, time
import msgspec
from zvmsnap.common.json_file import decode

def slow():
    begun.set()
    time.sleep(0.3)
    return int

class Inner(msgspec.Struct):
    x: slow()

class Outer(msgspec.Struct):
    a: int
    inner: Inner

def go():
    contents.append(decode(b'{"a": 1, "inner": {"x": 1}}', Outer))

begun, contents = threading.Event(), []
threads = [threading.Thread(target=go) for _ in range(2)]
threads[0].start()
begun.wait(60)
threads[1].start()
for thread in threads:
    thread.join()
print(contents)
"""


def test_two_threads_decode_a_struct_for_the_first_time() -> None:
    """msgspec's own decode() dies of a segmentation fault here."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_THREADS],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(zvmsnap.__file__).parents[1])},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[Outer(a=1, inner=Inner(x=1)), Outer(a=1, inner=Inner(x=1))]\n"
