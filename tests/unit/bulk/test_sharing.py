"""What a file takes, as the kernel answers of any file system."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

import pytest

from tests.unit.bulk.conftest import KIB, Failing
from zvmsnap.bulk import sharing
from zvmsnap.bulk.sharing import OnDisk


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


def test_what_a_file_takes_where_nobody_says(files: tuple[int, int], failing: Failing) -> None:
    failing(errno.EOPNOTSUPP)
    assert sharing.on_disk(files[0]) is None


def test_what_this_file_takes(files: tuple[int, int]) -> None:
    os.fsync(files[0])
    assert sharing.on_disk(files[0]) in (OnDisk(64 * KIB, 0), None)
