"""How the snapshots of a point are seen; for the files in them see test_places."""

from collections.abc import Callable

import msgspec
import pytest

from tests.fakes.restore_scene import DATASET, NAME
from tests.unit.point_disks.conftest import KEY, Case
from zvmsnap.common.errors import DiskUnreadable, SnapshotMissing, ZfsFailed
from zvmsnap.points.manifest import Disk
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs import volume
from zvmsnap.zfs.types import Partition

CLONE = "tank/zvmsnap-temporary-0123abcd0123-0"
MIB = 1 << 20
Make = Callable[..., Case]


def disk_of(case: Case, image_format: str = "raw") -> Disk:
    (disk,) = case.point.manifest.disks
    return msgspec.structs.replace(disk, format=image_format)


def assert_nothing_left(case: Case) -> None:
    assert list(case.world.pool) == ["tank", DATASET]
    assert case.notes[-1] == ((), False)


def test_a_filesystem_that_is_mounted_needs_no_clone(make: Make) -> None:
    case = make()
    seen = case.world.root / DATASET / ".zfs" / "snapshot" / NAME
    seen.mkdir(parents=True)
    (seen / "vda.raw").write_bytes(b"old")
    with case.opened() as disks:
        disk = disks.disk(disk_of(case))
        assert (disk.path, disk.is_plain) == (str(seen / "vda.raw"), True)
        assert disk.image.node == {
            "driver": "raw",
            "file": {"driver": "file", "filename": str(seen / "vda.raw")},
        }
        assert disk.snapshot.full_name == f"{DATASET}@{NAME}"
    assert case.notes == [((), False), ((), False)]


def test_a_filesystem_that_is_not_mounted_is_cloned(make: Make) -> None:
    case = make()
    case.world.pool[DATASET].mounted = False
    with case.opened() as disks:
        disk = disks.disk(disk_of(case))
        assert disk.path == str(case.clones / CLONE / "vda.raw")
        assert case.world.pool[CLONE].content == "old"
        assert case.world.pool[CLONE].properties == {
            "readonly": "on",
            "canmount": "on",
            "mountpoint": str(case.clones / CLONE),
            "setuid": "off",
            "devices": "off",
            "exec": "off",
            "zvmsnap:mode": "off",
            "zvmsnap:temporary": KEY,
        }
    assert case.notes == [((CLONE,), False), ((), False)]
    assert_nothing_left(case)


def test_a_volume_is_cloned(make: Make) -> None:
    case = make("volume")
    with case.opened() as disks:
        disk = disks.disk(disk_of(case))
        device = volume.device_of(CLONE)
        assert (disk.path, disk.is_plain) == (device, True)
        assert disk.image.node == {
            "driver": "raw",
            "file": {"driver": "host_device", "filename": device},
        }
        assert case.world.pool[CLONE].properties == {
            "readonly": "on",
            "volmode": "dev",
            "snapdev": "hidden",
            "zvmsnap:mode": "off",
            "zvmsnap:temporary": KEY,
        }
    assert_nothing_left(case)


def test_partitions_and_images_on_volumes(make: Make) -> None:
    case = make("volume")
    with case.opened() as disks:
        device = {"driver": "host_device", "filename": volume.device_of(CLONE)}
        disk = disks.disk(disk_of(case, "qcow2"))
        assert disk.image.node == {"driver": "qcow2", "file": device, "backing": None}
        assert not disk.is_plain
        partition = Partition(1, MIB, 2 * MIB)
        part = msgspec.structs.replace(disk_of(case), partition=partition)
        disk = disks.disk(part)
        assert disk.image.node == {
            "driver": "raw",
            "offset": MIB,
            "size": 2 * MIB,
            "file": device,
        }
        assert not disk.is_plain
        with pytest.raises(DiskUnreadable, match="qcow2 on a partition"):
            disks.disk(msgspec.structs.replace(part, format="qcow2"))


def test_a_locked_dataset_keeps_nobody_from_the_other_disks(make: Make) -> None:
    case = make()
    case.world.pool[DATASET].locked = True
    with (
        case.opened() as disks,
        pytest.raises(DiskUnreadable, match=f"its key is not loaded: zfs load-key {DATASET}"),
    ):
        disks.disk(disk_of(case))
    assert case.notes == [((), False), ((), False)]


def test_a_snapshot_that_is_gone(make: Make) -> None:
    case = make("volume")
    case.world.pool_snapshots.clear()
    with pytest.raises(SnapshotMissing), case.opened():
        pass
    assert case.notes == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_clone_that_fails_leaves_nothing(make: Make, when: str) -> None:
    case = make("volume")
    case.world.errors = {(len(case.world.acts), when)}
    with pytest.raises(ZfsFailed), case.opened():
        pass
    assert_nothing_left(case)


def test_a_clone_of_that_name_is_somebody_elses(make: Make) -> None:
    case = make("volume")
    case.world.add(CLONE, "somebody's", "volume")
    with pytest.raises(ZfsFailed), case.opened():
        pass
    assert case.world.pool[CLONE].content == "somebody's"


def test_a_name_that_is_too_long(make: Make) -> None:
    case = make("volume")
    parent = f"tank/{'d' * 230}"
    case.world.add(parent, properties={"canmount": "off"})
    case.world.rename(DATASET, f"{parent}/web")
    with pytest.raises(DiskUnreadable, match="characters long"), case.opened():
        pass
    assert case.notes == []


def test_it_goes_whatever_happens_meanwhile(make: Make) -> None:
    case = make("volume")
    with pytest.raises(ZeroDivisionError), case.opened():
        assert CLONE in case.world.pool
        1 / 0  # noqa: B018
    assert_nothing_left(case)


def test_of_the_point_that_is_meant(make: Make) -> None:
    """A point whose snapshot is in another dataset now, after a restore."""
    case = make("volume")
    case.world.rename(DATASET, "tank/web-set-aside")
    point: RestorePoint = case.point
    with case.opened() as disks:
        (disk,) = point.manifest.disks
        assert disks.disk(disk).snapshot.dataset == "tank/web-set-aside"
        assert case.world.pool[CLONE].content == "old"
