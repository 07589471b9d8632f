import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.common.process import Process
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.journal.entry import Entry
from zvmsnap.journal.journal import Journal

Build = Callable[..., Entry]
A = "aaaaaaaa-0000-4000-8000-000000000001"
B = "bbbbbbbb-0000-4000-8000-000000000001"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "var" / "journal"


@pytest.fixture
def journal(directory: Path) -> Journal:
    return Journal(directory)


def test_written_read_and_closed(journal: Journal, directory: Path, entry: Build) -> None:
    known = entry(
        step="frozen", memory_format="raw", disks_frozen_at_s=1.5, preexisting_guids=(2**64 - 1,)
    )
    journal.write(known)
    assert journal.read(known.uuid) == known
    assert journal.entries() == [known]
    assert [path.name for path in directory.iterdir()] == [f"{known.uuid}.json"]
    assert directory.stat().st_mode & 0o077 == 0
    assert (directory / f"{known.uuid}.json").stat().st_mode & 0o077 == 0
    journal.close(known)
    journal.close(known)
    assert journal.read(known.uuid) is None
    assert list(directory.iterdir()) == []


def test_one_entry_for_each_guest(journal: Journal, entry: Build) -> None:
    journal.write(entry(uuid=A, step="dump"))
    journal.write(entry(uuid=B, step="dump"))
    journal.write(entry(uuid=A, step="frozen"))
    assert [(each.uuid, each.step) for each in journal.entries()] == [
        (A, "frozen"),
        (B, "dump"),
    ]


def test_no_journal_yet(journal: Journal, directory: Path, entry: Build) -> None:
    assert journal.read(A) is None
    assert journal.entries() == []
    journal.close(entry())
    assert not directory.exists()


DAMAGE = [
    pytest.param(b"", id="empty"),
    pytest.param(b"{", id="cut short"),
    pytest.param(b"{}", id="nothing in it"),
    pytest.param(b"[]", id="a list"),
    pytest.param(b'{"domain":"\xff"}', id="no text"),
    pytest.param(b'{"invented":' + b"[" * 100_000, id="bottomless"),
]


@pytest.mark.parametrize("content", DAMAGE)
def test_damaged_entry_is_renamed(
    journal: Journal, directory: Path, entry: Build, content: bytes
) -> None:
    journal.write(entry(uuid=B))
    (directory / f"{A}.json").write_bytes(content)
    assert [each.uuid for each in journal.entries()] == [B]
    assert (directory / f"{A}.damaged").read_bytes() == content
    assert journal.read(A) is None
    journal.write(entry(uuid=A))
    assert [each.uuid for each in journal.entries()] == [A, B]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journal")


@given(st.data())
def test_a_changed_byte_never_breaks_the_reader(
    scratch: Path, entry: Build, data: st.DataObject
) -> None:
    content = bytearray(msgspec.json.encode(entry(uuid=A)))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = scratch / f"{A}.json"
    path.write_bytes(content)
    journal = Journal(scratch)
    readable = journal.read(A) or journal.of_other_version(A)
    assert bool(readable) == path.exists()
    path.unlink(missing_ok=True)


def test_an_interrupted_write_leaves_the_old_entry(
    journal: Journal, directory: Path, entry: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.write(entry(uuid=A, step="dump"))

    def power_cut(*_names: str, **_directories: int) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", power_cut)
    with pytest.raises(OSError, match="power cut"):
        journal.write(entry(uuid=A, step="frozen"))
    assert [each.step for each in journal.entries()] == ["dump"]
    assert [path.name for path in directory.iterdir()] == [f"{A}.json"]


def test_foreign_files_are_no_entries(journal: Journal, directory: Path, entry: Build) -> None:
    journal.write(entry(uuid=A))
    for name in ("README", "b.damaged", ".a.json.0123abcd.tmp"):
        (directory / name).write_text("foreign")
    assert [each.uuid for each in journal.entries()] == [A]
    assert len(list(directory.iterdir())) == 4


def test_datasets_of_an_entry(entry: Build) -> None:
    disk = entry().disks[0]
    on = [msgspec.structs.replace(disk, dataset=name) for name in ("tank/b", "tank/a", "tank/b")]
    assert entry(disks=tuple(on)).datasets == ("tank/a", "tank/b")


def test_this_process_is_alive() -> None:
    own = Process.of(os.getpid())
    assert own.is_alive()
    assert own == Process.of(os.getpid())
    assert msgspec.json.decode(msgspec.json.encode(own), type=Process) == own


NAMED = """\
import sys, time
open("/proc/self/comm", "wb").write(bytes.fromhex(sys.argv[1]))
print(flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    "name",
    [b"sanoid", b"a) R 1 2 3 (b", b"\xff\xfe (", b") ) )"],
    ids=["plain", "looks like fields", "no text", "parentheses"],
)
def test_process_that_dies(name: bytes) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", NAMED, name.hex()], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        known = Process.of(child.pid)
        assert known.is_alive()
        assert known.started > 0
        assert not msgspec.structs.replace(known, started=known.started - 1).is_alive()
        assert not msgspec.structs.replace(known, boot="another boot").is_alive()
        child.kill()
    assert not known.is_alive()


def test_no_such_process() -> None:
    nobody = Process.of(2**22 + 1)
    assert nobody.started == 0
    assert not nobody.is_alive()


def encoded(known: Entry, **changes: object) -> bytes:
    return msgspec.json.encode({**msgspec.to_builtins(known), **changes})


REFUSED: list[tuple[str, object]] = [
    ("schema", "3"),
    ("schema", None),
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
    ("run", ""),
    ("snapshot_names", []),
    ("snapshot_names", None),
    ("request_datasets", "tank/web"),
    ("level", "whole"),
    ("original_downtime_ms", -1),
    ("original_downtime_ms", 2**40),
    ("original_speed_mib", -1),
    ("original_speed_mib", 2**44),
    ("owner", {"pid": 1}),
    ("owner", {"pid": "1", "started": 1, "boot": ""}),
    ("disks", [{"target": "vda"}]),
    ("created", 5),
    ("committed_overlays", "all"),
]


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_entry_of_another_kind_is_renamed(
    journal: Journal, directory: Path, entry: Build, key: str, value: object
) -> None:
    content = encoded(entry(uuid=A), **{key: value})
    directory.mkdir(parents=True)
    (directory / f"{A}.json").write_bytes(content)
    assert journal.entries() == []
    assert [path.name for path in directory.iterdir()] == [f"{A}.damaged"]
    assert (directory / f"{A}.damaged").read_bytes() == content


def test_what_a_killed_writer_left_goes_with_the_entry(
    journal: Journal, directory: Path, entry: Build
) -> None:
    others = entry(uuid=B)
    for known in (entry(uuid=A), others):
        journal.write(known)
        (directory / f".{known.uuid}.json.0123abcd.tmp").write_text("{")
    journal.close(entry(uuid=A))
    assert sorted(path.name for path in directory.iterdir()) == [
        f".{B}.json.0123abcd.tmp",
        f"{B}.json",
    ]
    assert journal.entries() == [others]


def test_recovery_is_an_entry(journal: Journal, entry: Build) -> None:
    known = entry(uuid=A, snapshot_names=(), run="")
    journal.write(known)
    assert journal.entries() == [known]


def test_what_a_later_version_adds_is_no_damage(
    journal: Journal, directory: Path, entry: Build
) -> None:
    journal.write(entry(uuid=A))
    (directory / f"{A}.json").write_bytes(encoded(entry(uuid=A), invented=[1]))
    assert journal.read(A) == entry(uuid=A)


def test_age(journal: Journal, directory: Path, entry: Build) -> None:
    known = entry(uuid=A)
    assert journal.age_s(known) == 0
    journal.tried(known)
    assert not directory.exists()
    journal.write(known)
    path = directory / f"{A}.json"
    os.utime(path, (0, 1000))
    assert journal.age_s(known) > 1e9
    journal.tried(known)
    assert 0 <= journal.age_s(known) < 1000
    assert journal.read(A) == known
    os.utime(path, (0, 2**33))  # clocks were set back
    assert journal.age_s(known) == 0


@pytest.mark.parametrize(
    ("disks", "names", "may_be"),
    [
        pytest.param(("/o",), ("n",), True, id="overlays were planned"),
        pytest.param(("",), ("n",), False, id="none was"),
        pytest.param(("", "/o"), ("n",), True, id="for one disk"),
        pytest.param((), ("n",), False, id="no disks"),
        pytest.param((), (), True, id="a recovery: nothing is known"),
    ],
)
def test_may_be_on_overlay(
    entry: Build, disks: tuple[str, ...], names: tuple[str, ...], may_be: bool
) -> None:
    disk = entry().disks[0]
    planned = tuple(msgspec.structs.replace(disk, overlay=overlay) for overlay in disks)
    assert entry(disks=planned, snapshot_names=names).may_be_on_overlay is may_be


@pytest.mark.parametrize(
    ("said", "may"),
    [
        pytest.param(
            {"level": ConsistencyLevel.MEMORY, "paused": True}, False, id="paused to end its dump"
        ),
        pytest.param({"level": ConsistencyLevel.CRASH}, False, id="as it is"),
        pytest.param({"level": ConsistencyLevel.PAUSED}, True, id="will be dumped"),
        pytest.param({"level": ConsistencyLevel.PAUSED, "paused": True}, True, id="is dumped"),
        pytest.param(
            {"level": ConsistencyLevel.PAUSED, "paused": True, "disks_frozen_at_s": 1.0},
            True,
            id="paused",
        ),
        pytest.param(
            {"level": ConsistencyLevel.PAUSED, "disks_frozen_at_s": 1.0}, False, id="released"
        ),
        pytest.param(
            {"level": ConsistencyLevel.CRASH, "disks_frozen_at_s": 1.0},
            False,
            id="went on by itself",
        ),
        pytest.param({"level": ConsistencyLevel.QUIESCED}, True, id="will be frozen"),
        pytest.param(
            {"level": ConsistencyLevel.QUIESCED, "frozen": True}, True, id="is being frozen"
        ),
        pytest.param(
            {"level": ConsistencyLevel.QUIESCED, "frozen": True, "disks_frozen_at_s": 1.0},
            True,
            id="frozen",
        ),
        pytest.param(
            {"level": ConsistencyLevel.QUIESCED, "disks_frozen_at_s": 1.0}, False, id="thawed"
        ),
        pytest.param({"level": ConsistencyLevel.CRASH, "frozen": True}, True, id="not thawed yet"),
    ],
)
def test_may_hold_guest(entry: Callable[..., Entry], said: dict[str, Any], may: bool) -> None:
    assert entry(**said).may_hold_guest is may
