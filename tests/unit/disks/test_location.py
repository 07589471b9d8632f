"""What a disk is: the table of zvmsnap.disks.location, and whether a guest may run on it."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.fakes.guest import FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.restore_scene import World
from zvmsnap.common.errors import WrongDisk
from zvmsnap.disks import location
from zvmsnap.disks.location import GuestDisks
from zvmsnap.zfs import mounts
from zvmsnap.zfs.mounts import DiskLocation, Mount
from zvmsnap.zfs.types import Partition

OWN, CLONE = DiskLocation("tank/web", ""), DiskLocation("tank/w2", "")
FIRST = Partition(1, 1 << 20, 4 << 20)
PART = DiskLocation("tank/web", "", FIRST)
DEVICE, DEVICE_OF_CLONE = "/dev/zvol/tank/web", "/dev/zvol/tank/w2"
LINK = "/dev/disk/by-uuid/1234"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Two volumes with a partition; a link that has the content of both leads to the clone."""
    made = World(tmp_path)
    made.install(monkeypatch)
    for name in ("tank/web", "tank/w2"):
        made.add(name, kind="volume")
    made.partition(FIRST)
    made.links[LINK] = DEVICE_OF_CLONE
    return made


def look(guest: FakeGuest) -> GuestDisks:
    return location.locate_disks(FakeHost(guest), guest, mounts.read_table())


def on(path: str, instead: Mapping[str, str] | None = None, *, own_names: bool = True) -> FakeGuest:
    guest = FakeGuest(vda=Path(path))
    assert guest.qemu
    guest.qemu.instead = dict(instead or {})
    guest.qemu.own_names = own_names
    return guest


MOVED = f"{LINK} leads to tank/w2 now, but its disk is tank/web"
ANOTHER = "QEMU has another device open than"


@pytest.mark.parametrize(
    ("path", "instead", "own_names", "where", "doubt"),
    [
        pytest.param(DEVICE, {}, True, OWN, "", id="as its path says"),
        pytest.param(DEVICE, {}, False, OWN, "", id="with the names of the host"),
        pytest.param(f"{DEVICE}-part1", {}, True, PART, "", id="a partition"),
        pytest.param(LINK, {LINK: DEVICE}, True, OWN, MOVED, id="a link that leads elsewhere"),
        pytest.param(
            LINK, {LINK: DEVICE}, False, None, f"{ANOTHER} {LINK} is now", id="nothing says which"
        ),
        pytest.param(
            f"{DEVICE}-part1",
            {f"{DEVICE}-part1": DEVICE},
            True,
            OWN,
            f"{DEVICE}-part1 leads to {FIRST} of tank/web now, but its disk is tank/web",
            id="the whole in place of the partition",
        ),
        pytest.param(
            "/dev/zvol/tank/gone",
            {"/dev/zvol/tank/gone": DEVICE},
            True,
            OWN,
            "/dev/zvol/tank/gone leads to something else now, but its disk is tank/web",
            id="the volume was renamed",
        ),
        pytest.param("/dev/mapper/web", {}, True, None, "", id="no volume"),
    ],
)
@pytest.mark.usefixtures("world")
def test_what_qemu_has_open(
    path: str,
    instead: Mapping[str, str],
    own_names: bool,
    where: DiskLocation | None,
    doubt: str,
) -> None:
    seen = look(on(path, instead, own_names=own_names))
    assert seen.locations.get("vda") == where
    assert seen.doubts.get("vda", "") == doubt


@pytest.mark.usefixtures("world")
def test_a_process_that_cannot_be_looked_at() -> None:
    guest = on(DEVICE)
    guest.qemu = None
    seen = look(guest)
    assert seen.locations == {"vda": OWN}
    assert seen.doubts == {"vda": "its QEMU process cannot be looked at"}


@pytest.mark.parametrize(
    ("replaced", "where", "doubt"),
    [
        (False, DiskLocation("tank/files", "vda.raw"), ""),
        (True, None, "QEMU has another file open than {} is now"),
    ],
)
def test_files(world: World, replaced: bool, where: DiskLocation | None, doubt: str) -> None:
    world.add("tank/files")
    image = str(world.root / "tank/files/vda.raw")
    link = world.root / "link.raw"
    link.symlink_to(image)
    for path in (image, str(link)):
        seen = look(on(path, {path: "/the/replaced/one"} if replaced else {}))
        assert seen.locations.get("vda") == where
        assert seen.doubts.get("vda", "") == doubt.format(path)


@pytest.mark.parametrize("active", [True, False])
def test_device_over_a_volume(world: World, active: bool) -> None:
    world.others = {"/dev/dm-1": -1, "/dev/dm-0": -2, "/dev/dm-9": -3}
    world.below = {-1: ["/dev/sda1", "/dev/dm-0"], -2: [f"{DEVICE}-part1"]}
    world.links["/dev/mapper/web"] = "/dev/dm-1"
    guest = on("/dev/mapper/web")
    guest.active = active
    seen = look(guest)
    why = f"/dev/mapper/web lies on {PART}, and no snapshot of that brings it back"
    assert (seen.locations, seen.doubts) == ({}, {"vda": why})
    assert look(on("/dev/dm-9")).doubts == {}


def test_file_elsewhere_is_no_doubt(world: World, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere.raw")
    seen = look(on(elsewhere, {elsewhere: "/other"}))
    assert (seen.locations, seen.doubts) == ({}, {})


@pytest.mark.parametrize(
    ("active", "own_names", "doubt", "overlays"),
    [
        pytest.param(True, True, False, True, id="QEMU opens its own"),
        # A merge opens the base anew, by its name: of the clone by then.
        pytest.param(True, False, False, False, id="QEMU opens what the host has by that name"),
        pytest.param(False, True, True, True, id="off"),
    ],
)
def test_link_by_content(
    world: World, active: bool, own_names: bool, doubt: bool, overlays: bool
) -> None:
    world.links[LINK] = DEVICE
    guest = on(LINK, own_names=own_names)
    guest.active = active
    seen = look(guest)
    assert seen.locations == {"vda": OWN}
    assert (list(seen.doubts), list(seen.no_overlays)) == (
        ["vda"] if doubt else [],
        [] if overlays else ["vda"],
    )
    for why in (*seen.doubts.values(), *seen.no_overlays.values()):
        assert why.startswith(f"{LINK} is a link by the content of the disk, which may lead to a")


def test_link_to_a_link_by_content(world: World, tmp_path: Path) -> None:
    link = tmp_path / "disk"
    link.symlink_to(LINK)
    world.links[str(link)] = world.links[LINK] = DEVICE
    assert location._is_by_content(str(link))
    assert not location._is_by_content(DEVICE)


@pytest.mark.parametrize("expected", [PART, OWN])
@pytest.mark.usefixtures("world")
def test_a_guest_on_its_disks(expected: DiskLocation) -> None:
    guest = on(f"{DEVICE}-part1" if expected.partition else DEVICE)
    location.check_open(FakeHost(guest), guest, {"vda": expected, "vdx": CLONE})
    location.stop_unless_on(FakeHost(guest), guest, {"vda": expected})
    assert guest.calls == []


@pytest.mark.parametrize(
    ("path", "instead", "expected", "said"),
    [
        (DEVICE, DEVICE_OF_CLONE, OWN, "vda is tank/w2, not tank/web"),
        (DEVICE, "/dev/none", OWN, "vda is something else, not tank/web"),
        (DEVICE, DEVICE, PART, "vda is tank/web, not partition 1 .* of tank/web"),
        (
            f"{DEVICE}-part1",
            f"{DEVICE}-part1",
            DiskLocation("tank/web", "", Partition(1, 1 << 20, 2 << 20)),
            r"is partition 1 \(4194304 bytes .*, not partition 1 \(2097152 bytes from 1048576\) of",
        ),
        (DEVICE, DEVICE, DiskLocation("tank/web", "a.raw"), "tank/web, not a.raw in tank/web"),
    ],
)
@pytest.mark.usefixtures("world")
def test_a_guest_on_other_disks_is_stopped(
    path: str, instead: str, expected: DiskLocation, said: str
) -> None:
    guest = on(path, {path: instead})
    with pytest.raises(WrongDisk, match=f"^web: QEMU has opened another disk: .*{said}"):
        location.check_open(FakeHost(guest), guest, {"vda": expected})
    assert guest.calls == []
    with pytest.raises(WrongDisk):
        location.stop_unless_on(FakeHost(guest), guest, {"vda": expected})
    assert guest.calls == ["destroy"]


@pytest.mark.usefixtures("world")
def test_two_definitions_of_a_guest() -> None:
    guest = on(DEVICE)
    host = FakeHost(guest)
    location.check_open(host, guest, {"vda": CLONE}, {"vda": OWN})
    for others in ({}, {"vdb": OWN}, {"vda": PART}):
        with pytest.raises(WrongDisk, match=r"vda is tank/web, not tank/w2$"):
            location.check_open(host, guest, {"vda": CLONE}, others)


def test_file_by_a_link_in_its_dataset(world: World) -> None:
    for name in ("tank/files", "tank/others"):
        world.add(name)
    own, others = (world.root / f"tank/{name}" for name in ("files", "others"))
    (own / "link.raw").symlink_to(own / "vda.raw")
    (own / "away.raw").symlink_to(others / "vda.raw")
    for path, where in (("link.raw", "vda.raw"), ("vda.raw", "vda.raw")):
        guest = on(str(own / path))
        location.check_open(FakeHost(guest), guest, {"vda": DiskLocation("tank/files", path)})
        assert look(guest).locations == {"vda": DiskLocation("tank/files", where)}
    guest = on(str(own / "away.raw"))
    with pytest.raises(WrongDisk, match=r"vda is vda.raw in tank/others, not away.raw in tank/fil"):
        location.check_open(FakeHost(guest), guest, {"vda": DiskLocation("tank/files", "away.raw")})


def test_paths_of_locations() -> None:
    table = [Mount(1, 0, "/", "/", ""), Mount(2, 1, "/", "/tank/web", "tank/web")]
    assert location.current_path(OWN, table) == DEVICE
    assert location.current_path(PART, table) == f"{DEVICE}-part1"
    assert location.current_path(DiskLocation("tank/web", "a"), table) == "/tank/web/a"
