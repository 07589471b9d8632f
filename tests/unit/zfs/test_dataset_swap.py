from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.zfs_pool import FakePool, PowerCut
from zvmsnap.common.errors import RestoreImpossible, ZfsFailed
from zvmsnap.zfs import branches, dataset_swap, zfs
from zvmsnap.zfs.dataset_swap import SwapTree
from zvmsnap.zfs.types import Dataset, Snapshot

SANOID = "autosnap"


# -- plan


def listing(*names: str, **special: Dataset) -> dict[str, Dataset]:
    """Mounted filesystems; a name that ends with ! is a volume."""
    datasets = {}
    for number, name in enumerate(names, 1):
        plain = name.rstrip("!")
        kind, canmount = ("volume", "") if name != plain else ("filesystem", "on")
        datasets[plain] = Dataset(
            plain, kind, False, guid=number, mounted=bool(canmount), canmount=canmount
        )
    return datasets | {dataset.name: dataset for dataset in special.values()}


def clones_of(trees: tuple[SwapTree, ...]) -> tuple[SwapTree, ...]:
    return dataset_swap.make_clones(trees)[0]


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
        id="children are of the tree, a longer name is not",
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
        id="bystanders, and those below go along",
    ),
    pytest.param([], [], [], id="nothing"),
]


@pytest.mark.parametrize(("names", "wanted", "trees"), TREES)
def test_plan(
    names: list[str],
    wanted: list[str],
    trees: list[tuple[str, list[str], list[str], list[str]]],
) -> None:
    datasets = listing(*names)
    planned_trees = planned(datasets, *wanted)
    assert [
        (
            tree.top,
            [dataset.path for dataset in tree.datasets],
            [bystander.path for bystander in tree.bystanders],
            list(tree.mounted),
        )
        for tree in planned_trees
    ] == trees
    for tree in planned_trees:
        assert (tree.clone_top, tree.replaced_top) == (
            f"{tree.top}.zvmsnap-0a",
            f"{tree.top}.before-now",
        )
        for dataset in tree.datasets:
            name = tree.top + dataset.path
            assert dataset.old_guid == dataset.origin_guid == datasets[name].guid
            assert dataset.origin == f"{name}@s"
            assert dataset.canmount == datasets[name].canmount
        for bystander in tree.bystanders:
            assert bystander.guid == datasets[tree.top + bystander.path].guid


PROMOTED_OVER = [
    pytest.param({"tank/w": ""}, "tank/w", (2,), id="its own snapshot"),
    pytest.param({"tank/w": "tank/g@s"}, "tank/w", (2,), id="of a clone of a golden image"),
    pytest.param({"tank/x": "tank/w@s"}, "tank/x", (3, 2), id="on what it was before a restore"),
    pytest.param(
        {"tank/x": "tank/y@s", "tank/y": "tank/w@s", "tank/w": "tank/g@s"},
        "tank/x",
        (3, 4, 2),
        id="two restores before",
    ),
    pytest.param(
        {"tank/x": "tank/g@s", "tank/w": "tank/g@s"}, "tank/x", (3,), id="only a golden image"
    ),
    pytest.param({"tank/w": "tank/x@s"}, "tank/x", (3,), id="the replaced one is a clone itself"),
]


@pytest.mark.parametrize(("origins", "dataset", "guids"), PROMOTED_OVER)
def test_over_what_is_promoted(
    origins: dict[str, str], dataset: str, guids: tuple[int, ...]
) -> None:
    datasets = {
        name: Dataset(name, "filesystem", False, guid=guid, origin=origins.get(name, ""))
        for guid, name in enumerate(["tank", "tank/w", "tank/x", "tank/y", "tank/g"], 1)
    }
    [tree] = dataset_swap.plan({"tank/w": Snapshot(dataset, "s", 9, 9)}, datasets, "0a", "now")
    assert tree.datasets[0].promoted_over == guids


@pytest.mark.parametrize("mounted", [True, False])
@pytest.mark.parametrize("legacy", ["tank/w", "tank/w/a", "tank/w/other"])
def test_legacy_mounts(legacy: str, mounted: bool) -> None:
    special = Dataset(legacy, "filesystem", False, guid=9, mounted=mounted, mountpoint="legacy")
    datasets = listing("tank", "tank/w", "tank/w/a", "tank/w/other", special=special)
    if not mounted:
        assert planned(datasets, "tank/w", "tank/w/a")
        return
    with pytest.raises(RestoreImpossible, match=f"^{legacy} is mounted by /etc/fstab.*clone"):
        planned(datasets, "tank/w", "tank/w/a")


def test_a_whole_pool_is_refused() -> None:
    with pytest.raises(RestoreImpossible, match=r"^tank is a whole pool.*--rollback"):
        planned(listing("tank", "tank/w"), "tank/w", "tank")


# -- the verbs


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> FakePool:
    """web on a golden image, with a child and a bystander, and a volume; changed since s2."""
    pool = FakePool()
    pool.add("tank")
    pool.add("tank/golden", "golden")
    pool.take_snapshots(["tank/golden"], "base")
    pool.clone("tank/golden@base", "tank/web", {"mountpoint": "/srv/web", "a:note": "two words"})
    pool.add("tank/web/a")
    pool.add("tank/web/other")
    pool.add("tank/web/other/below")
    pool.add("tank/vol", volume=True)
    snapshot(pool, "s1")
    snapshot(pool, "s2")
    write(pool, "now")
    pool.install(monkeypatch)
    return pool


DISKS = ("tank/web", "tank/web/a", "tank/vol")


def write(pool: FakePool, content: str, names: tuple[str, ...] = DISKS) -> None:
    for name in names:
        pool.by_name[name].content = content


def snapshot(pool: FakePool, name: str, names: tuple[str, ...] = DISKS) -> None:
    write(pool, name, names)
    pool.take_snapshots(names, name)


def plan_of(pool: FakePool, wanted: Mapping[str, int], stamp: str) -> tuple[SwapTree, ...]:
    """Swap trees for datasets and the guids of the snapshots that they are to hold."""
    by_guid = {each.guid: each for each in pool.all_snapshots().snapshots}
    snapshots = {name: by_guid[guid] for name, guid in wanted.items()}
    return dataset_swap.plan(snapshots, pool.datasets(), f"n{stamp}", stamp)


def guids(pool: FakePool, name: str, names: tuple[str, ...] = DISKS) -> dict[str, int]:
    return {each: pool.guid(f"{each}@{name}") for each in names}


def bring_back(pool: FakePool, wanted: Mapping[str, int], stamp: str) -> tuple[SwapTree, ...]:
    trees = clones_of(plan_of(pool, wanted, stamp))
    dataset_swap.swap(trees)
    dataset_swap.promote(trees)
    return trees


def all_guids(pool: FakePool) -> set[int]:
    return {each.guid for each in pool.all_snapshots().snapshots}


def test_names_hold_the_old_content(pool: FakePool) -> None:
    guids_before = {name: pool.guid(name) for name in pool.by_name}
    snapshots_before = all_guids(pool)
    bring_back(pool, guids(pool, "s1"), "x")
    for name in DISKS:
        replaced = name.replace("/web", "/web.before-x").replace("/vol", "/vol.before-x")
        assert pool.by_name[name].content == "s1"
        assert pool.history(name) == ["s1"]
        assert pool.guid(replaced) == guids_before[name]
        assert pool.by_name[replaced].content == "now"
        assert pool.history(replaced) == ["s2"]
        assert pool.datasets()[replaced].origin == f"{name}@s1"
    for name in ("tank/web/other", "tank/web/other/below", "tank/golden"):
        assert pool.guid(name) == guids_before[name]
    web = pool.by_name["tank/web"]
    assert web.own == {"mountpoint": "/srv/web", "a:note": "two words", "canmount": "on"}
    assert pool.datasets()["tank/web"].origin == "tank/golden@base"
    assert pool.history("tank/golden") == ["base"]
    assert all_guids(pool) == snapshots_before
    mounted = {name for name, dataset in pool.by_name.items() if dataset.mounted}
    assert mounted == {
        *("tank", "tank/golden", "tank/web", "tank/web/a"),
        *("tank/web/other", "tank/web/other/below"),
    }


def test_back_and_forth(pool: FakePool) -> None:
    """Three restores, and one of the first safety point: the name owns all snapshots up to it."""
    wanted = guids(pool, "s1")
    for stamp in ("x", "y", "z"):
        snapshot(pool, f"safety-{stamp}")
        wanted_next = guids(pool, f"safety-{stamp}")
        bring_back(pool, wanted, stamp)
        if stamp == "x":
            first_safety = wanted_next
    known = all_guids(pool)
    bring_back(pool, first_safety, "last")
    for name in DISKS:
        assert pool.by_name[name].content == "safety-x"
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


def test_a_replaced_dataset_that_owns_the_history_gets_it_back(pool: FakePool) -> None:
    """Somebody has put web back by hand, and did not promote it."""
    pool.take_snapshots(["tank/web"], "s3")
    pool.rename("tank/web", "tank/own")
    pool.set_property("tank/own", "canmount", "noauto")
    pool.unmount("tank/own/a")
    pool.unmount("tank/own/other/below")
    pool.unmount("tank/own/other")
    pool.unmount("tank/own")
    pool.clone("tank/own@s2", "tank/web", {})
    before = pool.state()
    trees = clones_of(plan_of(pool, {"tank/web": pool.guid("tank/own@s3")}, "x"))
    dataset_swap.swap(trees)
    dataset_swap.promote(trees)
    assert pool.history("tank/web") == ["s1", "s2", "s3"]
    dataset_swap.demote(trees)
    dataset_swap.swap_back(trees)
    dataset_swap.destroy_clones(trees)
    assert pool.state() == {
        name: before[name] if name != "tank/web" else pool.state()[name] for name in before
    }
    assert pool.guid("tank/web") == trees[0].datasets[0].old_guid
    assert pool.datasets()["tank/web"].origin == "tank/own@s2"


def test_clones_that_own_snapshots_are_never_destroyed(pool: FakePool) -> None:
    """As when `demote` failed, and all other undos were tried."""
    known = all_guids(pool)
    trees = bring_back(pool, guids(pool, "s1"), "x")
    dataset_swap.swap_back(trees)
    with pytest.raises(ZfsFailed, match=r"^tank/vol.zvmsnap-nx: is kept, as it owns snapshots of"):
        dataset_swap.destroy_clones(trees)
    assert all_guids(pool) == known
    dataset_swap.demote(trees)
    dataset_swap.destroy_clones(trees)
    assert all_guids(pool) == known
    assert not any("zvmsnap" in name or "before" in name for name in pool.by_name)


def test_snapshots_of_a_passing_sanoid_are_destroyed_with_the_clones(pool: FakePool) -> None:
    before = pool.state()
    trees = clones_of(plan_of(pool, guids(pool, "s1"), "x"))
    pool.take_snapshots([name for name in pool.by_name if "zvmsnap" in name], SANOID)
    dataset_swap.destroy_clones(trees)
    dataset_swap.destroy_clones(trees)
    assert pool.state() == before


def test_clones_are_not_mounted_before_they_have_the_names(pool: FakePool) -> None:
    """Not at the mountpoint of their originals, also when the host boots meanwhile."""
    mounted = {name for name, dataset in pool.by_name.items() if dataset.mounted}
    [volume, web] = clones_of(plan_of(pool, guids(pool, "s1"), "x"))
    pool.reboot()
    assert {name for name, dataset in pool.by_name.items() if dataset.mounted} == mounted
    assert {dataset.path for dataset in web.datasets} == {"", "/a"}
    for dataset in web.datasets:
        assert pool.by_name[web.clone_top + dataset.path].own["canmount"] == "noauto"
    assert "canmount" not in pool.by_name[volume.clone_top].own


def test_somebody_works_in_a_filesystem(pool: FakePool) -> None:
    before = pool.state()
    trees = clones_of(plan_of(pool, guids(pool, "s1"), "x"))
    pool.busy.add("tank/web")
    with pytest.raises(ZfsFailed, match="tank/web: is busy"):
        dataset_swap.swap(trees)
    dataset_swap.swap_back(trees)
    dataset_swap.destroy_clones(trees)
    assert pool.state() == before


@pytest.mark.parametrize("gone", ["clone", "bystander", "same name"])
def test_what_others_do_meanwhile(pool: FakePool, gone: str) -> None:
    trees = clones_of(plan_of(pool, {"tank/web": pool.guid("tank/web@s1")}, "x"))
    if gone == "clone":
        pool.destroy("tank/web.zvmsnap-nx")
        with pytest.raises(ZfsFailed, match="is gone, so tank/web stays what it is"):
            dataset_swap.swap(trees)
        assert pool.guid("tank/web") == trees[0].datasets[0].old_guid
    elif gone == "bystander":
        pool.destroy("tank/web/other/below")
        pool.destroy("tank/web/other")
        dataset_swap.swap(trees)
        dataset_swap.swap_back(trees)
        assert pool.guid("tank/web") == trees[0].datasets[0].old_guid
    else:
        for name in ("tank/web/other/below", "tank/web/other", "tank/web/a", "tank/web"):
            pool.unmount(name)
        pool.rename("tank/web", "tank/web.before-x")
        pool.add("tank/web")
        others_dataset = pool.state()["tank/web"]
        for verb in (dataset_swap.swap, dataset_swap.swap_back):
            with pytest.raises(ZfsFailed, match="tank/web: is a dataset that somebody has made"):
                verb(trees)
        assert pool.state()["tank/web"] == others_dataset


def test_a_filesystem_that_was_mounted_by_hand_is_mounted_again(pool: FakePool) -> None:
    pool.set_property("tank/web", "canmount", "noauto")
    trees = bring_back(pool, guids(pool, "s1"), "x")
    assert pool.by_name["tank/web"].mounted
    assert pool.by_name["tank/web"].own["canmount"] == "noauto"
    dataset_swap.demote(trees)
    dataset_swap.swap_back(trees)
    assert pool.by_name["tank/web"].mounted
    assert pool.by_name["tank/web"].content == "now"


# -- interrupted anywhere


@dataclass
class World:
    """A pool, and the snapshots that its datasets are to hold."""

    pool: FakePool
    wanted: Mapping[str, int]
    content: str


CANDIDATES = (
    *("tank/web", "tank/web/a", "tank/web/a/b", "tank/web/gap", "tank/web/gap/deep"),
    *("tank/web/vol", "tank/db"),
)
VOLUMES = ("tank/web/vol", "tank/db")


def give(pool: FakePool, name: str) -> None:
    """Let the name have all that may belong to one."""
    dataset = pool.by_name[name]
    dataset.own |= {"refreservation": "16", "syncoid:sync": "true", "autobackup:nas": "child"}
    pool.came_with_a_stream(name, **{"org:owner": "me", "com.sun:auto-snapshot": "true"})
    dataset.delegated |= {
        (("-u", "offsite"), "hold,send"),
        (("-l", "-g", "domain users"), "mount"),
        (("-d", "-e"), "hold"),
        (("-s", "@mine"), "destroy"),
        (("-c",), "create"),
    }
    pool.by_name["tank"].own |= {"autobackup:all": "true", "org:site": "x"}


@st.composite
def recipes(draw: st.DrawFn) -> Callable[[], World]:
    """How to build a world, twice the same: a tree, earlier restores, and the wanted snapshots."""
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
    belonging = draw(st.sets(st.sampled_from(names)))
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
        for name in belonging:
            give(pool, name)
        with pytest.MonkeyPatch.context() as patch:
            pool.install(patch)
            states: list[tuple[str, dict[str, int]]] = []
            for number in range(2):
                snapshot(pool, f"s{number}", wanted)
                states.append((f"s{number}", guids(pool, f"s{number}", wanted)))
            for stamp, index in enumerate(before):
                snapshot(pool, f"safety{stamp}", wanted)
                safety = guids(pool, f"safety{stamp}", wanted)
                bring_back(pool, states[index % len(states)][1], str(stamp))
                states.append((f"safety{stamp}", safety))
            write(pool, "now", wanted)
        content, wanted_guids = states[which % len(states)]
        pool.changes = 0
        return World(pool, wanted_guids, content)

    return build


Verb = Callable[[tuple[SwapTree, ...]], object]
UNDO: tuple[Verb, ...] = (dataset_swap.destroy_clones, dataset_swap.swap_back, dataset_swap.demote)


class Play:
    """A swap in a world, of which each verb may die, and is called again."""

    def __init__(self, world: World) -> None:
        self.pool = world.pool
        self.trees = plan_of(world.pool, world.wanted, "now")

    def forth(self, position: int) -> None:
        verbs: tuple[Verb, ...] = (self._make_clones, dataset_swap.swap, dataset_swap.promote)
        verbs[position](self.trees)

    def _make_clones(self, trees: tuple[SwapTree, ...]) -> None:
        self.trees = clones_of(trees)

    def back(self, position: int) -> None:
        UNDO[position](self.trees)


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
        assert pool.by_name[name].content == world.content
    assert known <= all_guids(pool)
    assert pool.state(SANOID) == expected


@given(recipes(), st.data(), st.booleans(), st.booleans())
def test_undone_after_a_crash_all_is_as_it_was(
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


def test_a_gap_in_the_tree_undone_after_each_change() -> None:
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
    if sanoid and not any(SANOID in pool.history(name) for name in pool.by_name):
        pool.take_snapshots(list(pool.by_name), SANOID)
    if reboot:
        pool.reboot()


# -- what belongs to a name


def own_of(pool: FakePool, name: str) -> tuple[dict[str, str], set[tuple[tuple[str, ...], str]]]:
    dataset = pool.by_name[name]
    own = {key: value for key, value in dataset.own.items() if key != "canmount"}
    return own, set(dataset.delegated)


@pytest.mark.parametrize("volume", [False, True])
def test_what_belongs_to_a_name_goes_with_it(volume: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through several restores, where there is no room to reserve twice."""
    pool = FakePool()
    pool.add("tank")
    pool.add("tank/web", volume=volume)
    give(pool, "tank/web")
    pool.room_bytes = 16
    pool.install(monkeypatch)
    pool.take_snapshots(["tank/web"], "s1")
    before = own_of(pool, "tank/web")
    for stamp in ("a", "b", "c"):
        bring_back(pool, guids(pool, "s1", ("tank/web",)), stamp)
        assert own_of(pool, "tank/web") == before
        own, delegated = own_of(pool, f"tank/web.before-{stamp}")
        assert own == dict.fromkeys(
            ("syncoid:sync", "com.sun:auto-snapshot", "autobackup:all", "autobackup:nas"), "false"
        )
        assert delegated == set()


def test_a_property_that_no_file_can_hold_stays_with_the_replaced_dataset(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = FakePool()
    pool.add("tank")
    pool.add("tank/web")
    pool.by_name["tank/web"].own |= {"org:bytes": "\udcff", "org:lines": "a\tb\n\x1b"}
    pool.install(monkeypatch)
    pool.take_snapshots(["tank/web"], "s1")
    trees = clones_of(plan_of(pool, guids(pool, "s1", ("tank/web",)), "x"))
    assert msgspec.json.decode(msgspec.json.encode(trees), type=tuple[SwapTree, ...]) == trees
    dataset_swap.swap(trees)
    dataset_swap.promote(trees)
    assert own_of(pool, "tank/web")[0] == {"org:lines": "a\tb\n\x1b"}
    assert caplog.messages == ["tank/web: org:bytes is no UTF-8, and does not go with the name"]


def test_room_that_is_taken_meanwhile_keeps_no_guest_down(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = FakePool()
    pool.add("tank")
    pool.add("tank/web")
    give(pool, "tank/web")
    pool.install(monkeypatch)
    pool.take_snapshots(["tank/web"], "s1")
    trees = clones_of(plan_of(pool, guids(pool, "s1", ("tank/web",)), "x"))
    dataset_swap.swap(trees)
    pool.room_bytes = 15
    with pytest.raises(ZfsFailed, match="out of space"):
        dataset_swap.promote(trees)
    dataset_swap.demote(trees)
    dataset_swap.swap_back(trees)
    dataset_swap.destroy_clones(trees)
    assert sorted(pool.by_name) == ["tank", "tank/web"]
    assert "not reserved again: zfs set refreservation=16 tank/web" in caplog.text
    assert "refreservation" not in pool.by_name["tank/web"].own
    assert pool.by_name["tank/web"].received == {"org:owner", "com.sun:auto-snapshot"}


def test_delegations_that_are_not_understood_are_refused_before_anything_is_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = FakePool()
    pool.add("tank")
    pool.add("tank/web")
    pool.install(monkeypatch)
    pool.take_snapshots(["tank/web"], "s1")
    told = "---- Permissions on tank/web ---\nNew permissions:\n\tuser joe send\n"
    monkeypatch.setattr("zvmsnap.zfs.zfs.command", lambda *_words: told)
    before = pool.state()
    with pytest.raises(ZfsFailed, match="tank/web: what `zfs allow` says of it is not understood"):
        dataset_swap.make_clones(plan_of(pool, guids(pool, "s1", ("tank/web",)), "x"))
    assert pool.state() == before


def test_listed_once_however_many_datasets_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest stands still while they are swapped and promoted."""
    pool = FakePool()
    pool.install(monkeypatch)
    pool.add("tank")
    names = tuple(f"tank/web{number}" for number in range(9))
    for name in names:
        pool.add(name, volume=name.endswith("3"))
    pool.take_snapshots(names, "s1")
    trees = clones_of(plan_of(pool, guids(pool, "s1", names), "x"))
    asked: list[str] = []

    def counting(verb: str, answer: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            asked.append(verb)
            return answer(*arguments, **options)

        return call

    monkeypatch.setattr(branches, "below", counting("below", pool.below))
    monkeypatch.setattr(zfs, "lineages", counting("lineages", pool.lineages))
    monkeypatch.setattr(zfs, "datasets", counting("datasets", pool.datasets))
    dataset_swap.swap(trees)
    assert asked == ["below"]
    dataset_swap.promote(trees)
    assert asked == ["below", "lineages"]
    assert all(pool.history(name) == ["s1"] for name in names)


def test_a_pool_that_lists_nothing_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = FakePool()
    pool.install(monkeypatch)
    pool.add("tank")
    pool.add("tank/web")
    pool.take_snapshots(["tank/web"], "s1")
    trees = clones_of(plan_of(pool, guids(pool, "s1", ("tank/web",)), "x"))
    before = pool.changes
    monkeypatch.setattr(branches, "below", lambda _tops: {})
    for verb in (dataset_swap.swap, dataset_swap.swap_back):
        with pytest.raises(ZfsFailed, match="tank/web: zfs lists neither it nor its clone"):
            verb(trees)
    assert pool.changes == before
    dataset_swap.swap_back(())
