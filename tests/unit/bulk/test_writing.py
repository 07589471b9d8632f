"""Holes, and a disk that has work meanwhile."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from tests.unit.bulk.conftest import KIB
from zvmsnap.bulk import writing


def test_a_hole(files: tuple[int, int]) -> None:
    writing.punch(files[0], 16 * KIB, 32 * KIB)
    assert os.pread(files[0], 64 * KIB, 0) == (b"x" * 16 * KIB + bytes(32 * KIB) + b"x" * 16 * KIB)
    assert os.fstat(files[0]).st_size == 64 * KIB


def test_zeros_are_written_where_there_are_no_holes(
    files: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fallocate(*arguments: int) -> int:
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr(writing, "_fallocate", fallocate)
    writing.punch(files[0], 16 * KIB, 32 * KIB)
    assert os.pread(files[0], 64 * KIB, 0).count(0) == 32 * KIB


def test_a_hole_that_the_disk_refuses() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        writing.punch(-1, 0, 4096)


def test_the_disk_has_work_while_a_file_grows(
    files: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, ...]] = []
    monkeypatch.setattr(writing, "_sync_file_range", lambda *arguments: begun.append(arguments))
    flush = writing.EarlyFlush(files[1])
    for _ in range(20):
        flush.wrote(1 << 20)
    assert begun == [(files[1], 0, 0, 2)] * 2
