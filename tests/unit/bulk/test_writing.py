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


@pytest.mark.parametrize("at_once", [1, 3, 4, 5, 7, 100])
def test_writes_are_whole_whatever_the_kernel_takes_at_once(
    files: tuple[int, int], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    write, pwrite = os.write, os.pwrite
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:at_once]))
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:at_once], at))
    monkeypatch.setattr(os, "writev", lambda file, parts: write(file, b"".join(parts)[:at_once]))
    writing.write_vector(files[1], [b"abcd", memoryview(b"e"), b"", b"fgh"])
    writing.write(files[1], b"ijklm")
    writing.write_at(files[1], b"BCDEFG", 1)
    assert os.pread(files[1], 100, 0) == b"aBCDEFGhijklm"


def test_the_disk_has_work_while_a_file_grows(
    files: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, ...]] = []
    monkeypatch.setattr(writing, "_sync_file_range", lambda *arguments: begun.append(arguments))
    flush = writing.EarlyFlush(files[1])
    for _ in range(20):
        flush.wrote(1 << 20)
    assert begun == [(files[1], 0, 0, 2)] * 2
