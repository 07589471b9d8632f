"""Which levels the guests of tests/data/definitions can have, and what their points tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.host import FakeHost
from zvmsnap.capture import eligibility
from zvmsnap.capture.eligibility import Eligibility
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.disks import location
from zvmsnap.virt import domain_xml
from zvmsnap.zfs.mounts import Mount

DEFINITIONS = Path(__file__).parents[2] / "data" / "definitions"
MEMORY, PAUSED, QUIESCED = (
    ConsistencyLevel.MEMORY,
    ConsistencyLevel.PAUSED,
    ConsistencyLevel.QUIESCED,
)
TABLE = [
    Mount(1, 0, "/", "/", "", "ext4"),
    Mount(2, 1, "/", "/tank/vm/web", "tank/vm/web", "zfs"),
    Mount(3, 1, "/", "/tank/data", "tank/data", "zfs"),
    Mount(4, 1, "/", "/fast/elsewhere", "fast/elsewhere", "zfs"),
]


class OpenAsNamed:
    has_own_names = True

    def has_file(self, _path: str) -> bool:
        return True

    def device(self, _path: str) -> int | None:
        return None


class DefinedGuest:
    """A guest that runs, of that definition."""

    def __init__(self, xml: str) -> None:
        self._xml = domain_xml.with_volume_paths(xml, lambda _pool, name: f"/tank/vm/web/{name}")

    def state(self) -> str:
        return "running"

    def xml(self) -> str:
        return self._xml

    def process(self) -> OpenAsNamed:
        return OpenAsNamed()


def assessed(xml: str, *covered: str) -> Eligibility | None:
    guest: Any = DefinedGuest(xml)
    disks = location.locate_disks(FakeHost(), guest, TABLE)
    return eligibility.assess(disks, frozenset(covered or ("tank/vm/web",)))


def definition(name: str) -> str:
    return (DEFINITIONS / f"{name}.xml").read_text()


ELSEWHERE = "is not on a dataset of this snapshot"
TORN = (
    "not all disks are in this snapshot: vda (data file of disk vda (/fast/elsewhere/a.raw on "
    f"fast/elsewhere) {ELSEWHERE})"
)
NVDIMM = f"(/fast/elsewhere/nvdimm on fast/elsewhere) {ELSEWHERE}"
DRIVE = f"QEMU argument -drive (/srv/other/data.raw) {ELSEWHERE}"
NO_RAM = "its RAM cannot be saved because of a "


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("floppy", "not all disks are in this snapshot: fda (/srv/other/f.img)"),
        ("nvdimm", f"not all of its state is in this snapshot: memory nvdimm {NVDIMM}"),
        ("qemu_commandline_drive", f"not all of its state is in this snapshot: {DRIVE}"),
        ("hostdev", f"{NO_RAM}passed-through PCI device"),
        ("hostdev_scsi", f"{NO_RAM}passed-through SCSI device"),
        ("virtiofs_socket", f"{NO_RAM}directory shared by virtiofs"),
    ],
)
def test_no_level_with_ram(name: str, why: str) -> None:
    eligible = assessed(definition(name))
    assert eligible
    assert eligible.obstacles[MEMORY] == eligible.obstacles[PAUSED] == why
    assert why not in eligible.obstacles[QUIESCED]


@pytest.mark.parametrize(
    "name",
    [
        "volume",
        "pflash_rw_implicit",
        "nvram_block",
        "interface_bridge",
        "startup_policy",
        "passt",
        "midonet",
        "tpm_file",
    ],
)
def test_all_levels(name: str) -> None:
    eligible = assessed(definition(name))
    assert eligible
    assert eligible.obstacles.keys() == {QUIESCED}  # there is no agent
    assert eligible.covered["vda"].path == "a.qcow2"


@pytest.mark.parametrize(
    "copy",
    [
        "<mirror type='file' job='copy'><source file='/srv/new/a.qcow2'/></mirror>",
        "<mirror type='network' job='copy'><source protocol='nbd' name='a'/></mirror>",
        "<mirror type='file' file='/fast/elsewhere/a.qcow2' job='copy' ready='yes'/>",
    ],
)
def test_a_copy_under_way_changes_nothing(copy: str) -> None:
    """Until its job has ended, the disk has all data."""
    eligible = assessed(
        definition("passt").replace("<target dev='vda'", f"{copy}<target dev='vda'")
    )
    assert eligible
    assert eligible.obstacles.keys() == {QUIESCED}
    assert eligible.covered["vda"].path == "a.qcow2"
    assert eligible.other_state == ()


def test_an_image_whose_data_is_elsewhere_is_no_disk_of_a_point() -> None:
    # To bring back the one without the other would destroy it.
    assert assessed(definition("datastore")) is None


def test_an_image_whose_data_is_elsewhere_beside_another_disk() -> None:
    second = (
        "<disk type='file'><source file='/tank/vm/web/b.raw'/><target dev='vdb'/></disk></devices>"
    )
    eligible = assessed(definition("datastore").replace("</devices>", second))
    assert eligible
    assert eligible.obstacles[MEMORY] == TORN
    assert (list(eligible.covered), eligible.others) == (["vdb"], ("vda",))
    assert eligible.datasets == ("tank/vm/web",)


def test_the_data_on_another_dataset_of_the_snapshot_belongs_to_the_point() -> None:
    xml = definition("datastore").replace("/fast/elsewhere", "/tank/data")
    eligible = assessed(xml, "tank/vm/web", "tank/data")
    assert eligible
    assert MEMORY not in eligible.obstacles
    assert eligible.datasets == ("tank/data", "tank/vm/web")
    (told,) = eligible.other_state
    assert (told.resource.called, told.location and told.location.path, told.why) == (
        "data file of disk vda",
        "a.raw",
        "",
    )


def test_firmware_outside_of_the_snapshot_keeps_ram_from_being_taken() -> None:
    xml = definition("pflash_rw_implicit").replace("/tank/vm/web/guest_BOTH", "/srv/BOTH")
    eligible = assessed(xml)
    assert eligible
    assert eligible.obstacles[MEMORY] == (
        f"not all of its state is in this snapshot: firmware (/srv/BOTH.fd) {ELSEWHERE}"
    )
    assert [str(each) for each in eligible.other_state] == [f"firmware (/srv/BOTH.fd) {ELSEWHERE}"]


def test_a_floppy_on_the_dataset_is_one_of_its_disks() -> None:
    eligible = assessed(definition("floppy").replace("/srv/other", "/tank/vm/web"))
    assert eligible
    assert eligible.obstacles.keys() == {QUIESCED}
    assert sorted(eligible.covered) == ["fda", "vda"]


def test_a_drive_that_libvirt_does_not_know_is_frozen_only_with_its_guest() -> None:
    eligible = assessed(definition("qemu_commandline_drive").replace("/srv/other", "/tank/vm/web"))
    assert eligible
    assert eligible.obstacles[MEMORY] == (
        "QEMU argument -drive (/tank/vm/web/data.raw) cannot be frozen: libvirt does not know of it"
    )
    assert PAUSED not in eligible.obstacles
    assert [each.why for each in eligible.other_state] == [""]


def test_an_sd_card_takes_no_overlay() -> None:
    xml = definition("volume").replace("bus='virtio'", "bus='sd'")
    eligible = assessed(xml)
    assert eligible
    assert eligible.obstacles[MEMORY] == "a disk cannot be frozen: vda is an SD card"
    assert PAUSED not in eligible.obstacles
