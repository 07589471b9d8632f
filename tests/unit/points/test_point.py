import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zvmsnap.common.errors import VaultDamaged
from zvmsnap.points.liveness import Life, Liveness
from zvmsnap.points.manifest import MANIFEST, Disk, Manifest, Memory, SnapshotRef
from zvmsnap.points.point import RestorePoint, read_point
from zvmsnap.zfs.types import Snapshot

Build = Callable[..., Manifest]


def tie(full_name: str, guid: int) -> SnapshotRef:
    dataset, _, name = full_name.partition("@")
    return SnapshotRef(dataset, name, guid, createtxg=guid)


def live(snapshots: Mapping[str, int], *pools: str) -> Liveness:
    present = {}
    for full_name, guid in snapshots.items():
        dataset, _, name = full_name.partition("@")
        present[full_name] = Snapshot(dataset, name, guid, createtxg=guid)
    return Liveness(present, frozenset(pools))


def disks(*datasets: str) -> tuple[Disk, ...]:
    return tuple(
        Disk(f"vd{number}", "file", "raw", "/x", dataset, "x")
        for number, dataset in enumerate(datasets)
    )


FATES = [
    pytest.param(
        {"tank/a@h": 1}, {"tank/a@h": 1}, ("tank",), [Life.ALIVE], False, ["h"], id="alive"
    ),
    pytest.param({"tank/a@h": 1}, {}, ("tank",), [Life.GONE], True, [], id="gone"),
    pytest.param(
        {"tank/a@h": 1},
        {"tank/a@h": 2},
        ("tank",),
        [Life.GONE],
        True,
        [],
        id="the name is another snapshot's now",
    ),
    pytest.param({"tank/a@h": 1}, {}, (), [Life.UNKNOWN], False, [], id="pool not imported"),
    pytest.param(
        {"tank/a@h": 1},
        {},
        ("tan", "tank2", "a"),
        [Life.UNKNOWN],
        False,
        [],
        id="only pools of similar names are imported",
    ),
    pytest.param({"tank@h": 1}, {}, ("tank",), [Life.GONE], True, [], id="of the pool itself"),
    pytest.param(
        {"tank/a@h": 1, "tank/a@d": 2},
        {"tank/a@d": 2},
        ("tank",),
        [Life.GONE, Life.ALIVE],
        False,
        ["d"],
        id="one of two names left",
    ),
    pytest.param(
        {"tank/a@h": 1, "tank/b@h": 2},
        {"tank/b@h": 2},
        ("tank",),
        [Life.GONE, Life.ALIVE],
        False,
        [],
        id="one of two datasets left",
    ),
    pytest.param(
        {"tank/a@h": 1, "old/b@h": 2},
        {},
        ("tank",),
        [Life.GONE, Life.UNKNOWN],
        False,
        [],
        id="gone here, unknown there",
    ),
    pytest.param(
        {"tank/a@h": 1, "tank/b@h": 2, "tank/a@d": 3, "tank/b@d": 4},
        {"tank/a@h": 1, "tank/a@d": 3, "tank/b@d": 4},
        ("tank",),
        [Life.ALIVE, Life.GONE, Life.ALIVE, Life.ALIVE],
        False,
        ["d"],
        id="one of two names complete",
    ),
    pytest.param(
        {"tank/a@h": 1, "tank/b@h": 2},
        {"tank/a@h": 1, "tank/b@h": 2, "tank/c@h": 3},
        ("tank",),
        [Life.ALIVE, Life.ALIVE],
        False,
        ["h"],
        id="foreign snapshots do not matter",
    ),
]


@pytest.mark.parametrize(("ties", "present", "pools", "lives", "orphaned", "complete"), FATES)
def test_points_and_live_snapshots(
    manifest: Build,
    ties: Mapping[str, int],
    present: Mapping[str, int],
    pools: tuple[str, ...],
    lives: list[Life],
    orphaned: bool,
    complete: list[str],
) -> None:
    liveness = live(present, *pools)
    named = manifest(
        snapshots=tuple(tie(name, guid) for name, guid in ties.items()),
        disks=disks(*dict.fromkeys(name.partition("@")[0] for name in ties)),
    )
    assert [liveness.of(each) for each in named.snapshots] == lives
    assert liveness.alive(named) == [
        each for each, life in zip(named.snapshots, lives, strict=True) if life is Life.ALIVE
    ]
    assert liveness.orphaned(named) is orphaned
    assert liveness.complete_names(named) == complete


HOMES = [
    pytest.param("tank/x", {"tank/x@h": 1}, ("tank",), (), Life.ALIVE, id="alive where it is now"),
    pytest.param("tank/x", {"tank/a@h": 1}, ("tank",), (), Life.GONE, id="not looked for before"),
    pytest.param("tank/x", {"tank/x@h": 2}, ("tank",), (), Life.GONE, id="another has its name"),
    pytest.param("", {"tank/a@h": 1}, ("tank",), (), Life.ALIVE, id="has no other home"),
    pytest.param("old/x", {}, ("tank",), (), Life.UNKNOWN, id="its new pool is not imported"),
    pytest.param("old/x", {}, ("old",), (), Life.GONE, id="its old pool does not matter"),
    pytest.param(
        "tank/x", {}, ("tank",), ("tank/x@h",), Life.UNKNOWN, id="its new home is gone too"
    ),
    pytest.param(
        "tank/x", {}, ("tank",), ("tank/a@h",), Life.GONE, id="its old home does not matter"
    ),
]


@pytest.mark.parametrize(("home", "present", "pools", "homeless", "life"), HOMES)
def test_snapshots_that_a_restore_has_moved(
    manifest: Build,
    home: str,
    present: Mapping[str, int],
    pools: tuple[str, ...],
    homeless: tuple[str, ...],
    life: Life,
) -> None:
    known = SnapshotRef("tank/a", "h", 1, 1, home)
    liveness = dataclasses.replace(live(present, *pools), homeless=frozenset(homeless))
    assert liveness.of(known) is life
    named = manifest(snapshots=(known,), disks=disks("tank/a"))
    assert liveness.orphaned(named) is (life is Life.GONE)
    # It is still the snapshot of the dataset that the disks were on.
    assert liveness.complete_names(named) == (["h"] if life is Life.ALIVE else [])


@pytest.mark.parametrize(("dataset", "home"), [("tank/a", ""), ("tank/x", "tank/x")])
def test_tie_of_a_snapshot(dataset: str, home: str) -> None:
    known = SnapshotRef.of(Snapshot(dataset, "h", 5, 6), "tank/a")
    assert known == SnapshotRef("tank/a", "h", 5, 6, home)
    assert known.full_name == f"{dataset}@h"


GUIDS = st.integers(1, 3)
FULL_NAMES = st.sampled_from(["tank/a@h", "tank/b@h", "tank/a@d", "old/a@h"])


@given(
    st.dictionaries(FULL_NAMES, GUIDS, min_size=1),
    st.dictionaries(FULL_NAMES, GUIDS),
    st.sets(st.sampled_from(["tank", "old"])),
)
def test_no_point_is_orphaned_while_anything_of_it_lives_or_is_unknown(
    manifest: Build, ties: dict[str, int], present: dict[str, int], pools: set[str]
) -> None:
    named = manifest(snapshots=tuple(tie(name, guid) for name, guid in ties.items()))
    expected = all(
        name.partition("/")[0] in pools and present.get(name) != guid for name, guid in ties.items()
    )
    assert live(present, *pools).orphaned(named) is expected


def test_names(manifest: Build) -> None:
    known = manifest(snapshots=(tie("tank/a@x_hourly", 1), tie("tank/a@x_daily", 2)), run="x")
    found = RestorePoint(Path("/vault/web/x.2"), known)
    assert found.name == "web@x.2"
    for name, answers in {
        "x": True,
        "x.2": True,
        "x_hourly": True,
        "x_daily": True,
        "x_weekly": False,
        "tank/a@x_daily": False,
        "": False,
    }.items():
        assert found.answers_to(name) is answers, name


def test_written_and_read_again(tmp_path: Path, manifest: Build) -> None:
    whole = manifest(reason="why", memory=None, snapshots=(tie("tank/My VMs@h", 2**64 - 1),))
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(whole))
    assert read_point(tmp_path) == RestorePoint(tmp_path, whole)


def test_keys_of_later_versions_are_passed_over(tmp_path: Path, manifest: Build) -> None:
    document = msgspec.to_builtins(manifest()) | {"invented": {"later": True}}
    (tmp_path / MANIFEST).write_text(json.dumps(document))
    assert read_point(tmp_path).manifest == manifest()


@pytest.mark.parametrize("file", ["memory.img", "memory.img.zst"])
def test_names_of_memory_files(tmp_path: Path, manifest: Build, file: str) -> None:
    memory = Memory(file, "raw", "none", 1, 1, "00")
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(manifest(memory=memory)))
    assert read_point(tmp_path).manifest.memory == memory


def changed(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda document: document | changes


def with_memory_file(file: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda document: document | {"memory": document["memory"] | {"file": file}}


DAMAGED = [
    pytest.param(lambda document: {}, "missing required field", id="empty object"),
    pytest.param(lambda document: [document], "Expected `object`", id="list"),
    pytest.param(changed(schema=3), "schema 3 is not one this version reads", id="later schema"),
    pytest.param(changed(snapshots=[]), "names no snapshot", id="no snapshots"),
    pytest.param(changed(level="superb"), "$.level", id="unknown level"),
    pytest.param(changed(disks=[{"target": "vda"}]), "$.disks", id="half a disk"),
    pytest.param(changed(domain=None), "$.domain", id="no domain"),
    pytest.param(with_memory_file("/etc/shadow"), "'/etc/shadow'", id="absolute memory file"),
    pytest.param(with_memory_file("../x/memory.img"), "'../x/memory.img'", id="memory elsewhere"),
    pytest.param(with_memory_file(".."), "'..'", id="memory file dot dot"),
    pytest.param(with_memory_file(""), "''", id="memory file of no name"),
    pytest.param(with_memory_file("manifest.json"), "'manifest.json'", id="memory file not ours"),
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
        found = read_point(scratch)
    except VaultDamaged as error:
        assert str(scratch) in str(error)
    else:
        assert found.directory == scratch


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
    directory = tmp_path / "moment"
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
@pytest.mark.parametrize("where", ["taken of", "home", "had a home"])
def test_snapshots_that_no_command_line_could_name(
    tmp_path: Path, manifest: Build, dataset: str, name: str, where: str
) -> None:
    tie = {
        "taken of": SnapshotRef(dataset, name, 1, 1),
        "home": SnapshotRef("tank/web", name, 1, 1, dataset or "/"),
        "had a home": SnapshotRef(dataset, name, 1, 1, "tank/web"),
    }[where]
    ties = (*manifest().snapshots, tie)
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(manifest(snapshots=ties)))
    with pytest.raises(VaultDamaged, match="names a snapshot that ZFS cannot know"):
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
    with pytest.raises(VaultDamaged, match="none of ours"):
        read_point(tmp_path)
