import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.common.process import Process
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.operation import Begin, Clone, Restore, Tasks, Work
from zvmsnap.zfs.dataset_swap import Member, Stray, Unit

A = "aaaaaaaa-0000-4000-8000-000000000001"
B = "bbbbbbbb-0000-4000-8000-000000000001"
OWNER = Process(4711, 815, "a-boot")
MEMBER = Member("/a b", 2**64 - 1, "on", "tank/w@s 1", 7, 9, (11, 12))
UNIT = Unit("tank/w", "tank/w.zvmsnap-0", "tank/w.before-x", (MEMBER,), (Stray("/s", 5),), ("",))


def restore(**changes: Any) -> Restore:
    plain = Restore(
        domain="web",
        uuid=A,
        point="web@m",
        directory="/v/web/m",
        owner=OWNER,
        memory=True,
        begin=Begin.RUNNING,
        capture=f"{A}.00000001",
        existed=True,
        was_active=True,
        was_paused=False,
        save=True,
    )
    return msgspec.structs.replace(plain, **changes)


def clone(**changes: Any) -> Clone:
    plain = Clone(
        domain="web 2",
        uuid=A,
        point="web@m",
        directory="/v/web/m",
        owner=OWNER,
        memory=False,
        begin=Begin.OFF,
        capture=f"{A}.00000001",
        network="none",
    )
    return msgspec.structs.replace(plain, **changes)


@pytest.fixture
def tasks(tmp_path: Path) -> Tasks:
    return Tasks(tmp_path)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "tasks"


@pytest.mark.parametrize(
    "task",
    [
        restore(),
        restore(units=(UNIT,), sources={"vda": ("file", "/a b", "raw")}, step="undo switch"),
        restore(rollback=("tank/My VMs@a b",), no_return=True, save=False, begin=Begin.PAUSED),
        clone(),
        clone(datasets=(("tank/My VMs-2", "tank/My VMs@a b"),)),
    ],
)
def test_written_read_and_closed(tasks: Tasks, directory: Path, task: Restore | Clone) -> None:
    assert tasks.read(A) is None
    assert tasks.all() == []
    tasks.close(A)
    tasks.write(restore(step="before"))
    tasks.write(task)
    assert tasks.read(A) == task
    assert tasks.all() == [task]
    assert [path.name for path in directory.iterdir()] == [f"{A}.json"]
    assert directory.stat().st_mode & 0o077 == 0
    tasks.close(A)
    assert tasks.read(A) is None
    assert list(directory.iterdir()) == []


def test_with_a_safety_point(tasks: Tasks, entry: Callable[..., Entry]) -> None:
    task = restore(safety=entry(uuid=A, moved={"tank/w": "tank/w.before-x"}))
    tasks.write(task)
    assert tasks.read(A) == task


def test_one_task_for_each_guest(tasks: Tasks, directory: Path) -> None:
    tasks.write(restore())
    tasks.write(clone(uuid=B, capture=f"{B}.00000001"))
    for name in ("README", "b.damaged", ".a.json.0123abcd.tmp"):
        (directory / name).write_text("foreign")
    assert [(type(each), each.uuid) for each in tasks.all()] == [(Restore, A), (Clone, B)]
    assert len(list(directory.iterdir())) == 5


def test_work_writes_each_change_down(tmp_path: Path, tasks: Tasks) -> None:
    work = Work(tmp_path, restore())
    assert tasks.read(A) is None
    work.note(step="clone")
    work.note(units=(UNIT,))
    assert tasks.read(A) == work.task == restore(step="clone", units=(UNIT,))
    work.close()
    assert tasks.read(A) is None


DAMAGE = [
    pytest.param(b"", id="empty"),
    pytest.param(b"{", id="cut short"),
    pytest.param(b"{}", id="of no kind"),
    pytest.param(b"[]", id="a list"),
    pytest.param(b'{"kind":"restore"}', id="nothing in it"),
    pytest.param(b'{"kind":"restore","domain":"\xff"}', id="no text"),
    pytest.param(b'{"kind":"clone","invented":' + b"[" * 100_000, id="bottomless"),
]


@pytest.mark.parametrize("content", DAMAGE)
def test_damaged_task_is_set_aside(tasks: Tasks, directory: Path, content: bytes) -> None:
    tasks.write(clone(uuid=B, capture=f"{B}.00000001"))
    (directory / f"{A}.json").write_bytes(content)
    assert [each.uuid for each in tasks.all()] == [B]
    assert (directory / f"{A}.damaged").read_bytes() == content
    assert tasks.read(A) is None
    tasks.write(restore())
    assert [each.uuid for each in tasks.all()] == [A, B]


REFUSED: list[tuple[str, object]] = [
    ("kind", "reboot"),
    ("kind", None),
    ("schema", 0),
    ("schema", 2),
    ("schema", "1"),
    ("uuid", B),
    ("uuid", A.upper()),
    ("uuid", A + "\n"),
    ("uuid", "../" + A),
    ("capture", f"{B}.00000001"),
    ("capture", f"{A}.00000001\n"),
    ("capture", f"{A}.00000001/.."),
    ("capture", f"../{A}.00000001"),
    ("capture", f"/etc/{A}.00000001"),
    ("capture", "."),
    ("capture", ".."),
    ("capture", ""),
    ("capture", f"{A}.0000000g"),
    ("capture", f"{A}.00000001\0"),
    ("domain", ""),
    ("begin", "later"),
    ("memory", "yes"),
    ("owner", {"pid": 1}),
    ("sources", {"vda": ["file", "/x"]}),
    ("sources", []),
    ("safety", {"domain": "web"}),
    ("was_active", None),
    ("rollback", ["-R"]),
    ("rollback", ["tank@a\n"]),
    ("rollback", "tank@a"),
    ("units", [{"top": "tank/w"}]),
    *(
        ("units", [{**msgspec.to_builtins(UNIT), key: value}])
        for key in ("top", "fresh", "former")
        for value in ("", "-r", "/tank", "tank\0", "tank\n", None)
    ),
    ("units", [{**msgspec.to_builtins(UNIT), "members": [{"path": ""}]}]),
    (
        "units",
        [
            {
                **msgspec.to_builtins(UNIT),
                "members": [{**msgspec.to_builtins(MEMBER), "origin": "-r"}],
            }
        ],
    ),
]


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_task_of_another_kind_is_set_aside(
    tasks: Tasks, directory: Path, key: str, value: object
) -> None:
    content = msgspec.json.encode({**msgspec.to_builtins(restore()), key: value})
    directory.mkdir()
    (directory / f"{A}.json").write_bytes(content)
    assert tasks.all() == []
    assert [path.name for path in directory.iterdir()] == [f"{A}.damaged"]
    assert (directory / f"{A}.damaged").read_bytes() == content


@pytest.mark.parametrize(
    "datasets", [[["-o", "tank/w@s"]], [["tank/x", "--help"]], [["tank/x"]], [["", "tank/w@s"]]]
)
def test_datasets_of_a_clone_that_cannot_be(
    tasks: Tasks, directory: Path, datasets: object
) -> None:
    content = msgspec.json.encode({**msgspec.to_builtins(clone()), "datasets": datasets})
    directory.mkdir()
    (directory / f"{A}.json").write_bytes(content)
    assert tasks.read(A) is None
    assert (directory / f"{A}.damaged").exists()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@given(st.data())
def test_a_changed_byte_never_breaks_the_reader(scratch: Path, data: st.DataObject) -> None:
    content = bytearray(msgspec.json.encode(restore(units=(UNIT,))))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = scratch / "tasks" / f"{A}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    found = Tasks(scratch).read(A)
    assert (found is not None) == path.exists()


def test_an_interrupted_write_leaves_the_old_task(
    tasks: Tasks, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks.write(restore(step="stop"))

    def power_cut(source: Path, target: Path) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", power_cut)
    with pytest.raises(OSError, match="power cut"):
        tasks.write(restore(step="switch"))
    assert [each.step for each in tasks.all()] == ["stop"]
    assert [path.name for path in directory.iterdir()] == [f"{A}.json"]
