import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zvmsnap.common.errors import VaultDamaged
from zvmsnap.inventory.coverage import Fate, Judged
from zvmsnap.inventory.resource import Kind, Resource
from zvmsnap.points.manifest import MANIFEST, Manifest, Memory, OtherState, SnapshotRef
from zvmsnap.points.point import RestorePoint, read_point

Build = Callable[..., Manifest]


def ref(full_name: str, guid: int) -> SnapshotRef:
    dataset, _, name = full_name.partition("@")
    return SnapshotRef(dataset, name, guid, createtxg=guid)


def test_names(manifest: Build) -> None:
    known = manifest(snapshots=(ref("tank/a@x_hourly", 1), ref("tank/a@x_daily", 2)), run="x")
    point = RestorePoint(Path("/vault/web/x.2"), known)
    assert point.name == "web@x.2"
    for name, answers in {
        "x": True,
        "x.2": True,
        "x_hourly": True,
        "x_daily": True,
        "x_weekly": False,
        "tank/a@x_daily": False,
        "": False,
    }.items():
        assert point.answers_to(name) is answers, name


def test_written_and_read_again(tmp_path: Path, manifest: Build) -> None:
    whole = manifest(reason="why", memory=None, snapshots=(ref("tank/My VMs@h", 2**64 - 1),))
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(whole))
    assert read_point(tmp_path) == RestorePoint(tmp_path, whole)


@given(called=st.text(), place=st.text(), why=st.sampled_from(["", "is elsewhere"]))
def test_any_other_state_is_written_and_read_again(called: str, place: str, why: str) -> None:
    named = Resource(called, Kind.UNKNOWN, place * 100, True, True)
    state = OtherState.of(Judged(named, None, Fate.OBSTACLE, why))
    assert msgspec.json.decode(msgspec.json.encode(state), type=OtherState) == state


def test_keys_of_later_versions_are_passed_over(tmp_path: Path, manifest: Build) -> None:
    document = msgspec.to_builtins(manifest()) | {"invented": {"later": True}}
    (tmp_path / MANIFEST).write_text(json.dumps(document))
    assert read_point(tmp_path).manifest == manifest()


@pytest.mark.parametrize(
    ("file", "rest"),
    [("memory.img", ""), ("memory.img.zst", ""), ("memory.pages", "memory.rest")],
)
def test_names_of_memory_files(tmp_path: Path, manifest: Build, file: str, rest: str) -> None:
    memory = Memory(file, "raw", "none", 1, 1, "00", rest)
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(manifest(memory=memory)))
    assert read_point(tmp_path).manifest.memory == memory


def changed(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda document: document | changes


def with_memory(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda document: document | {"memory": document["memory"] | changes}


def with_pages(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return with_memory(**{"file": "memory.pages", "rest_file": "memory.rest", **changes})


def with_memory_file(file: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return with_memory(file=file)


DAMAGED = [
    pytest.param(lambda document: {}, "missing required field", id="empty object"),
    pytest.param(lambda document: [document], "Expected `object`", id="list"),
    pytest.param(changed(schema=3), "schema 3 is not one this version reads", id="later schema"),
    pytest.param(changed(snapshots=[]), "names no snapshot", id="no snapshots"),
    pytest.param(changed(level="superb"), "$.level", id="unknown level"),
    pytest.param(changed(disks=[{"target": "vda"}]), "$.disks", id="half a disk"),
    pytest.param(changed(domain=None), "$.domain", id="no domain"),
    pytest.param(with_memory_file("/etc/shadow"), "$.memory.file", id="absolute memory file"),
    pytest.param(with_memory_file("../x/memory.img"), "$.memory.file", id="memory elsewhere"),
    pytest.param(with_memory_file(".."), "'..'", id="memory file dot dot"),
    pytest.param(with_memory_file(""), "''", id="memory file of no name"),
    pytest.param(with_memory_file("manifest.json"), "'manifest.json'", id="memory file not ours"),
    pytest.param(with_memory_file("memory.rest"), "'memory.rest'", id="only the rest"),
    pytest.param(with_memory_file("memory.pages"), "''", id="pages without rest"),
    pytest.param(with_memory(rest_file="memory.rest"), "'memory.rest'", id="rest without pages"),
    pytest.param(with_pages(rest_file="../memory.rest"), "$.memory.rest_file", id="rest elsewhere"),
    pytest.param(with_pages(rest_file="memory.img"), "'memory.img'", id="rest that is an image"),
    pytest.param(with_pages(compression="zstd"), "'zstd'", id="compressed pages"),
    pytest.param(with_pages(rest_sha256="x"), "$.memory.rest_sha256", id="no digest"),
    pytest.param(with_memory(why_plain="a\nb"), "$.memory.why_plain", id="two lines"),
    pytest.param(with_memory(image_bytes=-1), "$.memory.image_bytes", id="less than nothing"),
    pytest.param(with_memory(stored_bytes=2**63), "$.memory.stored_bytes", id="no such size"),
]


@pytest.mark.parametrize(("change", "says"), DAMAGED)
def test_damaged_manifest(
    tmp_path: Path, manifest: Build, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    path = tmp_path / MANIFEST
    path.write_text(json.dumps(change(msgspec.to_builtins(manifest()))))
    with pytest.raises(VaultDamaged) as caught:
        read_point(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("point")


@given(st.one_of(st.binary(), st.text().map(json.dumps).map(str.encode), st.just(b"[" * 5000)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_reported_as_damage(scratch: Path, content: bytes) -> None:
    (scratch / MANIFEST).write_bytes(content)
    with pytest.raises(VaultDamaged, match=MANIFEST):
        read_point(scratch)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"domain":"\xff"}', id="no text"),
        pytest.param(b'{"invented":' + b"[" * 100_000, id="bottomless"),
    ],
)
def test_more_bytes_that_are_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(VaultDamaged, match=MANIFEST):
        read_point(tmp_path)


@given(st.data())
def test_a_changed_byte_never_breaks_the_reader(
    scratch: Path, manifest: Build, data: st.DataObject
) -> None:
    content = bytearray(msgspec.json.encode(manifest()))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (scratch / MANIFEST).write_bytes(content)
    try:
        point = read_point(scratch)
    except VaultDamaged as error:
        assert str(scratch) in str(error)
    else:
        assert point.directory == scratch


@given(st.data())
def test_a_manifest_cut_short_is_damage(
    scratch: Path, manifest: Build, data: st.DataObject
) -> None:
    whole = msgspec.json.encode(manifest())
    (scratch / MANIFEST).write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(VaultDamaged, match=MANIFEST):
        read_point(scratch)


def missing(directory: Path, elsewhere: Path) -> None:
    (directory / MANIFEST).unlink()


def manifest_is_a_directory(directory: Path, elsewhere: Path) -> None:
    (directory / MANIFEST).unlink()
    (directory / MANIFEST).mkdir()


def manifest_is_a_symlink(directory: Path, elsewhere: Path) -> None:
    (directory / MANIFEST).rename(elsewhere)
    (directory / MANIFEST).symlink_to(elsewhere)


def directory_is_a_symlink(directory: Path, elsewhere: Path) -> None:
    directory.rename(elsewhere)
    directory.symlink_to(elsewhere)


def directory_is_a_file(directory: Path, elsewhere: Path) -> None:
    (directory / MANIFEST).unlink()
    directory.rmdir()
    directory.write_text("foreign")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (missing, "has no manifest.json"),
        (manifest_is_a_directory, "Is a directory"),
        (manifest_is_a_symlink, "not followed"),
        (directory_is_a_symlink, "not followed"),
        (directory_is_a_file, "Not a directory"),
    ],
)
def test_damaged_directory(
    tmp_path: Path, manifest: Build, damage: Callable[[Path, Path], None], says: str
) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / MANIFEST).write_bytes(msgspec.json.encode(manifest()))
    assert read_point(directory).manifest == manifest()
    damage(directory, tmp_path / "elsewhere")
    with pytest.raises(VaultDamaged) as caught:
        read_point(directory)
    assert str(directory) in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("tank/web", "a\0b"),
        ("tank/web", "a\nb"),
        ("tank/web", ""),
        ("tank/web\t", "a"),
        ("-r", "a"),
        ("", "a"),
        ("/tank", "a"),
    ],
)
@pytest.mark.parametrize("where", ["taken of", "current", "taken of, since moved"])
def test_snapshots_that_no_command_line_could_name(
    tmp_path: Path, manifest: Build, dataset: str, name: str, where: str
) -> None:
    ref = {
        "taken of": SnapshotRef(dataset, name, 1, 1),
        "current": SnapshotRef("tank/web", name, 1, 1, dataset or "/"),
        "taken of, since moved": SnapshotRef(dataset, name, 1, 1, "tank/web"),
    }[where]
    refs = (*manifest().snapshots, ref)
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(manifest(snapshots=refs)))
    with pytest.raises(VaultDamaged, match=r"\$.snapshots\[\d\].* is nothing that zvmsnap writes"):
        read_point(tmp_path)


@pytest.mark.parametrize("taken", ["", "yesterday", "2026-11-20T03:00:00", "2026-13-01T00:00:00Z"])
def test_time_that_is_none(tmp_path: Path, manifest: Build, taken: str) -> None:
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(manifest(created=taken)))
    with pytest.raises(VaultDamaged, match="is no time at which it was taken"):
        read_point(tmp_path)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a\nb"])
@pytest.mark.parametrize("key", ["uuid", "capture"])
def test_names_that_lead_elsewhere(tmp_path: Path, manifest: Build, key: str, name: str) -> None:
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(manifest(**{key: name})))
    with pytest.raises(VaultDamaged, match=rf"\$.{key} is nothing that zvmsnap writes there"):
        read_point(tmp_path)


HOSTILE = [
    "..",
    ".",
    "/",
    "/etc/shadow",
    "../../etc/shadow",
    "a/../../etc/shadow",
    "a/..",
    "a\0b",
    "a\nb",
    "x" * 5000,
    "\x1b[2J",
    -1,
    None,
    [],
]
# Every field that becomes part of a path, a name, a command line or a definition.
FIELDS = [
    *(("domain",), ("uuid",), ("run",), ("created",), ("capture",), ("level",), ("seal",)),
    *(("snapshots", 0, key) for key in ("dataset", "name", "current_dataset")),
    *(("disks", 0, key) for key in ("target", "type", "format", "dataset", "path")),
    *(("memory", key) for key in ("file", "format", "compression", "sha256")),
]
# What of the above each of them may be all the same.
FINE = {
    ("domain",): {"..", ".", "/", "/etc/shadow", "../../etc/shadow", "a/../../etc/shadow", "a/.."},
    ("run",): {"..", "."},
    ("snapshots", 0, "name"): {"..", "."},
    ("disks", 0, "target"): {"..", "."},
    ("disks", 0, "type"): {"..", "."},
    ("disks", 0, "format"): {"..", "."},
    ("memory", "format"): {"..", "."},
    ("memory", "compression"): {"..", "."},
}


def with_field(manifest: Manifest, field: tuple[str | int, ...], value: object) -> bytes:
    document = msgspec.to_builtins(manifest)
    at = document
    for key in field[:-1]:
        at = at[key]
    at[field[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: ".".join(map(str, field)))
def test_hostile_fields(tmp_path: Path, manifest: Build, field: tuple[str | int, ...]) -> None:
    for value in HOSTILE:
        (tmp_path / MANIFEST).write_bytes(with_field(manifest(), field, value))
        if isinstance(value, str) and value in FINE.get(field, ()):
            read_point(tmp_path)
            continue
        with pytest.raises(VaultDamaged) as caught:
            read_point(tmp_path)
        assert len(str(caught.value).splitlines()) == 1, (field, value)
        assert len(str(caught.value)) < 600


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b c", "\n", "/"]), max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_path_of_a_disk_leads_out_of_its_dataset(
    scratch: Path, manifest: Build, parts: list[str]
) -> None:
    path = "/".join(parts)
    (scratch / MANIFEST).write_bytes(with_field(manifest(), ("disks", 0, "path"), path))
    try:
        read = read_point(scratch).manifest.disks[0].path
    except VaultDamaged:
        return
    top = Path("/tank/web")
    assert not read or Path(os.path.normpath(top / read)).parent.is_relative_to(top)
