"""No guest runs before QEMU has the right disks open: neither the restored nor the replaced one."""

import msgspec
import pytest

from tests.fakes.images import make_base
from tests.fakes.restore_case import PLAIN, Case, Kind, Make, check_one_of_both, died_at, put_back
from tests.fakes.restore_scene import DATASET, NEW, OLD
from zvmsnap.common.errors import RestoreFailed, WrongDisk
from zvmsnap.common.process import Process
from zvmsnap.journal.operation import Operations, RestoreOperation
from zvmsnap.points import memory_image, vault
from zvmsnap.points.manifest import PERSISTENT_XML, Disk
from zvmsnap.restore import restored_disks
from zvmsnap.restore.plan import RestoreOptions
from zvmsnap.zfs import volume
from zvmsnap.zfs.mounts import DiskLocation
from zvmsnap.zfs.types import Partition

DEVICE, OTHER = f"/dev/zvol/{DATASET}", "/dev/zvol/tank/other"
FIRST = Partition(1, 1 << 20, 4 << 20)
PART = f"{DEVICE}-part1"
LINK = "/dev/disk/by-uuid/1234"
WRONG = "QEMU has opened another disk: vda is tank/other, not tank/web"


def on_volume(make: Make, kind: Kind | None = None) -> Case:
    """A guest on a volume; there is another volume, which QEMU may open in its place."""
    case = make(kind or Kind(volume=True))
    case.world.add("tank/other", "other", "volume")
    case.before = case.world.summary()
    return case


def opens_another(case: Case, *calls: str) -> None:
    """QEMU opens the other volume, once: at the first of these calls, until it is destroyed."""
    at = case.guest.at

    def wrong() -> None:
        for call in calls:
            at.pop(call, None)
        has_opened_another(case)

    at.update(dict.fromkeys(calls, wrong))


def has_opened_another(case: Case) -> None:
    qemu = case.guest.qemu
    assert qemu
    qemu.instead[DEVICE] = OTHER
    case.guest.at["destroy"] = qemu.instead.clear


KINDS = {
    "RAM": Kind(volume=True),
    "zstd": Kind(volume=True, zstd=True),
    "cold": Kind(RestoreOptions(cold=True), volume=True),
    "to be paused": Kind(RestoreOptions(paused=True), volume=True),
    "no RAM": Kind(volume=True, memory=False),
    "no safety": Kind(RestoreOptions(safety=False), volume=True),
    "paused": Kind(volume=True, guest="paused"),
    "off": Kind(volume=True, guest="off"),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_restored_guest_does_not_run_on_another_disk(make: Make, kind: Kind) -> None:
    case = on_volume(make, kind)
    opens_another(case, "load", "create paused")
    with pytest.raises(RestoreFailed, match=f"check: web: {WRONG}. All is as it was"):
        case.run()
    check_one_of_both(case)
    assert not case.is_back()
    assert case.world.pool["tank/other"].content == "other"


def test_started_by_a_crash_before_it_was_checked(make: Make) -> None:
    for when in ("before", "after"):
        case = died_at(lambda kind: on_volume(make, kind), Kind(volume=True), "write check", when)
        has_opened_another(case)
        assert not case.again()
        check_one_of_both(case)
        assert not case.is_back()


def test_boots_on_no_other_disk_when_the_host_had_gone_down(make: Make) -> None:
    case = died_at(lambda kind: on_volume(make, kind), Kind(volume=True), "resume", "after")
    case.guest.shut_off()
    (operation,) = case.scene.operations()
    owner = Process(operation.owner.pid, operation.owner.started, "a-boot")
    changed = msgspec.structs.replace(operation, owner=owner, step="clock")
    Operations(case.scene.config.journal_dir).write(changed)
    opens_another(case, "create paused")
    with pytest.raises(WrongDisk, match=WRONG):
        case.again()
    assert case.guest.state() == "shut off"
    assert case.again()
    assert case.guest.state() == "running"
    case.check_clean()


@pytest.mark.parametrize("was_paused", [False, True])
def test_replaced_guest_is_not_brought_back_on_another_disk(make: Make, was_paused: bool) -> None:
    kind = Kind(volume=True, guest="paused" if was_paused else "running")
    case = on_volume(make, kind)
    case.guest.at["load"] = broken  # and when it is undone:
    case.guest.at["define"] = lambda: case.guest.at.update(
        define=lambda: opens_another(case, "load")
    )
    with pytest.raises(RestoreFailed, match=f"stop: web: {WRONG}"):
        case.run()
    assert case.guest.state() == "shut off"
    assert case.content() == NEW
    # Its RAM is kept, and it goes on from that.
    assert case.again()
    case.check_clean()
    case.check_replaced()
    assert case.world.loaded == [NEW, NEW]
    assert case.guest.state() == ("paused" if was_paused else "running")


def test_guest_that_somebody_suspended_is_left_alone_by_an_undo(make: Make) -> None:
    kind = Kind(volume=True, guest="paused")
    case = died_at(lambda kind: on_volume(make, kind), kind, "save", "before")
    assert case.guest.qemu
    case.guest.qemu.instead[DEVICE] = OTHER
    assert case.again()
    assert (case.guest.state(), case.guest.calls) == ("paused", [])


# -- partitions


def on_partition(make: Make, source: str = PART) -> Case:
    case = make(Kind(volume=True))
    case.world.partition(FIRST)
    case.world.links[LINK] = PART
    case.guest.live["vda"] = case.guest.persistent["vda"] = source
    disk = Disk("vda", "block", "raw", source, DATASET, "", FIRST, case.world.pool[DATASET].guid)
    vault.remove(case.point)
    case.point = case.scene.point(disks=(disk,))
    return case


def put_back_with_ram(case: Case, options: RestoreOptions = PLAIN) -> None:
    memory = case.point.manifest.memory
    assert memory
    image = memory_image.check(case.point.directory / memory.file, memory)
    put_back(case.scene, case.point, options, image)


@pytest.mark.parametrize("rollback", [False, True])
def test_partition_is_found_under_the_name_of_its_volume(make: Make, rollback: bool) -> None:
    case = on_partition(make)
    put_back_with_ram(case, RestoreOptions(rollback=rollback))
    assert case.world.mismatches == []
    assert case.content() == f"{OLD}+"
    assert case.guest.live == {"vda": PART}
    for name, dataset in case.world.pool.items():
        if dataset.type == "volume":
            number = case.world.device_number(volume.device_of(name, FIRST))
            assert number is not None
            assert case.world.location_at(number) == DiskLocation(name, "", FIRST)


def test_partition_that_is_another_one_now(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    case = on_partition(make)
    do = restored_disks.RestoredDisks.promote

    def promote(disks: restored_disks.RestoredDisks) -> None:
        do(disks)
        case.world.partition(Partition(1, 1 << 20, 2 << 20))

    monkeypatch.setattr(restored_disks.RestoredDisks, "promote", promote)
    monkeypatch.setattr(
        restored_disks.RestoredDisks, "demote", lambda _disks: case.world.partition(FIRST)
    )
    with pytest.raises(RestoreFailed, match=r"definition: /dev/zvol/tank/web-part1: is not part"):
        put_back(case.scene, case.point)
    assert case.world.loaded == [NEW]


# -- links by content


def test_link_by_content_is_named_by_its_volume_from_then_on(make: Make) -> None:
    case = on_partition(make, LINK)
    qemu = case.guest.qemu
    assert qemu
    # While there is a clone, udev's link leads to that.
    case.world.add("tank/w2", "clone", "volume")
    case.world.links[LINK] = volume.device_of("tank/w2", FIRST)
    qemu.instead[LINK] = PART
    put_back_with_ram(case)
    assert case.guest.live == case.guest.persistent == {"vda": PART}
    assert (case.world.pool["tank/w2"].content, case.content()) == ("clone", f"{OLD}+")
    (safety,) = case.points()
    assert [(disk.source, disk.dataset) for disk in safety.manifest.disks] == [(LINK, DATASET)]


def test_undone_restore_brings_a_guest_back_by_the_name_of_its_volume(make: Make) -> None:
    case = on_partition(make, LINK)
    qemu = case.guest.qemu
    assert qemu
    case.world.links[LINK] = OTHER
    qemu.instead[LINK] = PART
    case.guest.at["load"] = broken
    with pytest.raises(RestoreFailed, match=r"load: broken. All is as it was: web is running"):
        put_back_with_ram(case)
    assert case.guest.live == {"vda": PART}
    assert case.guest.persistent == {"vda": LINK}
    assert case.content() == f"{NEW}+"


def broken() -> None:
    raise RestoreFailed("broken")


def test_undone_restore_boots_a_guest_from_its_own_disk(make: Make) -> None:
    case = on_partition(make, LINK)
    qemu = case.guest.qemu
    assert qemu
    qemu.instead[LINK] = PART
    case.guest.at["load"] = broken

    def leads_to_the_clone() -> None:
        (operation,) = case.scene.operations()
        assert isinstance(operation, RestoreOperation)
        (tree,) = operation.swap_trees
        qemu.instead.clear()
        case.world.links[LINK] = volume.device_of(tree.clone_top, FIRST)

    case.guest.at["define"] = lambda: case.guest.at.update(define=leads_to_the_clone)
    with pytest.raises(RestoreFailed, match=r"load: broken. All is as it was: web is running"):
        put_back_with_ram(case, RestoreOptions(safety=False))
    assert case.guest.live == case.guest.persistent == {"vda": PART}
    assert case.content() == f"{NEW}+"


def test_guest_is_not_booted_on_a_clone_of_its_disk(make: Make) -> None:
    case = on_volume(make, Kind(RestoreOptions(safety=False), volume=True))
    case.guest.at["load"] = broken

    def opens_the_clone() -> None:
        (operation,) = case.scene.operations()
        assert isinstance(operation, RestoreOperation) and case.guest.qemu
        (tree,) = operation.swap_trees
        case.guest.qemu.instead[DEVICE] = volume.device_of(tree.clone_top)
        case.guest.at["destroy"] = case.guest.qemu.instead.clear

    case.guest.at["create paused"] = opens_the_clone
    with pytest.raises(RestoreFailed, match="stop: web: QEMU has opened a clone of its disk vda"):
        case.run()
    assert (case.guest.state(), case.content()) == ("shut off", NEW)
    assert case.again()
    check_one_of_both(case)


@pytest.mark.parametrize("cold", [True, False])
def test_next_start_may_have_another_disk_in_that_place(make: Make, cold: bool) -> None:
    case = on_volume(make)
    elsewhere = str(make_base(case.world.root / "elsewhere.raw"))
    xml = case.guest.xml_of({"vda": OTHER, "vdb": DEVICE, "vdc": elsewhere})
    (case.point.directory / PERSISTENT_XML).write_text(xml)
    if cold:
        put_back(case.scene, case.point, RestoreOptions(cold=True, paused=True))
        assert case.guest.live == {"vda": OTHER, "vdb": DEVICE, "vdc": elsewhere}
    else:
        put_back_with_ram(case)
        assert case.guest.live == {"vda": DEVICE}
    assert case.guest.persistent == {"vda": OTHER, "vdb": DEVICE, "vdc": elsewhere}
    assert case.content() == (OLD if cold else f"{OLD}+")
