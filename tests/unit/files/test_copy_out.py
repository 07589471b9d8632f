import os
import stat
from pathlib import Path

import pytest

from zvmsnap.common.errors import FilesImpossible
from zvmsnap.files import copy_out, tree
from zvmsnap.files.copy_out import Copied

LARGE = 64 << 20


@pytest.fixture
def top(tmp_path: Path) -> Path:
    top = tmp_path / "view"
    (top / "data" / "sub").mkdir(parents=True)
    return top


def copy(top: Path, path: str, into: Path, max_bytes: int = LARGE) -> tuple[Path, Copied]:
    with tree.found(str(top), path) as entry:
        name = entry.path.rpartition("/")[2] or "web"
        return copy_out.copy_out(entry, name, into, max_bytes)


def test_one_file(top: Path, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (top / "data" / "a").write_bytes(data)
    os.utime(top / "data" / "a", (5, 7))
    (top / "data" / "a").chmod(0o6777)
    target, copied = copy(top, "/data/a", tmp_path / "new" / "out")
    assert target == tmp_path / "new" / "out" / "a" and target.read_bytes() == data
    status = target.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o755, 7)
    assert (copied.files, copied.read_bytes, copied.left_out) == (1, len(data), [])
    assert os.listdir(target.parent) == ["a"]


def test_holes_stay(top: Path, tmp_path: Path) -> None:
    with (top / "data" / "sparse").open("wb") as file:
        file.seek(20 << 20)
        file.write(b"x")
        file.truncate(30 << 20)
    target, _ = copy(top, "/data/sparse", tmp_path)
    assert target.stat().st_size == 30 << 20
    assert target.stat().st_blocks * 512 < 4 << 20
    assert target.read_bytes() == (top / "data" / "sparse").read_bytes()


def test_a_hostile_tree(top: Path, tmp_path: Path) -> None:
    data = top / "data"
    (data / "sub" / "f").write_text("f")
    (data / "d").symlink_to("sub")
    (data / "sub" / "good").symlink_to("../sub/f")
    (data / "sub" / "good2").symlink_to("f")
    (data / "sub" / "bad").symlink_to("../d/../../..")
    (data / "sub" / "bad2").symlink_to("../../../x")
    (data / "shadow").symlink_to("/etc/shadow")
    os.mkfifo(data / "pipe")
    (data / os.fsdecode(b"latin-\xe9")).write_text("x")
    (data / "new\nline").write_text("y")
    with (data / "endless").open("wb") as file:
        file.truncate(LARGE + 1)
    target, copied = copy(top, "/", tmp_path)
    assert target == tmp_path / "web"
    inside = target / "data"
    names = {os.fsencode(each.relative_to(inside)) for each in inside.rglob("*")}
    assert names == {
        *(b"sub", b"sub/f", b"sub/good", b"sub/good2", b"d", b"new\nline", b"latin-\xe9")
    }
    assert sorted(copied.left_out) == [
        "web/data/pipe: is a pipe",
        "web/data/shadow: is a symlink that leads out: /etc/shadow",
        "web/data/sub/bad2: is a symlink that leads out: ../../../x",
        "web/data/sub/bad: is a symlink that leads out: ../d/../../..",
    ]
    assert copied.failed == [
        f"web/data/endless: claims {LARGE + 1} bytes, more than all disks have"
    ]


def test_nothing_is_replaced_or_left_behind(top: Path, tmp_path: Path) -> None:
    (top / "data" / "a").write_text("new")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").symlink_to("/nowhere")
    with pytest.raises(FilesImpossible, match="out/a: exists already"):
        copy(top, "/data/a", out)
    os.mkfifo(top / "data" / "p")
    with pytest.raises(FilesImpossible, match="nothing is copied: p: is a pipe"):
        copy(top, "/data/p", out)
    assert os.listdir(out) == ["a"]


def test_a_full_disk(top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (top / "data" / "a").write_text("new")

    def full(_descriptor: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(FilesImpossible, match="out/data: No space left"):
        copy(top, "/data", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_of_many_the_first_are_named() -> None:
    copied = Copied()
    for number in range(1000):
        copied.leave_out(str(number), "is a pipe")
        copied.fail(str(number), "cannot be read")
    assert (copied.left_out_count, len(copied.left_out)) == (1000, 100)
    assert (copied.failed_count, len(copied.failed)) == (1000, 100)


def test_a_tree_without_end(top: Path, tmp_path: Path) -> None:
    deep = top / "data"
    for _ in range(260):
        deep = deep / "d"
    os.makedirs(deep)
    _, copied = copy(top, "/data", tmp_path)
    assert copied.left_out_count == 1 and "below more than 250" in copied.left_out[0]


@pytest.mark.parametrize(
    ("target", "depth", "stays"),
    [
        ("a", 0, True),
        ("a/b", 0, True),
        ("../a", 0, False),
        ("../a", 1, True),
        ("../../a", 1, False),
        ("a/..", 5, False),
        ("/a", 5, False),
        ("a", -1, False),
    ],
)
def test_which_links_stay_inside(target: str, depth: int, stays: bool) -> None:
    assert copy_out._stays_inside(target, depth) == stays
