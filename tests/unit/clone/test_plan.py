from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.guest import OTHER
from tests.fakes.restore_scene import DATASET, NAME, Machine, Scene
from zvmsnap.clone import plan
from zvmsnap.clone.identity import Network
from zvmsnap.clone.plan import CloneOptions, plan_clone
from zvmsnap.common.errors import CloneImpossible, ZvmsnapError
from zvmsnap.journal.operation import CloneOperation
from zvmsnap.points import compatibility, definition, memory_image
from zvmsnap.points.manifest import DOMAIN_XML, PERSISTENT_XML, Disk, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs.types import Dataset, Snapshot


def plan_of(scene: Scene, point: RestorePoint) -> CloneOperation:
    return plan_clone(scene.config, scene.host, point, CloneOptions("w2"))


def in_use(scene: Scene, point: RestorePoint) -> None:
    scene.host.known.append(Machine(scene.world, "w2", OTHER))


def dataset_taken(scene: Scene, point: RestorePoint) -> None:
    scene.world.add("tank/w2")


def no_machine(scene: Scene, point: RestorePoint) -> None:
    scene.host.no_machine = "no such machine"


def no_secret(scene: Scene, point: RestorePoint) -> None:
    scene.host.no_secret = "Secret not found"
    path = point.directory / DOMAIN_XML
    luks = "<encryption format='luks'><secret type='passphrase' uuid='aa'/></encryption></disk>"
    path.write_text(path.read_text().replace("</disk>", luks))


def damaged(scene: Scene, point: RestorePoint) -> None:
    path = point.directory / "memory.rest"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def pruned(scene: Scene, point: RestorePoint) -> None:
    scene.world.pool_snapshots.clear()


def unknown_device(scene: Scene, point: RestorePoint) -> None:
    """It is in the definition for the next start alone."""
    path = point.directory / PERSISTENT_XML
    path.write_text(path.read_text().replace("</devices>", "<gadget path='/x'/></devices>"))


def shared_directory(scene: Scene, point: RestorePoint) -> None:
    share = "<filesystem><source dir='/srv/s'/><target dir='s'/></filesystem>"
    path = point.directory / DOMAIN_XML
    path.write_text(path.read_text().replace("</devices>", f"{share}</devices>"))


def too_deep(scene: Scene, point: RestorePoint) -> None:
    path = point.directory / PERSISTENT_XML
    deep = "<x>" * 300 + "</x>" * 300
    path.write_text(path.read_text().replace("<devices>", f"{deep}<devices>"))


def locked(scene: Scene, point: RestorePoint) -> None:
    scene.world.pool[DATASET].locked = True


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (locked, f"{DATASET}: its key is not loaded: zfs load-key {DATASET}"),
        (in_use, "w2: there is a guest of that name already"),
        (dataset_taken, "tank/w2: exists already; choose another name"),
        (no_machine, "does not fit this host: QEMU here cannot be that machine"),
        (no_secret, "its secret aa cannot be used here: Secret not found: virsh secret-define"),
        (unknown_device, "w2: whether devices/gadget@path is shared is not known: /x"),
        (shared_directory, "w2: filesystem s would be shared: both machines would write"),
        (too_deep, "w2: its definition cannot be read: elements are nested more than"),
        (damaged, "does not match its checksum"),
        (pruned, "has no snapshot of tank/web any more that fits"),
    ],
)
def test_refusals(scene: Scene, spoil: Callable[[Scene, RestorePoint], None], says: str) -> None:
    point = scene.point()
    spoil(scene, point)
    before = scene.world.summary()
    with pytest.raises(ZvmsnapError) as caught:
        plan_of(scene, point)
    assert says in str(caught.value)
    assert scene.world.summary() == before
    assert (scene.operations(), scene.staged()) == ([], [])


def test_point_that_does_not_say_which_part_of_its_volume(scene: Scene) -> None:
    disk = Disk("vda", "block", "raw", "/dev/zvol/tank/web-part1", DATASET, "")
    with pytest.raises(CloneImpossible, match="does not say which part of tank/web that was"):
        plan_of(scene, scene.point(disks=(disk,)))


@pytest.mark.parametrize(
    "spoil",
    [
        locked,
        in_use,
        dataset_taken,
        no_machine,
        no_secret,
        unknown_device,
        shared_directory,
        pruned,
    ],
)
def test_ram_image_is_read_after_all_else_was_checked(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Scene, RestorePoint], None]
) -> None:
    point = scene.point()
    spoil(scene, point)
    monkeypatch.setattr(memory_image, "check", lambda *_: pytest.fail("was read"))
    with pytest.raises(ZvmsnapError):
        plan_of(scene, point)


@pytest.mark.parametrize("stored", [{}, {"zstd": True}, {"plain": True}], ids=str)
def test_room_in_staging(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, stored: dict[str, bool]
) -> None:
    point = scene.point(**stored)
    memory = point.manifest.memory
    assert memory
    reserve_bytes = scene.config.limits.staging_reserve_mib << 20
    needed_bytes = 0 if memory.is_loadable else memory.image_bytes + reserve_bytes
    monkeypatch.setattr("zvmsnap.disks.staging.free_bytes", lambda _directory: needed_bytes)
    assert plan_of(scene, point)
    monkeypatch.setattr("zvmsnap.disks.staging.free_bytes", lambda _directory: needed_bytes - 1)
    if needed_bytes:
        with pytest.raises(CloneImpossible, match=r"staging .* has \d+ MiB free, and its RAM"):
            plan_of(scene, point)
        cold = CloneOptions("w2", cold=True)
        assert plan_clone(scene.config, scene.host, point, cold)


def test_firmware_variables_of_another(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(definition, "NVRAM_DIR", tmp_path)
    point = scene.point()
    xml = point.directory / DOMAIN_XML
    nvram = "<os><nvram>/etc/zvmsnap/x</nvram></os>"
    xml.write_text(xml.read_text().replace("<devices>", f"{nvram}<devices>", 1))
    assert plan_of(scene, point)
    (tmp_path / "w2_VARS.fd").touch()
    with pytest.raises(CloneImpossible, match=r"w2_VARS.fd: exists already; choose another name"):
        plan_of(scene, point)


def test_no_memory_for_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "available_memory_bytes", lambda: 0)
    with pytest.raises(CloneImpossible, match="it needs 1 MiB of memory, and 0 MiB are available"):
        plan_of(scene, scene.point())


@pytest.mark.parametrize("cold", [False, True])
def test_what_only_the_original_needs(scene: Scene, cold: bool) -> None:
    """Its bridge, and an ISO of its own dataset that is there no more."""
    point = scene.point()
    iso = Path(scene.world.disk_of(DATASET)).with_name("gone.iso")
    devices = (
        "<interface type='bridge'><source bridge='br-not-here'/></interface><disk type='file' "
        f"device='cdrom'><source file='{iso}'/><target dev='sda'/><readonly/></disk></devices>"
    )
    for name in (DOMAIN_XML, PERSISTENT_XML):
        path = point.directory / name
        path.write_text(path.read_text().replace("</devices>", devices))
    for network in (Network.NONE, Network.ISOLATED):
        options = CloneOptions("w2", cold=cold, network=network)
        assert plan_clone(scene.config, scene.host, point, options)
    with pytest.raises(CloneImpossible, match="the bridge br-not-here is not here"):
        options = CloneOptions("w2", cold=cold, network=Network.KEEP)
        plan_clone(scene.config, scene.host, point, options)


@pytest.mark.parametrize(
    "name", ["a/b", "..", ".", "-x", "a@b", "a b", "a\n", "", "ä", "w" * 101, "a%b", "/etc/x"]
)
def test_names_that_no_dataset_can_have(scene: Scene, name: str) -> None:
    with pytest.raises(CloneImpossible, match="no name for a clone"):
        plan_clone(scene.config, scene.host, scene.point(), CloneOptions(name))


def at(full_name: str) -> Snapshot:
    dataset, _, name = full_name.partition("@")
    return Snapshot(dataset, name, 1, 1)


@pytest.mark.parametrize(
    ("snapshots", "present", "names"),
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
            id="a grandchild, whose parent is not cloned",
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
    snapshots: dict[str, str], present: list[str], names: dict[str, str]
) -> None:
    datasets = {name: Dataset(name, "filesystem", compressed=False) for name in present}
    wanted = {name: at(full_name) for name, full_name in snapshots.items()}
    assert plan._new_datasets("web", "w2", wanted, datasets) == tuple(names.items())


def test_name_that_is_too_long_for_its_datasets(scene: Scene) -> None:
    deep = "tank/" + "l" * 200
    own = scene.snapshot
    point = scene.point(
        snapshots=(SnapshotRef(f"{deep}/web", NAME, own.guid, own.createtxg),),
        disks=(Disk("vda", "file", "qcow2", scene.guest.live["vda"], f"{deep}/web", "vda.raw"),),
    )
    scene.world.add(deep)
    scene.world.pool[f"{deep}/web"] = scene.world.pool.pop(DATASET)
    longest = "w" * (255 - len(f"{deep}/"))
    clone = plan_clone(scene.config, scene.host, point, CloneOptions(longest))
    assert [len(name) for name, _ in clone.datasets] == [255]
    with pytest.raises(CloneImpossible, match=r"256 characters long.*choose a shorter name"):
        plan_clone(scene.config, scene.host, point, CloneOptions(f"{longest}w"))


SERIAL = "<serial type='file'><source path='/etc/cron.d/x'/><target port='0'/></serial>"


def spoiled(scene: Scene) -> RestorePoint:
    """A point that was not made here, and reaches the host."""
    point = scene.point(memory=False)
    scene.made_here = False
    for name in (DOMAIN_XML, PERSISTENT_XML):
        path = point.directory / name
        path.write_text(path.read_text().replace("<devices>", f"<devices>{SERIAL}", 1))
    return point


def test_what_reaches_this_host_is_refused(scene: Scene) -> None:
    with pytest.raises(CloneImpossible, match=r"serial 0: file /etc/cron.d/x\. .* say --trust"):
        plan_of(scene, spoiled(scene))


def test_with_trust_it_is_cloned_and_says_what_is_trusted(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    point = spoiled(scene)
    operation = plan_clone(scene.config, scene.host, point, CloneOptions("w2", trust=True))
    assert not operation.confined
    trusted = "TRUSTED, as it was not made on this host: serial 0: file /etc/cron.d/x"
    assert caplog.messages == [f"{point.name}: {trusted}"]


def test_a_guest_as_any_other_needs_no_trust(scene: Scene) -> None:
    scene.made_here = False
    assert plan_of(scene, scene.point()).confined
