"""Clone and verify of a Linux guest: its network card, its agent, its clock, its CPU."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
import scenario
from back import zvmsnap

from labkit import linux
from labkit.api import Lab

# Asks on a bridge who has the guest's address; prints one line for each that answers.
ARP = """
import socket, struct, sys, time
bridge, address = sys.argv[1], socket.inet_aton(sys.argv[2])
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
link.bind((bridge, 0))
mac = link.getsockname()[4]
head = b"\\xff" * 6 + mac + struct.pack("!H", 0x0806)
link.send(head + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + bytes(4) + bytes(6) + address)
end = time.monotonic() + 5
while (left := end - time.monotonic()) > 0:
    link.settimeout(left)
    try:
        frame = link.recv(64)
    except TimeoutError:
        break
    if frame[20:22] == b"\\0\\2" and frame[28:32] == address:
        print(frame[22:28].hex())
"""

pytestmark = pytest.mark.late


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    def make(lab: Lab) -> None:
        scenario.configure(lab)
        lab.put("/root/arp.py", ARP)
        zvmsnap(lab, "take", linux.NAME)
        memory = scenario.the_point(lab, linux.NAME).manifest["memory"]
        assert memory["file"] == "memory.pages", memory

    scenario.stage(lab_session, "linux-taken", lambda lab: scenario.with_code(lab, "linux"), make)
    return lab_session


def answers(lab: Lab, bridge: str = linux.BRIDGE) -> int:
    """How many machines on a bridge say that the guest's address is theirs."""
    return len(lab.run(f"python3 /root/arp.py {bridge} {linux.ADDRESS}").stdout.splitlines())


def card(lab: Lab, domain: str) -> ET.Element:
    (found,) = ET.fromstring(scenario.dumpxml(lab, domain)).findall("devices/interface")
    return found


def link_is_down(found: ET.Element) -> bool:
    link = found.find("link")
    return link is not None and link.get("state") == "down"


def source(found: ET.Element, attribute: str) -> str:
    of = found.find("source")
    assert of is not None
    return of.get(attribute, "")


def test_a_clone_without_a_network(lab: Lab) -> None:
    """The link in its RAM is up: it must be down before it runs."""
    assert answers(lab) == 1
    zvmsnap(lab, "clone", f"{linux.NAME}@latest", "alone")
    linux.wait_agent(lab, "alone")
    assert link_is_down(card(lab, "alone")) and answers(lab) == 1


@pytest.mark.whole
def test_the_network_of_a_clone(lab: Lab) -> None:
    zvmsnap(lab, "clone", "--network", "isolated", f"{linux.NAME}@latest", "apart")
    linux.wait_agent(lab, "apart")
    found = card(lab, "apart")
    assert source(found, "network") == "zvmsnap-isolated" and not link_is_down(found)
    bridge = source(found, "bridge")
    assert bridge != linux.BRIDGE
    assert (answers(lab), answers(lab, bridge)) == (1, 1)
    zvmsnap(lab, "clone", "--destroy", "apart")
    assert "zvmsnap-isolated" not in lab.run("virsh net-list --all --name").stdout

    zvmsnap(lab, "clone", "--network", "keep", f"{linux.NAME}@latest", "beside")
    linux.wait_agent(lab, "beside")
    found = card(lab, "beside")
    assert source(found, "network") == "lan" and not link_is_down(found)
    assert answers(lab) == 2
    zvmsnap(lab, "clone", "--destroy", "beside")
    assert answers(lab) == 1


@pytest.mark.whole
def test_verified_through_its_agent(lab: Lab) -> None:
    done = zvmsnap(lab, "verify", "--boot", "--expect-command", "cat /data/count", linux.NAME)
    assert "lives: its agent answers" in done.stdout
    said = re.search(r"the command printed '(\d+)", done.stdout)
    assert said and 0 < int(said[1]) <= linux.writes(lab)[-1].count
    done = zvmsnap(lab, "verify", "--boot", "--expect-command", "echo no web server; exit 7",
                   linux.NAME, status=1)
    assert "ended with 7: no web server" in done.stdout
    assert "FAILED" in zvmsnap(lab, "list").stdout
    assert lab.run("virsh list --all --name").stdout.split() == [linux.NAME]


@pytest.mark.whole
def test_the_clock_of_a_clone(lab: Lab) -> None:
    scenario.pass_hours(lab, 2)
    zvmsnap(lab, "clone", f"{linux.NAME}@latest", "late")
    linux.wait_agent(lab, "late")
    clock = linux.agent(lab, "guest-get-time", "late")
    assert isinstance(clock, int)
    assert abs(clock / 1e9 - float(lab.run("date +%s.%N").stdout)) < 60


def test_which_cpu_fits_this_host(lab: Lab) -> None:
    """In emulation every guest's CPU fits, so libvirt is asked for others than ours."""
    said = lab.python('''
from zvmsnap.virt.host import Host
cpu = """<cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model>
<feature policy='require' name='%s'/></cpu>"""
with Host.connect("qemu:///system") as host:
    for feature in ("sse2", "vmx"):
        print(host.has_cpu("/usr/bin/qemu-system-x86_64", "x86_64", "q35", "qemu", cpu % feature))
''')
    assert said.split() == ["True", "False"]
