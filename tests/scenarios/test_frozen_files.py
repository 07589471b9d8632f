"""Files that versions up to this one have written, and that every later one must read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from zvmsnap.journal.entry import EntryState
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import Operations
from zvmsnap.points import verify_result
from zvmsnap.points.manifest import MANIFEST
from zvmsnap.points.point import read_point
from zvmsnap.replication import send_status

DATA = Path(__file__).parents[1] / "data"
UUID = "c0ffee00-0000-4000-8000-000000000001"
STATES = {
    "preparing": EntryState.PREPARING,
    "dumping": EntryState.DUMPING,
    "freezing": EntryState.FREEZING,
    "held-paused": EntryState.HELD,
    "held-frozen": EntryState.HELD,
    "on-overlays": EntryState.ON_OVERLAYS,
    "waiting": EntryState.WAITING,
    "waiting-unnamed": EntryState.WAITING,
    "released": EntryState.RELEASED,
    "committing": EntryState.COMMITTING,
    "committing-early": EntryState.COMMITTING,
    "committed": EntryState.COMMITTED,
    "publishing": EntryState.PUBLISHING,
    "undoing": EntryState.UNDOING,
    "recovery": EntryState.COMMITTED,
}


def as_manifest(file: Path, root: Path) -> Any:
    shutil.copy(file, root / MANIFEST)
    return read_point(root).manifest


def as_entry(file: Path, root: Path) -> Any:
    shutil.copy(file, root / f"{UUID}.json")
    return Journal(root).read(UUID)


def as_operation(file: Path, root: Path) -> Any:
    (root / "operations").mkdir()
    shutil.copy(file, root / "operations" / f"{UUID}.json")
    return Operations(root).read(UUID)


def as_send_status(file: Path, root: Path) -> Any:
    folder = root / "send-status" / "offsite"
    folder.mkdir(parents=True)
    shutil.copy(file, folder / f"{UUID}.json")
    ((status,), _) = send_status.read_all(root)
    return status


def as_verify_result(file: Path, root: Path) -> Any:
    point_root = root / "point"
    point_root.mkdir()
    shutil.copy(DATA / "manifest" / "schema-2" / "memory.json", point_root / MANIFEST)
    shutil.copy(file, point_root / verify_result.READ)
    return verify_result.read(read_point(point_root))


READERS: dict[str, Callable[[Path, Path], Any]] = {
    "manifest": as_manifest,
    "entry": as_entry,
    "operation": as_operation,
    "send-status": as_send_status,
    "verify-result": as_verify_result,
}
FILES = sorted(DATA.glob("*/schema-*/*.json"))


def has_all(content: Any, written: Any) -> bool:
    """Does `content` say all that was written? It may have more fields: those of later versions."""
    if isinstance(written, dict):
        return isinstance(content, dict) and all(
            key in content and has_all(content[key], value) for key, value in written.items()
        )
    if isinstance(written, list):
        return len(content) == len(written) and all(map(has_all, content, written))
    return bool(content == written)


@pytest.mark.parametrize("file", [pytest.param(f, id=str(f.relative_to(DATA))) for f in FILES])
def test_everything_in_it_is_read(file: Path, tmp_path: Path) -> None:
    kind, schema, _ = file.relative_to(DATA).parts
    written = json.loads(file.read_text())
    assert schema == f"schema-{written['schema']}"
    content = READERS[kind](file, tmp_path)
    # As JSON: tuples become lists, and enums words.
    assert has_all(json.loads(msgspec.json.encode(content)), written)


@pytest.mark.parametrize("name", STATES)
def test_state_of_entry(name: str, tmp_path: Path) -> None:
    assert as_entry(DATA / "entry" / "schema-3" / f"{name}.json", tmp_path).state is STATES[name]


def test_there_is_one_of_each() -> None:
    assert {file.relative_to(DATA).parts[0] for file in FILES} == READERS.keys()
    entries = (DATA / "entry" / "schema-3").glob("*.json")
    assert {file.stem for file in entries} == STATES.keys()
    assert set(STATES.values()) == set(EntryState)
