"""A clone runs on its own disks: on its partition of a volume, and on no other disk."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.clone_scene import make, nothing_left
from tests.fakes.guest import FakeProcess
from tests.fakes.restore_scene import DATASET, OLD, Machine, Scene, set_scene
from zvmsnap.clone import own_places, verify
from zvmsnap.clone.plan import CloneOptions
from zvmsnap.common.errors import RestoreFailed
from zvmsnap.config.settings import Config
from zvmsnap.points import compatibility
from zvmsnap.points.manifest import Disk, Manifest
from zvmsnap.points.point import RestorePoint
from zvmsnap.virt import domain_xml
from zvmsnap.zfs.types import Partition

FIRST, SECOND = Partition(1, 1 << 20, 4 << 20), Partition(2, 5 << 20, 2 << 20)
LINK = "/dev/disk/by-uuid/1234"
OPTIONS = [CloneOptions("w2"), CloneOptions("w2", cold=True), CloneOptions("w2", paused=True)]


@pytest.fixture
def scene(
    config: Config,
    tmp_path: Path,
    manifest: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    """A guest on the second partition of a volume."""
    monkeypatch.setattr(own_places, "CLONES", tmp_path / "clones")
    monkeypatch.setattr(compatibility, "available_memory_bytes", lambda: 1 << 30)
    scene = set_scene(config, tmp_path / "pools", manifest, monkeypatch, "volume")
    scene.world.partition(FIRST, SECOND)
    return scene


def point_of(scene: Scene, source: str) -> RestorePoint:
    scene.world.links[LINK] = "/dev/zvol/tank/web-part2"
    scene.guest.live["vda"] = scene.guest.persistent["vda"] = source
    disk = Disk("vda", "block", "raw", source, DATASET, "", SECOND, scene.dataset.guid)
    return scene.point(disks=(disk,))


@pytest.mark.parametrize("source", ["/dev/zvol/tank/web-part2", LINK])
@pytest.mark.parametrize("options", OPTIONS, ids=["RAM", "cold", "paused"])
def test_clone_has_the_partition_of_its_own_volume(
    scene: Scene, source: str, options: CloneOptions
) -> None:
    operation = make(scene, point_of(scene, source), options)
    guest = scene.find(operation.uuid)
    assert guest
    for persistent in (False, True):
        (disk,) = domain_xml.parse(guest.xml(persistent=persistent)).disks
        assert (disk.type, disk.source) == ("block", "/dev/zvol/tank/w2-part2")
    assert scene.world.pool["tank/w2"].content == (OLD if options.paused else f"{OLD}+")


def opening(scene: Scene, instead: str) -> Callable[[str, str], Machine]:
    """Clones whose QEMU opens that in place of their partition."""

    def new_guest(name: str, uuid: str) -> Machine:
        clone = Machine(scene.world, name, uuid)
        part = f"/dev/zvol/tank/{name}-part2"
        clone.qemu = FakeProcess({part: instead.format(name)}, own_names=True)
        return clone

    return new_guest


@pytest.mark.parametrize("options", OPTIONS, ids=["RAM", "cold", "paused"])
def test_clone_on_the_whole_volume_is_undone(
    scene: Scene, options: CloneOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene.host, "new_guest", opening(scene, "/dev/zvol/tank/{}"))
    point = point_of(scene, "/dev/zvol/tank/web-part2")
    why = r"w2 was not made: check: .* vda is tank/w2, not partition 2 \(.*\) of tank/w2$"
    with pytest.raises(RestoreFailed, match=why):
        make(scene, point, options)
    assert nothing_left(scene)


def test_verify_says_so(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene.host, "new_guest", opening(scene, "/dev/none"))
    result = verify.boot(scene.config, scene.host, point_of(scene, LINK), None)
    assert "QEMU has opened another disk: vda is something else" in result.why
    assert not result.good
    assert nothing_left(scene)


def test_partition_that_does_not_come(scene: Scene) -> None:
    point = point_of(scene, "/dev/zvol/tank/web-part2")
    scene.world.partitions = (FIRST,)
    with pytest.raises(RestoreFailed, match="disks: /dev/zvol/tank/w2-part2: is not partition 2"):
        make(scene, point)
    assert nothing_left(scene)
