"""Zeros in a large file, by samples of it."""

from pathlib import Path

import pytest

from zvmsnap.bulk import zeros


@pytest.mark.parametrize("every", [0, 1, 2, 4, 16])
def test_the_share_of_zeros(tmp_path: Path, every: int) -> None:
    """256 MiB, of which each so many pieces are zeros; as pieces of 1 MiB are, too."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(256 << 20)
        for piece in range(4096):
            if not every or piece // 16 % every:
                file.seek(piece << 16)
                file.write(b"x")
    wanted = 1 / every if every else 0.0
    assert zeros.share(path) == pytest.approx(wanted, abs=0.06)
    assert zeros.share(path) == zeros.share(path)


def test_a_small_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(3 << 16) + b"x" * (1 << 16))
    assert zeros.share(path) == 0.75
    path.write_bytes(b"x")
    assert zeros.share(path) == 0.0
