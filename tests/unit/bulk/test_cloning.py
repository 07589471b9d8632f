"""Block clones, as the kernel answers of any file system."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest

from tests.fakes.clock import ScriptedClock
from tests.unit.bulk.conftest import KIB, Failing
from zvmsnap.bulk import cloning
from zvmsnap.common import waiting


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO])
def test_what_cannot_be_cloned_leaves_an_empty_file(
    files: tuple[int, int], failing: Failing, code: int
) -> None:
    os.write(files[1], b"a part of it")
    failing(code)
    assert not cloning.clone(*files)
    assert os.fstat(files[1]).st_size == 0


def test_records_of_another_size_are_not_cloned(
    files: tuple[int, int], monkeypatch: pytest.MonkeyPatch, failing: Failing
) -> None:
    """As of a vault whose recordsize was changed: its clones would keep the old one for ever."""
    calls = failing()
    sizes = dict(zip(files, (128 * KIB, 16 * KIB), strict=True))

    fstat = os.fstat

    def status(file: int) -> object:
        return SimpleNamespace(st_blksize=sizes[file]) if file in sizes else fstat(file)

    monkeypatch.setattr(os, "fstat", status)
    assert not cloning.clone(*files)
    assert calls == []
    sizes[files[0]] = 16 * KIB
    assert cloning.clone(*files)


def test_a_source_that_is_not_in_the_pool_yet_is_waited_for(
    files: tuple[int, int], failing: Failing
) -> None:
    calls = failing(errno.EAGAIN, errno.EAGAIN)
    with waiting.clocked_by(ScriptedClock()):
        assert cloning.clone(*files)
    assert calls == [0x40049409] * 3


def test_a_source_that_never_is_in_the_pool(files: tuple[int, int], failing: Failing) -> None:
    failing(*[errno.EAGAIN] * 100)
    assert not cloning.clone(*files)
