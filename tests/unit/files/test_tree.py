import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zvmsnap.common.errors import FilesImpossible
from zvmsnap.files import tree
from zvmsnap.files.tree import Item


@pytest.fixture
def top(tmp_path: Path) -> str:
    """The files of a guest; beside them, what is the host's."""
    (tmp_path / "secret").write_text("of the host")
    top = tmp_path / "view"
    (top / "etc" / "ssl").mkdir(parents=True)
    (top / "etc" / "hostname").write_text("web")
    (top / "etc" / "alias").symlink_to("hostname")
    (top / "etc" / "up").symlink_to("../../../../secret")
    (top / "etc" / "absolute").symlink_to("/etc/hostname")
    (top / "etc" / "shown").symlink_to(top / "etc" / "hostname")
    (top / "conf").symlink_to("etc")
    (top / "loop").symlink_to("loop")
    return str(top)


@contextmanager
def read(top: str, path: str, *, any_case: bool = False) -> Iterator[tuple[str, bytes]]:
    with tree.found(top, path, any_case=any_case) as entry:
        descriptor = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=entry.directory)
        yield entry.path, os.read(descriptor, 99)
        os.close(descriptor)


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/hostname", "etc/hostname", "/etc/alias", "/etc/absolute", "/etc/shown"),
        *("/conf/hostname", "/conf/../etc/./hostname", "/../../etc/hostname"),
    ],
)
def test_a_path_leads_to_a_file_of_the_guest(top: str, path: str) -> None:
    with read(top, path) as seen:
        assert seen == ("/etc/hostname", b"web")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/etc/up", "/secret: No such file"),
        ("/loop", "behind too many symlinks"),
        ("/etc/hostname/x", "/etc/hostname: Not a directory"),
        ("/ETC/hostname", "/ETC: No such file"),
    ],
)
def test_nothing_of_the_host_is_found(top: str, path: str, why: str) -> None:
    with pytest.raises(FilesImpossible, match=why), tree.found(top, path):
        pass


@pytest.mark.parametrize(
    "path", [r"C:\Users\Ada\Notes.txt", r"c:/users/ada/NOTES.TXT", r"\C:\Users\ada\notes.txt"]
)
def test_paths_of_windows(tmp_path: Path, path: str) -> None:
    (tmp_path / "C:" / "Users" / "ada").mkdir(parents=True)
    (tmp_path / "C:" / "Users" / "ada" / "notes.txt").write_text("x")
    with read(str(tmp_path), path, any_case=True) as seen:
        assert seen == ("/C:/Users/ada/notes.txt", b"x")


def test_a_backslash_is_a_character_elsewhere(tmp_path: Path) -> None:
    (tmp_path / r"a\b").write_text("x")
    with read(str(tmp_path), r"/a\b") as seen:
        assert seen[1] == b"x"


def test_a_listing(top: str) -> None:
    os.mkfifo(f"{top}/etc/pipe")
    with tree.found(top, "/conf") as entry:
        items = {item.name: item for item in tree.listed(entry)}
    assert [(name, item.kind) for name, item in items.items()] == [
        ("absolute", "symlink"),
        ("alias", "symlink"),
        ("hostname", "file"),
        ("pipe", "pipe"),
        ("shown", "symlink"),
        ("ssl", "directory"),
        ("up", "symlink"),
    ]
    assert items["up"].target == "../../../../secret"
    # A guest may say any time.
    assert tree.line(Item("a", "file", 3, 0o644, 9e99)).split() == ["file", "0644", "3", "-", "a"]
    assert tree.line(Item("a", "file", 9, 0o4755, 0.0)).split() == [
        *("file", "4755", "9", "1970-01-01", "00:00", "a")
    ]
    with tree.found(top, "/etc/alias") as entry:
        assert [item.name for item in tree.listed(entry)] == ["hostname"]
    with tree.found(top, "/") as entry:
        assert [item.name for item in tree.listed(entry)] == ["conf", "etc", "loop"]
