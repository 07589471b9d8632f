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
from zvmsnap.journal.operation import (
    CloneOperation,
    Operations,
    OperationWriter,
    RestoreOperation,
    StartState,
)
from zvmsnap.zfs.dataset_swap import Bystander, SwapDataset, SwapTree

A = "aaaaaaaa-0000-4000-8000-000000000001"
B = "bbbbbbbb-0000-4000-8000-000000000001"
OWNER = Process(4711, 815, "a-boot")
MEMBER = SwapDataset("/a b", 2**64 - 1, "on", "tank/w@s 1", 7, 9, (11, 12))
UNIT = SwapTree(
    "tank/w", "tank/w.zvmsnap-0", "tank/w.before-x", (MEMBER,), (Bystander("/s", 5),), ("",)
)


def restore(**changes: Any) -> RestoreOperation:
    plain = RestoreOperation(
        domain="web",
        uuid=A,
        point="web@m",
        directory="/v/web/m",
        owner=OWNER,
        memory=True,
        start_state=StartState.RUNNING,
        capture=f"{A}.00000001",
        guest_existed=True,
        was_active=True,
        was_paused=False,
        saves_memory=True,
    )
    return msgspec.structs.replace(plain, **changes)


def clone(**changes: Any) -> CloneOperation:
    plain = CloneOperation(
        domain="web 2",
        uuid=A,
        point="web@m",
        directory="/v/web/m",
        owner=OWNER,
        memory=False,
        start_state=StartState.OFF,
        capture=f"{A}.00000001",
        network="none",
    )
    return msgspec.structs.replace(plain, **changes)


@pytest.fixture
def operations(tmp_path: Path) -> Operations:
    return Operations(tmp_path)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "operations"


@pytest.mark.parametrize(
    "operation",
    [
        restore(),
        restore(swap_trees=(UNIT,), sources={"vda": ("file", "/a b", "raw")}, step="undo swap"),
        restore(
            rollback=("tank/My VMs@a b",),
            rollback_begun=True,
            saves_memory=False,
            start_state=StartState.PAUSED,
        ),
        clone(),
        clone(datasets=(("tank/My VMs-2", "tank/My VMs@a b"),)),
    ],
)
def test_written_read_and_closed(
    operations: Operations, directory: Path, operation: RestoreOperation | CloneOperation
) -> None:
    assert operations.read(A) is None
    assert operations.all() == []
    operations.close(A)
    operations.write(restore(step="before"))
    operations.write(operation)
    assert operations.read(A) == operation
    assert operations.all() == [operation]
    assert [path.name for path in directory.iterdir()] == [f"{A}.json"]
    assert directory.stat().st_mode & 0o077 == 0
    operations.close(A)
    assert operations.read(A) is None
    assert list(directory.iterdir()) == []


def test_with_a_safety_point(operations: Operations, entry: Callable[..., Entry]) -> None:
    operation = restore(
        safety_entry=entry(uuid=A, relocated_datasets={"tank/w": "tank/w.before-x"})
    )
    operations.write(operation)
    assert operations.read(A) == operation


def test_one_operation_for_each_guest(operations: Operations, directory: Path) -> None:
    operations.write(restore())
    operations.write(clone(uuid=B, capture=f"{B}.00000001"))
    for name in ("README", "b.damaged", ".a.json.0123abcd.tmp"):
        (directory / name).write_text("foreign")
    assert [(type(each), each.uuid) for each in operations.all()] == [
        (RestoreOperation, A),
        (CloneOperation, B),
    ]
    assert len(list(directory.iterdir())) == 5


def test_writer_writes_each_change_down(tmp_path: Path, operations: Operations) -> None:
    writer = OperationWriter(tmp_path, restore())
    assert operations.read(A) is None
    writer.note(step="clone")
    writer.note(swap_trees=(UNIT,))
    assert operations.read(A) == writer.operation == restore(step="clone", swap_trees=(UNIT,))
    writer.close()
    assert operations.read(A) is None


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
def test_damaged_operation_is_renamed(
    operations: Operations, directory: Path, content: bytes
) -> None:
    operations.write(clone(uuid=B, capture=f"{B}.00000001"))
    (directory / f"{A}.json").write_bytes(content)
    assert [each.uuid for each in operations.all()] == [B]
    assert (directory / f"{A}.damaged").read_bytes() == content
    assert operations.read(A) is None
    operations.write(restore())
    assert [each.uuid for each in operations.all()] == [A, B]


REFUSED: list[tuple[str, object]] = [
    ("kind", "reboot"),
    ("kind", None),
    ("schema", "2"),
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
    ("start_state", "later"),
    ("memory", "yes"),
    ("owner", {"pid": 1}),
    ("sources", {"vda": ["file", "/x"]}),
    ("sources", []),
    ("safety_entry", {"domain": "web"}),
    ("was_active", None),
    ("rollback", ["-R"]),
    ("rollback", ["tank@a\n"]),
    ("rollback", "tank@a"),
    ("swap_trees", [{"top": "tank/w"}]),
    *(
        ("swap_trees", [{**msgspec.to_builtins(UNIT), key: value}])
        for key in ("top", "clone_top", "replaced_top")
        for value in ("", "-r", "/tank", "tank\0", "tank\n", None)
    ),
    ("swap_trees", [{**msgspec.to_builtins(UNIT), "datasets": [{"path": ""}]}]),
    (
        "swap_trees",
        [
            {
                **msgspec.to_builtins(UNIT),
                "datasets": [{**msgspec.to_builtins(MEMBER), "origin": "-r"}],
            }
        ],
    ),
]


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_operation_of_another_kind_is_renamed(
    operations: Operations, directory: Path, key: str, value: object
) -> None:
    content = msgspec.json.encode({**msgspec.to_builtins(restore()), key: value})
    directory.mkdir()
    (directory / f"{A}.json").write_bytes(content)
    assert operations.all() == []
    assert [path.name for path in directory.iterdir()] == [f"{A}.damaged"]
    assert (directory / f"{A}.damaged").read_bytes() == content


@pytest.mark.parametrize(
    "datasets", [[["-o", "tank/w@s"]], [["tank/x", "--help"]], [["tank/x"]], [["", "tank/w@s"]]]
)
def test_datasets_of_a_clone_that_cannot_be(
    operations: Operations, directory: Path, datasets: object
) -> None:
    content = msgspec.json.encode({**msgspec.to_builtins(clone()), "datasets": datasets})
    directory.mkdir()
    (directory / f"{A}.json").write_bytes(content)
    assert operations.read(A) is None
    assert (directory / f"{A}.damaged").exists()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operations")


@given(st.data())
def test_a_changed_byte_never_breaks_the_reader(scratch: Path, data: st.DataObject) -> None:
    content = bytearray(msgspec.json.encode(restore(swap_trees=(UNIT,))))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = scratch / "operations" / f"{A}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    operations = Operations(scratch)
    readable = operations.read(A) or operations.of_other_version(A)
    assert bool(readable) == path.exists()
    path.unlink(missing_ok=True)


def test_an_interrupted_write_leaves_the_old_operation(
    operations: Operations, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations.write(restore(step="stop"))

    def power_cut(*_names: str, **_directories: int) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", power_cut)
    with pytest.raises(OSError, match="power cut"):
        operations.write(restore(step="swap"))
    assert [each.step for each in operations.all()] == ["stop"]
    assert [path.name for path in directory.iterdir()] == [f"{A}.json"]
