import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.virt import domain_xml
from zvmsnap.virt.domain_xml import Disk

WHOLE = """\
<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web &amp; "shop"</name>
  <uuid>c0ffee00-0000-4000-8000-000000000001</uuid>
  <memory unit='KiB'>524288</memory>
  <os>
    <type arch='x86_64' machine='pc-q35-10.0'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    {nvram}
  </os>
  {cpu}
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {disks}
    <interface type='network'><source network='default'/><target dev='vnet0'/></interface>
  </devices>
</domain>
"""


def domain(disks: str = "", nvram: str = "", cpu: str = "") -> domain_xml.Domain:
    return domain_xml.parse(WHOLE.format(disks=disks, nvram=nvram, cpu=cpu))


def expected(**changes: Any) -> Disk:
    known: dict[str, Any] = {
        "target": "vda",
        "device": "disk",
        "type": "file",
        "source": "/tank/web/a.qcow2",
        "format": "qcow2",
        "readonly": False,
        "shareable": False,
        "transient": False,
    }
    return Disk(**{**known, **changes})


LUKS = (
    "<encryption format='luks'>"
    "<secret type='passphrase' uuid='0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f'/></encryption>"
)
ENCRYPTED = "vda is encrypted (LUKS): an overlay would hold its data in clear text"
DISKS = [
    pytest.param(
        """<disk type='file' device='disk'>
             <driver name='qemu' type='qcow2'/>
             <source file='/tank/web/a.qcow2' index='1'/>
             <backingStore/>
             <target dev='vda' bus='virtio'/>
           </disk>""",
        expected(bus="virtio"),
        True,
        None,
        id="qcow2 file",
    ),
    pytest.param(
        """<disk type='block'>
             <source dev='/dev/zvol/tank/My VMs/a'/>
             <target dev='vda'/>
           </disk>""",
        expected(type="block", source="/dev/zvol/tank/My VMs/a", format="raw"),
        True,
        None,
        id="volume without driver or device",
    ),
    pytest.param(
        """<disk type='file' device='disk'>
             <driver type='qcow2'/>
             <source file='/s/vda.zvmsnap.qcow2'/>
             <backingStore type='file'>
               <format type='qcow2'/>
               <source file='/tank/web/a.qcow2'/>
               <backingStore type='network'>
                 <format type='raw'/>
                 <source protocol='rbd' name='golden'/>
                 <backingStore type='block'>
                   <source dev='/dev/golden'/>
                   <backingStore/>
                 </backingStore>
               </backingStore>
             </backingStore>
             <target dev='vda'/>
           </disk>""",
        expected(source="/s/vda.zvmsnap.qcow2", chain=("/tank/web/a.qcow2", "", "/dev/golden")),
        True,
        None,
        id="backing chain",
    ),
    pytest.param(
        """<disk type='file' device='disk'>
             <driver type='qcow2'/>
             <source file='/tank/web/a.qcow2'/>
             <mirror type='file' job='active-commit'><source file='/b'/></mirror>
             <target dev='vda'/>
           </disk>""",
        expected(mirror="no", mirror_job="active-commit"),
        True,
        None,
        id="block job that is not ready",
    ),
    pytest.param(
        """<disk type='file' device='disk'>
             <driver type='qcow2'/>
             <source file='/tank/web/a.qcow2'/>
             <mirror type='file' job='active-commit' ready='yes'><source file='/b'/></mirror>
             <target dev='vda'/>
           </disk>""",
        expected(mirror="yes", mirror_job="active-commit"),
        True,
        None,
        id="block job that is ready",
    ),
    pytest.param(
        """<disk type='file' device='disk'>
             <driver type='qcow2'/>
             <source file='/tank/web/a.qcow2'/>
             <mirror type='file' job='active-commit' ready='abort'><source file='/b'/></mirror>
             <target dev='vda'/>
           </disk>""",
        expected(mirror="no", mirror_job="active-commit"),
        True,
        None,
        id="block job being aborted",
    ),
    pytest.param(
        """<disk type='volume' device='disk'>
             <driver type='qcow2'/>
             <source pool='images' volume='a.qcow2'/>
             <target dev='vda'/>
           </disk>""",
        expected(type="volume", source="", volume=("images", "a.qcow2")),
        True,
        "vda is of type volume, not a file or block device",
        id="volume of a storage pool",
    ),
    pytest.param(
        """<disk type='network' device='disk'>
             <driver type='raw'/>
             <source protocol='rbd' name='pool/a'/>
             <target dev='vda'/>
           </disk>""",
        expected(type="network", source="", format="raw"),
        True,
        "vda is of type network, not a file or block device",
        id="network",
    ),
    pytest.param(
        """<disk type='block' device='lun'>
             <driver type='raw'/>
             <source dev='/dev/sdz'/>
             <target dev='sda'/>
           </disk>""",
        expected(target="sda", device="lun", type="block", source="/dev/sdz", format="raw"),
        True,
        "sda is a passed-through LUN",
        id="LUN",
    ),
    pytest.param(
        """<disk type='file' device='disk'>
             <driver type='qcow2'/>
             <source file='/tank/web/a.qcow2'/>
             <target dev='vda'/>
             <shareable/>
           </disk>""",
        expected(shareable=True),
        True,
        "vda is shareable",
        id="shareable",
    ),
    pytest.param(
        """<disk type='file' device='disk'>
             <driver type='qcow2'/>
             <source file='/tank/web/a.qcow2'/>
             <target dev='vda'/>
             <transient/>
           </disk>""",
        expected(transient=True),
        True,
        "vda is transient",
        id="transient",
    ),
    pytest.param(
        f"""<disk type='file' device='disk'>
             <driver type='raw'/>
             <source file='/tank/web/luks.img'>{LUKS}</source>
             <target dev='vda'/>
           </disk>""",
        expected(source="/tank/web/luks.img", format="raw", encrypted=True),
        True,
        ENCRYPTED,
        id="LUKS",
    ),
    pytest.param(
        f"""<disk type='file' device='disk'>
             <driver type='qcow2'/>
             <source file='/tank/web/a.qcow2'/>
             <target dev='vda'/>
             {LUKS}
           </disk>""",
        expected(encrypted=True),
        True,
        ENCRYPTED,
        id="qcow2 with LUKS, as it was written of old",
    ),
    pytest.param(
        f"""<disk type='file' device='disk'>
             <driver type='qcow2'/>
             <source file='/tank/web/a.qcow2'/>
             <backingStore type='file'>
               <format type='raw'/>
               <source file='/tank/web/luks.img'>{LUKS}</source>
               <backingStore/>
             </backingStore>
             <target dev='vda'/>
           </disk>""",
        expected(chain=("/tank/web/luks.img",), encrypted=True),
        True,
        ENCRYPTED,
        id="an image below is encrypted",
    ),
    pytest.param(
        """<disk type='file' device='disk'>
             <driver type='qcow2'/>
             <source file='/tank/web/a.qcow2'/>
             <target dev='vda'/>
             <readonly/>
           </disk>""",
        expected(readonly=True),
        False,
        None,
        id="readonly",
    ),
    pytest.param(
        """<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>""",
        expected(target="sda", device="cdrom", source="", format="raw", readonly=True),
        False,
        "sda is of type file, not a file or block device",
        id="empty cdrom",
    ),
    pytest.param(
        """<disk type='file' device='floppy'>
             <source file='/tank/web/f.img'/>
             <target dev='fda'/>
           </disk>""",
        expected(target="fda", device="floppy", source="/tank/web/f.img", format="raw"),
        True,
        None,
        id="floppy",
    ),
    pytest.param(
        """<disk type='file' device='floppy'><target dev='fda'/></disk>""",
        expected(target="fda", device="floppy", source="", format="raw"),
        False,
        "fda is of type file, not a file or block device",
        id="empty floppy drive",
    ),
]


@pytest.mark.parametrize(("xml", "disk", "writable", "why_no_overlay"), DISKS)
def test_disk(xml: str, disk: Disk, writable: bool, why_no_overlay: str | None) -> None:
    assert domain(disks=xml).disks == (disk,)
    assert disk.writable is writable
    assert domain_xml.why_no_overlay(disk) == why_no_overlay


def test_domain() -> None:
    parsed = domain(cpu="<cpu mode='host-passthrough' check='none'/>")
    assert parsed == domain_xml.Domain(
        name='web & "shop"',
        uuid="c0ffee00-0000-4000-8000-000000000001",
        disks=(),
        nvram=None,
        machine="pc-q35-10.0",
        arch="x86_64",
        emulator="/usr/bin/qemu-system-x86_64",
        cpu_mode="host-passthrough",
        cpu_model="",
        memory_kib=524288,
    )


@pytest.mark.parametrize(
    ("xml", "mode", "model"),
    [
        pytest.param("", "", "", id="none"),
        pytest.param("<cpu><topology sockets='1'/></cpu>", "custom", "", id="only topology"),
        pytest.param(
            "<cpu mode='custom'><model fallback='forbid'>Haswell</model></cpu>",
            "custom",
            "Haswell",
            id="model",
        ),
    ],
)
def test_cpu(xml: str, mode: str, model: str) -> None:
    parsed = domain(cpu=xml)
    assert (parsed.cpu_mode, parsed.cpu_model) == (mode, model)


@pytest.mark.parametrize(
    ("xml", "nvram"),
    [
        pytest.param("", None, id="none"),
        pytest.param("<nvram>/var/a_VARS.fd</nvram>", ("file", "/var/a_VARS.fd"), id="text"),
        pytest.param(
            "<nvram template='/t'>\n/var/a\n</nvram>", ("file", "/var/a"), id="text and blanks"
        ),
        pytest.param(
            "<nvram type='file'><source file='/var/a b'/></nvram>",
            ("file", "/var/a b"),
            id="source",
        ),
        pytest.param(
            "<nvram type='block'><source dev='/dev/a'/></nvram>", ("block", "/dev/a"), id="block"
        ),
        pytest.param(
            "<nvram type='network'><source protocol='nbd'/></nvram>", ("network", ""), id="no file"
        ),
        pytest.param("<nvram template='/t'/>", None, id="not made yet"),
    ],
)
def test_nvram(xml: str, nvram: tuple[str, str] | None) -> None:
    assert domain(nvram=xml).nvram == (nvram and domain_xml.Nvram(*nvram))


def test_minimal_domain() -> None:
    parsed = domain_xml.parse("<domain/>")
    assert (parsed.name, parsed.disks, parsed.machine, parsed.memory_kib) == ("", (), "", 0)


XML_TEXT = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]), min_size=1)


@given(
    st.dictionaries(XML_TEXT, XML_TEXT, min_size=1, max_size=3),
    st.lists(XML_TEXT, max_size=3),
    XML_TEXT,
)
def test_snapshot_xml_names_every_disk(
    overlays: dict[str, str], others: list[str], memory: str
) -> None:
    xml = domain_xml.snapshot_xml("a", memory, overlays, tuple(others))
    root = ET.fromstring(xml)
    assert root.tag == "domainsnapshot"
    ram = root.find("memory")
    assert ram is not None
    assert ram.attrib == {"snapshot": "external", "file": memory}
    disks = root.findall("disks/disk")
    assert [disk.get("name") for disk in disks] == [*overlays, *others]
    for disk in disks[: len(overlays)]:
        source, driver = disk.find("source"), disk.find("driver")
        assert source is not None
        assert driver is not None
        assert (disk.get("snapshot"), disk.get("type")) == ("external", "file")
        assert source.get("file") == overlays[disk.get("name", "")]
        assert driver.get("type") == "qcow2"
    for disk in disks[len(overlays) :]:
        assert disk.get("snapshot") == "no"
        assert list(disk) == []


NEW = ("file", "/tank/web/a & <b>.raw", "raw")


@pytest.mark.parametrize(
    ("disk", "new", "expected_disk"),
    [
        pytest.param(
            "<disk type='file'><driver name='qemu' type='qcow2' cache='none'/>"
            "<source file='/staging/o.qcow2' index='3'><seclabel model='dac' relabel='no'/>"
            "</source>"
            "<backingStore type='file'><source file='/tank/web/a'/></backingStore>"
            "<target dev='vda' bus='virtio'/></disk>",
            NEW,
            '<disk type="file"><driver name="qemu" type="raw" cache="none" />'
            '<source index="3" file="/tank/web/a &amp; &lt;b&gt;.raw">'
            '<seclabel model="dac" relabel="no" /></source>'
            '<target dev="vda" bus="virtio" /></disk>',
            id="file to file, the rest stays",
        ),
        pytest.param(
            "<disk type='file' device='disk'><source file='/o'/><target dev='vda'/></disk>",
            ("block", "/dev/zvol/tank/web", "raw"),
            '<disk type="block" device="disk"><source dev="/dev/zvol/tank/web" />'
            '<target dev="vda" /><driver name="qemu" type="raw" /></disk>',
            id="file to volume, without a driver",
        ),
        pytest.param(
            "<disk type='volume'><driver type='qcow2'/>"
            "<source pool='p' volume='v' mode='host'/><target dev='vda'/></disk>",
            NEW,
            '<disk type="file"><driver type="raw" />'
            '<source file="/tank/web/a &amp; &lt;b&gt;.raw" /><target dev="vda" /></disk>',
            id="volume of a pool",
        ),
        pytest.param(
            "<disk type='file'><driver type='qcow2'/><target dev='vda'/></disk>",
            NEW,
            '<disk type="file"><driver type="raw" /><target dev="vda" />'
            '<source file="/tank/web/a &amp; &lt;b&gt;.raw" /></disk>',
            id="no source",
        ),
        pytest.param(
            "<disk type='file'><source file='/x'/><target dev='vdb'/></disk>",
            NEW,
            '<disk type="file"><source file="/x" /><target dev="vdb" /></disk>',
            id="another disk",
        ),
        pytest.param(
            "<disk type='file'><source file='/x'/></disk>",
            NEW,
            '<disk type="file"><source file="/x" /></disk>',
            id="no target",
        ),
    ],
)
def test_with_sources(disk: str, new: tuple[str, str, str], expected_disk: str) -> None:
    changed = domain_xml.with_sources(WHOLE.format(disks=disk, nvram="", cpu=""), {"vda": new})
    assert expected_disk in changed
    for kept in (
        '<name>web &amp; "shop"</name>',
        '<source network="default" /><target dev="vnet0" />',
        "<emulator>/usr/bin/qemu-system-x86_64</emulator>",
    ):
        assert kept in changed
    assert len(domain_xml.parse(changed).disks) == 1


def test_with_other_sources_passed_on_arguments_survive() -> None:
    xml = (
        "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><devices/>"
        "<qemu:commandline><qemu:arg value='-snapshot'/></qemu:commandline></domain>"
    )
    changed = ET.fromstring(domain_xml.with_sources(xml, {"vda": NEW}))
    name = "{http://libvirt.org/schemas/domain/qemu/1.0}"
    argument = changed.find(f"{name}commandline/{name}arg")
    assert argument is not None and argument.get("value") == "-snapshot"


def test_encrypted_disk_of_a_real_definition() -> None:
    xml = (Path(__file__).parents[2] / "data/definitions/luks.xml").read_text()
    (disk,) = domain_xml.parse(xml).disks
    assert domain_xml.why_no_overlay(disk) == ENCRYPTED
    # The clone and the restored guest unlock it with the same secret.
    changed = domain_xml.with_sources(xml, {"vda": ("file", "/tank/vm/w2/luks.img", "raw")})
    (moved,) = domain_xml.parse(changed).disks
    assert (moved.source, moved.encrypted) == ("/tank/vm/w2/luks.img", True)


def test_metadata() -> None:
    checkpoint = """<domaincheckpoint>
      <name>tuesday</name>
      <parent><name>monday</name></parent>
      <creationTime>1764072000</creationTime>
      <disks>
        <disk name='vda' checkpoint='bitmap' bitmap='tuesday'/>
        <disk name='vdb' checkpoint='no'/>
      </disks>
    </domaincheckpoint>"""
    assert domain_xml.read_metadata(checkpoint) == domain_xml.Metadata(
        "tuesday", 1764072000, {"vda": "tuesday"}
    )
    snapshot = """<domainsnapshot>
      <name>own</name><state>disk-snapshot</state>
      <creationTime>1764072001</creationTime><memory snapshot='no'/>
      <disks><disk name='vda' snapshot='external' type='file'><source file='/a'/></disk></disks>
      <domain><name>web</name></domain>
    </domainsnapshot>"""
    assert domain_xml.read_metadata(snapshot) == domain_xml.Metadata(
        "own", 1764072001, {}, frozenset({"/a"})
    )


VOLUME = (
    "<domain><devices><disk type='volume' device='disk'><driver name='qemu' type='qcow2'/>"
    "<source pool='default' volume='a.qcow2'/><target dev='vda'/></disk></devices></domain>"
)
ON_OVERLAY = (
    "<domain><devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
    "<source file='/staging/vda.zvmsnap.qcow2'/><backingStore type='volume'>"
    "<format type='qcow2'/><source pool='default' volume='a.qcow2'/><backingStore/>"
    "</backingStore><target dev='vda'/></disk></devices></domain>"
)


def path_of(pool: str, volume: str) -> str:
    return {("default", "a.qcow2"): "/tank/pool/a.qcow2"}.get((pool, volume), "")


def test_a_volume_has_its_path_and_takes_an_overlay() -> None:
    (disk,) = domain_xml.parse(domain_xml.with_volume_paths(VOLUME, path_of)).disks
    assert (disk.type, disk.source) == ("volume", "/tank/pool/a.qcow2")
    assert disk.volume == ("default", "a.qcow2")
    assert domain_xml.why_no_overlay(disk) is None


def test_a_volume_of_which_libvirt_tells_no_path_takes_none() -> None:
    for path in ("", "rbd-pool/a"):
        xml = domain_xml.with_volume_paths(VOLUME, lambda *_, path=path: path)
        (disk,) = domain_xml.parse(xml).disks
        assert disk.source == ""
        assert domain_xml.why_no_overlay(disk)


def test_a_volume_below_an_overlay_has_its_path() -> None:
    (disk,) = domain_xml.parse(domain_xml.with_volume_paths(ON_OVERLAY, path_of)).disks
    assert (disk.source, disk.chain) == ("/staging/vda.zvmsnap.qcow2", ("/tank/pool/a.qcow2",))


@pytest.mark.parametrize("kind", ["volume", "file"])
def test_what_was_a_volume_is_one_again(kind: str) -> None:
    xml = domain_xml.with_volume_paths(ON_OVERLAY, path_of)
    again = domain_xml.with_sources(xml, {"vda": (kind, "/tank/pool/a.qcow2", "qcow2")})
    (disk,) = domain_xml.parse(again).disks
    assert (disk.type, disk.volume, disk.chain) == ("volume", ("default", "a.qcow2"), ())
    assert disk.source == "/tank/pool/a.qcow2"


@pytest.mark.parametrize(
    ("path", "kind"), [("/tank/other.qcow2", "file"), ("/dev/zvol/tank/a", "block")]
)
def test_a_volume_that_is_elsewhere_now_is_named_by_its_path(path: str, kind: str) -> None:
    xml = domain_xml.with_sources(VOLUME, {"vda": ("volume", path, "raw")})
    (disk,) = domain_xml.parse(xml).disks
    assert (disk.type, disk.source, disk.volume) == (kind, path, None)


def test_cards_whose_link_is_down() -> None:
    card = "<interface type='network'><source network='{}' />{}</interface>"
    cards = [
        card.format("a", '<link state="down" />'),
        card.format("b", '<link state="up" />'),
        card.format("c", ""),
    ]
    xml = f"<domain><devices>{''.join(cards)}</devices></domain>"
    ((up, down),) = domain_xml.unplugged_cards(xml)
    assert 'network="a"' in up
    assert 'state="up"' in up
    assert 'state="down"' in down
