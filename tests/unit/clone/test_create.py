from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.fakes.guest import OTHER
from tests.fakes.restore_scene import DATASET, NAME, THEN, Killed, Machine, Scene, set_scene
from zvmsnap.clone import create, destroy, plan
from zvmsnap.clone.create import CloneCreation
from zvmsnap.clone.destroy import destroy_clone
from zvmsnap.clone.domain_xml import Network, cloned_from
from zvmsnap.clone.plan import CloneOptions
from zvmsnap.common.errors import CloneImpossible, GuestNotFound, RestoreFailed, ZvmsnapError
from zvmsnap.config.settings import Config
from zvmsnap.journal.operation import CloneOperation
from zvmsnap.points import compatibility, vault
from zvmsnap.points.manifest import Disk, Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.virt import domain_xml
from zvmsnap.zfs.types import Dataset, Snapshot

STEPS = ["datasets", "disks", "image", "firmware", "define", "load", "resume", "close"]
ISOLATED = CloneOptions("w2", network=Network.ISOLATED)


@pytest.fixture
def scene(
    config: Config,
    tmp_path: Path,
    manifest: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    monkeypatch.setattr(destroy, "_RELEASED_AFTER_S", 0)
    monkeypatch.setattr(create, "_MOUNTED_AT", tmp_path / "clones")
    monkeypatch.setattr(compatibility, "available_memory_bytes", lambda: 1 << 30)
    return set_scene(config, tmp_path / "pools", manifest, monkeypatch)


def make(scene: Scene, point: RestorePoint, wish: CloneOptions | None = None) -> CloneOperation:
    task = plan.plan(scene.config, scene.host, point, wish or CloneOptions("w2"))
    CloneCreation(scene.config, scene.host, task).run()
    return task


def nothing_left(scene: Scene) -> bool:
    """But what was there before."""
    vaulted = {path.name for path in (scene.config.vault_dir / "web").iterdir()}
    return (
        list(scene.world.held) == ["tank", DATASET]
        and [guest.name for guest in scene.host.guests()] == ["web"]
        and (scene.tasks(), scene.staged()) == ([], [])
        and not any(name.startswith(vault.LOADING) for name in vaulted)
    )


@pytest.mark.parametrize(
    ("wish", "memory", "zstd", "steps", "state"),
    [
        pytest.param(CloneOptions("w2"), True, False, STEPS, "running", id="RAM"),
        pytest.param(CloneOptions("w2"), True, True, STEPS, "running", id="zstd"),
        pytest.param(
            CloneOptions("w2", paused=True), True, False, STEPS, "paused", id="to stand still"
        ),
        pytest.param(
            CloneOptions("w2", cold=True),
            True,
            False,
            [step for step in STEPS if step != "image"],
            "running",
            id="cold",
        ),
        pytest.param(
            CloneOptions("w2"),
            False,
            False,
            [s for s in STEPS if s != "image"],
            "running",
            id="no RAM",
        ),
    ],
)
def test_clone(
    scene: Scene, wish: CloneOptions, memory: bool, zstd: bool, steps: list[str], state: str
) -> None:
    point = scene.point(memory=memory, zstd=zstd)
    stored = {path.name: path.read_bytes() for path in point.directory.iterdir()}
    before = scene.world.shape()
    task = make(scene, point, wish)
    assert scene.trace == steps
    guest = scene.find(task.uuid)
    assert guest and (guest.name, guest.state()) == ("w2", state)
    assert cloned_from(guest.xml()) == point.name
    assert scene.world.held["tank/w2"].content == (THEN if state == "paused" else f"{THEN}+")
    assert scene.world.held["tank/w2"].properties == {destroy.CLONE_PROPERTY: "w2"}
    assert scene.world.loaded == ([THEN] if "image" in steps else [])
    assert scene.world.torn == []
    # Nothing of the original has changed; nor of the point.
    assert {name: scene.world.shape()[name] for name in before} == before
    assert {path.name: path.read_bytes() for path in point.directory.iterdir()} == stored
    assert scene.guest.calls == []
    assert destroy_clone(scene.host, "w2", with_snapshots=False) == ["tank/w2"]
    assert nothing_left(scene)


def acts_of(scene: Scene, point: RestorePoint) -> list[str]:
    make(scene, point)
    destroy_clone(scene.host, "w2")
    acts = scene.world.acts[:]
    return acts[: acts.index("destroy")]


@pytest.mark.parametrize("dies", [True, False], ids=["death", "failure"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_trouble_at_each_act_leaves_nothing(scene: Scene, when: str, dies: bool) -> None:
    point = scene.point()
    for number, act in enumerate(acts_of(scene, point)):
        scene.world.acts.clear()
        if dies:
            scene.world.death = (number, when)
        else:
            scene.world.errors = {(number, when)}
        with pytest.raises(Killed if dies else RestoreFailed):
            make(scene, point)
        scene.world.spare()
        for task in scene.tasks():
            assert dies, act
            assert isinstance(task, CloneOperation)
            CloneCreation(scene.config, scene.host, task).discard()
        assert nothing_left(scene), act


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_could_not_be_undone_is_tried_again(scene: Scene, when: str) -> None:
    point = scene.point()
    resume = acts_of(scene, point).index("resume")

    def fail(number: int | None) -> None:
        scene.world.acts.clear()
        scene.world.errors = {(resume, "before")} | ({(number, when)} if number else set())
        with pytest.raises(RestoreFailed, match="w2 was not made: resume: resume: struck"):
            make(scene, point)
        scene.world.spare()

    fail(None)
    undoing = scene.world.acts[resume + 1 :]
    assert {"destroy", "undefine", "zfs destroy"} <= set(undoing)
    for number, act in enumerate(undoing, resume + 1):
        fail(number)
        for task in scene.tasks():
            assert isinstance(task, CloneOperation)
            CloneCreation(scene.config, scene.host, task).discard()
        assert nothing_left(scene), act


def test_discard_that_fails_says_what_is_left(scene: Scene) -> None:
    point = scene.point()
    scene.world.acts.clear()
    task = make(scene, point)
    work = CloneCreation(scene.config, scene.host, msgspec.structs.replace(task, step="load"))
    scene.world.errors = {(number, "before") for number in range(200)}
    with pytest.raises(RestoreFailed, match="w2: could not be removed: load: destroy: struck; "):
        work.discard()
    scene.world.spare()
    work.discard()
    assert nothing_left(scene)


def in_use(scene: Scene, point: RestorePoint) -> None:
    scene.host.known.append(Machine(scene.world, "w2", OTHER))


def dataset_there(scene: Scene, point: RestorePoint) -> None:
    scene.world.add("tank/w2")


def no_machine(scene: Scene, point: RestorePoint) -> None:
    scene.host.no_machine = "no such machine"


def damaged(scene: Scene, point: RestorePoint) -> None:
    path = point.directory / "memory.img"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def pruned(scene: Scene, point: RestorePoint) -> None:
    scene.world.kept.clear()


def locked(scene: Scene, point: RestorePoint) -> None:
    scene.world.held[DATASET].locked = True


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (locked, f"{DATASET}: its key is not loaded: zfs load-key {DATASET}"),
        (in_use, "w2: there is a guest of that name already"),
        (dataset_there, "tank/w2: exists already; choose another name"),
        (no_machine, "does not fit this host: QEMU here cannot be that machine"),
        (damaged, "does not match its checksum"),
        (pruned, "no snapshot of it is left"),
    ],
)
def test_refusals(scene: Scene, spoil: Callable[[Scene, RestorePoint], None], says: str) -> None:
    point = scene.point()
    spoil(scene, point)
    before = scene.world.shape()
    with pytest.raises(ZvmsnapError) as caught:
        make(scene, point)
    assert says in str(caught.value)
    assert scene.world.shape() == before
    assert (scene.tasks(), scene.staged()) == ([], [])


def test_no_memory_for_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "available_memory_bytes", lambda: 0)
    with pytest.raises(CloneImpossible, match="it needs 1 MiB of memory, and 0 MiB are available"):
        make(scene, scene.point())


@pytest.mark.parametrize(
    "name", ["a/b", "..", ".", "-x", "a@b", "a b", "a\n", "", "ä", "w" * 101, "a%b", "/etc/x"]
)
def test_names_that_no_dataset_can_have(scene: Scene, name: str) -> None:
    with pytest.raises(CloneImpossible, match="no name for a clone"):
        plan.plan(scene.config, scene.host, scene.point(), CloneOptions(name))


def at(full_name: str) -> Snapshot:
    dataset, _, name = full_name.partition("@")
    return Snapshot(dataset, name, 1, 1)


@pytest.mark.parametrize(
    ("snapshots", "there", "names"),
    [
        pytest.param(
            {"tank/web": "tank/web@a"}, ["tank"], {"tank/w2": "tank/web@a"}, id="named as its guest"
        ),
        pytest.param(
            {"tank/disk": "tank/disk@a"},
            ["tank"],
            {"tank/disk-w2": "tank/disk@a"},
            id="named otherwise",
        ),
        pytest.param(
            {"tank/web": "tank/web@a", "tank/web/db": "tank/web/db@a"},
            ["tank"],
            {"tank/w2": "tank/web@a", "tank/w2/db": "tank/web/db@a"},
            id="a child",
        ),
        pytest.param(
            {"tank/web": "tank/web@a", "tank/web/x/db": "tank/web/x/db@a"},
            ["tank", "tank/web/x"],
            {"tank/w2": "tank/web@a", "tank/web/x/db-w2": "tank/web/x/db@a"},
            id="a grandchild, whose parent is no part",
        ),
        pytest.param(
            {"fast/vm/web": "fast/vm/web@a", "tank/web": "tank/web@a"},
            ["fast/vm", "tank"],
            {"fast/vm/w2": "fast/vm/web@a", "tank/w2": "tank/web@a"},
            id="two tops",
        ),
        pytest.param(
            {"tank/old/web": "tank/new/web@a"},
            ["tank", "tank/new"],
            {"tank/new/w2": "tank/new/web@a"},
            id="the parent is gone",
        ),
        pytest.param(
            {"tank": "tank@a", "tank/db": "tank/db@a"},
            ["tank"],
            {"tank/tank-w2": "tank@a", "tank/tank-w2/db": "tank/db@a"},
            id="a whole pool",
        ),
    ],
)
def test_names_of_datasets(
    snapshots: dict[str, str], there: list[str], names: dict[str, str]
) -> None:
    known = {name: Dataset(name, "filesystem", compressed=False) for name in there}
    wanted = {name: at(full_name) for name, full_name in snapshots.items()}
    assert plan._names("web", "w2", wanted, known) == tuple(names.items())


def test_unmounted_origin_is_mounted_where_it_can_be_reached(scene: Scene, tmp_path: Path) -> None:
    point = scene.point()
    inherited = scene.world._mountpoint

    def mountpoint(name: str) -> str:
        own = scene.world.held[name].properties.get("mountpoint", "none")
        return own if name == "tank/w2" else inherited(name)

    scene.world._mountpoint = mountpoint  # type: ignore[method-assign]
    place = tmp_path / "clones" / "tank" / "w2"
    task = make(scene, point)
    guest = scene.find(task.uuid)
    assert guest and str(place / "vda.raw") in guest.xml()


def test_two_disks_of_which_each_finds_its_own(scene: Scene) -> None:
    scene.world.add("tank/web/db", "data")
    second = scene.world.snap(f"tank/web/db@{NAME}")
    scene.guest.live["vdb"] = scene.guest.persistent["vdb"] = scene.world.disk_of("tank/web/db")
    first = scene.snapshot
    ties = (
        SnapshotRef(DATASET, NAME, first.guid, first.createtxg),
        SnapshotRef("tank/web/db", NAME, second.guid, second.createtxg),
    )
    disks = (
        Disk("vdb", "file", "raw", scene.guest.live["vdb"], "tank/web/db", "vda.raw"),
        Disk("vda", "file", "raw", scene.guest.live["vda"], DATASET, "vda.raw"),
    )
    task = make(scene, scene.point(memory=False, snapshots=ties, disks=disks))
    guest = scene.find(task.uuid)
    assert guest
    assert {disk.target: disk.source for disk in domain_xml.parse(guest.xml()).disks} == {
        "vda": scene.world.disk_of("tank/w2"),
        "vdb": scene.world.disk_of("tank/w2/db"),
    }
    assert destroy_clone(scene.host, "w2") == ["tank/w2", "tank/w2/db"]
    assert list(scene.world.held) == ["tank", DATASET, "tank/web/db"]


def test_isolated_network_lives_as_long_as_its_clones(scene: Scene) -> None:
    scene.guest.equipment = (
        "<interface type='bridge'><mac address='52:54:00:00:00:01'/></interface>"
    )
    point = scene.point()
    make(scene, point, ISOLATED)
    make(scene, point, CloneOptions("w3", network=Network.ISOLATED))
    assert scene.host.networks == ["zvmsnap-isolated"]
    destroy_clone(scene.host, "w2")
    assert scene.host.networks == ["zvmsnap-isolated"]
    destroy_clone(scene.host, "w3")
    assert scene.host.networks == []


# -- destroy


def foreign_guest(scene: Scene) -> None:
    (clone_of,) = (guest for guest in scene.host.known if guest.name == "w2")
    clone_of.metadata = ""


def foreign_snapshot(scene: Scene) -> None:
    scene.world.snap("tank/w2@by-hand")


def foreign_child(scene: Scene) -> None:
    scene.world.add("tank/w2/mine")


def dependent(scene: Scene) -> None:
    scene.world.snap("tank/w2@by-hand")
    scene.world.clone("tank/w2@by-hand", "tank/of-it", {})


@pytest.mark.parametrize("with_snapshots", [True, False])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (foreign_guest, "w2: this guest is no clone that zvmsnap made"),
        (foreign_snapshot, "tank/w2@by-hand: is a snapshot of the clone, not made by zvmsnap"),
        (foreign_child, "tank/w2/mine: lies below a clone, but is none"),
        (dependent, "tank/w2@by-hand: tank/of-it depends on it"),
    ],
)
def test_destroy_refuses_what_clone_did_not_make(
    scene: Scene, change: Callable[[Scene], None], says: str, with_snapshots: bool
) -> None:
    make(scene, scene.point())
    change(scene)
    before, calls = scene.world.shape(), len(scene.world.acts)
    if with_snapshots and change is foreign_snapshot:
        # As verify destroys: a sanoid may have come by.
        assert destroy_clone(scene.host, "w2", with_snapshots=True) == ["tank/w2"]
        assert nothing_left(scene)
        return
    with pytest.raises(CloneImpossible, match=f"^{says}"):
        destroy_clone(scene.host, "w2", with_snapshots=with_snapshots)
    assert (scene.world.shape(), len(scene.world.acts)) == (before, calls)


def test_destroy_removes_exactly_what_is_marked(scene: Scene) -> None:
    point = scene.point()
    make(scene, point)
    make(scene, point, CloneOptions("w3"))
    scene.world.add("tank/w2x")
    assert destroy_clone(scene.host, "w2") == ["tank/w2"]
    assert list(scene.world.held) == ["tank", DATASET, "tank/w3", "tank/w2x"]
    assert [guest.name for guest in scene.host.guests()] == ["web", "w3"]
    for name in ("w2", "web", "nobody", ""):
        with pytest.raises((GuestNotFound, CloneImpossible)):
            destroy_clone(scene.host, name)
    assert scene.guest.calls == []


@pytest.mark.parametrize("left", ["guest", "datasets"])
def test_destroy_of_half_a_clone(scene: Scene, left: str) -> None:
    task = make(scene, scene.point())
    if left == "guest":
        scene.world.destroy("tank/w2")
    else:
        scene.host.known.pop()
    assert destroy_clone(scene.host, "w2") == ([] if left == "guest" else ["tank/w2"])
    assert scene.find(task.uuid) is None
    assert nothing_left(scene)
