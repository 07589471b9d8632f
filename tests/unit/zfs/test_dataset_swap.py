from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.zfs_pool import FakePool, PowerCut
from zvmsnap.common.errors import RestoreImpossible, ZfsFailed
from zvmsnap.zfs import dataset_swap
from zvmsnap.zfs.dataset_swap import SwapTree
from zvmsnap.zfs.types import Dataset, Snapshot

SANOID = "autosnap"


# -- plan


def held(*names: str, **special: Dataset) -> dict[str, Dataset]:
    """Mounted filesystems; a name that ends with ! is a volume."""
    found = {}
    for number, name in enumerate(names, 1):
        plain = name.rstrip("!")
        kind, canmount = ("volume", "") if name != plain else ("filesystem", "on")
        found[plain] = Dataset(
            plain, kind, False, guid=number, mounted=bool(canmount), canmount=canmount
        )
    return found | {dataset.name: dataset for dataset in special.values()}


def planned(datasets: Mapping[str, Dataset], *wanted: str) -> tuple[SwapTree, ...]:
    snapshots = {name: Snapshot(name, "s", 100, 1) for name in wanted}
    return dataset_swap.plan(snapshots, datasets, "0a", "now")


TREES = [
    pytest.param(
        ["tank", "tank/web"], ["tank/web"], [("tank/web", [""], [], [""])], id="one dataset"
    ),
    pytest.param(
        ["tank", "tank/a", "tank/b!"],
        ["tank/b", "tank/a"],
        [("tank/a", [""], [], [""]), ("tank/b", [""], [], [])],
        id="two tops, one of them a volume",
    ),
    pytest.param(
        ["tank", "tank/w", "tank/w/a", "tank/w/a/b", "tank/w-x"],
        ["tank/w/a/b", "tank/w", "tank/w/a"],
        [("tank/w", ["", "/a", "/a/b"], [], ["", "/a", "/a/b"])],
        id="children are members, a longer name is not",
    ),
    pytest.param(
        ["tank", "tank/w", "tank/w/gap", "tank/w/gap/deep"],
        ["tank/w", "tank/w/gap/deep"],
        [
            ("tank/w", [""], ["/gap"], ["", "/gap", "/gap/deep"]),
            ("tank/w/gap/deep", [""], [], [""]),
        ],
        id="a gap in the tree",
    ),
    pytest.param(
        ["tank", "tank/w", "tank/w/a", "tank/w/a/x", "tank/w/y", "tank/w/y/z"],
        ["tank/w", "tank/w/a"],
        [("tank/w", ["", "/a"], ["/a/x", "/y"], ["", "/a", "/a/x", "/y", "/y/z"])],
        id="strays, of which those below go along",
    ),
    pytest.param([], [], [], id="nothing"),
]


@pytest.mark.parametrize(("names", "wanted", "units"), TREES)
def test_plan(
    names: list[str],
    wanted: list[str],
    units: list[tuple[str, list[str], list[str], list[str]]],
) -> None:
    datasets = held(*names)
    found = planned(datasets, *wanted)
    assert [
        (
            unit.top,
            [member.path for member in unit.datasets],
            [stray.path for stray in unit.bystanders],
            list(unit.mounted),
        )
        for unit in found
    ] == units
    for unit in found:
        assert (unit.fresh, unit.set_aside) == (f"{unit.top}.zvmsnap-0a", f"{unit.top}.before-now")
        for member in unit.datasets:
            name = unit.top + member.path
            assert member.old_guid == member.origin_guid == datasets[name].guid
            assert member.origin == f"{name}@s"
            assert member.canmount == datasets[name].canmount
        for stray in unit.bystanders:
            assert stray.guid == datasets[unit.top + stray.path].guid


LINES = [
    pytest.param({"tank/w": ""}, "tank/w", (2,), id="its own snapshot"),
    pytest.param({"tank/w": "tank/g@s"}, "tank/w", (2,), id="of a clone of a golden image"),
    pytest.param({"tank/x": "tank/w@s"}, "tank/x", (3, 2), id="on what it was before"),
    pytest.param(
        {"tank/x": "tank/y@s", "tank/y": "tank/w@s", "tank/w": "tank/g@s"},
        "tank/x",
        (3, 4, 2),
        id="two restores before",
    ),
    pytest.param(
        {"tank/x": "tank/g@s", "tank/w": "tank/g@s"}, "tank/x", (3,), id="only a golden image"
    ),
    pytest.param({"tank/w": "tank/x@s"}, "tank/x", (3,), id="the old one is a clone itself"),
]


@pytest.mark.parametrize(("origins", "home", "line"), LINES)
def test_over_what_is_promoted(origins: dict[str, str], home: str, line: tuple[int, ...]) -> None:
    datasets = {
        name: Dataset(name, "filesystem", False, guid=guid, origin=origins.get(name, ""))
        for guid, name in enumerate(["tank", "tank/w", "tank/x", "tank/y", "tank/g"], 1)
    }
    [unit] = dataset_swap.plan({"tank/w": Snapshot(home, "s", 9, 9)}, datasets, "0a", "now")
    assert unit.datasets[0].line == line


@pytest.mark.parametrize("mounted", [True, False])
@pytest.mark.parametrize("legacy", ["tank/w", "tank/w/a", "tank/w/stray"])
def test_legacy_mounts(legacy: str, mounted: bool) -> None:
    special = Dataset(legacy, "filesystem", False, guid=9, mounted=mounted, mountpoint="legacy")
    datasets = held("tank", "tank/w", "tank/w/a", "tank/w/stray", special=special)
    if not mounted:
        assert planned(datasets, "tank/w", "tank/w/a")
        return
    with pytest.raises(RestoreImpossible, match=f"^{legacy} is mounted by /etc/fstab.*clone"):
        planned(datasets, "tank/w", "tank/w/a")


def test_a_whole_pool_is_refused() -> None:
    with pytest.raises(RestoreImpossible, match=r"^tank is a whole pool.*--rollback"):
        planned(held("tank", "tank/w"), "tank/w", "tank")


# -- the verbs


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> FakePool:
    """web with a child, a volume and a stray, over a golden image; one snapshot, since changed."""
    pool = FakePool()
    pool.add("tank")
    pool.add("tank/golden", "golden")
    pool.take_snapshots(["tank/golden"], "base")
    pool.clone("tank/golden@base", "tank/web", {"mountpoint": "/srv/web", "a:note": "two words"})
    pool.add("tank/web/a")
    pool.add("tank/web/stray")
    pool.add("tank/web/stray/below")
    pool.add("tank/vol", volume=True)
    snapshot(pool, "s1")
    snapshot(pool, "s2")
    write(pool, "now")
    pool.install(monkeypatch)
    return pool


MEMBERS = ("tank/web", "tank/web/a", "tank/vol")


def write(pool: FakePool, content: str, names: tuple[str, ...] = MEMBERS) -> None:
    for name in names:
        pool.held[name].content = content


def snapshot(pool: FakePool, name: str, names: tuple[str, ...] = MEMBERS) -> None:
    write(pool, name, names)
    pool.take_snapshots(names, name)


def plan_of(pool: FakePool, wanted: Mapping[str, int], stamp: str) -> tuple[SwapTree, ...]:
    """Units for datasets and the guids of the snapshots that they are to hold."""
    by_guid = {found.guid: found for found in pool.all_snapshots().present.values()}
    snapshots = {name: by_guid[guid] for name, guid in wanted.items()}
    return dataset_swap.plan(snapshots, pool.datasets(), f"n{stamp}", stamp)


def guids(pool: FakePool, name: str, names: tuple[str, ...] = MEMBERS) -> dict[str, int]:
    return {each: pool.guid(f"{each}@{name}") for each in names}


def bring_back(pool: FakePool, wanted: Mapping[str, int], stamp: str) -> tuple[SwapTree, ...]:
    units = dataset_swap.materialize(plan_of(pool, wanted, stamp))
    dataset_swap.swap(units)
    dataset_swap.promote(units)
    return units


def all_guids(pool: FakePool) -> set[int]:
    return {found.guid for found in pool.all_snapshots().present.values()}


def test_names_hold_what_they_held_then(pool: FakePool) -> None:
    guids_before = {name: pool.guid(name) for name in pool.held}
    snapshots_before = all_guids(pool)
    bring_back(pool, guids(pool, "s1"), "x")
    for name in MEMBERS:
        former = name.replace("/web", "/web.before-x").replace("/vol", "/vol.before-x")
        assert pool.held[name].content == "s1"
        assert pool.history(name) == ["s1"]
        assert pool.guid(former) == guids_before[name]
        assert pool.held[former].content == "now"
        assert pool.history(former) == ["s2"]
        assert pool.datasets()[former].origin == f"{name}@s1"
    for name in ("tank/web/stray", "tank/web/stray/below", "tank/golden"):
        assert pool.guid(name) == guids_before[name]
    web = pool.held["tank/web"]
    assert web.own == {"mountpoint": "/srv/web", "a:note": "two words", "canmount": "on"}
    assert pool.datasets()["tank/web"].origin == "tank/golden@base"
    assert pool.history("tank/golden") == ["base"]
    assert all_guids(pool) == snapshots_before
    mounted = {name for name, held in pool.held.items() if held.mounted}
    assert mounted == {
        *("tank", "tank/golden", "tank/web", "tank/web/a"),
        *("tank/web/stray", "tank/web/stray/below"),
    }


def test_to_and_fro(pool: FakePool) -> None:
    """Three restores, then the safety point of the first: all that led to it is the name's own."""
    wanted = guids(pool, "s1")
    for stamp in ("x", "y", "z"):
        snapshot(pool, f"safety-{stamp}")
        wanted_next = guids(pool, f"safety-{stamp}")
        bring_back(pool, wanted, stamp)
        if stamp == "x":
            first_safety = wanted_next
    known = all_guids(pool)
    bring_back(pool, first_safety, "last")
    for name in MEMBERS:
        assert pool.held[name].content == "safety-x"
        assert pool.history(name) == ["s1", "s2", "safety-x"]
    assert pool.datasets()["tank/web"].origin == "tank/golden@base"
    assert pool.history("tank/golden") == ["base"]
    assert all_guids(pool) == known


def test_a_clone_of_the_same_image_is_no_history(pool: FakePool) -> None:
    pool.clone("tank/golden@base", "tank/other", {})
    pool.take_snapshots(["tank/other"], "t")
    bring_back(pool, {"tank/web": pool.guid("tank/other@t")}, "x")
    assert pool.history("tank/web") == ["t"]
    assert pool.history("tank/golden") == ["base"]
    assert pool.history("tank/web.before-x") == ["s1", "s2"]


def test_a_former_that_owns_the_history_gets_it_back(pool: FakePool) -> None:
    """Somebody has put web back by hand, and did not promote it."""
    pool.take_snapshots(["tank/web"], "s3")
    pool.rename("tank/web", "tank/own")
    pool.set_property("tank/own", "canmount", "noauto")
    pool.unmount("tank/own/a")
    pool.unmount("tank/own/stray/below")
    pool.unmount("tank/own/stray")
    pool.unmount("tank/own")
    pool.clone("tank/own@s2", "tank/web", {})
    before = pool.state()
    units = dataset_swap.materialize(plan_of(pool, {"tank/web": pool.guid("tank/own@s3")}, "x"))
    dataset_swap.swap(units)
    dataset_swap.promote(units)
    assert pool.history("tank/web") == ["s1", "s2", "s3"]
    dataset_swap.demote(units)
    dataset_swap.swap_back(units)
    dataset_swap.discard(units)
    assert pool.state() == {
        name: before[name] if name != "tank/web" else pool.state()[name] for name in before
    }
    assert pool.guid("tank/web") == units[0].datasets[0].old_guid
    assert pool.datasets()["tank/web"].origin == "tank/own@s2"


def test_what_owns_snapshots_is_never_discarded(pool: FakePool) -> None:
    """As when `demote` failed, and all other undos were tried."""
    known = all_guids(pool)
    units = bring_back(pool, guids(pool, "s1"), "x")
    dataset_swap.swap_back(units)
    with pytest.raises(ZfsFailed, match=r"^tank/vol.zvmsnap-nx: is kept, as it owns snapshots of"):
        dataset_swap.discard(units)
    assert all_guids(pool) == known
    dataset_swap.demote(units)
    dataset_swap.discard(units)
    assert all_guids(pool) == known
    assert not any("zvmsnap" in name or "before" in name for name in pool.held)


def test_snapshots_of_a_passing_sanoid_are_discarded_with_the_clones(pool: FakePool) -> None:
    before = pool.state()
    units = dataset_swap.materialize(plan_of(pool, guids(pool, "s1"), "x"))
    pool.take_snapshots([name for name in pool.held if "zvmsnap" in name], SANOID)
    dataset_swap.discard(units)
    dataset_swap.discard(units)
    assert pool.state() == before


def test_clones_are_not_mounted_before_they_have_the_names(pool: FakePool) -> None:
    """Not at the mountpoint of their originals, also when the host comes up meanwhile."""
    mounted = {name for name, held in pool.held.items() if held.mounted}
    [volume, web] = dataset_swap.materialize(plan_of(pool, guids(pool, "s1"), "x"))
    pool.reboot()
    assert {name for name, held in pool.held.items() if held.mounted} == mounted
    assert {member.path for member in web.datasets} == {"", "/a"}
    for member in web.datasets:
        assert pool.held[web.fresh + member.path].own["canmount"] == "noauto"
    assert "canmount" not in pool.held[volume.fresh].own


def test_somebody_works_in_a_filesystem(pool: FakePool) -> None:
    before = pool.state()
    units = dataset_swap.materialize(plan_of(pool, guids(pool, "s1"), "x"))
    pool.busy.add("tank/web")
    with pytest.raises(ZfsFailed, match="tank/web: is busy"):
        dataset_swap.swap(units)
    dataset_swap.swap_back(units)
    dataset_swap.discard(units)
    assert pool.state() == before


@pytest.mark.parametrize("gone", ["clone", "stray", "alien"])
def test_what_others_do_meanwhile(pool: FakePool, gone: str) -> None:
    units = dataset_swap.materialize(plan_of(pool, {"tank/web": pool.guid("tank/web@s1")}, "x"))
    if gone == "clone":
        pool.destroy("tank/web.zvmsnap-nx")
        with pytest.raises(ZfsFailed, match="is gone, so tank/web stays what it is"):
            dataset_swap.swap(units)
        assert pool.guid("tank/web") == units[0].datasets[0].old_guid
    elif gone == "stray":
        pool.destroy("tank/web/stray/below")
        pool.destroy("tank/web/stray")
        dataset_swap.swap(units)
        dataset_swap.swap_back(units)
        assert pool.guid("tank/web") == units[0].datasets[0].old_guid
    else:
        for name in ("tank/web/stray/below", "tank/web/stray", "tank/web/a", "tank/web"):
            pool.unmount(name)
        pool.rename("tank/web", "tank/web.before-x")
        pool.add("tank/web")
        alien = pool.state()["tank/web"]
        for verb in (dataset_swap.swap, dataset_swap.swap_back):
            with pytest.raises(ZfsFailed, match="tank/web: is a dataset that somebody has made"):
                verb(units)
        assert pool.state()["tank/web"] == alien


def test_a_filesystem_that_was_mounted_by_hand_is_mounted_again(pool: FakePool) -> None:
    pool.set_property("tank/web", "canmount", "noauto")
    units = bring_back(pool, guids(pool, "s1"), "x")
    assert pool.held["tank/web"].mounted
    assert pool.held["tank/web"].own["canmount"] == "noauto"
    dataset_swap.demote(units)
    dataset_swap.swap_back(units)
    assert pool.held["tank/web"].mounted
    assert pool.held["tank/web"].content == "now"


# -- interrupted anywhere


@dataclass
class World:
    """A pool, and what it is to hold."""

    pool: FakePool
    wanted: Mapping[str, int]
    content: str


CANDIDATES = (
    *("tank/web", "tank/web/a", "tank/web/a/b", "tank/web/gap", "tank/web/gap/deep"),
    *("tank/web/vol", "tank/db"),
)
VOLUMES = ("tank/web/vol", "tank/db")


@st.composite
def recipes(draw: st.DrawFn) -> Callable[[], World]:
    """How to build a world, twice the same: a tree, restores before, and what is wanted now."""
    chosen = draw(st.sets(st.sampled_from(CANDIDATES), min_size=1))
    names = sorted(n for n in CANDIDATES if any(c == n or c.startswith(f"{n}/") for c in chosen))
    wanted = tuple(sorted(draw(st.sets(st.sampled_from(names), min_size=1))))
    golden = draw(st.booleans())
    own: dict[str, dict[str, str]] = {}
    for name in names:
        if name in VOLUMES:
            own[name] = {}
            continue
        own[name] = draw(st.sampled_from([{}, {"canmount": "noauto"}, {"canmount": "off"}]))
        if draw(st.booleans()):
            own[name] = own[name] | {"mountpoint": f"/srv/{name.replace('/', '-')}"}
    before = draw(st.lists(st.integers(0, 3), max_size=3))
    which = draw(st.integers(0, 3))

    def build() -> World:
        pool = FakePool()
        pool.add("tank")
        pool.add("tank/golden")
        pool.add("tank/golden-vol", volume=True)
        pool.take_snapshots(["tank/golden", "tank/golden-vol"], "base")
        for name in names:
            volume = name in VOLUMES
            if golden:
                pool.clone(f"tank/golden{'-vol' if volume else ''}@base", name, own[name])
            else:
                automatic = "canmount" not in own[name]
                pool.add(name, volume=volume, mounted=automatic, **own[name])
        with pytest.MonkeyPatch.context() as patch:
            pool.install(patch)
            moments: list[tuple[str, dict[str, int]]] = []
            for number in range(2):
                snapshot(pool, f"s{number}", wanted)
                moments.append((f"s{number}", guids(pool, f"s{number}", wanted)))
            for stamp, index in enumerate(before):
                snapshot(pool, f"safety{stamp}", wanted)
                safety = guids(pool, f"safety{stamp}", wanted)
                bring_back(pool, moments[index % len(moments)][1], str(stamp))
                moments.append((f"safety{stamp}", safety))
            write(pool, "now", wanted)
        content, found = moments[which % len(moments)]
        pool.changes = 0
        return World(pool, found, content)

    return build


Verb = Callable[[tuple[SwapTree, ...]], object]
UNDO: tuple[Verb, ...] = (dataset_swap.discard, dataset_swap.swap_back, dataset_swap.demote)


class Play:
    """A switch in a world, of which each verb may die, and is then called again."""

    def __init__(self, world: World) -> None:
        self.pool = world.pool
        self.units = plan_of(world.pool, world.wanted, "now")

    def forth(self, position: int) -> None:
        verbs: tuple[Verb, ...] = (self._prepare, dataset_swap.swap, dataset_swap.promote)
        verbs[position](self.units)

    def _prepare(self, units: tuple[SwapTree, ...]) -> None:
        self.units = dataset_swap.materialize(units)

    def back(self, position: int) -> None:
        UNDO[position](self.units)


def uninterrupted(build: Callable[[], World]) -> tuple[dict[str, object], int]:
    """The state in the end, and how many changes led to it."""
    world = build()
    with pytest.MonkeyPatch.context() as patch:
        world.pool.install(patch)
        play = Play(world)
        for position in range(3):
            play.forth(position)
    return world.pool.state(), world.pool.changes


@given(recipes(), st.data(), st.booleans(), st.booleans())
def test_repeated_after_a_crash_it_ends_the_same(
    build: Callable[[], World], data: st.DataObject, sanoid: bool, reboot: bool
) -> None:
    expected, changes = uninterrupted(build)
    world = build()
    pool = world.pool
    known = all_guids(pool)
    with pytest.MonkeyPatch.context() as patch:
        pool.install(patch)
        play = Play(world)
        pool.dies_after = data.draw(st.integers(0, changes - 1))
        for position in range(3):
            try:
                play.forth(position)
            except PowerCut:
                after_crash(pool, sanoid=sanoid, reboot=reboot)
                play.forth(position)
    for name in world.wanted:
        assert pool.held[name].content == world.content
    assert known <= all_guids(pool)
    assert pool.state(SANOID) == expected


@given(recipes(), st.data(), st.booleans(), st.booleans())
def test_taken_back_after_a_crash_all_is_as_it_was(
    build: Callable[[], World], data: st.DataObject, sanoid: bool, reboot: bool
) -> None:
    changes = uninterrupted(build)[1]
    world = build()
    pool = world.pool
    before = pool.state()
    with pytest.MonkeyPatch.context() as patch:
        pool.install(patch)
        play = Play(world)
        pool.dies_after = data.draw(st.integers(0, changes), label="dies after")
        reached = 2
        try:
            for position in range(3):
                reached = position
                play.forth(position)
        except PowerCut:
            pass
        after_crash(pool, sanoid=sanoid, reboot=reboot)
        pool.dies_after = pool.changes + data.draw(st.integers(0, changes), label="again after")
        for position in range(reached, -1, -1):
            try:
                play.back(position)
            except PowerCut:
                after_crash(pool, sanoid=sanoid, reboot=reboot)
                play.back(position)
    assert pool.state(SANOID) == before


def test_a_gap_in_the_tree_taken_back_after_each_change() -> None:
    names = ("tank/web", "tank/web/gap", "tank/web/gap/deep")
    wanted = (names[0], names[2])

    def build() -> World:
        pool = FakePool()
        for name in ("tank", *names):
            pool.add(name)
        snapshot(pool, "s", wanted)
        write(pool, "now", wanted)
        pool.changes = 0
        return World(pool, guids(pool, "s", wanted), "s")

    _, changes = uninterrupted(build)
    for dies_after in range(changes + 1):
        world = build()
        before = world.pool.state()
        with pytest.MonkeyPatch.context() as patch:
            world.pool.install(patch)
            play = Play(world)
            world.pool.dies_after = dies_after
            reached = 2
            try:
                for position in range(3):
                    reached = position
                    play.forth(position)
            except PowerCut:
                pass
            world.pool.dies_after = None
            for position in range(reached, -1, -1):
                play.back(position)
        assert world.pool.state() == before, dies_after


def after_crash(pool: FakePool, *, sanoid: bool, reboot: bool) -> None:
    """What may happen between a crash and a recovery."""
    pool.dies_after = None
    if sanoid and not any(SANOID in pool.history(name) for name in pool.held):
        pool.take_snapshots(list(pool.held), SANOID)
    if reboot:
        pool.reboot()
