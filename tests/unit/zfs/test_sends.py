import json
from pathlib import Path

import pytest

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.zfs import mounts, programs, sends
from zvmsnap.zfs.mounts import Mount


class Program:
    """`zfs program`, which says which snapshots are busy."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.errors: dict[str, int] = {}
        self.calls: list[tuple[str, list[str]]] = []
        self.fails = False
        patch.setattr(programs, "output", self.run)
        patch.setattr(mounts, "read_table", lambda: [Mount(1, 1, "/", "/s", "tank/web@mounted")])

    def run(self, *words: str, given: bytes) -> bytes:
        assert words[:3] == ("zfs", "program", "-jn") and words[4] == "-"
        assert given.count(b"zfs.check.destroy{snapshot, defer=true}") == 1
        if self.fails:
            raise ZfsFailed("no")
        names = list(words[5:])
        self.calls.append((words[3], names))
        errors = {name: self.errors[name] for name in names if name in self.errors}
        return json.dumps({"return": errors} if errors else {}).encode()


def test_held(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program(monkeypatch)
    # 16 is EBUSY; one that is gone meanwhile is not held.
    program.errors = {"tank/web@a": 16, "cheap/web@a": 16, "tank/web@gone": 2}
    names = ["tank/web@a", "tank/web@b", "tank/web@gone", "tank/web@mounted", "cheap/web@a"]
    assert sends.held(names) == ["cheap/web@a", "tank/web@a"]
    assert program.calls == [
        ("cheap", ["cheap/web@a"]),
        ("tank", ["tank/web@a", "tank/web@b", "tank/web@gone"]),
    ]
    assert sends.held([]) == []
    program.calls.clear()
    sends.held(f"tank/web@{number}" for number in range(5000))
    assert [len(names) for _, names in program.calls] == [2000, 2000, 1000]
    program.fails = True
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
