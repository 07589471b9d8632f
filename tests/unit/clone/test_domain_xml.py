import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.clone_definition import (
    INTERFACE,
    NEW_UUID,
    OLD_UUID,
    POINT,
    QEMU,
    VDA,
    cloned,
    domain,
    identity,
    only,
    plain,
)
from zvmsnap.clone import domain_xml as clone_xml
from zvmsnap.clone.own_places import OwnPlaces
from zvmsnap.common.errors import CloneImpossible
from zvmsnap.virt import domain_xml


def test_identity() -> None:
    root, warnings = cloned(domain())
    assert (root.findtext("name"), root.findtext("uuid")) == ("web2", NEW_UUID)
    assert root.get("id") is None
    assert warnings == ()
    (disk,) = domain_xml.parse(ET.tostring(root, encoding="unicode")).disks
    assert (disk.type, disk.source, disk.format) == VDA["vda"]


def test_mark() -> None:
    first = clone_xml.as_clone(domain(), identity(), VDA, OwnPlaces()).xml
    assert clone_xml.cloned_from(domain()) is None
    assert clone_xml.cloned_from(first) == POINT
    assert f'<zvmsnap:clone point="{POINT}" />' in first
    assert 'xmlns:zvmsnap="urn:zvmsnap:clone"' in first
    again = clone_xml.as_clone(first, identity(point="web2@later"), VDA, OwnPlaces()).xml
    assert clone_xml.cloned_from(again) == "web2@later"
    assert again.count("<zvmsnap:clone") == 1


def test_what_others_put_into_it_stays() -> None:
    libosinfo = "http://libosinfo.org/xmlns/libvirt/domain/1.0"
    root, warnings = cloned(
        domain(
            top=f"<metadata><l:libosinfo xmlns:l='{libosinfo}'><l:os id='debian'/></l:libosinfo>"
            "</metadata><qemu:commandline><qemu:arg value='-x'/></qemu:commandline>"
        )
    )
    os = root.find(f"metadata/{{{libosinfo}}}libosinfo/{{{libosinfo}}}os")
    argument = root.find(f"{{{QEMU}}}commandline/{{{QEMU}}}arg")
    assert os is not None and os.get("id") == "debian"
    assert argument is not None and argument.get("value") == "-x"
    assert len(warnings) == 1 and warnings[0].startswith("qemu:commandline is kept")


TOPS = [
    pytest.param(
        "<sysinfo type='smbios'><system><entry name='serial'>1</entry>"
        f"<entry name='uuid'>{OLD_UUID}</entry></system></sysinfo>",
        "sysinfo",
        "<sysinfo type='smbios'><system><entry name='serial'>1</entry>"
        f"<entry name='uuid'>{NEW_UUID}</entry></system></sysinfo>",
        id="smbios",
    ),
    pytest.param(
        "<seclabel type='dynamic' model='apparmor' relabel='yes'><label>libvirt-c0</label>"
        "<imagelabel>libvirt-c0</imagelabel><baselabel>base</baselabel></seclabel>",
        "seclabel",
        "<seclabel type='dynamic' model='apparmor' relabel='yes'><baselabel>base</baselabel>"
        "</seclabel>",
        id="dynamic label",
    ),
    pytest.param(
        "<seclabel type='static' model='dac'><label>+64055:+64055</label></seclabel>",
        "seclabel",
        "<seclabel type='static' model='dac'><label>+64055:+64055</label></seclabel>",
        id="static label",
    ),
    pytest.param("<genid/>", "genid", "<genid/>", id="genid that is not made yet"),
    pytest.param(
        "<os><nvram template='/t' format='raw'>/n/web_VARS.fd</nvram></os>",
        "os/nvram",
        "<nvram template='/t' format='raw'>/n/web2_VARS.fd</nvram>",
        id="nvram",
    ),
    pytest.param(
        "<os><nvram type='file' format='qcow2'><source file='/n/web'/></nvram></os>",
        "os/nvram",
        "<nvram type='file' format='qcow2'><source file='/n/web2_VARS.fd'/></nvram>",
        id="nvram with a source",
    ),
    pytest.param(
        "<os><nvram type='network'><source protocol='nbd'><host name='h'/></source></nvram></os>",
        "os/nvram",
        "<nvram type='file'><source file='/n/web2_VARS.fd'/></nvram>",
        id="nvram in the network",
    ),
    pytest.param(
        "<os><varstore template='/t' path='/n/web.json'/></os>",
        "os/varstore",
        "<varstore template='/t'/>",
        id="varstore",
    ),
    pytest.param(
        "<os><loader readonly='yes' type='pflash'>/OVMF</loader></os>",
        "os/loader",
        "<loader readonly='yes' type='pflash'>/OVMF</loader>",
        id="firmware",
    ),
]


@pytest.mark.parametrize(("top", "path", "expected"), TOPS)
def test_machine(top: str, path: str, expected: str) -> None:
    root, warnings = cloned(domain(top=top))
    assert only(root, path) == plain(expected)
    assert warnings == ()


@pytest.mark.parametrize(
    ("nvram", "expected"),
    [
        pytest.param("<nvram template='/t'>/n/web</nvram>", "<nvram template='/t'/>", id="text"),
        pytest.param(
            "<nvram type='file' template='/t'><source file='/n/web'/></nvram>",
            "<nvram template='/t'/>",
            id="source",
        ),
    ],
)
def test_nvram_of_libvirts_choice(nvram: str, expected: str) -> None:
    root, _ = cloned(domain(top=f"<os>{nvram}</os>"), nvram=None)
    assert only(root, "os/nvram") == plain(expected)


def test_no_nvram_is_made_up() -> None:
    root, _ = cloned(domain(top="<os><type>hvm</type></os>"))
    assert root.find("os/nvram") is None


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        pytest.param("", "its definition cannot be read", id="nothing"),
        pytest.param("<domain>", "its definition cannot be read", id="cut"),
        pytest.param("<domain/>", "its definition has no devices", id="no devices"),
        pytest.param("<a>" * 5000 + "</a>" * 5000, "its definition cannot be read", id="too deep"),
    ],
)
def test_no_definition(xml: str, why: str) -> None:
    with pytest.raises(CloneImpossible) as caught:
        cloned(xml)
    assert f": {why}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bare_elements_are_no_stumbling_block() -> None:
    tags = ("disk", "interface", "hostdev", "serial", "console", "channel", "rng", "redirdev")
    more = ("smartcard", "graphics", "filesystem", "memory", "vsock", "shmem", "pstore", "lease")
    root, _ = cloned(
        domain("".join(f"<{tag}/>" for tag in (*tags, *more)), top="<os><nvram/></os><sysinfo/>"),
        cold=True,
    )
    assert root.findtext("os/nvram") == "/n/web2_VARS.fd"
    assert root.find("devices/hostdev") is None


def test_twice_the_same_is_the_same() -> None:
    xml = domain(INTERFACE.format(kind="network"), top=f"<genid>{OLD_UUID}</genid>")
    assert clone_xml.as_clone(xml, identity(), VDA, OwnPlaces()) == clone_xml.as_clone(
        xml, identity(), VDA, OwnPlaces()
    )


MACS = st.binary(min_size=6, max_size=6).map(lambda mac: mac.hex(":"))


@given(st.lists(MACS, min_size=2, max_size=5, unique=True), st.uuids(), st.uuids())
def test_derived_numbers(macs: list[str], one: Any, other: Any) -> None:
    xml = domain(
        "".join(f"<interface type='user'><mac address='{mac}'/></interface>" for mac in macs),
        top=f"<genid>{OLD_UUID}</genid>",
    )

    def numbers(uuid: str) -> list[str]:
        root, _ = cloned(xml, uuid=uuid)
        addresses = [mac.get("address", "") for mac in root.findall("devices/interface/mac")]
        assert all(mac.startswith("52:54:00:") and len(mac) == 17 for mac in addresses)
        genid = root.findtext("genid", "")
        assert len(genid) == 36 and genid != OLD_UUID
        return [*addresses, genid]

    assert numbers(str(one)) == numbers(str(one))
    if one != other:
        assert numbers(str(one)) != numbers(str(other))
    assert not set(numbers(str(one))) & set(macs)


def test_the_same_mac_in_any_writing() -> None:
    live, persistent = (
        only(cloned(domain(f"<interface><mac address='{mac}'/></interface>"))[0], "devices//mac")
        for mac in ("52:54:00:AA:BB:CC", "52:54:00:aa:bb:cc")
    )
    assert live == persistent
