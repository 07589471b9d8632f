import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.clock import TestClock
from zvmsnap.common.errors import ZfsFailed
from zvmsnap.zfs import volume, zfs
from zvmsnap.zfs.mounts import DiskLocation
from zvmsnap.zfs.types import Partition

FIRST, SECOND = Partition(1, 1 << 20, 4 << 20), Partition(2, 5 << 20, 2 << 20)
WHOLE = DiskLocation("tank/v", "")
PART = DiskLocation("tank/v", "", SECOND)


class Kernel:
    """Its block devices in sysfs: by number and by name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.volumes: dict[str, str] = {}

    def add(self, name: str, number: int, volume_name: str = "", *parts: Partition) -> None:
        device = self._directory(f"devices/{name}", name, number)
        if volume_name:
            self.volumes[f"/dev/{name}"] = volume_name
        for part in parts:
            own = f"{name}p{part.number}"
            directory = self._directory(f"devices/{name}/{own}", own, number + part.number)
            (directory / "partition").write_text(f"{part.number}\n")
            (directory / "start").write_text(f"{part.start_bytes // 512}\n")
            (directory / "size").write_text(f"{part.size_bytes // 512}\n")
        assert device.exists()

    def _directory(self, path: str, name: str, number: int) -> Path:
        directory = self.root / path
        directory.mkdir(parents=True)
        (directory / "uevent").write_text("")
        for link in (f"numbers/{os.major(number)}:{os.minor(number)}", f"names/{name}"):
            (self.root / link).parent.mkdir(exist_ok=True)
            (self.root / link).symlink_to(directory)
        return directory

    def told(self) -> list[str]:
        """The devices at which udev was told to look again."""
        told = [each for each in self.root.glob("devices/**/uevent") if each.read_text()]
        assert {each.read_text() for each in told} <= {"change"}
        return sorted(each.parent.name for each in told)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel(tmp_path)
    made.add("zd16", os.makedev(230, 16), "tank/v", FIRST, SECOND)
    made.add("dm-0", os.makedev(253, 0))
    made.add("loop0", os.makedev(7, 0), "", FIRST)
    monkeypatch.setattr(volume, "_BY_NUMBER", tmp_path / "numbers")
    monkeypatch.setattr(volume, "_BY_NAME", tmp_path / "names")
    monkeypatch.setattr(volume, "_volume_of", made.volumes.get)
    return made


@pytest.mark.parametrize(
    ("major", "minor", "location"),
    [
        pytest.param(230, 16, WHOLE, id="a volume"),
        pytest.param(230, 17, DiskLocation("tank/v", "", FIRST), id="its partition"),
        pytest.param(230, 18, PART, id="its second partition"),
        # Over a volume or not: what is in it cannot be found again in another volume.
        pytest.param(253, 0, None, id="device mapper"),
        pytest.param(7, 0, None, id="a loop device"),
        pytest.param(7, 1, None, id="a partition of a loop device"),
        pytest.param(230, 99, None, id="a device that is gone"),
    ],
)
@pytest.mark.usefixtures("kernel")
def test_what_a_device_number_is(major: int, minor: int, location: DiskLocation | None) -> None:
    assert volume.location_at(os.makedev(major, minor)) == location


def test_what_other_devices_lie_on(kernel: Kernel) -> None:
    slaves = kernel.root / "devices/dm-0/slaves"
    slaves.mkdir()
    for name in ("zd16p1", "sda1"):
        (slaves / name).symlink_to(kernel.root)
    (kernel.root / "devices/loop0/loop").mkdir()
    (kernel.root / "devices/loop0/loop/backing_file").write_text("/tank/a b.img\n")
    assert volume.below(os.makedev(253, 0)) == ["/dev/sda1", "/dev/zd16p1"]
    for minor in (0, 1):  # and its partition
        assert volume.below(os.makedev(7, minor)) == ["/tank/a b.img"]
    assert volume.below(os.makedev(230, 16)) == []
    assert volume.below(os.makedev(8, 0)) == []


def test_what_the_host_has_made_of_a_volume(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = {"/dev/zvol/tank/v": os.makedev(230, 16)}
    monkeypatch.setattr(volume, "device_number", devices.get)
    assert volume.held_by("tank/v") == []
    names = {"dm-0": "data-files", "dm-1": "data-root"}
    kernel.add("dm-1", os.makedev(253, 1))
    for name, mapped in names.items():
        (kernel.root / f"devices/{name}/dm").mkdir()
        (kernel.root / f"devices/{name}/dm/name").write_text(f"{mapped}\n")
    for path, name in (("zd16", "md127"), ("zd16/zd16p1", "dm-0"), ("zd16/zd16p2", "dm-1")):
        (kernel.root / f"devices/{path}/holders").mkdir()
        (kernel.root / f"devices/{path}/holders/{name}").symlink_to(kernel.root)
    assert volume.held_by("tank/v") == ["data-files", "data-root", "md127"]
    assert volume.held_by("tank/zd16") == []  # a dataset that is called as a device


@pytest.mark.parametrize("device", ["/dev/null", "/dev/nonexistent", "/dev/zd-no-such"])
def test_no_volume(device: str) -> None:
    assert volume.location_of(device) is None


def test_paths() -> None:
    assert volume.device_of("tank/My VMs/a") == "/dev/zvol/tank/My+VMs/a"
    assert volume.device_of("tank/My VMs/a", SECOND) == "/dev/zvol/tank/My+VMs/a-part2"


@pytest.fixture(autouse=True)
def volmode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zfs, "properties", lambda name, names: dict.fromkeys(names, "default"))


def test_a_device_that_never_comes() -> None:
    with pytest.raises(ZfsFailed, match=r"^/dev/zvol/no/such\+one: did not appear within 30 s"):
        volume.wait_device("no/such one", 30)


@pytest.fixture
def leads_to(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says where a path leads, each time it is asked for; at last for ever."""

    def set_answers(*answers: DiskLocation | None) -> None:
        left = list(answers)
        answer = lambda _path: left.pop(0) if len(left) > 1 else left[0]  # noqa: E731
        monkeypatch.setattr(volume, "location_of", answer)

    return set_answers


def test_the_device_of_another_volume_is_not_taken(leads_to: Callable[..., None]) -> None:
    leads_to(DiskLocation("tank/old", ""), None, PART, WHOLE)
    volume.wait_device("tank/v", 60)
    leads_to(PART)
    with pytest.raises(ZfsFailed, match="did not appear"):
        volume.wait_device("tank/v", 1)


@pytest.mark.parametrize(
    ("volmode", "parameters", "says"),
    [
        ("none", {}, "tank/v has volmode=none: zfs set volmode=dev"),
        ("default", {"zvol_volmode": "3"}, "zvol_volmode is 3"),
        ("dev", {"zvol_inhibit_dev": "1"}, "zvol_inhibit_dev is 1"),
    ],
)
def test_a_device_that_zfs_does_not_make_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
    clock: TestClock,
    volmode: str,
    parameters: dict[str, str],
    says: str,
) -> None:
    monkeypatch.setattr(zfs, "properties", lambda name, names: {"volmode": volmode})
    monkeypatch.setattr(volume, "_parameter", lambda name: parameters.get(name, "0"))
    begun_s = clock.now_s()
    with pytest.raises(ZfsFailed, match=f"^/dev/zvol/tank/v: does not appear: .*{says}"):
        volume.wait_device("tank/v", 30)
    assert clock.now_s() - begun_s < 3


def at(monkeypatch: pytest.MonkeyPatch, **names: str) -> None:
    """Let the paths lead to these devices of the kernel."""
    links = {f"/dev/zvol/tank/{name.replace('_', '-')}": f"/dev/{to}" for name, to in names.items()}
    monkeypatch.setattr(os.path, "realpath", lambda path: links.get(path, path))


def test_a_link_that_did_not_follow_a_rename_is_made_anew(
    kernel: Kernel, leads_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.add("zd32", os.makedev(230, 32), "tank/v.before", FIRST, SECOND)
    at(monkeypatch, v="zd16", v_part2="zd32p2")
    leads_to(DiskLocation("tank/v.before", "", SECOND), PART)
    volume.wait_partition("tank/v", SECOND, 30)
    assert kernel.told() == ["zd16p1", "zd16p2", "zd32p2"]


def test_nothing_is_told_of_a_link_that_is_right(
    kernel: Kernel, leads_to: Callable[..., None]
) -> None:
    leads_to(PART)
    volume.wait_partition("tank/v", SECOND, 30)
    assert kernel.told() == []


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (WHOLE, "tank/v"),
        (None, "no device of a volume"),
        (
            DiskLocation("tank/v", "", Partition(2, 5 << 20, 1 << 20)),
            "partition 2 (1048576 bytes from 5242880) of tank/v",
        ),
        (
            DiskLocation("tank/old", "", SECOND),
            "partition 2 (2097152 bytes from 5242880) of tank/old",
        ),
    ],
)
@pytest.mark.usefixtures("kernel")
def test_another_partition_is_never_taken(
    leads_to: Callable[..., None], seen: DiskLocation | None, said: str
) -> None:
    leads_to(seen)
    with pytest.raises(ZfsFailed) as refused:
        volume.wait_partition("tank/v", SECOND, 30)
    assert str(refused.value) == (
        "/dev/zvol/tank/v-part2: is not partition 2 (2097152 bytes from 5242880) of tank/v within "
        f"30 s, but {said}: see zfs get volmode tank/v"
    )


def test_partitions_of_a_renamed_volume_get_their_links(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, v="zd16")
    volume.rename_partitions("tank/v")
    assert kernel.told() == ["zd16p1", "zd16p2"]
    volume.rename_partitions("tank/none")  # its device has not come yet
