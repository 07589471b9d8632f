from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.common.errors import SnapshotMissing
from zvmsnap.points import locate
from zvmsnap.points.manifest import Disk, Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs.types import Snapshot

Build = Callable[..., Manifest]


def snapshot(full_name: str, guid: int, createtxg: int = 0) -> Snapshot:
    dataset, _, name = full_name.partition("@")
    return Snapshot(dataset, name, guid, createtxg or guid)


def present(found: Mapping[str, int]) -> dict[str, Snapshot]:
    return {full_name: snapshot(full_name, guid) for full_name, guid in found.items()}


def tied(manifest: Build, ties: Mapping[str, int], *datasets: str, **homes: str) -> Manifest:
    """Of disks on these datasets; guids are also the order in which snapshots were taken."""
    split = {guid: full_name.partition("@") for full_name, guid in ties.items()}
    return manifest(
        snapshots=tuple(
            SnapshotRef(dataset, name, guid, guid, homes.get(f"guid{guid}", ""))
            for guid, (dataset, _, name) in split.items()
        ),
        disks=tuple(Disk("vda", "file", "raw", "/x", dataset, "x") for dataset in datasets),
    )


FOUND = [
    pytest.param({"p/a@h": 1}, {"p/a@h": 1}, {"p/a": "p/a@h"}, id="where it was"),
    pytest.param(
        {"p/a@h": 1, "p/a@d": 2}, {"p/a@h": 1, "p/a@d": 2}, {"p/a": "p/a@d"}, id="the youngest name"
    ),
    pytest.param(
        {"p/a@d": 2, "p/a@h": 1}, {"p/a@h": 1, "p/a@d": 2}, {"p/a": "p/a@d"}, id="in any order"
    ),
    pytest.param(
        {"p/a@h": 1, "p/b@h": 2, "p/a@d": 3, "p/b@d": 4},
        {"p/a@h": 1, "p/b@h": 2, "p/a@d": 3},
        {"p/a": "p/a@h", "p/b": "p/b@h"},
        id="the youngest that all have",
    ),
    pytest.param(
        {"p/a@h": 1, "p/a@d": 2},
        {"p/a@h": 1, "p/a@d": 9},
        {"p/a": "p/a@h"},
        id="of that name there is another by now",
    ),
    pytest.param({"p/a@h": 1}, {"p/old@h": 1}, {"p/a": "p/old@h"}, id="dataset was renamed"),
    pytest.param({"p/a@h": 1}, {"p/a@x": 1}, {"p/a": "p/a@x"}, id="snapshot was renamed"),
    pytest.param(
        {"p/a@h": 1},
        {"p/old@h": 1, "p/a@h": 9},
        {"p/a": "p/old@h"},
        id="renamed, and another has its name",
    ),
    pytest.param(
        {"p/a@h": 1}, {"p/a@h": 1, "p/copy@h": 1}, {"p/a": "p/a@h"}, id="a replica beside it"
    ),
    pytest.param(
        {"p/a@h": 1}, {"p/old@h": 1, "q/a@h": 1}, {"p/a": "p/old@h"}, id="a replica elsewhere"
    ),
    pytest.param(
        {"p/a@h": 1, "p/other@h": 2}, {"p/a@h": 1}, {"p/a": "p/a@h"}, id="a dataset without disks"
    ),
]


@pytest.mark.parametrize(("ties", "there", "found"), FOUND)
def test_of(
    manifest: Build, ties: Mapping[str, int], there: Mapping[str, int], found: Mapping[str, str]
) -> None:
    point = RestorePoint(Path("/v/web/m"), tied(manifest, ties, *found))
    answer = locate.of(point, present(there))
    assert {dataset: each.full_name for dataset, each in answer.items()} == found
    assert list(answer) == sorted(found)


def test_where_a_restore_has_moved_it(manifest: Build) -> None:
    point = RestorePoint(
        Path("/v/web/m"), tied(manifest, {"p/a@h": 1}, "p/a", guid1="p/a.before-x")
    )
    there = present({"p/a.before-x@h": 1, "p/copy@h": 1, "p/a@h": 2})
    assert locate.of(point, there)["p/a"].full_name == "p/a.before-x@h"


MISSING = [
    pytest.param({"p/a@h": 1}, {}, "p/a", id="destroyed"),
    pytest.param({"p/a@h": 1}, {"p/a@h": 2}, "p/a", id="made anew under its name"),
    pytest.param({"p/a@h": 1}, {"q/a@h": 1}, "p/a", id="only a replica in another pool"),
    pytest.param({"p/a@h": 1}, {"pp/a@h": 1}, "p/a", id="only in a pool of a longer name"),
    pytest.param({"p/a@h": 1}, {"p/x@h": 1, "p/y@h": 1}, "p/a", id="twice, and under other names"),
    pytest.param({"p/a@h": 1, "p/b@h": 2}, {"p/a@h": 1}, "p/b", id="of one of two datasets"),
    pytest.param(
        {"p/a@h": 1, "p/b@h": 2, "p/a@d": 3, "p/b@d": 4},
        {"p/a@h": 1, "p/b@d": 4},
        "p/b",
        id="no name that both have",
    ),
]


@pytest.mark.parametrize(("ties", "there", "lost"), MISSING)
def test_missing(
    manifest: Build, ties: Mapping[str, int], there: Mapping[str, int], lost: str
) -> None:
    datasets = {full_name.partition("@")[0] for full_name in ties}
    point = RestorePoint(Path("/v/web/m"), tied(manifest, ties, *datasets))
    with pytest.raises(SnapshotMissing) as caught:
        locate.of(point, present(there))
    assert str(caught.value).startswith(f"web@m: no snapshot of it is left for {lost}: ")


@pytest.mark.parametrize(
    ("there", "homes"),
    [
        pytest.param([], None, id="nothing is known"),
        pytest.param([("p/a@h", 9)], None, id="another of that name"),
        pytest.param([("p/a@h", 1), ("p/b@h", 2)], None, id="where they were"),
        pytest.param([("p/a.before-x@h", 1)], ["p/a.before-x", ""], id="one has moved"),
        pytest.param([("p/x@h", 1), ("p/y@h", 2)], ["p/x", "p/y"], id="both have"),
    ],
)
def test_moved(manifest: Build, there: list[tuple[str, int]], homes: list[str] | None) -> None:
    known = tied(manifest, {"p/a@h": 1, "p/b@h": 2}, "p/a", "p/b")
    new = locate.moved(known, [snapshot(*each) for each in there])
    assert (new and [tie.current_dataset for tie in new.snapshots]) == homes
    if new:
        assert [tie.dataset for tie in new.snapshots] == ["p/a", "p/b"]
        assert new.disks == known.disks


@given(st.dictionaries(st.sampled_from([1, 2, 3]), st.sampled_from(["p/x", "p/y/z", "p/a"])))
def test_there_and_back(manifest: Build, homes: dict[int, str]) -> None:
    names = {1: "p/a@h", 2: "p/b@h", 3: "p/a@d"}
    known = tied(manifest, {name: guid for guid, name in names.items()}, "p/a", "p/b")
    away = [
        snapshot(f"{dataset}@{names[guid].partition('@')[2]}", guid)
        for guid, dataset in homes.items()
    ]
    there = locate.moved(known, away) or known
    assert {tie.guid: tie.current_dataset or tie.dataset for tie in there.snapshots} == {
        guid: homes.get(guid, name.partition("@")[0]) for guid, name in names.items()
    }
    back = locate.moved(there, [snapshot(name, guid) for guid, name in names.items()]) or there
    assert back == known
