"""Which snapshots of a point exist still, which are gone, and of which nothing is known."""

import dataclasses
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.points.liveness import Life, Liveness
from zvmsnap.points.manifest import Disk, Manifest, SnapshotRef
from zvmsnap.zfs.types import Snapshot, SnapshotListing

Build = Callable[..., Manifest]


def ref(full_name: str, guid: int) -> SnapshotRef:
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
        id="gone in one pool, unknown in the other",
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


@pytest.mark.parametrize(("refs", "present", "pools", "lives", "orphaned", "complete"), FATES)
def test_points_and_live_snapshots(
    manifest: Build,
    refs: Mapping[str, int],
    present: Mapping[str, int],
    pools: tuple[str, ...],
    lives: list[Life],
    orphaned: bool,
    complete: list[str],
) -> None:
    liveness = live(present, *pools)
    named = manifest(
        snapshots=tuple(ref(name, guid) for name, guid in refs.items()),
        disks=disks(*dict.fromkeys(name.partition("@")[0] for name in refs)),
    )
    assert [liveness.of(each) for each in named.snapshots] == lives
    assert liveness.alive(named) == [
        each for each, life in zip(named.snapshots, lives, strict=True) if life is Life.ALIVE
    ]
    assert liveness.orphaned(named) is orphaned
    assert liveness.complete_names(named) == complete


RELOCATED = [
    pytest.param("tank/x", {"tank/x@h": 1}, ("tank",), (), Life.ALIVE, id="alive where it is now"),
    pytest.param("tank/x", {"tank/a@h": 1}, ("tank",), (), Life.GONE, id="not looked for before"),
    pytest.param("tank/x", {"tank/x@h": 2}, ("tank",), (), Life.GONE, id="another has its name"),
    pytest.param("", {"tank/a@h": 1}, ("tank",), (), Life.ALIVE, id="was not moved"),
    pytest.param("old/x", {}, ("tank",), (), Life.UNKNOWN, id="its new pool is not imported"),
    pytest.param("old/x", {}, ("old",), (), Life.GONE, id="its old pool does not matter"),
    pytest.param(
        "tank/x", {}, ("tank",), ("tank/x@h",), Life.UNKNOWN, id="its current dataset is gone, too"
    ),
    pytest.param(
        "tank/x", {}, ("tank",), ("tank/a@h",), Life.GONE, id="its old dataset does not matter"
    ),
]


@pytest.mark.parametrize(("current", "present", "pools", "without_dataset", "life"), RELOCATED)
def test_snapshots_that_a_restore_has_moved(
    manifest: Build,
    current: str,
    present: Mapping[str, int],
    pools: tuple[str, ...],
    without_dataset: tuple[str, ...],
    life: Life,
) -> None:
    known = SnapshotRef("tank/a", "h", 1, 1, current)
    liveness = dataclasses.replace(
        live(present, *pools), without_dataset=frozenset(without_dataset)
    )
    assert liveness.of(known) is life
    named = manifest(snapshots=(known,), disks=disks("tank/a"))
    assert liveness.orphaned(named) is (life is Life.GONE)
    # It is still the snapshot of the dataset that the disks were on.
    assert liveness.complete_names(named) == (["h"] if life is Life.ALIVE else [])


@pytest.mark.parametrize(("dataset", "current"), [("tank/a", ""), ("tank/x", "tank/x")])
def test_reference_to_a_snapshot(dataset: str, current: str) -> None:
    known = SnapshotRef.of(Snapshot(dataset, "h", 5, 6), "tank/a")
    assert known == SnapshotRef("tank/a", "h", 5, 6, current)
    assert known.full_name == f"{dataset}@h"


GUIDS = st.integers(1, 3)
FULL_NAMES = st.sampled_from(["tank/a@h", "tank/b@h", "tank/a@d", "old/a@h"])


@given(
    st.dictionaries(FULL_NAMES, GUIDS, min_size=1),
    st.dictionaries(FULL_NAMES, GUIDS),
    st.sets(st.sampled_from(["tank", "old"])),
)
def test_no_point_is_orphaned_while_anything_of_it_lives_or_is_unknown(
    manifest: Build, refs: dict[str, int], present: dict[str, int], pools: set[str]
) -> None:
    named = manifest(snapshots=tuple(ref(name, guid) for name, guid in refs.items()))
    expected = all(
        name.partition("/")[0] in pools and present.get(name) != guid for name, guid in refs.items()
    )
    assert live(present, *pools).orphaned(named) is expected


@pytest.mark.parametrize(
    ("only_names", "life"), [pytest.param(False, Life.GONE), pytest.param(True, Life.UNKNOWN)]
)
def test_snapshot_whose_dataset_does_not_exist(only_names: bool, life: Life) -> None:
    listing = SnapshotListing({}, frozenset({"tank"}), frozenset({"tank/a@h"}))
    liveness = Liveness.by(listing, only_names=only_names)
    assert liveness.of(ref("tank/a@h", 1)) is life
    assert liveness.of(ref("tank/b@h", 1)) is Life.GONE
    assert liveness.of(ref("old/b@h", 1)) is Life.UNKNOWN
