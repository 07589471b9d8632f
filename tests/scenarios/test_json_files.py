"""Every kind of our JSON files, damaged in every way: one line each, and never a traceback."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.host import FakeHost
from tests.fakes.zfs_pool import FakePool
from zvmsnap.common import json_file
from zvmsnap.journal.fetches import Fetches
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import Operations
from zvmsnap.points import vault, verify_result
from zvmsnap.points.manifest import MANIFEST
from zvmsnap.points.point import RestorePoint
from zvmsnap.replication import send_status

DATA = Path(__file__).parents[1] / "data"
UUID = "c0ffee00-0000-4000-8000-000000000001"
GOOD_MANIFEST = DATA / "manifest" / "schema-2" / "memory.json"
Run = Callable[..., tuple[int, str, str]]

# Where a file of each kind is, below a directory with vault and journal.
KINDS = {
    "manifest": "vault/web/a/manifest.json",
    "verify result": "vault/web/good/verify.json",
    "boot result": "vault/web/good/boot.json",
    "entry": f"journal/{UUID}.json",
    "operation": f"journal/operations/{UUID}.json",
    "fetch": f"journal/fetches/{UUID}.json",
    "send status": f"journal/send-status/usb%2Foff/{UUID}.json",
    "mirrored manifest": "journal/mirrors/usb%2Foff/web/a/manifest.json",
}


def contents(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(8 << 30)


def hostile_value(path: Path) -> None:
    path.write_text('{"schema": 2, "level": "' + "y\\n" * 200_000 + '"}')


DAMAGES: dict[str, Callable[[Path], object]] = {
    "not UTF-8": contents(b'\xff\xfe{"schema": 2}'),
    "not UTF-8 within": contents(b'{"schema": 2, "uuid": "\xff"}'),
    "NULs": contents(bytes(4096)),
    "empty": contents(b""),
    "cut off": contents(b'{"schema": 2, "uu'),
    "another type": contents(b"[]"),
    "a long value": hostile_value,
    "8 GiB": large,
    "deep": contents(b'{"schema": 2, "more": ' + b"[" * 200_000),
    "a directory": Path.mkdir,
    "a pipe": os.mkfifo,
    "cannot be read": contents(b'{"schema": 2}'),
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directories with one good point."""
    good = tmp_path / "vault" / "web" / "good"
    good.mkdir(parents=True)
    (good / MANIFEST).write_bytes(GOOD_MANIFEST.read_bytes())
    text = "".join(f'{key} = "{tmp_path}/{key}"\n' for key in ("vault", "journal", "locks"))
    (tmp_path / "config.toml").write_text(text + f'staging = "{tmp_path}/staging"\n')
    monkeypatch.setenv("ZVMSNAP_CONFIG", str(tmp_path / "config.toml"))
    FakePool().install(monkeypatch)
    FakeHost().install(monkeypatch)
    return tmp_path


def damaged(root: Path, monkeypatch: pytest.MonkeyPatch, kind: str, damage: str) -> Path:
    """A file of that kind, damaged so."""
    path = root / KINDS[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    DAMAGES[damage](path)
    if kind == "entry" and path.is_file() and path.stat().st_size < 1 << 20:
        path.write_bytes(path.read_bytes().replace(b'"schema": 2', b'"schema": 3'))
    if damage == "cannot be read":
        opened = os.open

        def refuse(name: Any, *arguments: Any, **named: Any) -> int:
            if str(name) == str(path):
                raise OSError(errno.EIO, "Input/output error")
            return opened(name, *arguments, **named)

        monkeypatch.setattr(os, "open", refuse)
    return path


def read(kind: str, root: Path) -> str:
    """What the reader of that kind says of the file; "" if it counts as none."""
    journal = root / "journal"
    try:
        match kind:
            case "manifest" | "mirrored manifest":
                top = root / "vault" if kind == "manifest" else journal / "mirrors" / "usb%2Foff"
                return " ".join(each.why for each in vault.all_in(top)[1])
            case "verify result" | "boot result":
                ((point,), _) = vault.all_in(root / "vault")
                assert isinstance(point, RestorePoint)
                return str(verify_result.read(point) or "")
            case "entry":
                return str(Journal(journal).read(UUID) or "")
            case "operation":
                return str(Operations(journal).read(UUID) or "")
            case "fetch":
                return str(Fetches(journal).read(UUID))
            case "send status":
                statuses, unreadable = send_status.read_all(journal)
                assert statuses == [] and len(unreadable) == 1
                return ""
    except json_file.Unreadable as error:
        return str(error)
    raise AssertionError(kind)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_error(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    damage: str,
) -> None:
    path = damaged(root, monkeypatch, kind, damage)
    said = " ".join(filter(None, [read(kind, root), *caplog.messages]))
    assert "\n" not in said and len(said) < 600
    # A result of verify that cannot be read counts as none; the next one replaces it.
    assert said.count(str(path)) == (0 if kind in ("verify result", "boot result") else 1)


COMMANDS = (("list",), ("status",), ("prune", "--dry-run"), ("recover", "--dry-run"))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_commands_say_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, command: Run, kind: str, damage: str
) -> None:
    damaged(root, monkeypatch, kind, damage)
    for words in COMMANDS:
        code, out, err = command(*words)
        assert "Traceback" not in out + err
        assert code in (0, 1), (words, code, err)
        assert len(err.splitlines()) <= 1, (words, err)
        assert all(len(line) < 600 for line in err.splitlines())
