"""Bookmarks and holds: libzfs_core is a table in memory, with the errors that it raises."""

import sys
from types import ModuleType

import pytest

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.zfs import marks


class ZFSError(Exception):
    """As in libzfs_core: `errors` has what is wrong with each name."""

    def __init__(self, text: str, *errors: Exception) -> None:
        super().__init__(text)
        self.errors = errors


class SnapshotNotFound(ZFSError):
    """As in libzfs_core."""


class Core:
    """The holds of snapshots, and bookmarks; those of the pool `old` cannot be made."""

    def __init__(self) -> None:
        self.holds: dict[bytes, set[bytes]] = {b"t/a@1": set(), b"u/a@1": {b"own"}}
        self.bookmarks: dict[bytes, bytes] = {}
        self.calls = 0

    def _check(self, names: object) -> None:
        self.calls += 1
        if any(name.startswith(b"old/") for name in list(names)):  # type: ignore[call-overload]
            raise ZFSError("failed for one or more reasons", ZFSError("not supported"))

    def lzc_bookmark(self, names: dict[bytes, bytes]) -> None:
        self._check(names)
        self.bookmarks |= names

    def lzc_destroy_bookmarks(self, names: list[bytes]) -> None:
        self._check(names)
        for name in names:
            self.bookmarks.pop(name, None)

    def lzc_hold(self, holds: dict[bytes, bytes]) -> list[bytes]:
        self._check(holds)
        for name, tag in holds.items():
            self.holds.get(name, set()).add(tag)
        return [name for name in holds if name not in self.holds]

    def lzc_release(self, holds: dict[bytes, list[bytes]]) -> list[bytes]:
        self._check(holds)
        for name, tags in holds.items():
            self.holds.get(name, set()).difference_update(tags)
        return []

    def lzc_exists(self, name: bytes) -> bool:
        return name in self.holds

    def lzc_get_holds(self, name: bytes) -> dict[bytes, int]:
        if name.startswith(b"old/"):
            raise ZFSError("not supported")
        if name not in self.holds:
            raise SnapshotNotFound("Snapshot not found")
        return dict.fromkeys(self.holds[name], 1)


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Core:
    core, module, exceptions = Core(), ModuleType("libzfs_core"), ModuleType("exceptions")
    for name in dir(core):
        if name.startswith("lzc_"):
            setattr(module, name, getattr(core, name))
    vars(exceptions).update(ZFSError=ZFSError, SnapshotNotFound=SnapshotNotFound)
    monkeypatch.setitem(sys.modules, "libzfs_core", module)
    monkeypatch.setitem(sys.modules, "libzfs_core.exceptions", exceptions)
    return core


def test_holds_of_several_pools(core: Core) -> None:
    assert marks.hold(["t/a@1", "u/a@1", "t/a@gone"], "ours") == {"t/a@gone"}
    assert core.calls == 2
    assert marks.tags("u/a@1") == {"own", "ours"}
    assert marks.tags("t/a@gone") == set()
    marks.release(["t/a@1", "u/a@1", "t/a@gone"], "ours")
    assert core.holds == {b"t/a@1": set(), b"u/a@1": {b"own"}}


def test_bookmarks(core: Core) -> None:
    marks.bookmark({"t/a#1": "t/a@1", "u/a#1": "u/a@1"})
    marks.destroy_bookmarks(["t/a#1", "t/a#gone"])
    assert core.bookmarks == {b"u/a#1": b"u/a@1"}


def test_nothing_costs_no_call(core: Core) -> None:
    marks.bookmark({})
    marks.destroy_bookmarks([])
    assert marks.hold([], "ours") == set()
    marks.release([], "ours")
    assert core.calls == 0


def test_the_reason_is_one_line(core: Core) -> None:
    for act in (
        lambda: marks.bookmark({"old/a#1": "old/a@1"}),
        lambda: marks.destroy_bookmarks(["old/a#1"]),
        lambda: marks.hold(["old/a@1"], "ours"),
        lambda: marks.release(["old/a@1"], "ours"),
        lambda: marks.tags("old/a@1"),
    ):
        with pytest.raises(ZfsFailed, match=r"^old/a[#@]1: cannot be .*: not supported$"):
            act()


def test_whether_a_snapshot_seems_to_exist(core: Core) -> None:
    assert marks.seems_to_exist("t/a@1")
    assert not marks.seems_to_exist("t/a@gone")


def test_which_exist(core: Core) -> None:
    assert marks.existing(["t/a@1", "t/a@gone", "u/a@1"]) == ["t/a@1", "u/a@1"]
    with pytest.raises(ZfsFailed, match=r"^old/a@1: cannot be asked for: not supported$"):
        marks.existing(["t/a@1", "old/a@1"])
