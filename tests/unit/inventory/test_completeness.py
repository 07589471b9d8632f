"""No element that can hold a path is missed.

The list was made by walking libvirt's schema of domains (11.3, domaincommon.rng): all elements and
attributes of a type that allows a path, with the type of the device or source for which they do.
The parts of disks' chains, which repeat these, are made below.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.inventory.reader import resources_of
from zvmsnap.inventory.resource import Kind

IN_SCHEMA = [
    "",
    "os/kernel",
    "os/initrd",
    "os/root",
    "os/dtb",
    "os/loader",
    "os/nvram",
    "os/nvram@template",
    "os/nvram/source@file",
    "os/nvram/source@dev block",
    "os/nvram/source@dir",
    "os/nvram/source@path vhostuser",
    "os/acpi/table",
    "blkiotune/device/path",
    "devices/emulator",
    "devices/disk/source@file",
    "devices/disk/source@dev block",
    "devices/disk/source/reservations/source@path",
    "devices/disk/source@dir",
    "devices/disk/source/host@socket",
    "devices/disk/source/config@file",
    "devices/disk/source/knownHosts@path",
    "devices/disk/source/identity@keyfile",
    "devices/disk/source/identity@agentsock",
    "devices/disk/source@path vhostuser",
    "devices/disk/mirror@file",
    "devices/filesystem/source@file",
    "devices/filesystem/source@dev",
    "devices/filesystem/binary@path",
    "devices/filesystem/source@dir",
    "devices/filesystem/source@socket",
    "devices/interface/script@path",
    "devices/interface/downscript@path",
    "devices/interface/backend@tap",
    "devices/interface/backend@vhost",
    "devices/interface/backend@logFile",
    "devices/interface/rom@file",
    "devices/interface/source@path vhostuser",
    "devices/input/source@evdev",
    "devices/input/source@dev",
    "devices/audio/input@dev",
    "devices/audio/output@dev",
    "devices/audio@runtimeDir",
    "devices/audio@path",
    "devices/hostdev/source/block",
    "devices/hostdev/source/char",
    "devices/hostdev/rom@file",
    "devices/graphics@socket",
    "devices/graphics/listen@socket",
    "devices/graphics/gl@rendernode",
    "devices/graphics@address dbus",
    "devices/video/model/acceleration@rendernode",
    "devices/console/log@file",
    "devices/parallel/log@file",
    "devices/serial/log@file",
    "devices/channel/log@file",
    "devices/smartcard/database",
    "devices/smartcard/log@file",
    "devices/redirdev/log@file",
    "devices/rng/backend random",
    "devices/rng/backend/log@file",
    "devices/tpm/backend/device@path",
    "devices/tpm/backend/source@path file",
    "devices/shmem/server@path",
    "devices/memory/source/path",
    "devices/pstore/path",
    "os/shim",
    "os/varstore@path",
    "os/varstore@template",
    "bootloader",
    "sysinfo/entry@file",
    "devices/lease/target@path",
    "devices/graphics@xauth sdl",
    "devices/audio/input@serverName",
    "devices/serial/source@path file",
    "devices/serial/source@path pipe",
    "devices/serial/source@path dev",
    "devices/serial/source@path unix",
    "devices/serial/source@master nmdm",
    "devices/serial/source@slave nmdm",
    "devices/console/source@path unix",
    "devices/parallel/source@path dev",
    "devices/channel/source@path unix",
    "devices/smartcard/source@path dev",
    "devices/redirdev/source@path unix",
    "devices/rng/backend/source@path unix",
    "devices/interface/source@dev vdpa",
    "devices/interface/source@dev network",
    "",
][1:-1]
# A container's, of a control group, and terminals, which libvirt gives anew at each start.
NOTHING_OF_THE_HOST = (
    "os/init",
    "os/initdir",
    "resource/partition",
    "devices/console@tty",
    "devices/parallel@tty",
    "devices/serial@tty",
    "devices/serial/source@path pty",
)
# An image of a disk may hold, or be on, others.
CHAINS = (
    "backingStore/source",
    "backingStore/backingStore/source",
    "source/dataStore/source",
    "backingStore/source/dataStore/source",
    "mirror/source",
    "mirror/source/dataStore/source",
    "mirror/backingStore/source",
)
CHAINED = [
    each.replace("devices/disk/source", f"devices/disk/{chain}", 1)
    for each in IN_SCHEMA
    if each.startswith("devices/disk/source")
    for chain in CHAINS
]
ALL = [*IN_SCHEMA, *CHAINED]


def grown(root: ET.Element, leaf: str, value: str) -> None:
    """Add that element, or attribute, with a value."""
    path, _, kind = leaf.partition(" ")
    tags, _, attribute = path.partition("@")
    line = [root]
    for tag in tags.split("/"):
        line.append(ET.SubElement(line[-1], tag))
    if kind:
        line[-2 if line[-2] is not root else -1].set("type", kind)
    if attribute:
        line[-1].set(attribute, value)
    else:
        line[-1].text = value


def of(*leaves: str) -> dict[str, Kind]:
    """What is named, by its place: /0, /1 ..."""
    root = ET.Element("domain")
    for number, leaf in enumerate(leaves):
        grown(root, leaf, f"/{number}")
    return {each.place: each.kind for each in resources_of(ET.tostring(root, "unicode"))}


@pytest.mark.parametrize("leaf", ALL)
def test_the_table_knows_it(leaf: str) -> None:
    assert of(leaf).get("/0") not in (None, Kind.UNKNOWN)


@pytest.mark.parametrize("leaf", NOTHING_OF_THE_HOST)
def test_it_names_nothing(leaf: str) -> None:
    assert of(leaf) == {}


@given(st.lists(st.sampled_from(ALL), max_size=12))
def test_all_of_them_beside_each_other(leaves: list[str]) -> None:
    found = of(*leaves)
    assert found.keys() == {f"/{number}" for number in range(len(leaves))}
    assert Kind.UNKNOWN not in found.values()


@given(st.sampled_from(ALL), st.sampled_from(["devices/new", "new", "os/new", "devices/new/new"]))
def test_in_a_place_where_nobody_knows_it_it_is_unknown(leaf: str, above: str) -> None:
    path = leaf.partition(" ")[0]
    plain = {"target", "host"} & set(path.partition("@")[0].split("/"))
    assert plain or of(f"{above}/{path}")["/0"] is Kind.UNKNOWN
