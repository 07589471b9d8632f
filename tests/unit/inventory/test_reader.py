"""Everything that a definition names is found, in any place; what is not known says so."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.inventory.reader import resources_of
from zvmsnap.inventory.resource import Kind, Resource

ZVOL = "/dev/zvol/tank/vm/web/nvram"
MAC = "interface 52:54:00:11:22:33"
DRIVE = "QEMU argument -drive"
DEFINITIONS = Path(__file__).parents[2] / "data" / "definitions"


def named_in(name: str) -> dict[str, Resource]:
    return {each.called: each for each in resources_of((DEFINITIONS / f"{name}.xml").read_text())}


def of_devices(text: str) -> tuple[Resource, ...]:
    return resources_of(f"<domain><devices>{text}</devices></domain>")


def facts(resource: Resource) -> tuple[str, Kind, str, bool, bool]:
    return (
        resource.called,
        resource.kind,
        resource.place,
        resource.writable,
        resource.is_state,
    )


@pytest.mark.parametrize(
    ("name", "called", "kind", "place", "writable", "is_state"),
    [
        ("datastore", "disk vda", Kind.FILE, "/tank/vm/web/a.qcow2", True, True),
        ("datastore", "data file of disk vda", Kind.FILE, "/fast/elsewhere/a.raw", True, True),
        ("pflash_rw_implicit", "firmware", Kind.FILE, "/tank/vm/web/guest_BOTH.fd", True, True),
        ("qemu_commandline_drive", DRIVE, Kind.FILE, "/srv/other/data.raw", True, True),
        ("floppy", "floppy fda", Kind.FILE, "/srv/other/f.img", True, True),
        ("nvdimm", "memory nvdimm", Kind.FILE, "/fast/elsewhere/nvdimm", True, True),
        ("hostdev", "hostdev pci", Kind.HOST_DEVICE, "pci 0x0000:0x06:0x12.0x5", True, True),
        ("hostdev_scsi", "hostdev scsi", Kind.HOST_DEVICE, "scsi_host0 0:0:0", True, True),
        ("volume", "disk vda", Kind.VOLUME, "default/a.qcow2", True, True),
        ("interface_bridge", MAC, Kind.NETWORK, "bridge br-not-here", False, False),
        ("startup_policy", "cdrom sda", Kind.FILE, "/srv/iso/gone.iso", False, False),
        ("nvram_block", "firmware variables", Kind.BLOCK, ZVOL, True, True),
        ("nvram_block", "firmware", Kind.FILE, "/usr/share/OVMF/OVMF_CODE.fd", False, False),
        ("passt", f"log of {MAC}", Kind.FILE, "/var/log/passt-web.log", True, False),
        ("passt", MAC, Kind.PORT, "tcp 127.0.0.1:20022-", True, False),
        ("virtiofs_socket", "filesystem tag", Kind.SOCKET, "/tmp/sock", True, False),
        ("tpm_file", "tpm tpm-crb", Kind.FILE, "/tank/vm/web/tpm.state", True, True),
    ],
)  # fmt: skip
def test_definitions(
    name: str, called: str, kind: Kind, place: str, writable: bool, is_state: bool
) -> None:
    assert facts(named_in(name)[called]) == (called, kind, place, writable, is_state)


def test_an_optional_image_is_told() -> None:
    assert named_in("startup_policy")["cdrom sda"].is_optional


@pytest.mark.parametrize("path", sorted(DEFINITIONS.glob("*.xml")), ids=lambda path: path.stem)
def test_no_trial_has_what_is_unknown(path: Path) -> None:
    assert [each for each in resources_of(path.read_text()) if each.kind is Kind.UNKNOWN] == []


def test_a_whole_chain() -> None:
    found = of_devices(
        "<disk type='file'><source file='/a'><dataStore type='block'><source dev='/dev/d'/>"
        "</dataStore></source><backingStore type='file'><source file='/b'><dataStore type='file'>"
        "<source file='/e'/></dataStore></source><backingStore type='network'><source "
        "protocol='rbd' name='p/i'><host name='h' port='1'/></source></backingStore>"
        "</backingStore><mirror type='volume'><source pool='p' volume='v'/></mirror>"
        "<target dev='vda'/></disk>"
    )
    assert [facts(each) for each in found] == [
        ("disk vda", Kind.FILE, "/a", True, True),
        ("data file of disk vda", Kind.BLOCK, "/dev/d", True, True),
        ("backing file of disk vda", Kind.FILE, "/b", False, True),
        ("data file of backing file of disk vda", Kind.FILE, "/e", False, True),
        ("backing file of backing file of disk vda", Kind.REMOTE, "rbd:p/i h:1", False, True),
        ("copy of disk vda", Kind.VOLUME, "p/v", True, True),
    ]
    assert {each.target for each in found} == {"vda"}


def test_a_read_only_disk_keeps_no_state() -> None:
    (found,) = of_devices(
        "<disk type='file'><source file='/a'/><target dev='vda'/><readonly/></disk>"
    )
    assert facts(found) == ("disk vda", Kind.FILE, "/a", False, False)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("<serial type='pty'><source path='/dev/pts/1'/></serial>", None),
        ("<console type='pty' tty='/dev/pts/1'/>", None),
        ("<graphics type='vnc' port='5900' autoport='yes' listen='0.0.0.0'/>", None),
        ("<graphics type='vnc' port='5907' listen='0.0.0.0'/>", "tcp 0.0.0.0:5907"),
        ("<vsock><cid auto='yes' address='3'/></vsock>", None),
        ("<vsock><cid auto='no' address='3'/></vsock>", "vsock 3"),
        ("<serial type='tcp'><source mode='bind' host='::1' service='5'/></serial>", "tcp ::1:5"),
    ],
)
def test_what_libvirt_chooses_at_each_start_is_nothing_of_ours(
    text: str, place: str | None
) -> None:
    assert [each.place for each in of_devices(text)] == ([place] if place else [])


@pytest.mark.parametrize(
    "text",
    [
        "<newdevice path='x'/>",
        "<newdevice what='/a/b'/>",
        "<newdevice><deep><er>/a/b</er></deep></newdevice>",
        "<newdevice><source what='x'/></newdevice>",
        "<disk type='new'><source uri='nbd:/a'/></disk>",
        "<disk type='file'><source file='/dev/fdset/1' fdgroup='g'/></disk>",
    ],
)
def test_what_the_table_does_not_know_is_unknown(text: str) -> None:
    unknown = [each for each in of_devices(text) if each.kind is Kind.UNKNOWN]
    assert unknown
    assert all(each.writable and each.is_state for each in unknown)


WORDS = st.sampled_from(
    [
        "devices",
        "disk",
        "source",
        "backingStore",
        "dataStore",
        "mirror",
        "os",
        "nvram",
        "loader",
        "hostdev",
        "memory",
        "path",
        "new",
        "interface",
        "qemu",
        "backend",
        "filesystem",
        "parallel",
        "log",
        "tpm",
        "readonly",
        "audio",
    ]
)
ELEMENTS = st.recursive(
    st.builds(
        lambda tag, name: (tag, name, ()),
        WORDS,
        st.sampled_from(["file", "dev", "path", "dir", "what", "socket"]),
    ),
    lambda below: st.builds(
        lambda tag, name, children: (tag, name, tuple(children)),
        WORDS,
        st.sampled_from(["file", "what"]),
        st.lists(below, max_size=3),
    ),
    max_leaves=8,
)


@given(ELEMENTS)
def test_no_path_is_missed_in_any_place(tree: tuple) -> None:  # type: ignore[type-arg]
    paths: list[str] = []

    def grown(node: tuple) -> ET.Element:  # type: ignore[type-arg]
        tag, attribute, children = node
        paths.append(f"/n{len(paths)}")
        element = ET.Element(tag, {attribute: paths[-1]})
        element.extend(grown(each) for each in children)
        return element

    root = ET.Element("domain")
    root.append(grown(tree))
    assert {each.place for each in resources_of(ET.tostring(root, "unicode"))} >= set(paths)


def test_what_is_nested_too_deep_is_refused() -> None:
    with pytest.raises(ET.ParseError, match="deep"):
        resources_of("<domain>" + "<a>" * 5000 + "</a>" * 5000 + "</domain>")
