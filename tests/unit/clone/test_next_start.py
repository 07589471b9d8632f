"""Clones of guests whose definition for the next start has other disks than the running guest."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.fakes.clone_scene import make, nothing_left
from tests.fakes.guest import FakeGuest
from tests.fakes.restore_scene import Scene
from zvmsnap.clone.destroy import destroy_clone
from zvmsnap.clone.plan import CloneOptions
from zvmsnap.points.manifest import PERSISTENT_XML
from zvmsnap.points.point import RestorePoint
from zvmsnap.virt import domain_xml

RAM, COLD = CloneOptions("w2"), CloneOptions("w2", cold=True)


def attach(scene: Scene, point: RestorePoint, **disks: str) -> None:
    """What `virsh attach-disk --config` and its like have made of the next start."""
    images = {
        target: path if path[:1] == "/" else beside(scene, path) for target, path in disks.items()
    }
    (point.directory / PERSISTENT_XML).write_text(scene.guest.xml_of(images))


def beside(scene: Scene, name: str, dataset: str = "tank/web") -> str:
    return str(Path(scene.world.disk_of(dataset)).with_name(name))


def snapshotted(scene: Scene, name: str) -> None:
    """Let the snapshot, and so the clone, have that file."""
    path = Path(beside(scene, name, "tank/web").replace("tank/web", "tank/w2"))
    path.parent.mkdir(parents=True)
    path.touch()


def disks(xml: str) -> dict[str, str]:
    return {disk.target: disk.source for disk in domain_xml.parse(xml).disks}


@pytest.mark.parametrize("options", [RAM, COLD])
def test_disk_that_was_attached_for_the_next_start(scene: Scene, options: CloneOptions) -> None:
    point = scene.point()
    attach(scene, point, vda="vda.raw", vdb="extra.raw")
    snapshotted(scene, "extra.raw")
    operation = make(scene, point, options)
    guest = scene.find(operation.uuid)
    own = str(Path(scene.world.root) / "tank/w2")
    both = {"vda": f"{own}/vda.raw", "vdb": f"{own}/extra.raw"}
    assert guest
    assert disks(guest.xml(persistent=True)) == both
    assert disks(guest.xml()) == (both if options.cold else {"vda": f"{own}/vda.raw"})
    assert scene.world.mismatches == []
    destroy_clone(scene.host, "w2")
    assert nothing_left(scene)


@pytest.mark.parametrize("options", [RAM, COLD])
@pytest.mark.parametrize("where", ["elsewhere", "gone", "symlink"])
def test_disk_that_is_not_part_of_the_point_is_left_out_of_the_next_start(
    scene: Scene,
    options: CloneOptions,
    where: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    point = scene.point()
    attach(
        scene, point, vda="vda.raw", vdb=str(tmp_path / "x.raw") if where == "elsewhere" else "x"
    )
    if where == "symlink":
        # As in the original: it leads to the image that the original uses.
        snapshotted(scene, "y")
        Path(beside(scene, "x").replace("tank/web", "tank/w2")).symlink_to(beside(scene, "vda.raw"))
    operation = make(scene, point, options)
    guest = scene.find(operation.uuid)
    assert guest
    assert list(disks(guest.xml(persistent=True))) == ["vda"]
    assert "disk vdb is not part of the point: left out" in caplog.text


def test_disk_that_was_detached_from_the_next_start(scene: Scene) -> None:
    point = scene.point()
    attach(scene, point)
    operation = make(scene, point)
    guest = scene.find(operation.uuid)
    assert guest
    assert list(disks(guest.xml())) == ["vda"]
    assert disks(guest.xml(persistent=True)) == {}


def test_next_start_from_another_image(scene: Scene) -> None:
    point = scene.point()
    attach(scene, point, vda="new.raw", vdb="vda.raw")
    snapshotted(scene, "new.raw")
    operation = make(scene, point)
    guest = scene.find(operation.uuid)
    own = str(Path(scene.world.root) / "tank/w2")
    assert guest
    assert disks(guest.xml()) == {"vda": f"{own}/vda.raw"}
    assert disks(guest.xml(persistent=True)) == {"vda": f"{own}/new.raw", "vdb": f"{own}/vda.raw"}


def test_device_of_the_host_for_the_next_start_alone(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    point = scene.point()
    guest = FakeGuest()
    guest.equipment = "<hostdev mode='subsystem' type='pci'/>"
    (point.directory / PERSISTENT_XML).write_text(guest.xml_of(scene.guest.live))
    operation = make(scene, point)
    made = scene.find(operation.uuid)
    assert made and ET.fromstring(made.xml(persistent=True)).find("devices/hostdev") is None
    assert "hostdev of type pci is one device of the host: left out" in caplog.text
