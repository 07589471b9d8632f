from collections.abc import Callable

import pytest

from tests.fakes.clone_scene import make, nothing_left
from tests.fakes.restore_scene import DATASET, Machine, Scene
from zvmsnap.clone.destroy import destroy_clone
from zvmsnap.clone.identity import Network
from zvmsnap.clone.plan import CloneOptions
from zvmsnap.common.errors import CloneImpossible, GuestNotFound, ZfsFailed

ISOLATED = CloneOptions("w2", network=Network.ISOLATED)


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


def held(scene: Scene) -> None:
    scene.world.snap("tank/w2@by-hand")
    scene.world.pool_snapshots[-1].holds = 1


def lent_disk(scene: Scene) -> None:
    scene.guest.live["vdb"] = scene.world.disk_of("tank/w2")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (foreign_guest, "w2: this guest is no clone that zvmsnap made"),
        (foreign_snapshot, "tank/w2@by-hand: is a snapshot of the clone, not made by zvmsnap"),
        (foreign_child, "tank/w2/mine: is below a clone, but is none"),
        (dependent, "tank/w2@by-hand: tank/of-it depends on it"),
        (held, "tank/w2@by-hand: .*; it is held: zfs holds tank/w2@by-hand"),
        (lent_disk, "tank/w2: holds vdb of web, too: detach that first"),
    ],
)
def test_destroy_refuses_what_clone_did_not_make(
    scene: Scene, change: Callable[[Scene], None], says: str
) -> None:
    make(scene, scene.point())
    change(scene)
    before, calls = scene.world.summary(), len(scene.world.acts)
    with pytest.raises(CloneImpossible, match=f"^{says}"):
        destroy_clone(scene.host, "w2")
    assert (scene.world.summary(), len(scene.world.acts)) == (before, calls)


def test_destroy_removes_exactly_what_is_marked(scene: Scene) -> None:
    point = scene.point()
    make(scene, point)
    make(scene, point, CloneOptions("w3"))
    scene.world.add("tank/w2x")
    assert destroy_clone(scene.host, "w2") == ["tank/w2"]
    assert list(scene.world.pool) == ["tank", DATASET, "tank/w3", "tank/w2x"]
    assert [guest.name for guest in scene.host.guests()] == ["web", "w3"]
    for name in ("w2", "web", "nobody", ""):
        with pytest.raises((GuestNotFound, CloneImpossible)):
            destroy_clone(scene.host, name)
    assert scene.guest.calls == []


@pytest.mark.parametrize("left", ["guest", "datasets"])
def test_destroy_of_half_a_clone(scene: Scene, left: str) -> None:
    operation = make(scene, scene.point())
    if left == "guest":
        scene.world.destroy("tank/w2")
    else:
        scene.host.known.pop()
    assert destroy_clone(scene.host, "w2") == ([] if left == "guest" else ["tank/w2"])
    assert scene.find(operation.uuid) is None
    assert nothing_left(scene)


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


def test_dataset_that_is_used_is_destroyed_as_soon_as_nobody_does(scene: Scene) -> None:
    make(scene, scene.point())
    busy = len(scene.world.acts) + 2  # after destroy and undefine
    scene.world.errors = {(number, "before") for number in range(busy, busy + 9)}
    assert destroy_clone(scene.host, "w2") == ["tank/w2"]
    assert scene.world.acts[busy:] == ["zfs destroy"] * 10
    assert nothing_left(scene)


def test_dataset_that_is_used_for_ever(scene: Scene) -> None:
    make(scene, scene.point())
    busy = len(scene.world.acts) + 2
    scene.world.errors = {(number, "before") for number in range(busy, busy + 999)}
    with pytest.raises(ZfsFailed, match="zfs destroy: failed here"):
        destroy_clone(scene.host, "w2")


def test_what_libvirt_keeps_with_the_clone_goes_with_it(scene: Scene) -> None:
    operation = make(scene, scene.point())
    guest = scene.find(operation.uuid)
    assert isinstance(guest, Machine)
    guest.snapshots = ["before-upgrade"]
    assert destroy_clone(scene.host, "w2") == ["tank/w2"]
    assert nothing_left(scene)


def test_clone_that_somebody_has_undefined_while_it_runs(scene: Scene) -> None:
    operation = make(scene, scene.point())
    guest = scene.find(operation.uuid)
    assert isinstance(guest, Machine)
    guest.is_defined = False
    assert destroy_clone(scene.host, "w2") == ["tank/w2"]
    assert nothing_left(scene)
