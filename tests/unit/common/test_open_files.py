import os
from pathlib import Path
from typing import Any

import pytest

from zvmsnap.common import process
from zvmsnap.common.process import open_files, writers_of


def test_writers_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.touch()
    link = tmp_path / "link"
    link.symlink_to(path)
    assert writers_of(path) == writers_of(tmp_path / "missing") == set()
    with path.open("rb"):
        assert writers_of(path) == set()
    with path.open("ab"):
        assert writers_of(link) == {os.getpid()}
        path.rename(tmp_path / "moved")
        assert writers_of(tmp_path / "moved") == {os.getpid()}


def opened(proc: Path, pid: int, *files: tuple[str, int | None]) -> None:
    """A process with these files open for writing: where its links lead, and inode numbers."""
    for name in ("fd", "fdinfo"):
        (proc / f"{pid}/{name}").mkdir(parents=True)
    for number, (leads_to, inode) in enumerate(files):
        (proc / f"{pid}/fd/{number}").symlink_to(leads_to)
        known = "" if inode is None else f"ino:\t{inode}\n"
        (proc / f"{pid}/fdinfo/{number}").write_text(f"pos:\t0\nflags:\t0100002\n{known}")


@pytest.mark.parametrize("tells_inodes", [True, False])
def test_a_server_that_is_down_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tells_inodes: bool
) -> None:
    """Whoever has a file of it open for writing."""
    proc, disk = tmp_path / "proc", tmp_path / "disk.raw"
    disk.touch()
    inode = disk.stat().st_ino
    monkeypatch.setattr(process, "_PROC", proc)
    opened(proc, 20, ("/srv/down/other", inode + 1 if tells_inodes else None), ("pipe:[7]", 7))
    opened(proc, 21, (str(disk), inode if tells_inodes else None))
    stat = os.stat

    def asked(path: Any, **named: Any) -> os.stat_result:
        assert "proc/20/fd" not in str(path), "never answers"
        return stat(path, **named)

    monkeypatch.setattr(os, "stat", asked)
    assert writers_of(disk) == {21}


def test_a_descriptor_that_is_closed_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc, disk = tmp_path / "proc", tmp_path / "disk.raw"
    disk.touch()
    opened(proc, 20, *[(str(disk), disk.stat().st_ino)] * 3)
    monkeypatch.setattr(process, "_PROC", proc)
    first = os.listdir(proc / "20/fd")[0]
    (proc / "20/fd" / first).unlink()
    (proc / "20/fd" / first).touch()  # no link: readlink fails
    assert writers_of(disk) == {20}
    assert len(open_files(proc / "20")) == 2
