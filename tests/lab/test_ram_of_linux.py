"""RAM of a Linux guest, stored as pages: of several CPUs, and in a balloon.

The guests here are emulated, so their RAM is one block: virt/domain_xml says why. Several blocks
are in tests/scenarios/test_real_qemu.py, with guests that do not run.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import dataclass

import back
import pytest
import scenario
from back import zvmsnap
from scenario import Point, assert_pages

from labkit import guests, linux
from labkit.api import Lab

DEBIAN_DIR = "/var/lib/libvirt/images/debian"
MEMORY_MIB = 128


@dataclass(frozen=True)
class Machine:
    """A Linux guest: its CPUs, and to how much its balloon presses it."""

    cpus: int
    pressed_mib: int = MEMORY_MIB

    def definition(self, xml: str) -> str:
        """A definition with these, instead of what it has."""
        root = ET.fromstring(xml)
        for old in ("vcpu", "memory", "currentMemory", "cpu"):
            for each in root.findall(old):
                root.remove(each)
        parts = f"<vcpu>{self.cpus}</vcpu><memory unit='MiB'>{MEMORY_MIB}</memory>"
        root.extend(ET.fromstring(f"<domain>{parts}</domain>"))
        return ET.tostring(root, encoding="unicode")


# Each page that a balloon takes costs an emulated guest much.
MACHINES = {"four CPUs": Machine(4), "in a balloon": Machine(1, pressed_mib=112)}
# The kernel unpacks one archive after the other.
WITH_BALLOON = f"""
set -e
mkdir -p /var/tmp/balloon/modules && cd /var/tmp/balloon
zcat {DEBIAN_DIR}/initrd.img | cpio --quiet -i modules/order
xz -dc $(modinfo -n virtio_balloon) > modules/virtio_balloon.ko
echo virtio_balloon.ko >> modules/order
find modules | cpio --quiet -o -H newc | gzip -1 >> {DEBIAN_DIR}/initrd.img
"""


def _blocks(lab: Lab, point: Point) -> dict[str, int]:
    """The RAM blocks of a page image, and how long they are."""
    rest = lab.get(f"{point.directory}/memory.rest")
    length = int.from_bytes(rest[20:24])
    return {each["name"]: each["bytes"] for each in json.loads(rest[24 : 24 + length])["blocks"]}


def _balloon_mib(lab: Lab) -> int:
    said = dict(line.split() for line in lab.run("virsh -q dommemstat debian").stdout.splitlines())
    return int(said["actual"]) >> 10


def _balloon(lab: Lab, mib: int) -> None:
    lab.run(f"virsh setmem debian {mib}M --live")
    scenario.wait_until("the balloon", lambda: _balloon_mib(lab) == mib, timeout_s=900)


@pytest.mark.whole
@pytest.mark.long
@pytest.mark.parametrize("kind", MACHINES)
def test_linux_loads_and_goes_on(lab_session: Lab, kind: str) -> None:
    lab, machine = lab_session, MACHINES[kind]
    scenario.with_code(lab, "linux")
    scenario.configure(lab)
    lab.run("virsh destroy debian")
    lab.run(WITH_BALLOON)
    guests.define(lab, machine.definition(scenario.dumpxml(lab, "debian", persistent=True)))
    lab.run(f": > {guests.SERIAL_DIR}/debian.log && virsh start debian")
    linux.wait_writes(lab, "debian", 2, timeout_s=900)
    _balloon(lab, machine.pressed_mib)

    before = linux.writes(lab)[-1].count
    zvmsnap(lab, "take", "debian")
    point = scenario.the_point(lab, "debian")
    assert_pages(point)
    assert _blocks(lab, point)["pc.ram"] == MEMORY_MIB << 20
    after = linux.writes(lab)[-1].count
    _balloon(lab, MEMORY_MIB)

    lab.run("virsh destroy debian")
    since = guests.serial_size_bytes(lab, "debian")
    back.restore(lab, "debian@latest", "--no-safety")
    linux.wait_writes(lab, "debian", after + 3, since_byte=since)
    counts = [write.count for write in linux.writes(lab, since_byte=since)]
    assert before < counts[0] <= after + 1
    assert counts == list(range(counts[0], counts[-1] + 1))
    assert "B" not in guests.serial(lab, "debian", since).split()
    assert _balloon_mib(lab) == machine.pressed_mib
    cpus = linux.agent(lab, "guest-get-vcpus")
    assert isinstance(cpus, list)
    assert [each["online"] for each in cpus] == [True] * machine.cpus
