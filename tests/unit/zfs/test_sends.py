import sys
from pathlib import Path
from types import ModuleType

import pytest

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.zfs import mounts, sends
from zvmsnap.zfs.mounts import Mount


class Binding:
    """libzfs_core, of which the channel program says which snapshots are busy."""

    class ZFSError(Exception):
        pass

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.errors: dict[bytes, int] = {}
        self.calls: list[tuple[bytes, list[bytes]]] = []
        self.fails = False
        module, exceptions = ModuleType("libzfs_core"), ModuleType("libzfs_core.exceptions")
        module.lzc_channel_program_nosync = self.run  # type: ignore[attr-defined]
        exceptions.ZFSError = self.ZFSError  # type: ignore[attr-defined]
        patch.setitem(sys.modules, "libzfs_core", module)
        patch.setitem(sys.modules, "libzfs_core.exceptions", exceptions)
        patch.setattr(mounts, "read_table", lambda: [Mount(1, 1, "/", "/s", "tank/web@mounted")])

    def run(self, pool: bytes, program: bytes, params: list[bytes]) -> dict[bytes, int] | None:
        assert program.count(b"zfs.check.destroy{snapshot, defer=true}") == 1
        if self.fails:
            raise self.ZFSError("no")
        self.calls.append((pool, params))
        return {name: self.errors[name] for name in params if name in self.errors}


def test_held(monkeypatch: pytest.MonkeyPatch) -> None:
    binding = Binding(monkeypatch)
    # 16 is EBUSY; one that is gone meanwhile is not held.
    binding.errors = {b"tank/web@a": 16, b"cheap/web@a": 16, b"tank/web@gone": 2}
    names = ["tank/web@a", "tank/web@b", "tank/web@gone", "tank/web@mounted", "cheap/web@a"]
    assert sends.held(names) == ["cheap/web@a", "tank/web@a"]
    assert binding.calls == [
        (b"cheap", [b"cheap/web@a"]),
        (b"tank", [b"tank/web@a", b"tank/web@b", b"tank/web@gone"]),
    ]
    assert sends.held([]) == []
    binding.calls.clear()
    sends.held(f"tank/web@{number}" for number in range(5000))
    assert [len(params) for _, params in binding.calls] == [2000, 2000, 1000]
    binding.fails = True
    with pytest.raises(ZfsFailed, match="tank: cannot be asked for running sends: no"):
        sends.held(["tank@a"])


def process(proc: Path, pid: int, *words: str) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "cmdline").write_bytes(b"\0".join(word.encode() for word in words) + b"\0")


def test_senders(tmp_path: Path) -> None:
    process(tmp_path, 10, "zfs", "send", "-w", "tank/web@a")
    process(tmp_path, 11, "/usr/sbin/zfs", "send", "-I", "tank/web@a", "tank/web/data@b")
    process(tmp_path, 12, "zfs", "send", "-R", "tank@a")
    process(tmp_path, 13, "zfs", "send", "tank/web2@a")
    process(tmp_path, 14, "zfs", "recv", "tank/web@a")
    process(tmp_path, 15, "sh", "-c", "zfs send tank/web@a | ssh nas")
    process(tmp_path, 16, "")
    process(tmp_path, 17, "zfs")
    (tmp_path / "18").mkdir()
    (tmp_path / "self").mkdir()
    found = {each.process.pid: each for each in sends.senders({"tank/web"}, tmp_path)}
    assert sorted(found) == [10, 12]
    assert str(found[10]) == "pid 10 (zfs send -w tank/web@a)"
    assert (found[10].many, found[12].many) == (False, True)
    both = sends.senders({"tank/web", "tank/web/data"}, tmp_path)
    assert sorted(each.process.pid for each in both) == [10, 11, 12]
