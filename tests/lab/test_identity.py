"""Disks whose path is not enough: a partition of a volume, and a link by content.

What QEMU has open is asked of the kernel, as `zvol_id` of OpenZFS tells it.
"""

from __future__ import annotations

import back
import pytest
import scenario
from back import zvmsnap
from scenario import Guest

from labkit import bootsector, guests
from labkit.api import Lab
from labkit.guests import Disk

FIRST, SECOND = "zvmsnap_first_manual", "zvmsnap_second_manual"
# Two volumes with the same table of two partitions each; of each the guest has another one.
VOLUMES = {"tank/vm/part": "1234abcd", "tank/vm/link": "5678abcd"}
BY_CONTENT = "/dev/disk/by-partuuid/5678abcd-02"
OWN = {"tank/vm/part-part1", "tank/vm/link-part2"}
DISKS = {"vda": "/dev/zvol/tank/vm/part-part1", "vdb": "/dev/zvol/tank/vm/link-part2"}
PART = Guest("part", tuple(VOLUMES), {"vda": DISKS["vda"], "vdb": BY_CONTENT})
TABLE = """
import fcntl, os, struct, sys
begin, size = 2048, 4096
table = bytearray(512)
table[440:444] = struct.pack("<I", int(sys.argv[2], 16))
for number in range(2):
    place = struct.pack("<II", begin + number * size, size)
    table[446 + 16 * number : 462 + 16 * number] = bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + place
table[510:] = b"\\x55\\xaa"
with open(sys.argv[1], "r+b", buffering=0) as volume:
    volume.write(table)
    os.fsync(volume)
    fcntl.ioctl(volume, 0x125F)  # BLKRRPART
"""


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    """`part` counts, and has one point."""
    scenario.stage(lab_session, "identity", scenario.configured, _make)
    return lab_session


def _make(lab: Lab) -> None:
    lab.run("virsh destroy web")
    lab.put("/root/table.py", TABLE)
    for volume, signature in VOLUMES.items():
        lab.run(f"zfs create -s -V 8M {volume} && udevadm settle")
        lab.run(f"python3 /root/table.py /dev/zvol/{volume} {signature} && udevadm settle")
    code = bootsector.boot_code(fill_mib=0, dirty_mib=0, memory_mib=64)
    for path in PART.disks.values():
        lab.run(f"dd of={path} conv=fsync,notrunc status=none", stdin=code)
    disks = [Disk(path) for path in PART.disks.values()]
    guests.define(lab, guests.domain_xml("part", disks))
    guests.start(lab, "part")
    zvmsnap(lab, "take", "part", "--name", FIRST, "--mode", "memory")


def open_in_qemu(lab: Lab, domain: str) -> set[str]:
    """The volumes and partitions that the QEMU of a guest has open for writing."""
    return set(
        lab.run(
            f"pid=$(cat /run/libvirt/qemu/{domain}.pid); for fd in /proc/$pid/fd/*; do"
            " case $(readlink $fd) in /dev/zd*) /usr/lib/udev/zvol_id $(readlink $fd);; esac; done"
        ).stdout.split()
    )


def stored(lab: Lab) -> int:
    """The last count in the first point."""
    lab.run("zfs clone tank/vm/part@zvmsnap_first_manual tank/vm/look && udevadm settle")
    count = guests.disk_count(lab, "/dev/zvol/tank/vm/look-part1")
    # udev may still look at it.
    lab.run("until udevadm settle && zfs destroy tank/vm/look; do sleep 0.2; done")
    return count


@pytest.mark.long
def test_restored_on_its_own_partitions(lab: Lab) -> None:
    point = scenario.the_point(lab, "part")
    assert point.manifest["level"] == "memory"
    assert open_in_qemu(lab, "part") == OWN
    known = [
        (disk["source"], disk["dataset"], disk["partition"]) for disk in point.manifest["disks"]
    ]
    first, second = (
        {"number": number, "start_bytes": begin * 512, "size_bytes": 4096 * 512}
        for number, begin in ((1, 2048), (2, 6144))
    )
    assert known == [
        (PART.disks["vda"], "tank/vm/part", first),
        (BY_CONTENT, "tank/vm/link", second),
    ]
    for disk in point.manifest["disks"]:
        guid = lab.run(f"zfs get -Hpo value guid {disk['dataset']}").stdout
        assert disk["dataset_guid"] == int(guid)
    count = stored(lab)

    back.restore(lab, f"part@{FIRST}")
    assert open_in_qemu(lab, "part") == OWN
    replaced = back.assert_jumped_to(lab, count, domain="part")
    scenario.assert_on_base(lab, "part", DISKS)

    # The safety point is of the replaced guest, on the volumes that are set aside now.
    back.restore(lab, back.safety_point(lab))
    assert open_in_qemu(lab, "part") == OWN
    back.assert_jumped_to(lab, replaced, domain="part", times=2)


@pytest.mark.whole
@pytest.mark.long
def test_clone_has_its_own_partitions_and_the_original_its_own(lab: Lab) -> None:
    count = stored(lab)
    zvmsnap(lab, "clone", f"part@{FIRST}", "twin")
    assert open_in_qemu(lab, "twin") == {"tank/vm/twin-part1", "tank/vm/link-twin-part2"}
    guests.wait_counts(lab, "twin-part", count + scenario.PROOF_COUNTS)
    assert guests.mismatches(lab, "twin-part") == []
    assert guests.boots(lab, "twin-part") == 0

    # udev's link leads to the clone: the original's disk is still its own, and known.
    leads_to = lab.run(f"/usr/lib/udev/zvol_id $(readlink -f {BY_CONTENT})").stdout.strip()
    assert leads_to == "tank/vm/link-twin-part2"
    assert open_in_qemu(lab, "part") == OWN
    said = zvmsnap(lab, "take", "part", "--name", SECOND)
    point = scenario.points(lab, "part")[-1]
    assert point.manifest["level"] == "crash"
    assert point.names == {SECOND}
    assert {disk["dataset"] for disk in point.manifest["disks"]} == set(VOLUMES)
    clones = "partition 2 (2097152 bytes from 3145728) of tank/vm/link-twin"
    assert f"{BY_CONTENT} leads to {clones} now" in said.stderr
    assert scenario.snapshots(lab, "tank/vm/link-twin") == {}
    scenario.counts_on(lab, "part")

    # Without RAM it boots, and writes in its partitions alone.
    zvmsnap(lab, "clone", "--cold", "--paused", f"part@{FIRST}", "cold")
    assert open_in_qemu(lab, "cold") == {"tank/vm/cold-part1", "tank/vm/link-cold-part2"}
    outside = "dd if=/dev/zvol/tank/vm/cold bs=512 count=2048 status=none | sha256sum"
    other = "sha256sum < /dev/zvol/tank/vm/cold-part2"
    before = lab.run(f"{outside}; {other}").stdout
    lab.run("virsh resume cold")
    guests.wait_counts(lab, "cold-part", 3)
    lab.run("virsh destroy cold; echo 3 > /proc/sys/vm/drop_caches")
    assert lab.run(f"{outside}; {other}").stdout == before

    assert "lives" in zvmsnap(lab, "verify", "--boot", f"part@{FIRST}").stdout
    assert guests.mismatches(lab, "part") == []
