from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.guest import OTHER
from tests.fakes.restore_scene import DATASET, NAME, Machine, Scene
from zvmsnap.common.errors import RestoreImpossible, SnapshotMissing, ZvmsnapError
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.journal.journal import Journal
from zvmsnap.journal.operation import StartState
from zvmsnap.points import memory_image, vault
from zvmsnap.points.manifest import (
    DOMAIN_XML,
    PERSISTENT_XML,
    Disk,
    Manifest,
    OtherState,
    SnapshotRef,
)
from zvmsnap.points.point import RestorePoint
from zvmsnap.restore import plan
from zvmsnap.restore.plan import RestoreOptions, RestorePlan, RestoreRequest, plan_restore
from zvmsnap.zfs import volume
from zvmsnap.zfs.mounts import DiskLocation
from zvmsnap.zfs.types import Partition, Room

SECOND = datetime(2026, 11, 21, 12, 0, 0).astimezone()
ROLLBACK = RestoreOptions(rollback=True)
SECRET = (
    "its secret aa cannot be used here: Secret not found: virsh secret-define it, and give it its "
    "value: virsh secret-set-value"
)


@pytest.fixture(params=["filesystem"])
def scene(host_with_points: Callable[..., Scene], request: pytest.FixtureRequest) -> Scene:
    return host_with_points(request.param)


on_volume = pytest.mark.parametrize("scene", ["volume"], indirect=True)


def plan_of(
    scene: Scene, point: RestorePoint, options: RestoreOptions | None = None
) -> RestorePlan:
    options = options or RestoreOptions()
    memory = None if options.cold else point.manifest.memory
    image = memory_image.check(point.directory / memory.file, memory) if memory else None
    return plan_restore(scene.config, scene.host, RestoreRequest(point, options, image))


def another(scene: Scene, name: str = "db", dataset: str = DATASET) -> Machine:
    disk = str(Path(scene.world.disk_of(dataset)).with_name("other.raw"))
    other = Machine(scene.world, name, OTHER, vda=Path(disk))
    scene.host.known.append(other)
    return other


def named_as_it_was(scene: Scene, point: RestorePoint) -> None:
    scene.guest.exists = False
    scene.world.add("tank/x")
    another(scene, "web", "tank/x")


def renamed(scene: Scene, point: RestorePoint) -> None:
    scene.guest.name = "www"


def saved(scene: Scene, point: RestorePoint) -> None:
    scene.guest.saved = "<domain/>"


def shared(scene: Scene, point: RestorePoint) -> None:
    another(scene).active = False


def below(scene: Scene, point: RestorePoint) -> None:
    scene.world.add(f"{DATASET}/db")
    another(scene, dataset=f"{DATASET}/db")


def no_machine(scene: Scene, point: RestorePoint) -> None:
    scene.host.no_machine = "unsupported machine type"


def other_cpu(scene: Scene, point: RestorePoint) -> None:
    scene.host.any_cpu = False
    add_to(point, "<domain>", "<cpu mode='custom'><model>Skylake</model></cpu>")


def no_secret(scene: Scene, point: RestorePoint) -> None:
    scene.host.no_secret = "Secret not found"
    add_to(
        point,
        "<devices>",
        "<tpm><backend type='emulator'><encryption secret='aa'/></backend></tpm>",
    )


def add_to(point: RestorePoint, tag: str, more: str) -> None:
    """Add something to both definitions of a point, behind that tag."""
    for name in (DOMAIN_XML, PERSISTENT_XML):
        path = point.directory / name
        path.write_text(path.read_text().replace(tag, tag + more))


def cloned(scene: Scene, point: RestorePoint) -> None:
    scene.world.snap(f"{DATASET}@later")
    scene.world.clone(f"{DATASET}@later", "tank/copy", {})


def held(scene: Scene, point: RestorePoint) -> None:
    scene.world.snap(f"{DATASET}@later")
    scene.world.pool_snapshots[-1].holds = 1


def moved(scene: Scene, point: RestorePoint) -> None:
    scene.world.clone(f"{DATASET}@{NAME}", "tank/copy", {})
    scene.world.promote("tank/copy")


def taken(scene: Scene, point: RestorePoint) -> None:
    scene.world.add(f"{DATASET}.before-20261121T120000")


def undefined(scene: Scene, point: RestorePoint) -> None:
    for name in (DOMAIN_XML, PERSISTENT_XML):
        (point.directory / name).unlink()


def unreadable(scene: Scene, point: RestorePoint) -> None:
    (point.directory / PERSISTENT_XML).write_text("<domain>")


def no_text(scene: Scene, point: RestorePoint) -> None:
    (point.directory / PERSISTENT_XML).write_bytes(b"<domain>\xff")


def pruned(scene: Scene, point: RestorePoint) -> None:
    scene.world.pool_snapshots.clear()


def locked(scene: Scene, point: RestorePoint) -> None:
    scene.world.pool[DATASET].locked = True


def misplaced(key: str, where: str = DATASET) -> Callable[[Scene, RestorePoint], None]:
    def misplace(scene: Scene, point: RestorePoint) -> None:
        if where not in scene.world.pool:
            scene.world.add(where)
        directory = str(scene.world.root / where / "ours")
        scene.config = msgspec.structs.replace(scene.config, **{key: directory})

    return misplace


def staging_of_another(scene: Scene, point: RestorePoint) -> None:
    """What another guest's capture has written before `staging` was changed."""
    operation = plan_of(scene, point).operation
    assert operation.safety_entry
    entry = msgspec.structs.replace(
        operation.safety_entry,
        domain="db",
        uuid=OTHER,
        capture=f"{OTHER}.0000000a",
        staging=str(scene.world.root / DATASET),
    )
    Journal(scene.config.journal_dir).write(entry)


@pytest.mark.parametrize(
    ("spoil", "options", "says"),
    [
        *(
            pytest.param(misplaced(key), options, f"{key} is on tank/web, which would be restored")
            for key in ("vault", "journal", "staging", "locks")
            for options in (RestoreOptions(), ROLLBACK)
        ),
        pytest.param(
            misplaced("vault", f"{DATASET}/vault"),
            RestoreOptions(),
            "vault is on tank/web/vault, which would be restored, too: move it to another dataset",
        ),
        pytest.param(
            staging_of_another, RestoreOptions(), "staging of db is on tank/web, which would be"
        ),
        pytest.param(
            locked, RestoreOptions(), "tank/web: its key is not loaded: zfs load-key tank/web"
        ),
        pytest.param(locked, ROLLBACK, "tank/web: its key is not loaded: zfs load-key tank/web"),
        pytest.param(
            named_as_it_was,
            RestoreOptions(),
            f"web: another guest has this name now (UUID {OTHER})",
        ),
        pytest.param(
            renamed, RestoreOptions(), "the guest is called www now: virsh domrename www web"
        ),
        pytest.param(saved, RestoreOptions(), "virsh managedsave-remove web"),
        pytest.param(shared, RestoreOptions(), "tank/web also holds vda of db"),
        pytest.param(shared, ROLLBACK, "tank/web also holds vda of db"),
        pytest.param(below, RestoreOptions(), "db runs on tank/web/db, which is below"),
        pytest.param(no_machine, RestoreOptions(), "cannot be that machine: unsupported"),
        pytest.param(
            no_machine, RestoreOptions(cold=True), "QEMU here cannot be that machine: unsupported"
        ),
        pytest.param(
            other_cpu,
            RestoreOptions(),
            "that a guest here cannot have; --cold boots from the disks",
        ),
        pytest.param(no_secret, RestoreOptions(), SECRET),
        pytest.param(no_secret, RestoreOptions(cold=True), SECRET),
        pytest.param(cloned, ROLLBACK, "tank/web@later is newer, and has the clone tank/copy"),
        pytest.param(held, ROLLBACK, "tank/web@later is newer, and is held"),
        pytest.param(moved, ROLLBACK, f"tank/copy@{NAME} is no snapshot of tank/web any more"),
        pytest.param(taken, RestoreOptions(), "tank/web.before-20261121T120000: exists already"),
        pytest.param(undefined, RestoreOptions(), "its definition is gone from"),
        pytest.param(unreadable, RestoreOptions(), "persistent.xml: cannot be read"),
        pytest.param(no_text, RestoreOptions(), "persistent.xml: cannot be read"),
        pytest.param(pruned, RestoreOptions(), "has no snapshot of tank/web any more that fits"),
    ],
)
def test_refusals(
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Scene, RestorePoint], None],
    options: RestoreOptions,
    says: str,
) -> None:
    class Frozen(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return SECOND

    monkeypatch.setattr(plan, "datetime", Frozen)
    point = scene.point()
    assert plan_of(scene, point, options)
    spoil(scene, point)
    acts, shape = len(scene.world.acts), scene.world.summary()
    with pytest.raises((RestoreImpossible, SnapshotMissing)) as caught:
        plan_of(scene, point, options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (len(scene.world.acts), scene.world.summary()) == (acts, shape)


def off_below(scene: Scene) -> None:
    scene.world.add(f"{DATASET}/db")
    another(scene, dataset=f"{DATASET}/db").active = False


def vanishing(scene: Scene) -> None:
    other = another(scene)

    def go() -> None:
        other.exists = False

    other.at["xml"] = go


def elsewhere(scene: Scene) -> None:
    scene.world.add("tank/db")
    another(scene, dataset="tank/db")


def older(scene: Scene) -> None:
    # Only what is newer is in the way of a rollback.
    scene.world.pool_snapshots[0].holds = 1


@pytest.mark.parametrize("options", [RestoreOptions(), ROLLBACK])
@pytest.mark.parametrize("change", [off_below, vanishing, elsewhere, older])
def test_what_is_not_in_the_way(
    scene: Scene, change: Callable[[Scene], None], options: RestoreOptions
) -> None:
    point = scene.point()
    change(scene)
    assert plan_of(scene, point, options).datasets == {DATASET}


def test_disk_of_a_renamed_dataset_gets_its_new_path(scene: Scene) -> None:
    point = scene.point()
    assert plan_of(scene, point).operation.sources == {}
    scene.guest.active = scene.guest.exists = False
    scene.world.unmount(DATASET)
    scene.world.rename(DATASET, "tank/old")
    scene.world.mount("tank/old")
    planned = plan_of(scene, point)
    path = scene.world.disk_of("tank/old")
    assert planned.operation.sources == {"vda": ("file", path, "qcow2")}
    assert planned.datasets == {"tank/old"}
    assert f"  disk vda is at {path} now" in planned.lines
    scene.world.unmount("tank/old")
    with pytest.raises(ZvmsnapError, match="tank/old: is not mounted"):
        plan_of(scene, point)


def test_the_next_start_keeps_its_own_disks(scene: Scene) -> None:
    point = scene.point()
    here = scene.world.disk_of(DATASET)
    other, extra = (here.replace("vda.raw", name) for name in ("new.raw", "extra.raw"))
    next_disks = {"vda": other, "vdb": here, "vdc": extra, "vdd": "/elsewhere/x.raw"}
    (point.directory / PERSISTENT_XML).write_text(scene.guest.xml_of(next_disks))
    operation = plan_of(scene, point).operation
    assert (operation.sources, operation.next_sources) == ({}, {})
    scene.guest.active = scene.guest.exists = False
    scene.world.unmount(DATASET)
    scene.world.rename(DATASET, "tank/old")
    scene.world.mount("tank/old")
    operation = plan_of(scene, point).operation
    now = scene.world.disk_of("tank/old")
    assert operation.sources == {"vda": ("file", now, "qcow2")}
    assert operation.next_sources == {
        "vda": ("file", now.replace("vda.raw", "new.raw"), "qcow2"),
        "vdb": ("file", now, "qcow2"),
        "vdc": ("file", now.replace("vda.raw", "extra.raw"), "qcow2"),
    }


def test_file_of_the_next_start_that_comes_back_with_its_dataset(scene: Scene) -> None:
    point = scene.point(memory=False)
    extra = scene.world.disk_of(DATASET).replace("vda.raw", "deleted-since.raw")
    (point.directory / PERSISTENT_XML).write_text(scene.guest.xml_of({"vdb": extra}))
    assert plan_of(scene, point).operation.next_sources == {}


AS_VOLUME = {"vda": ("block", "/dev/zvol/tank/web", "raw")}
AS_PART = {"vda": ("block", "/dev/zvol/tank/web-part1", "raw")}
PART = Partition(1, 1 << 20, 4 << 20)


@on_volume
@pytest.mark.parametrize(
    ("source", "kind", "partition", "sources"),
    [
        ("/dev/zvol/tank/web", "block", None, {}),
        ("/dev/zd16", "block", None, AS_VOLUME),
        ("", "volume", None, {}),
        ("/dev/zvol/tank/web-part1", "block", PART, {}),
        ("/dev/zd16p1", "block", PART, AS_PART),
        # It leads to the right one now, and may lead to a clone of it in an instant.
        ("/dev/disk/by-uuid/1234", "block", None, AS_VOLUME),
        ("/dev/disk/by-uuid/1234", "block", PART, AS_PART),
        ("/root/link", "block", None, AS_VOLUME),
    ],
)
def test_disk_on_a_volume(
    scene: Scene,
    source: str,
    kind: str,
    partition: Partition | None,
    sources: dict[str, tuple[str, str, str]],
) -> None:
    disk = Disk("vda", kind, "raw", source, DATASET, "", partition, 17)
    scene.world.partition(PART)
    scene.world.links[source] = volume.device_of(DATASET, partition)
    operation = plan_of(scene, scene.point(disks=(disk,))).operation
    assert operation.sources == sources
    assert operation.restored_locations == {"vda": DiskLocation(DATASET, "", partition)}


@on_volume
@pytest.mark.parametrize(
    ("source", "refused"),
    [
        ("/dev/zvol/tank/web", False),
        ("/dev/zd16", False),
        ("", False),
        ("/dev/zvol/tank/web-part1", True),
        ("/dev/zd16p1", True),
        ("/dev/disk/by-uuid/1234", True),
        ("/dev/zvol/tank/web2", True),
    ],
)
def test_point_that_does_not_say_which_part_of_the_volume(
    scene: Scene, source: str, refused: bool
) -> None:
    point = scene.point(disks=(Disk("vda", "block", "raw", source, DATASET, ""),))
    if not refused:
        plan_of(scene, point)
        return
    why = f"vda was {source}, and the point does not say which part of tank/web that was"
    with pytest.raises(RestoreImpossible, match=why):
        plan_of(scene, point)


@pytest.mark.parametrize(
    ("options", "memory", "running", "level", "begin"),
    [
        (RestoreOptions(), True, True, ConsistencyLevel.MEMORY, StartState.RUNNING),
        (RestoreOptions(), True, False, ConsistencyLevel.MEMORY, StartState.PAUSED),
        (RestoreOptions(paused=True), True, True, ConsistencyLevel.MEMORY, StartState.PAUSED),
        (RestoreOptions(cold=True), True, False, ConsistencyLevel.MEMORY, StartState.RUNNING),
        (
            RestoreOptions(cold=True, paused=True),
            True,
            True,
            ConsistencyLevel.MEMORY,
            StartState.PAUSED,
        ),
        # Its RAM was written while it was paused for the snapshot.
        (RestoreOptions(), True, False, ConsistencyLevel.PAUSED, StartState.RUNNING),
        (RestoreOptions(paused=True), True, False, ConsistencyLevel.PAUSED, StartState.PAUSED),
        (RestoreOptions(cold=True), True, False, ConsistencyLevel.PAUSED, StartState.RUNNING),
        (RestoreOptions(), False, True, ConsistencyLevel.CRASH, StartState.RUNNING),
        (RestoreOptions(), False, True, ConsistencyLevel.QUIESCED, StartState.RUNNING),
        (RestoreOptions(paused=True), False, True, ConsistencyLevel.QUIESCED, StartState.PAUSED),
        (RestoreOptions(), False, True, ConsistencyLevel.OFFLINE, StartState.OFF),
        (RestoreOptions(paused=True), False, True, ConsistencyLevel.OFFLINE, StartState.OFF),
        (RestoreOptions(cold=True), False, True, ConsistencyLevel.OFFLINE, StartState.RUNNING),
        # A manifest that contradicts itself.
        (RestoreOptions(), True, True, ConsistencyLevel.OFFLINE, StartState.RUNNING),
    ],
)
def test_what_the_guest_does_in_the_end(
    scene: Scene,
    options: RestoreOptions,
    memory: bool,
    running: bool,
    level: ConsistencyLevel,
    begin: StartState,
) -> None:
    point = scene.point(memory=memory, running=running, level=level)
    operation = plan_of(scene, point, options).operation
    assert (operation.start_state, operation.memory) == (begin, memory and not options.cold)


def shut_off(scene: Scene) -> None:
    scene.guest.active = False


def disk_outside(scene: Scene) -> None:
    scene.guest.live["vdb"] = scene.guest.persistent["vdb"] = "/elsewhere/b.qcow2"


NVDIMM = "<memory model='nvdimm'><source><path>{}</path></source></memory>"


def nvdimm_outside(scene: Scene) -> None:
    scene.guest.equipment = NVDIMM.format("/elsewhere/nvdimm")


@pytest.mark.parametrize(
    ("change", "level", "reason"),
    [
        (lambda scene: None, ConsistencyLevel.MEMORY, None),
        (nvdimm_outside, ConsistencyLevel.CRASH, "not all of its state is on ZFS: memory nvdimm"),
        (shut_off, ConsistencyLevel.OFFLINE, "the guest was shut off"),
        (disk_outside, ConsistencyLevel.CRASH, "not all disks are on ZFS: vdb"),
    ],
)
def test_safety(
    scene: Scene, change: Callable[[Scene], None], level: ConsistencyLevel, reason: str | None
) -> None:
    point = scene.point()
    change(scene)
    operation = plan_of(scene, point).operation
    assert operation.safety_entry
    assert (operation.safety_entry.level, operation.safety_entry.reason) == (level, reason)
    assert operation.safety_entry.request_datasets == (DATASET,)
    assert [disk.target for disk in operation.safety_entry.disks] == ["vda"]
    assert operation.saves_memory is operation.was_active is scene.guest.active
    assert operation.safety_entry.capture == operation.capture
    assert plan_of(scene, point, RestoreOptions(safety=False)).operation.safety_entry is None
    rollback = plan_of(scene, point, ROLLBACK).operation
    assert (rollback.safety_entry, rollback.swap_trees) == (None, ())
    assert rollback.saves_memory is scene.guest.active
    assert rollback.rollback == (f"{DATASET}@{NAME}",)


def test_safety_holds_all_datasets_of_the_guest(scene: Scene) -> None:
    point = scene.point()
    scene.world.add("tank/more")
    scene.guest.live["vdb"] = scene.world.disk_of("tank/more")
    operation = plan_of(scene, point).operation
    assert operation.safety_entry and operation.safety_entry.request_datasets == (
        "tank/more",
        DATASET,
    )
    assert [tree.top for tree in operation.swap_trees] == [DATASET]


def test_safety_holds_the_other_state_of_the_guest(scene: Scene) -> None:
    point = scene.point()
    scene.world.add("tank/more")
    scene.guest.equipment = NVDIMM.format(scene.world.disk_of("tank/more"))
    safety = plan_of(scene, point).operation.safety_entry
    assert safety
    assert safety.request_datasets == safety.datasets == ("tank/more", DATASET)
    assert [(each.called, each.dataset, each.why) for each in safety.other_state] == [
        ("memory nvdimm", "tank/more", "")
    ]


def test_another_guest_that_has_state_there_is_not_restored(scene: Scene) -> None:
    point = scene.point()
    scene.world.add("tank/db")
    other = another(scene, dataset="tank/db")
    other.equipment = NVDIMM.format(scene.world.disk_of(DATASET))
    with pytest.raises(RestoreImpossible, match="tank/web also holds memory nvdimm of db, which"):
        plan_of(scene, point)


def test_lines(scene: Scene) -> None:
    point = scene.point()
    planned = plan_of(scene, point)
    (tree,), safety = planned.operation.swap_trees, planned.operation.safety_entry
    assert safety
    assert planned.lines == (
        f"restore {point.name}:",
        "  web is stopped; its RAM and disks are kept",
        f"  the replaced guest becomes the point web@{safety.run}",
        f"  tank/web holds tank/web@{NAME} again",
        f"  the replaced disks, and newer snapshots, are on {tree.replaced_top} afterwards",
        f"  disk vda will be as of tank/web@{NAME}",
        "  web goes on from its RAM",
    )
    scene.guest.exists = False
    planned = plan_of(scene, point, RestoreOptions(cold=True))
    (tree,) = planned.operation.swap_trees
    assert planned.lines[1:] == (
        "  the replaced guest is NOT kept as a point",
        f"  tank/web holds tank/web@{NAME} again",
        f"  the replaced disks, and newer snapshots, are on {tree.replaced_top} afterwards",
        f"  disk vda will be as of tank/web@{NAME}",
        "  web boots from the restored disks",
    )


OTHER_STATE = (
    OtherState("data file of disk vda", "/tank/web/a.raw", DATASET, "a.raw"),
    OtherState("firmware", "/both.fd", why="is not on a dataset of this snapshot"),
)


def test_lines_of_other_state(scene: Scene) -> None:
    planned = plan_of(scene, scene.point(other_state=OTHER_STATE))
    assert f"  data file of disk vda will be as of tank/web@{NAME}" in planned.lines
    assert (
        "  firmware (/both.fd) is not on a dataset of this snapshot: it STAYS as it is now"
        in planned.lines
    )


def test_the_data_of_an_image_must_be_where_the_image_says(scene: Scene) -> None:
    point = scene.point(other_state=OTHER_STATE)
    scene.world.rename(DATASET, "tank/www")
    why = "tank/www: has the data file .* zfs rename tank/www tank/web first"
    with pytest.raises(RestoreImpossible, match=why):
        plan_of(scene, point)


def test_lines_of_a_rollback_name_all_that_it_destroys(
    scene: Scene, manifest: Callable[..., Manifest]
) -> None:
    point = scene.point()
    later = scene.world.snap(f"{DATASET}@later")
    directory = vault.incoming(scene.config.vault_dir, "web", "c9")
    doomed = vault.publish(
        directory,
        manifest(
            run="later", snapshots=(SnapshotRef(DATASET, "later", later.guid, later.createtxg),)
        ),
    )
    assert plan_of(scene, point, ROLLBACK).lines == (
        f"restore {point.name}:",
        "  web is stopped",
        "  the replaced guest is NOT kept as a point",
        f"  tank/web is rolled back to tank/web@{NAME}",
        "  DESTROYS snapshot tank/web@later",
        f"  DESTROYS point {doomed.name}",
        f"  disk vda will be as of tank/web@{NAME}",
        "  web goes on from its RAM",
    )


def test_lines_name_the_disks_of_the_next_start(scene: Scene) -> None:
    point = scene.point()
    here = scene.world.disk_of(DATASET)
    extra = here.replace("vda.raw", "extra.raw")
    disks = {"vda": here, "vdc": extra, "vdd": "/elsewhere/x.raw"}
    (point.directory / PERSISTENT_XML).write_text(scene.guest.xml_of(disks))
    assert [line for line in plan_of(scene, point).lines if "disk " in line] == [
        f"  disk vda will be as of tank/web@{NAME}",
        f"  disk vdc of its next start will be as of tank/web@{NAME}, too",
        "  disk vdd of its next start (/elsewhere/x.raw) is no part of the point: it STAYS as it "
        "is now",
    ]


def test_lines_name_every_disk_and_what_becomes_of_it(scene: Scene) -> None:
    """Of a point of one disk only: the others stay as they are, whoever has them."""
    world, guest = scene.world, scene.guest
    for name in ("more", "gone"):
        world.add(f"tank/{name}")
    guest.live |= {
        "vdb": world.disk_of("tank/more"),
        "vdc": str(Path(world.disk_of(DATASET)).with_name("swap.raw")),
    }
    Path(guest.live["vdc"]).touch()
    own = Disk("vda", "file", "qcow2", guest.live["vda"], DATASET, "vda.raw")
    point = scene.point(memory=False, level=ConsistencyLevel.CRASH, disks=(own,))
    for path in (point.directory / DOMAIN_XML, point.directory / PERSISTENT_XML):
        drive = "<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>"
        path.write_text(path.read_text().replace("</devices>", f"{drive}</devices>"))
    guest.live["vdd"] = world.disk_of("tank/gone")
    guest.live["vde"] = str(Path(world.disk_of(DATASET)).with_name("new.raw"))
    lines = [line.strip() for line in plan_of(scene, point).lines]
    assert [line for line in lines if line.startswith(("disk", "drive"))] == [
        f"disk vda will be as of {DATASET}@{NAME}",
        f"disk vdb ({guest.live['vdb']}) is no part of the point: it STAYS as it is now",
        f"disk vdc ({guest.live['vdc']}) is no part of the point, but will be as of "
        f"{DATASET}@{NAME}, too",
        "drive sda will be empty",
        f"disk vdd ({guest.live['vdd']}) is not in the definition of the point: detached, and "
        "left as it is now",
        f"disk vde ({guest.live['vde']}) is not in the definition of the point: detached, and "
        "kept with the replaced disks",
    ]
    Path(guest.live["vdb"]).unlink()
    with pytest.raises(RestoreImpossible, match=r"vdb is no part of the point, and .* not exist"):
        plan_of(scene, point)


def long_named(scene: Scene, length: int) -> None:
    name = "tank/" + "l" * (length - len("tank/"))
    scene.guest.active = scene.guest.exists = False
    scene.world.unmount(DATASET)
    scene.world.rename(DATASET, name)
    scene.world.mount(name)


def with_child(scene: Scene, length: int) -> None:
    long_named(scene, 196)
    name = next(iter(set(scene.world.pool) - {"tank"})) + "/n"
    scene.world.add(name)
    scene.world.snap(f"{name}@{'s' * (length - 196)}")


def with_disk_elsewhere(scene: Scene, length: int) -> None:
    """Only the safety point is of this dataset: @zvmsnap_2026-11-21_12:00:00_safety."""
    name = "tank/" + "l" * (length - len("tank/"))
    scene.world.add(name)
    scene.guest.live["vdb"] = str(scene.world.root / name[-9:] / "vda.raw")


@pytest.mark.parametrize(
    ("make", "most"),
    [
        # .before-20261121T120000 and @autosnap_2026-11-20_03:00:00_hourly
        (long_named, 255 - 23 - 36),
        (with_child, 255 - 23 - len("/n@")),
        (with_disk_elsewhere, 255 - 35),
    ],
)
def test_names_that_zfs_does_not_allow_are_known_before(
    scene: Scene, make: Callable[[Scene, int], None], most: int
) -> None:
    point = scene.point()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene.world, "_mountpoint", lambda name: str(scene.world.root / name[-9:]))
        make(scene, most)
        assert plan_of(scene, point)
        longer = {
            f"{name[:5]}l{name[5:]}" if len(name) > 100 else name: dataset
            for name, dataset in scene.world.pool.items()
        }
        scene.world.pool.clear()
        scene.world.pool.update(longer)
        with pytest.raises(RestoreImpossible, match="256 characters long, and ZFS allows 255"):
            plan_of(scene, point)
        if make is not with_disk_elsewhere:
            assert plan_of(scene, point, ROLLBACK)


def test_rollback_leaves_datasets_below_alone(scene: Scene) -> None:
    point = scene.point()
    misplaced("vault", f"{DATASET}/vault")(scene, point)
    assert plan_of(scene, point, ROLLBACK)


@pytest.mark.parametrize(
    ("room", "needed"),
    [
        # What was written since the last snapshot stays, and the whole is reserved once more.
        (Room(refreservation=10, usedbydataset=4), 4),
        (Room(refreservation=10, usedbydataset=40), 10),
        # All that is used by snapshots goes on with the name.
        (Room(reservation=100, used=60, usedbysnapshots=60), 0),
        (Room(reservation=100, used=60, usedbysnapshots=20), 40),
        (Room(reservation=10, used=60, usedbysnapshots=20), 0),
        (Room(), 0),
    ],
)
def test_room_that_reservations_need(scene: Scene, room: Room, needed: int) -> None:
    point = scene.point()
    scene.world.room = {DATASET: room, "tank": Room(available=needed)}
    assert plan_of(scene, point)
    if needed:
        scene.world.room["tank"] = Room(available=needed - 1)
        with pytest.raises(RestoreImpossible, match="with --rollback, which needs none"):
            plan_of(scene, point)
        assert plan_of(scene, point, ROLLBACK)
        # What an older version has set aside kept its reservations.
        old = f"{DATASET}.before-20261119T120000"
        for name in (old, f"{DATASET}.before-20261120T120000", "tank/x.before-20261120T120000"):
            scene.world.add(name)
            scene.world.room[name] = Room(refreservation=1 << 20)
        scene.world.room[f"{DATASET}.before-20261120T120000"] = Room()
        with pytest.raises(RestoreImpossible, match=f"refreservation=none {old}$"):
            plan_of(scene, point)
        # A refquota of the parent says nothing of those below.
        scene.world.room["tank"] = Room(available=0, refquota=1)
        assert plan_of(scene, point)


@pytest.mark.parametrize(
    ("stored", "options", "needed_mib"),
    [
        ({"plain": True}, RestoreOptions(), 1),
        ({"plain": True}, RestoreOptions(safety=False), 0),
        ({"zstd": True}, ROLLBACK, None),
        ({}, ROLLBACK, None),
    ],
)
def test_room_in_staging(
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    stored: dict[str, bool],
    options: RestoreOptions,
    needed_mib: int | None,
) -> None:
    point = scene.point(**stored)
    memory = point.manifest.memory
    assert memory
    needed = (1 << 20) + memory.image_bytes if needed_mib is None else needed_mib << 20
    monkeypatch.setattr("zvmsnap.disks.staging.free_bytes", lambda _directory: needed)
    assert plan_of(scene, point, options)
    monkeypatch.setattr("zvmsnap.disks.staging.free_bytes", lambda _directory: needed - 1)
    if needed:
        with pytest.raises(RestoreImpossible, match=r"staging has [01] MiB free"):
            plan_of(scene, point, options)
