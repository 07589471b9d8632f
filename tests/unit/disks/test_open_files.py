import os
from pathlib import Path

from zvmsnap.disks.open_files import writers_of


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
