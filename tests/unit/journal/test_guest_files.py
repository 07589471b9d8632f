"""What cannot be read of the journal: damaged files are kept, those of other schemas left alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from zvmsnap.common.errors import WorkOfOtherVersion
from zvmsnap.common.json_file import Unreadable
from zvmsnap.common.process import Process
from zvmsnap.journal import other_versions
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import EntryWriter, Journal
from zvmsnap.journal.operation import CloneOperation, Operations, StartState

Build = Callable[..., Entry]
A = "aaaaaaaa-0000-4000-8000-000000000001"
B = "bbbbbbbb-0000-4000-8000-000000000001"
OWNER = {"pid": 4711, "started": 815, "boot": "a-boot"}

# Nothing but the schema and the owner is as in ours.
CONTENT: list[dict[str, Any]] = [
    {"schema": 4, "owner": OWNER},
    {"schema": 4, "owner": OWNER, "guest": {"uuid": A}, "step": 7},
    {"schema": 1, "owner": 5},
    {"schema": -1},
    {"schema": 10**12},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / f"{A}.json"


def operation() -> CloneOperation:
    return CloneOperation(
        domain="web",
        uuid=A,
        point="web@m",
        directory="/v/web/m",
        owner=Process.none(),
        memory=False,
        start_state=StartState.OFF,
        capture=f"{A}.00000001",
        network="none",
    )


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_file())


@pytest.mark.parametrize("content", CONTENT)
def test_entry_of_another_schema_is_left_alone(
    tmp_path: Path, path: Path, entry: Build, content: dict[str, Any]
) -> None:
    journal = Journal(tmp_path)
    journal.write(entry(uuid=B))
    data = msgspec.json.encode(content)
    path.write_bytes(data)

    assert journal.read(A) is None
    assert [each.uuid for each in journal.entries()] == [B]
    assert not journal.is_lost(A)
    journal.forget_lost(A)
    with journal.if_free(tmp_path / "locks", entry(uuid=A), "test") as free:
        assert free is None
    with pytest.raises(WorkOfOtherVersion, match=f"{path}: schema {content['schema']} is not one"):
        journal.write(entry(uuid=A))
    with pytest.raises(WorkOfOtherVersion):
        EntryWriter(journal, entry(uuid=A)).note(step="dump")
    journal.close(entry(uuid=A))
    assert (names(tmp_path), path.read_bytes()) == ([f"{A}.json", f"{B}.json"], data)


def test_recovery_of_a_guest_with_such_an_entry_is_not_written(
    tmp_path: Path, path: Path, entry: Build
) -> None:
    path.write_bytes(b'{"schema": 4}')
    writer = EntryWriter(Journal(tmp_path), entry(uuid=A, run="", snapshot_names=()))
    writer.note(committed_overlays=("/o",))
    writer.step("tidy", lambda: None)
    writer.close()
    assert writer.entry.committed_overlays == ("/o",)
    assert (names(tmp_path), path.read_bytes()) == ([f"{A}.json"], b'{"schema": 4}')


@pytest.mark.parametrize("content", CONTENT)
def test_operation_of_another_schema_is_left_alone(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "operations" / f"{A}.json"
    path.parent.mkdir()
    path.write_bytes(msgspec.json.encode(content))
    operations = Operations(tmp_path)
    assert (operations.read(A), operations.all()) == (None, [])
    with pytest.raises(WorkOfOtherVersion):
        operations.write(operation())
    operations.close(A)
    with pytest.raises(WorkOfOtherVersion, match="is not one this version reads"):
        other_versions.refuse(tmp_path, A)
    other_versions.refuse(tmp_path, B)
    assert (names(path.parent), path.read_bytes()) == (
        [f"{A}.json"],
        msgspec.json.encode(content),
    )


def test_all_of_them_are_told(tmp_path: Path, path: Path, entry: Build) -> None:
    assert other_versions.files(tmp_path) == []
    Journal(tmp_path).write(entry(uuid=B))
    path.write_bytes(b'{"schema": 4, "owner": {"pid": 4711, "started": 815, "boot": "a-boot"}}')
    restore = tmp_path / "operations" / f"{B}.json"
    restore.parent.mkdir()
    restore.write_bytes(b'{"schema": 3}')
    told = other_versions.files(tmp_path)
    assert [(file.path, file.uuid, file.schema, file.is_operation) for file in told] == [
        (path, A, 4, False),
        (restore, B, 3, True),
    ]
    assert [file.owner for file in told] == [Process(4711, 815, "a-boot"), Process.none()]
    assert other_versions.guests(tmp_path) == {A, B}
    assert str(told[0]) == (
        f"{path}: schema 4 is not one this version reads: finish it with the version of zvmsnap "
        "that wrote it (zvmsnap recover), or move the file away"
    )


def test_who_works_by_it_is_said(tmp_path: Path, path: Path) -> None:
    path.write_bytes(msgspec.json.encode({"schema": 4, "owner": Process.of(os.getpid())}))
    (file,) = other_versions.files(tmp_path)
    assert f"reads, and pid {os.getpid()} works by it: finish it" in str(file)


def test_damaged_files_do_not_overwrite_each_other(
    tmp_path: Path, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path)
    for number in range(3):
        path.write_text(f"{{{number}")
        assert journal.read(A) is None
    assert names(tmp_path) == [f"{A}.damaged", f"{A}.damaged.2", f"{A}.damaged.3"]
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["{0", "{1", "{2"]
    assert f"{path} cannot be read; renamed to {A}.damaged.3" in caplog.text
    assert (journal.is_lost(A), journal.is_lost(B)) == (True, False)

    journal.forget_lost(A)
    assert not journal.is_lost(A)
    path.write_text("{3")
    assert journal.entries() == []
    assert journal.is_lost(A)
    journal.forget_lost(A)
    seen = f"{A}.damaged.seen"
    assert names(tmp_path) == [seen, f"{seen}.2", f"{seen}.3", f"{seen}.4"]
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["{0", "{1", "{2", "{3"]


def test_what_cannot_be_read_just_now_stays(tmp_path: Path, path: Path, entry: Build) -> None:
    path.mkdir()
    journal = Journal(tmp_path)
    attempts: list[Callable[[], object]] = [
        lambda: journal.read(A),
        journal.entries,
        journal.of_other_versions,
        lambda: journal.write(entry(uuid=A)),
        lambda: journal.close(entry(uuid=A)),
    ]
    for attempt in attempts:
        with pytest.raises(Unreadable, match="Is a directory"):
            attempt()
    assert path.is_dir()
