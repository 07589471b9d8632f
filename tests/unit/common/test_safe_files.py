import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.common import safe_files


@pytest.mark.parametrize("old", [None, b"old and longer"], ids=["new", "replaced"])
def test_written_for_root_alone(tmp_path: Path, old: bytes | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
        path.chmod(0o666)
    safe_files.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted(*_: object, **_named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, failing, interrupted)
    with pytest.raises(KeyboardInterrupt):
        safe_files.write_atomic(path, b"new")
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

    def noted_replace(source: str, target: str, **directories: int) -> None:
        order.append("rename")
        replace(source, target, **directories)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    directory = tmp_path / "direc"
    directory.mkdir()
    safe_files.write_atomic(directory / "file", b"new")
    assert order == ["sync .file", "rename", "sync direc"]


def test_a_symlink_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    safe_files.write_atomic(path, b"new")
    assert (victim.read_bytes(), path.read_bytes()) == (b"precious", b"new")
    assert not path.is_symlink()


@pytest.mark.parametrize(
    ("make", "mode"), [(safe_files.private_dir, 0o700), (safe_files.passable_dir, 0o711)]
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
        safe_files.private_dir(tmp_path / "file")


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
    assert safe_files.private_dir(above / "point").is_dir()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`top`, with a directory, a file, and links out of it."""
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (tmp_path / "outside" / "b").mkdir(parents=True)
    (tmp_path / "outside" / "file").write_bytes(b"theirs")
    (top / "link").symlink_to(tmp_path / "outside")
    (top / "a" / "file").symlink_to(tmp_path / "outside" / "file")
    return top


def opened(path: str, below: Path) -> str:
    with safe_files.opened(path, below) as directory:
        return os.readlink(f"/proc/self/fd/{directory}")


def test_directories_below_one(tree: Path) -> None:
    assert opened("a/b", tree) == str(tree / "a" / "b")
    assert opened("", tree) == str(tree)


@pytest.mark.parametrize("path", ["link", "link/b", "a/file", "a/..", "..", "a/../..", "/", "a\0b"])
def test_no_way_out(tree: Path, path: str) -> None:
    with pytest.raises(OSError, match=r"not followed|names nothing in a directory"):
        opened(path, tree)


def test_a_directory_that_is_moved_away_meanwhile(tree: Path) -> None:
    """What is written goes with it, not through the link that is put in its place."""
    with safe_files.opened("a/b", tree) as directory:
        (tree / "a" / "b").rename(tree / "moved")
        (tree / "a" / "b").symlink_to(tree.parent / "outside")
        safe_files.write("file", directory, b"ours")
    assert (tree.parent / "outside" / "file").read_bytes() == b"theirs"
    assert (tree / "moved" / "file").read_bytes() == b"ours"


@given(st.lists(st.sampled_from(["a", "b", "..", ".", "", "link", "file", "/"]), max_size=6))
def test_any_path_stays_below(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    top = tmp_path_factory.mktemp("any") / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "link").symlink_to("/")
    with suppress(OSError):
        assert Path(opened("/".join(parts), top)).is_relative_to(top)


@pytest.mark.parametrize(
    ("path", "below"),
    [("a/b", True), ("a", True), ("", False), ("/a", False), ("a/../b", False), ("a//b", False)],
)
def test_paths_that_may_be_of_a_file_below(path: str, below: bool) -> None:
    assert safe_files.is_beneath(path) is below


def test_larger_than_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert safe_files.read(str(path), None, 5) == b"12345"
    with pytest.raises(OSError, match="is larger than"):
        safe_files.read(str(path), None, 4)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is no regular file"):
        safe_files.read(str(tmp_path / "pipe"), None, 5)
    with pytest.raises(OSError, match="is no block device"):
        safe_files.read("/dev/null", None, 5, block=True)
