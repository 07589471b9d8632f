"""Which snapshots of a point exist still, which are gone, and of which nothing is known."""

from collections.abc import Callable, Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.zfs_pool import named
from zvmsnap.points.liveness import Life, Liveness
from zvmsnap.points.manifest import Disk, Manifest, SnapshotRef
from zvmsnap.zfs.types import Lineage, Snapshot, SnapshotListing

Build = Callable[..., Manifest]


def ref(full_name: str, guid: int) -> SnapshotRef:
    dataset, _, name = full_name.partition("@")
    return SnapshotRef(dataset, name, guid, createtxg=guid)


def live(snapshots: Mapping[str, int], *pools: str) -> Liveness:
    return Liveness(named(snapshots), dict.fromkeys(pools, 0))


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
    pytest.param(
        {"tank/a@h": 1, "tank/b@h": 2},
        {"tank/vm/www@keep": 1, "tank/b@h": 2},
        ("tank",),
        [Life.ALIVE, Life.ALIVE],
        False,
        ["h"],
        id="dataset and snapshot of one disk were renamed",
    ),
    pytest.param(
        {"tank/a@h": 1},
        {"old/a@h": 1},
        ("tank", "old"),
        [Life.GONE],
        True,
        [],
        id="only a replica in another pool",
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
    point = manifest(
        snapshots=tuple(ref(name, guid) for name, guid in refs.items()),
        disks=disks(*dict.fromkeys(name.partition("@")[0] for name in refs)),
    )
    assert [liveness.of(each) for each in point.snapshots] == lives
    assert liveness.alive(point) == [
        each for each, life in zip(point.snapshots, lives, strict=True) if life is Life.ALIVE
    ]
    assert liveness.orphaned(point) is orphaned
    assert liveness.complete_names(point) == complete


POOLS = [
    pytest.param({"tank": 70}, {"tank/a@h": 1}, Life.ALIVE, "tank/a@h", id="as it was"),
    pytest.param({"pond": 70}, {"pond/a@h": 1}, Life.ALIVE, "pond/a@h", id="under another name"),
    pytest.param({"pond": 70}, {}, Life.GONE, None, id="under another name, and destroyed"),
    pytest.param(
        {"pond": 70, "tank": 71},
        {"pond/a@h": 1, "tank/a@h": 1},
        Life.ALIVE,
        "pond/a@h",
        id="another pool has its name, and a replica",
    ),
    pytest.param(
        {"pond": 70, "tank": 71},
        {"tank/a@h": 1},
        Life.GONE,
        None,
        id="destroyed, but another pool of its name has a replica",
    ),
    pytest.param(
        {"tank": 71}, {"tank/a@h": 1}, Life.ALIVE, "tank/a@h", id="moved to a new pool of its name"
    ),
    pytest.param({"tank": 71}, {}, Life.UNKNOWN, None, id="another pool of its name"),
    pytest.param({"pond": 71}, {"pond/a@h": 1}, Life.UNKNOWN, None, id="only a replica"),
    pytest.param({}, {}, Life.UNKNOWN, None, id="exported"),
]


@pytest.mark.parametrize(("pools", "present", "life", "now"), POOLS)
def test_pools_are_known_by_their_guids(
    pools: Mapping[str, int], present: Mapping[str, int], life: Life, now: str | None
) -> None:
    snapshots = [
        Snapshot(dataset, name, guid, guid)
        for (dataset, _, name), guid in ((n.partition("@"), g) for n, g in present.items())
    ]
    known = SnapshotRef("tank/a", "h", 1, 1, pool_guid=70)
    liveness = Liveness(snapshots, pools)
    assert liveness.of(known) is life
    found = liveness.now(known)
    assert (found and found.full_name) == now


NEAREST = [
    pytest.param({"tank/a@h": 7, "tank/copy@h": 8}, "tank/a@h", id="of the same name"),
    pytest.param({"tank/x@h": 5, "tank/copy@h": 8}, "tank/x@h", id="renamed, beside a replica"),
    pytest.param({"tank/a@keep": 6, "tank/copy@h": 8}, "tank/a@keep", id="renamed snapshot"),
    pytest.param({"tank/x@h": 7, "tank/copy@h": 8}, None, id="nothing tells which"),
]


@pytest.mark.parametrize(("present", "now"), NEAREST)
def test_which_of_several_copies_in_a_pool(present: Mapping[str, int], now: str | None) -> None:
    """The numbers are guids of datasets; 5 is that of the point."""
    split = {name.partition("@"): guid for name, guid in present.items()}
    snapshots = [Snapshot(dataset, name, 1, 1) for dataset, _, name in split]
    datasets = {dataset: guid for (dataset, _, _), guid in split.items()}
    liveness = Liveness(snapshots, {"tank": 70}, datasets)
    known = SnapshotRef("tank/a", "h", 1, 1, dataset_guid=5, pool_guid=70)
    found = liveness.now(known)
    assert (found and found.full_name) == now
    assert liveness.of(known) is Life.ALIVE


RELOCATED = [
    pytest.param("tank/x", {"tank/x@h": 1}, ("tank",), Life.ALIVE, id="alive where it is now"),
    pytest.param("tank/x", {"tank/a@h": 1}, ("tank",), Life.ALIVE, id="moved back"),
    pytest.param("tank/x", {"tank/x@h": 2}, ("tank",), Life.GONE, id="another has its name"),
    pytest.param("", {"tank/a@h": 1}, ("tank",), Life.ALIVE, id="was not moved"),
    pytest.param("old/x", {}, ("tank",), Life.UNKNOWN, id="its new pool is not imported"),
    pytest.param("old/x", {}, ("old",), Life.GONE, id="its old pool does not matter"),
]


@pytest.mark.parametrize(("current", "present", "pools", "life"), RELOCATED)
def test_snapshots_that_a_restore_has_moved(
    manifest: Build, current: str, present: Mapping[str, int], pools: tuple[str, ...], life: Life
) -> None:
    known = SnapshotRef("tank/a", "h", 1, 1, current)
    liveness = live(present, *pools)
    assert liveness.of(known) is life
    point = manifest(snapshots=(known,), disks=disks("tank/a"))
    assert liveness.orphaned(point) is (life is Life.GONE)
    # It is still the snapshot of the dataset that the disks were on.
    assert liveness.complete_names(point) == (["h"] if life is Life.ALIVE else [])


@pytest.mark.parametrize(("dataset", "current"), [("tank/a", ""), ("tank/x", "tank/x")])
def test_reference_to_a_snapshot(dataset: str, current: str) -> None:
    known = SnapshotRef.of(Snapshot(dataset, "h", 5, 6), "tank/a")
    assert known == SnapshotRef("tank/a", "h", 5, 6, current)
    assert known.full_name == f"{dataset}@h"
    identified = known.identified({dataset: Lineage(8, "")}, {"tank": 70})
    assert (identified.dataset_guid, identified.pool_guid) == (8, 70)
    assert known.identified({}, {}) == known


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
    point = manifest(snapshots=tuple(ref(name, guid) for name, guid in refs.items()))
    snapshots = [
        Snapshot(dataset, name, guid, guid)
        for (dataset, _, name), guid in ((n.partition("@"), g) for n, g in present.items())
    ]
    there = {(name.partition("/")[0], guid) for name, guid in present.items()}
    expected = all(
        pool in pools and (pool, guid) not in there
        for pool, guid in ((name.partition("/")[0], guid) for name, guid in refs.items())
    )
    assert Liveness(snapshots, dict.fromkeys(pools, 0)).orphaned(point) is expected


def test_what_a_listing_says() -> None:
    listing = SnapshotListing([Snapshot("pond/x", "h", 1, 1)], {"pond": 70}, {"pond/x": 5})
    known = ref("tank/a@h", 1)
    assert Liveness.by(listing).of(known) is Life.UNKNOWN
    known = msgspec.structs.replace(known, pool_guid=70)
    assert Liveness.by(listing).now(known) == listing.snapshots[0]
