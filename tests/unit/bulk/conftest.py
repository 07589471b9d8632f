"""Files, and a kernel that fails as a test says."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

KIB = 1024

Failing = Callable[..., list[int]]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A file of 64 KiB, and an empty one."""
    (tmp_path / "source").write_bytes(b"x" * 64 * KIB)
    source = os.open(tmp_path / "source", os.O_RDWR)
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield source, target
    os.close(source)
    os.close(target)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """Each call of ioctl(2) fails with the next of these codes; the last ones succeed."""

    def begin(*codes: int) -> list[int]:
        calls: list[int] = []

        def ioctl(file: int, request: int, argument: object = 0) -> int:
            calls.append(request)
            if len(calls) <= len(codes):
                raise OSError(codes[len(calls) - 1], "no")
            return 0

        monkeypatch.setattr(fcntl, "ioctl", ioctl)
        return calls

    return begin
