"""No clone shares with its original what one of both writes to, whatever the definition names."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path, PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.clone_definition import identity, plain
from zvmsnap.clone.definitions import own_nvram
from zvmsnap.clone.domain_xml import as_clone
from zvmsnap.clone.identity import Network
from zvmsnap.clone.own_places import OwnPlaces
from zvmsnap.common.errors import CloneImpossible
from zvmsnap.inventory.sharing import shared
from zvmsnap.virt import domain_xml

DEFINITIONS = Path(__file__).parents[2] / "data" / "definitions"
WEB, OWN = "/tank/vm/web", "/tank/vm/web2"
PLACES = OwnPlaces({PurePath(WEB): PurePath(OWN)})


def clone_of(xml: str, *, cold: bool, network: Network = Network.NONE) -> tuple[str, list[str]]:
    """The clone's definition, and its warnings. Raises CloneImpossible, as a plan does."""
    nvram = domain_xml.parse(xml).nvram
    own = own_nvram("web2") if nvram else None
    sources = {
        disk.target: ("file", f"{OWN}/{Path(disk.source).name or 'a.qcow2'}", disk.format)
        for disk in domain_xml.parse(xml).disks
        if disk.writable and (disk.source.startswith(f"{WEB}/") or disk.volume)
    }
    clone = as_clone(xml, identity(nvram=own, network=network), sources, PLACES, cold=cold)
    if reasons := list(shared(clone.xml, [xml])):
        raise CloneImpossible("; ".join(reasons))
    return clone.xml, list(clone.warnings)


def trial(name: str) -> str:
    return (DEFINITIONS / f"{name}.xml").read_text()


# What the clone names, if it can be made: with RAM, and cold; else why not.
TRIALS = [
    ("datastore", "data file of disk vda would be shared with the original: /fast/else", None),
    ("qemu_commandline_drive", "-drive would be shared with the original: /srv/other/data.r", None),
    ("nvdimm", "its nvdimm memory is in /fast/elsewhere/nvdimm, for one machine alone", None),
    ("hostdev", "hostdev of type pci is one device of the host; a clone without its RAM", ""),
    ("hostdev_scsi", "hostdev of type scsi is one device of the host; a clone without", ""),
    ("virtiofs_socket", "filesystem tag: the server at /tmp/sock serves one machine; a ", ""),
    ("pflash_rw_implicit", "", f"{OWN}/guest_BOTH.fd"),
    ("tpm_file", "", f"{OWN}/tpm.state"),
    ("nvram_block", "", ""),
    ("floppy", "", ""),
    ("volume", "", f"{OWN}/a.qcow2"),
    ("luks", "", "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f"),
    ("interface_bridge", "", "type=\"ethernet\""),
    ("midonet", "", "type=\"ethernet\""),
    ("passt", "", "type=\"ethernet\""),
    ("startup_policy", "", "/srv/iso/gone.iso"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "why_not", "named"), TRIALS, ids=[each[0] for each in TRIALS])
def test_trials(name: str, why_not: str, named: str | None) -> None:
    for cold in (False, True):
        if named is None or (why_not and not cold):
            with pytest.raises(CloneImpossible, match=re.escape(why_not)):
                clone_of(trial(name), cold=cold)
            continue
        xml, _ = clone_of(trial(name), cold=cold)
        assert named in xml
        assert "br-not-here" not in xml and "midonet" not in xml and "20022" not in xml


def test_each_trial_is_here() -> None:
    assert {path.stem for path in DEFINITIONS.glob("*.xml")} >= {name for name, _, _ in TRIALS}


@pytest.mark.parametrize(
    ("name", "elsewhere", "here"),
    [
        ("datastore", "/fast/elsewhere/a.raw", "a.raw"),
        ("floppy", "/srv/other/f.img", "f.img"),
        ("nvdimm", "/fast/elsewhere/nvdimm", "nvdimm"),
    ],
)
@pytest.mark.parametrize("cold", [False, True])
def test_what_is_in_a_dataset_of_the_point_is_the_clones_own(
    name: str, elsewhere: str, here: str, cold: bool
) -> None:
    xml, warnings = clone_of(trial(name).replace(elsewhere, f"{WEB}/{here}"), cold=cold)
    assert f"{OWN}/{here}" in xml and f"{WEB}/" not in xml
    assert warnings == []


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize(
    "top",
    [
        "<os><varstore path='{}/v.json'/></os>",
        "<os><loader type='pflash'>{}/both.fd</loader></os>",
        "<os><kernel>{}/vmlinuz</kernel></os>",
    ],
)
def test_firmware_in_a_dataset_of_the_point(top: str, cold: bool) -> None:
    xml, warnings = clone_of(
        trial("volume").replace("<devices>", top.format(WEB) + "<devices>"), cold=cold
    )
    assert plain(top.format(OWN))[4:-5] in plain(xml)
    assert warnings == []


@pytest.mark.parametrize(
    "source",
    [
        "type='mcast'><source address='230.0.0.1' port='5558'/>",
        "type='vhostuser'><backend type='passt'/><source dev='eth0'/>",
        "type='bridge'><source bridge='br0'/>",
        "type='direct'><source dev='eth0' mode='bridge'/>",
    ],
)
def test_networks_are_there_for_many(source: str) -> None:
    card = f"<interface {source}<mac address='52:54:00:11:22:33'/></interface>"
    xml = trial("volume").replace("</devices>", f"{card}</devices>")
    clone, warnings = clone_of(xml, cold=False, network=Network.KEEP)
    assert ET.fromstring(clone).find("devices/interface/source") is not None
    assert warnings == []


# Whatever holds a path, {}: does one machine write to it, or have it alone?
WRITABLE = [
    "<disk type='file' device='{device}'><source file='{}'/><target dev='{target}'/></disk>",
    "<disk type='block' device='{device}'><source dev='{}'/><target dev='{target}'/></disk>",
    "<disk type='file'><source file='{}'><dataStore type='file'><source file='{}'/></dataStore>"
    "</source><target dev='{target}'/></disk>",
    "<disk type='file'><source file='{}'/><mirror type='file' job='copy'><source file='{}'/>"
    "</mirror><target dev='{target}'/></disk>",
    "<disk type='vhostuser'><source type='unix' path='{}'/><target dev='{target}'/></disk>",
    *(
        f"<{tag} type='{kind}'><source mode='{mode}' path='{{}}'/><log file='{{}}'/>"
        "<target type='virtio' name='n' port='0'/></" + f"{tag}>"
        for tag in ("serial", "parallel", "console", "channel", "redirdev", "smartcard")
        for kind, mode in (("file", ""), ("unix", "bind"), ("unix", "connect"), ("dev", ""))
    ),
    "<rng><backend model='egd' type='unix'><source mode='bind' path='{}'/></backend></rng>",
    "<filesystem type='mount'><source dir='{}'/><target dir='t'/></filesystem>",
    "<filesystem type='mount'><source socket='{}'/><target dir='t'/></filesystem>",
    "<filesystem type='block'><source dev='{}'/><target dir='t'/></filesystem>",
    "<memory model='nvdimm'><source><path>{}</path></source></memory>",
    "<memory model='virtio-pmem'><source><path>{}</path></source></memory>",
    "<pstore backend='acpi-erst'><path>{}</path></pstore>",
    "<shmem name='area'><server path='{}'/></shmem>",
    "<lease><lockspace>s</lockspace><key>k</key><target path='{}'/></lease>",
    *(
        f"<tpm><backend type='{kind}'><source type='{source}' path='{{}}'/></backend></tpm>"
        for kind, source in (("emulator", "dir"), ("emulator", "file"), ("external", "unix"))
    ),
    "<tpm><backend type='passthrough'><device path='{}'/></backend></tpm>",
    "<input type='evdev'><source dev='{}'/></input>",
    "<input type='passthrough'><source evdev='{}'/></input>",
    "<hostdev mode='capabilities' type='storage'><source><block>{}</block></source></hostdev>",
    "<hostdev mode='capabilities' type='misc'><source><char>{}</char></source></hostdev>",
    "<interface type='vhostuser'><source type='unix' path='{}' mode='client'/></interface>",
    "<interface type='vdpa'><source dev='{}'/></interface>",
    "<interface type='user'><backend type='passt' logFile='{}'/></interface>",
    "<audio id='1' type='file' path='{}'/>",
    "<graphics type='vnc' socket='{}'><listen type='socket' socket='{}'/></graphics>",
    "<graphics type='dbus' address='unix:path={}'/>",
    "<newdevice path='{}'/>",
    "<newdevice><deep><er>{}</er></deep></newdevice>",
    "<disk type='file'><new><source file='{}'/></new><target dev='{target}'/></disk>",
]
READ = [
    "<disk type='file'><source file='{}'/><target dev='{target}'/><readonly/></disk>",
    "<filesystem type='mount'><source dir='{}'/><target dir='t'/><readonly/></filesystem>",
    "<rng><backend model='random'>{}</backend></rng>",
]
TOPS = [
    "<os><loader type='pflash'>{}</loader></os>",
    "<os><loader type='pflash' readonly='no'>{}</loader><nvram>{}</nvram></os>",
    "<os><nvram type='block'><source dev='{}'/></nvram></os>",
    "<os><varstore path='{}'/></os>",
    "<q:commandline><q:arg value='-drive'/><q:arg value='file={},format=raw'/></q:commandline>",
    "<q:commandline><q:arg value='-serial'/><q:arg value='file:{}'/></q:commandline>",
    "<q:commandline><q:arg value='-newoption'/><q:arg value='{}'/></q:commandline>",
]
ROOTS = st.sampled_from(["/srv/x", "/dev/x", WEB, f"{WEB}/deep", "/run/libvirt/qemu/domain-1-web"])


@st.composite
def definitions(draw: st.DrawFn) -> tuple[str, list[str], list[str]]:
    """A definition, the paths in it that are written to, and all."""
    written: list[str] = []
    paths: list[str] = []

    def filled(template: str, is_written: bool) -> str:
        for _ in range(template.count("{}")):
            path = f"{draw(ROOTS)}/p{len(paths)}-"
            paths.append(path)
            written.extend([path] if is_written else [])
            template = template.replace("{}", path, 1)
        device = draw(st.sampled_from(["disk", "lun", "floppy"]))
        return template.replace("{target}", f"t{len(paths)}").replace("{device}", device)

    devices = [filled(each, True) for each in draw(st.lists(st.sampled_from(WRITABLE), max_size=4))]
    devices += [filled(each, False) for each in draw(st.lists(st.sampled_from(READ), max_size=2))]
    top = filled(draw(st.sampled_from(["", *TOPS])), True)
    namespace = "http://libvirt.org/schemas/domain/qemu/1.0"
    return (
        f"<domain type='kvm' xmlns:q='{namespace}'><name>web</name>{top}"
        f"<devices>{''.join(draw(st.permutations(devices)))}</devices></domain>",
        written,
        paths,
    )


@given(definitions(), st.booleans(), st.sampled_from(Network))
def test_no_clone_shares_what_is_written(
    made: tuple[str, list[str], list[str]], cold: bool, network: Network
) -> None:
    xml, written, paths = made
    try:
        clone, _ = clone_of(xml, cold=cold, network=network)
    except CloneImpossible:
        return
    named = "\n".join(
        text
        for element in ET.fromstring(clone).iter()
        for text in (element.text or "", *element.attrib.values())
    )
    assert [path for path in written if path in named] == []
    # Also what is only read is the clone's own, where the point holds it.
    assert [path for path in paths if path.startswith(WEB) and path in named] == []


@given(st.sampled_from([*WRITABLE, *READ, *TOPS]))
def test_each_kind_can_be_cloned_or_is_refused(template: str) -> None:
    """What the property above says of all is not said of nothing: most can be cloned."""
    path = f"{WEB}/p"
    device = template.replace("{}", path).replace("{target}", "vdb").replace("{device}", "disk")
    inside = device if template in TOPS else f"<devices>{device}</devices>"
    xml = (
        "<domain type='kvm' xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>"
        f"<name>web</name>{inside}{'<devices/>' if template in TOPS else ''}</domain>"
    )
    try:
        clone_of(xml, cold=True)
    except CloneImpossible:
        alone = ("newdevice", "<new>", "tpm", "commandline", "hostdev", "vdpa", "vhostuser", "rng")
        assert any(each in template for each in alone), template
