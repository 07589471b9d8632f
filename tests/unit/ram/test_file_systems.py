"""Clones, holes, early flushes, what a file takes: as the kernel answers of any file system."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.clock import ScriptedClock
from zvmsnap.common import waiting
from zvmsnap.ram import cloning, hole, sharing, whole
from zvmsnap.ram.sharing import OnDisk

KIB = 1024


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A file of 64 KiB, and an empty one."""
    (tmp_path / "source").write_bytes(b"x" * 64 * KIB)
    source = os.open(tmp_path / "source", os.O_RDWR)
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield source, target
    os.close(source)
    os.close(target)


def failing(monkeypatch: pytest.MonkeyPatch, module: object, *codes: int) -> list[int]:
    """Each call of ioctl(2) fails with the next of these codes; the last ones succeed."""
    calls: list[int] = []

    def ioctl(file: int, request: int, argument: object = 0) -> int:
        calls.append(request)
        if len(calls) <= len(codes):
            raise OSError(codes[len(calls) - 1], "no")
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return calls


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO])
def test_what_cannot_be_cloned_leaves_an_empty_file(
    files: tuple[int, int], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    os.write(files[1], b"a part of it")
    failing(monkeypatch, cloning, code)
    assert not cloning.clone(*files)
    assert os.fstat(files[1]).st_size == 0


def test_a_source_that_is_not_in_the_pool_yet_is_waited_for(
    files: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = failing(monkeypatch, cloning, errno.EAGAIN, errno.EAGAIN)
    with waiting.clocked_by(ScriptedClock()):
        assert cloning.clone(*files)
    assert calls == [0x40049409] * 3


def test_a_source_that_never_is_in_the_pool(
    files: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, cloning, *[errno.EAGAIN] * 100)
    assert not cloning.clone(*files)


def test_a_hole(files: tuple[int, int]) -> None:
    hole.punch(files[0], 16 * KIB, 32 * KIB)
    assert os.pread(files[0], 64 * KIB, 0) == (b"x" * 16 * KIB + bytes(32 * KIB) + b"x" * 16 * KIB)
    assert os.fstat(files[0]).st_size == 64 * KIB


def test_zeros_are_written_where_there_are_no_holes(
    files: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fallocate(*arguments: int) -> int:
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr(hole, "_fallocate", fallocate)
    hole.punch(files[0], 16 * KIB, 32 * KIB)
    assert os.pread(files[0], 64 * KIB, 0).count(0) == 32 * KIB


def test_a_hole_that_the_disk_refuses() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        hole.punch(-1, 0, 4096)


def test_the_disk_has_work_while_a_file_grows(
    files: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, ...]] = []
    monkeypatch.setattr(whole, "_sync_file_range", lambda *arguments: begun.append(arguments))
    flush = whole.EarlyFlush(files[1])
    for _ in range(20):
        flush.wrote(1 << 20)
    assert begun == [(files[1], 0, 0, 2)] * 2


def test_what_a_file_takes(files: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """1500 extents, of which every third is shared: the kernel is asked twice."""
    extents = [(n * 8192, n, 4096, 0x2000 if n % 3 == 0 else 0) for n in range(1500)]
    extents[-1] = (*extents[-1][:3], 0x1)

    def ioctl(file: int, request: int, room: bytearray) -> int:
        begin, length, flags, _, count, _ = struct.unpack_from("=QQIIII", room)
        assert (request, flags, begin + length) == (0xC020660B, 0, (1 << 64) - 1)
        some = [each for each in extents if each[0] >= begin][:count]
        struct.pack_into("=I", room, 20, len(some))
        for number, each in enumerate(some):
            struct.pack_into("=QQQ16xI12x", room, 32 + number * 56, *each)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert sharing.on_disk(files[0]) == OnDisk(1000 * 4096, 500 * 4096)


def test_what_a_file_takes_where_nobody_says(
    files: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, sharing, errno.EOPNOTSUPP)
    assert sharing.on_disk(files[0]) is None


def test_what_this_file_takes(files: tuple[int, int]) -> None:
    os.fsync(files[0])
    assert sharing.on_disk(files[0]) in (OnDisk(64 * KIB, 0), None)
