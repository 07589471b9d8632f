import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zvmsnap.common import atomic_file


@pytest.mark.parametrize("old", [None, b"old and longer"], ids=["new", "replaced"])
def test_written_for_root_alone(tmp_path: Path, old: bytes | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
        path.chmod(0o666)
    atomic_file.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, failing, interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_file.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_bytes_are_durable_before_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        order.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))[:5])
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        order.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    directory = tmp_path / "direc"
    directory.mkdir()
    atomic_file.write_atomic(directory / "file", b"new")
    assert order == ["sync .file", "rename", "sync direc"]


def test_a_symlink_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    atomic_file.write_atomic(path, b"new")
    assert (victim.read_bytes(), path.read_bytes()) == (b"precious", b"new")
    assert not path.is_symlink()


@pytest.mark.parametrize(
    ("make", "mode"), [(atomic_file.private_dir, 0o700), (atomic_file.passable_dir, 0o711)]
)
def test_directories(tmp_path: Path, make: Callable[[Path], Path], mode: int) -> None:
    path = tmp_path / "a" / "b" / "c"
    assert make(path) == path
    assert make(path) == path
    assert path.stat().st_mode & 0o777 == mode
    assert {parent.stat().st_mode & 0o777 for parent in path.parents[:2]} == {0o711}


def test_no_directory_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        atomic_file.private_dir(tmp_path / "file")


def test_directory_above_that_is_removed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    above = tmp_path / "web"
    above.mkdir()
    mkdir = Path.mkdir

    def overtaken(path: Path, **options: Any) -> None:
        monkeypatch.setattr(Path, "mkdir", mkdir)
        above.rmdir()
        path.mkdir(**options)

    monkeypatch.setattr(Path, "mkdir", overtaken)
    assert atomic_file.private_dir(above / "point").is_dir()
