from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.common.errors import PoolMissing, SnapshotMissing
from zvmsnap.points import locate
from zvmsnap.points.liveness import Liveness
from zvmsnap.points.manifest import Disk, Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs.types import Lineage, Snapshot

Build = Callable[..., Manifest]


def snapshot(full_name: str, guid: int, createtxg: int = 0) -> Snapshot:
    dataset, _, name = full_name.partition("@")
    return Snapshot(dataset, name, guid, createtxg or guid)


def present(guids: Mapping[str, int]) -> Liveness:
    """The pools p, pp and q are imported."""
    snapshots = [snapshot(full_name, guid) for full_name, guid in guids.items()]
    return Liveness(snapshots, dict.fromkeys(("p", "pp", "q"), 0))


def with_refs(manifest: Build, refs: Mapping[str, int], *datasets: str, **current: str) -> Manifest:
    """Of disks on these datasets; guids are also the order in which snapshots were taken."""
    split = {guid: full_name.partition("@") for full_name, guid in refs.items()}
    return manifest(
        snapshots=tuple(
            SnapshotRef(dataset, name, guid, guid, current.get(f"guid{guid}", ""))
            for guid, (dataset, _, name) in split.items()
        ),
        disks=tuple(Disk("vda", "file", "raw", "/x", dataset, "x") for dataset in datasets),
    )


def by_guid(snapshots: Iterable[Snapshot]) -> dict[int, Snapshot]:
    return {each.guid: each for each in snapshots}


CURRENT = [
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
        id="of that name another exists by now",
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


@pytest.mark.parametrize(("refs", "existing", "expected"), CURRENT)
def test_of(
    manifest: Build,
    refs: Mapping[str, int],
    existing: Mapping[str, int],
    expected: Mapping[str, str],
) -> None:
    point = RestorePoint(Path("/v/web/m"), with_refs(manifest, refs, *expected))
    answer = locate.snapshots_of(point, present(existing))
    assert {dataset: each.full_name for dataset, each in answer.items()} == expected
    assert list(answer) == sorted(expected)


def test_where_a_restore_has_moved_it(manifest: Build) -> None:
    point = RestorePoint(
        Path("/v/web/m"), with_refs(manifest, {"p/a@h": 1}, "p/a", guid1="p/a.before-x")
    )
    existing = present({"p/a.before-x@h": 1, "p/copy@h": 1, "p/a@h": 2})
    assert locate.snapshots_of(point, existing)["p/a"].full_name == "p/a.before-x@h"


MISSING = [
    pytest.param({"p/a@h": 1}, {}, "p/a", "p/a@h was destroyed", id="destroyed"),
    pytest.param(
        {"p/a@h": 1}, {"p/a@h": 2}, "p/a", "p/a@h was destroyed", id="made anew under its name"
    ),
    pytest.param(
        {"p/a@h": 1},
        {"q/a@h": 1},
        "p/a",
        "p/a@h was destroyed (a replica of it is q/a@h)",
        id="only a replica in another pool",
    ),
    pytest.param(
        {"p/a@h": 1},
        {"pp/a@h": 1},
        "p/a",
        "p/a@h was destroyed (a replica of it is pp/a@h)",
        id="only in a pool of a longer name",
    ),
    pytest.param(
        {"p/a@h": 1},
        {"p/x@h": 1, "p/y@h": 1},
        "p/a",
        "p/a@h exists under several names: p/x@h, p/y@h",
        id="twice, and under other names",
    ),
    pytest.param(
        {"p/a@h": 1, "p/b@h": 2},
        {"p/a@h": 1},
        "p/b",
        "p/b@h was destroyed",
        id="of one of two datasets",
    ),
    pytest.param(
        {"p/a@h": 1, "p/b@h": 2, "p/a@d": 3, "p/b@d": 4},
        {"p/a@h": 1, "p/b@d": 4},
        "p/b",
        "p/b@h was destroyed; d is left, but not on all of its disks",
        id="no name that both have",
    ),
]


@pytest.mark.parametrize(("refs", "existing", "lost", "why"), MISSING)
def test_missing(
    manifest: Build, refs: Mapping[str, int], existing: Mapping[str, int], lost: str, why: str
) -> None:
    datasets = {full_name.partition("@")[0] for full_name in refs}
    point = RestorePoint(Path("/v/web/m"), with_refs(manifest, refs, *datasets))
    with pytest.raises(SnapshotMissing) as caught:
        locate.snapshots_of(point, present(existing))
    told = f"web@m: has no snapshot of {lost} any more that fits: {why}; `zvmsnap show` lists all"
    assert str(caught.value) == told
    assert not isinstance(caught.value, PoolMissing)


@pytest.mark.parametrize(
    ("existing", "replica"),
    [({}, ""), ({"q/a@h": 1}, r" \(a replica of it is q/a@h\)")],
)
def test_missing_as_its_pool_is_not_imported(
    manifest: Build, existing: Mapping[str, int], replica: str
) -> None:
    point = RestorePoint(Path("/v/web/m"), with_refs(manifest, {"away/a@h": 1}, "away/a"))
    why = f"pool away is not imported, nothing is known of away/a@h{replica};"
    with pytest.raises(PoolMissing, match=why):
        locate.snapshots_of(point, present(existing))


def test_one_disk_of_a_point_has_its_snapshot_renamed(manifest: Build) -> None:
    point = RestorePoint(
        Path("/v/web/m"), with_refs(manifest, {"p/a@h": 1, "p/b@h": 2}, "p/a", "p/b")
    )
    found = locate.snapshots_of(point, present({"p/a@keep-before-upgrade": 1, "p/b@h": 2}))
    assert [each.full_name for each in found.values()] == ["p/a@keep-before-upgrade", "p/b@h"]


def test_relocated_says_which_dataset_and_pool(manifest: Build) -> None:
    known = with_refs(manifest, {"p/a@h": 1}, "p/a")
    existing = by_guid([snapshot("p/a.before-x@keep", 1)])
    new = locate.relocated(known, existing, {"p/a.before-x": Lineage(8, "")}, {"p": 70})
    assert new
    # The name at the snapshot stays: by it the snapshots of all disks belong together.
    assert new.snapshots == (SnapshotRef("p/a", "h", 1, 1, "p/a.before-x", 8, 70),)


@pytest.mark.parametrize(
    ("existing", "current"),
    [
        pytest.param([], None, id="nothing is known"),
        pytest.param([("p/a@h", 9)], None, id="another of that name"),
        pytest.param([("p/a@h", 1), ("p/b@h", 2)], None, id="where they were"),
        pytest.param([("p/a.before-x@h", 1)], ["p/a.before-x", ""], id="one has moved"),
        pytest.param([("p/x@h", 1), ("p/y@h", 2)], ["p/x", "p/y"], id="both have"),
    ],
)
def test_relocated(
    manifest: Build, existing: list[tuple[str, int]], current: list[str] | None
) -> None:
    known = with_refs(manifest, {"p/a@h": 1, "p/b@h": 2}, "p/a", "p/b")
    new = locate.relocated(known, by_guid(snapshot(*each) for each in existing), {}, {})
    assert (new and [ref.current_dataset for ref in new.snapshots]) == current
    if new:
        assert [ref.dataset for ref in new.snapshots] == ["p/a", "p/b"]
        assert new.disks == known.disks


@given(st.dictionaries(st.sampled_from([1, 2, 3]), st.sampled_from(["p/x", "p/y/z", "p/a"])))
def test_forth_and_back(manifest: Build, current: dict[int, str]) -> None:
    names = {1: "p/a@h", 2: "p/b@h", 3: "p/a@d"}
    known = with_refs(manifest, {name: guid for guid, name in names.items()}, "p/a", "p/b")
    away = [
        snapshot(f"{dataset}@{names[guid].partition('@')[2]}", guid)
        for guid, dataset in current.items()
    ]
    existing = locate.relocated(known, by_guid(away), {}, {}) or known
    assert {ref.guid: ref.current_dataset or ref.dataset for ref in existing.snapshots} == {
        guid: current.get(guid, name.partition("@")[0]) for guid, name in names.items()
    }
    home = by_guid(snapshot(name, guid) for guid, name in names.items())
    back = locate.relocated(existing, home, {}, {}) or existing
    assert back == known
