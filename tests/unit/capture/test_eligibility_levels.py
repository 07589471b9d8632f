"""Which levels are within a guest's reach, and which are wanted of it."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.capture import eligibility
from zvmsnap.capture.eligibility import Eligibility
from zvmsnap.common.errors import ModeInvalid
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.mode import parse_mode
from zvmsnap.disks.location import GuestDisks
from zvmsnap.virt import domain_xml
from zvmsnap.virt.domain_xml import Disk, Domain
from zvmsnap.zfs.mounts import DiskLocation
from zvmsnap.zfs.types import Dataset

AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'{}/></channel>"
SPICE = "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'{}/></channel>"


@pytest.mark.parametrize(
    ("devices", "agent"),
    [
        pytest.param("", "", id="none"),
        pytest.param(SPICE.format(" state='connected'"), "", id="another channel"),
        pytest.param("<channel type='pty'/>", "", id="a channel without a name"),
        pytest.param(AGENT.format(" state='connected'"), "connected", id="connected"),
        pytest.param(AGENT.format(" state='disconnected'"), "disconnected", id="disconnected"),
        pytest.param(AGENT.format(""), "disconnected", id="off: libvirt says nothing"),
        pytest.param(
            SPICE.format(" state='disconnected'") + AGENT.format(" state='connected'"),
            "connected",
            id="behind another channel",
        ),
    ],
)
def test_agent(devices: str, agent: str) -> None:
    assert domain_xml.parse(f"<domain><devices>{devices}</devices></domain>").agent == agent


def invtsc(policy: str = " policy='require'", clock: str = "") -> str:
    return f"<cpu><feature name='invtsc'{policy}/></cpu><clock>{clock}</clock><devices/>"


TSC = "CPU feature invtsc without a TSC frequency"
PEER = "shared memory db (shmem) without role='master'"

UNMIGRATABLE = [
    pytest.param("<devices/>", "", id="nothing"),
    pytest.param("<devices><shmem name='db' role='peer'/></devices>", PEER, id="shmem, peer"),
    pytest.param("<devices><shmem name='db'/></devices>", PEER, id="shmem, no role"),
    pytest.param("<devices><shmem name='db' role='master'/></devices>", "", id="shmem, master"),
    pytest.param(
        "<devices><shmem name='a' role='master'/><shmem name='db'/></devices>", PEER, id="two shmem"
    ),
    pytest.param(invtsc(), TSC, id="invtsc"),
    pytest.param(invtsc(""), TSC, id="invtsc, required unless said"),
    pytest.param(invtsc(" policy='force'"), TSC, id="invtsc, forced"),
    pytest.param(invtsc(" policy='disable'"), "", id="invtsc, disabled"),
    pytest.param(invtsc(clock="<timer name='tsc' frequency='3504000000'/>"), "", id="frequency"),
    pytest.param(invtsc(clock="<timer name='tsc' mode='native'/>"), TSC, id="no frequency"),
    pytest.param(invtsc(clock="<timer name='pit' frequency='1'/>"), TSC, id="another timer"),
    pytest.param("<cpu><feature name='vmx'/></cpu>", "", id="another feature"),
    pytest.param(
        "<devices><interface type='vdpa'/></devices>", "a vDPA network card", id="vDPA card"
    ),
    pytest.param("<devices><interface type='network'/></devices>", "", id="another card"),
    *(
        pytest.param(f"<devices>{device}</devices>", why, id=device)
        for device, why in (
            ("<hostdev mode='subsystem' type='usb'/>", ""),
            ("<hostdev mode='subsystem' type='pci'/>", "a passed-through PCI device"),
            ("<hostdev type='pci'><teaming type='transient' persistent='n'/></hostdev>", ""),
            ("<hostdev mode='subsystem' type='scsi'/>", "a passed-through SCSI device"),
            ("<hostdev mode='subsystem' type='mdev'/>", "a passed-through mediated device"),
            ("<hostdev mode='capabilities' type='misc'/>", "a passed-through device (misc)"),
            ("<interface type='hostdev'/>", "a passed-through network card"),
            ("<interface type='hostdev'><teaming type='transient'/></interface>", ""),
            ("<input type='passthrough'/>", "a passed-through input device"),
            ("<filesystem><driver type='path'/></filesystem>", ""),
            ("<disk><target dev='nvme0n1' bus='nvme'/></disk>", "an NVMe controller"),
            ("<disk><driver type='vmdk'/></disk>", "a disk of format vmdk"),
            ("<sound model='usb'/>", "a USB sound card"),
            ("<sound model='virtio'/>", "a virtio sound card"),
            ("<sound model='ich9'/>", ""),
            ("<crypto model='virtio'/>", "a crypto device"),
            ("<disk><driver type='qcow2'/></disk>", ""),
            (
                "<disk><driver type='qcow2'/><backingStore><format type='vdi'/></backingStore>"
                "</disk>",
                "a disk of format vdi",
            ),
        )
    ),
    pytest.param(
        "<launchSecurity type='sev-snp'/>",
        "encrypted RAM (launchSecurity sev-snp)",
        id="encrypted RAM",
    ),
]


CELLS = "<cpu><numa><cell memory='{}' unit='KiB'/><cell memory='{}' unit='KiB'/></numa></cpu>"
MODULE = "<devices><memory><target><size unit='KiB'>{}</size></target></memory></devices>"
IN_PARTS = "NUMA cells or memory modules, with emulated CPUs: QEMU misses what they write"


@pytest.mark.parametrize(
    ("kind", "xml", "why"),
    [
        ("qemu", CELLS.format(131072, 65536), IN_PARTS),
        ("qemu", MODULE.format(131072), IN_PARTS),
        ("kvm", CELLS.format(65536, 131072) + MODULE.format(262144), ""),
        ("qemu", "<memory unit='KiB'>65536</memory>", ""),
        ("qemu", "<cpu><numa><cell memory='65536' unit='KiB'/></numa></cpu>", ""),
    ],
)
def test_memory_in_parts_of_emulated_cpus(kind: str, xml: str, why: str) -> None:
    assert domain_xml.parse(f"<domain type='{kind}'>{xml}</domain>").unmigratable == why


@pytest.mark.parametrize(("xml", "why"), UNMIGRATABLE)
def test_unmigratable(xml: str, why: str) -> None:
    assert domain_xml.parse(f"<domain>{xml}</domain>").unmigratable == why


def test_snapshot_xml_of_disks_that_are_left_to_us() -> None:
    # Without an overlay the guest stays paused; without a file no RAM is dumped.
    assert domain_xml.snapshot_xml("a", "/m", {"vda": ""}, ("sda",)) == (
        '<domainsnapshot><name>a</name><memory snapshot="external" file="/m" /><disks>'
        '<disk name="vda" snapshot="manual" /><disk name="sda" snapshot="no" />'
        "</disks></domainsnapshot>"
    )
    assert domain_xml.snapshot_xml("a", "", {"vda": "/o"}, ()) == (
        '<domainsnapshot><name>a</name><disks><disk name="vda" snapshot="external" type="file">'
        '<driver type="qcow2" /><source file="/o" /></disk></disks></domainsnapshot>'
    )


INSIDE, OUTSIDE = DiskLocation("tank/web", "a"), DiskLocation("other/web", "b")
COVERED = frozenset({"tank/web"})


def disk(
    target: str = "vda",
    device: str = "disk",
    *,
    readonly: bool = False,
    shareable: bool = False,
    transient: bool = False,
) -> Disk:
    image = f"/images/{target}"
    return Disk(target, device, "file", image, "raw", readonly, shareable, transient)


def placed(
    state: str = "running",
    disks: tuple[Disk, ...] = (disk(),),
    agent: str = "connected",
    unmigratable: str = "",
    doubts: Mapping[str, str] | None = None,
    no_overlays: Mapping[str, str] | None = None,
    **elsewhere: DiskLocation,
) -> Eligibility:
    domain = Domain("web", "u", disks, None, "", "", "", "", "", 1, agent, unmigratable)
    places = {each.target: INSIDE for each in disks} | elsewhere
    located = GuestDisks(domain, state, places, doubts or {}, no_overlays or {})
    eligible = eligibility.assess(located, COVERED)
    assert eligible
    return eligible


NO_AGENT, NOT_CONNECTED = "it has no channel for an agent", "its agent is not connected"
SPLIT = "not all disks are in this snapshot: vdb (on other/web)"
TRANSIENT = "its RAM cannot be saved because vda is transient"
SHMEM = "its RAM cannot be saved because of shmem"
SHAREABLE = "a disk cannot be frozen: vda is shareable"
LUN = "a disk cannot be frozen: sda is a passed-through LUN"
TWO = (disk(), disk("vdb"))
WRITABLE, READ = (disk(), disk("vdb")), (disk(), disk("vdb", readonly=True))
UNSURE = {"vdb": "/dev/disk/by-uuid/1 leads to a clone"}
DOUBT = "its disks are not surely known: vdb: /dev/disk/by-uuid/1 leads to a clone"
BY_LINK = "a disk cannot be frozen: vdb: by a link"
OBSTACLES = [
    # Why not memory, paused, quiesced.
    pytest.param(placed(), None, None, None, id="nothing is in the way"),
    pytest.param(placed(agent=""), None, None, NO_AGENT, id="no channel"),
    pytest.param(placed(agent="disconnected"), None, None, NOT_CONNECTED, id="no agent"),
    pytest.param(placed(unmigratable="shmem"), SHMEM, SHMEM, None, id="a device"),
    pytest.param(placed(disks=TWO, vdb=OUTSIDE), SPLIT, SPLIT, None, id="a disk elsewhere"),
    pytest.param(
        placed(disks=TWO, vdb=OUTSIDE, unmigratable="shmem"), SPLIT, SPLIT, None, id="both"
    ),
    pytest.param(placed(disks=(disk(shareable=True),)), SHAREABLE, None, None, id="shareable"),
    pytest.param(placed(disks=(disk("sda", "lun"),)), LUN, None, None, id="a LUN"),
    pytest.param(placed(disks=(disk(transient=True),)), TRANSIENT, TRANSIENT, None, id="transient"),
    pytest.param(
        placed(disks=(disk(), disk("vdb", transient=True, readonly=True))),
        None,
        None,
        None,
        id="a disk that it only reads",
    ),
    pytest.param(placed(disks=WRITABLE, doubts=UNSURE), DOUBT, DOUBT, None, id="not surely known"),
    pytest.param(
        placed(disks=READ, doubts=UNSURE), None, None, None, id="not known, but read only"
    ),
    pytest.param(
        placed(disks=WRITABLE, no_overlays={"vdb": "by a link"}),
        BY_LINK,
        None,
        None,
        id="a link that QEMU opens anew",
    ),
    *(
        pytest.param(placed(state), *[f"the guest is {state}"] * 3, id=state)
        for state in ("paused", "shutting down", "shut off")
    ),
]


@pytest.mark.parametrize(("eligible", "memory", "paused", "quiesced"), OBSTACLES)
def test_obstacles(
    eligible: Eligibility, memory: str | None, paused: str | None, quiesced: str | None
) -> None:
    wanted = {
        ConsistencyLevel.MEMORY: memory,
        ConsistencyLevel.PAUSED: paused,
        ConsistencyLevel.QUIESCED: quiesced,
    }
    assert eligible.obstacles == {level: why for level, why in wanted.items() if why}


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("shut off", "vdb: /dev/disk/by-uuid/1 leads to a clone"),
        ("paused", None),
        ("running", None),
    ],
)
def test_off_with_a_disk_that_nothing_tells(state: str, why: str | None) -> None:
    obstacles = placed(state, disks=WRITABLE, doubts=UNSURE).obstacles
    assert obstacles.get(ConsistencyLevel.OFFLINE) == why


@pytest.mark.parametrize(
    ("eligible", "why"),
    [
        (placed(disks=TWO), ""),
        (placed(disks=TWO, doubts=UNSURE), "vdb: /dev/disk/by-uuid/1 leads to a clone"),
        (placed(disks=TWO, no_overlays={"vda": "by a link"}), "vda: by a link"),
        (placed(disks=(disk(shareable=True),)), "vda is shareable"),
        # That one gets no overlay anyway.
        (placed(disks=(disk(), disk("vdb", shareable=True)), vdb=OUTSIDE), ""),
        (placed(disks=READ, no_overlays={"vdb": "by a link"}), ""),
    ],
)
def test_no_overlay(eligible: Eligibility, why: str) -> None:
    assert eligible.no_overlay == why


def test_disk_of_which_another_is_open_is_no_disk_of_the_snapshot() -> None:
    domain = Domain("web", "u", TWO, None, "", "", "", "", "", 1, "", "")
    located = GuestDisks(domain, "running", {"vda": INSIDE}, {"vdb": "QEMU has another"})
    eligible = eligibility.assess(located, COVERED)
    why = "not all disks are in this snapshot: vdb (QEMU has another)"
    assert eligible and eligible.obstacles[ConsistencyLevel.PAUSED] == why
    assert eligibility.doubts_of(located) == ["vdb: QEMU has another"]


@pytest.mark.parametrize(
    ("state", "off"), [("running", False), ("paused", False), ("shut off", True), ("crashed", True)]
)
def test_is_off(state: str, off: bool) -> None:
    assert placed(state).is_off is off


def dataset(name: str, **modes: str) -> Dataset:
    general = modes.pop("all", "")
    return Dataset(name, "filesystem", False, mode=general, modes=modes)


HOURLY, BOTH = ("hourly",), ("hourly", "daily")


@pytest.mark.parametrize(
    ("modes", "types", "excluded"),
    [
        pytest.param({}, HOURLY, False, id="nothing said"),
        pytest.param({"all": "off"}, HOURLY, True, id="off"),
        pytest.param({"all": "off"}, (), True, id="off, of no type"),
        pytest.param({"all": "OFF"}, HOURLY, False, id="a word of its own, refused later"),
        pytest.param({"hourly": "off"}, HOURLY, True, id="off for it"),
        pytest.param({"hourly": "off"}, (), False, id="off for one"),
        pytest.param({"daily": "off"}, HOURLY, False, id="off for another"),
        pytest.param({"daily": "off"}, BOTH, False, id="off for one of them"),
        pytest.param({"daily": "off", "hourly": "off"}, BOTH, True, id="off for each of them"),
        pytest.param({"all": "off", "hourly": "crash"}, BOTH, False, id="off but for one"),
        pytest.param({"all": "off", "hourly": "crash"}, ("daily",), True, id="off for the others"),
        pytest.param({"all": "crash", "daily": "off"}, ("daily",), True, id="off for this one"),
    ],
)
def test_without_excluded(modes: dict[str, str], types: tuple[str, ...], excluded: bool) -> None:
    datasets = {"tank/web": dataset("tank/web", **modes), "tank/db": dataset("tank/db")}
    names = {"tank/db"} if excluded else {"tank/db", "tank/web"}
    assert eligibility.without_excluded(datasets, datasets, types) == names


DEFAULT = {"": "memory", "daily": "paused,crash"}

DEMANDS = [
    pytest.param({}, {}, HOURLY, ["memory"], id="the configuration's"),
    pytest.param({}, {}, BOTH, ["memory", "paused,crash"], id="the configuration's, of each type"),
    pytest.param({"all": "crash"}, {}, ("daily",), ["crash", "paused,crash"], id="each dataset's"),
    pytest.param({"all": "crash"}, {"all": "crash"}, BOTH, ["crash"], id="the same of both"),
    pytest.param(
        {"daily": "quiesced"}, {"all": "crash"}, BOTH, ["crash", "memory", "quiesced"], id="mixed"
    ),
    pytest.param({"all": "off"}, {"all": "crash"}, HOURLY, ["crash"], id="one of them off"),
    pytest.param(
        {"daily": "off"}, {"all": "off"}, BOTH, ["memory"], id="off of one type, and of all"
    ),
    pytest.param({"all": "off"}, {"all": "off"}, HOURLY, [], id="all off"),
    pytest.param({"all": "ram", "hourly": "crash"}, {"all": "off"}, HOURLY, ["crash"], id="unused"),
    pytest.param({}, {}, ("manual",), ["memory"], id="by hand"),
]


@pytest.mark.parametrize(("web", "db", "types", "orders"), DEMANDS)
def test_demand(
    web: dict[str, str], db: dict[str, str], types: tuple[str, ...], orders: list[str]
) -> None:
    datasets = {"tank/web": dataset("tank/web", **web), "tank/db": dataset("tank/db", **db)}
    modes = eligibility.modes_for(datasets, datasets, types, DEFAULT)
    assert set(modes.modes) == {parse_mode(text) for text in orders}
    assert len(modes.modes) == len(orders)


def test_the_dataset_of_an_invalid_demand_is_named() -> None:
    datasets = {name: dataset(name) for name in ("a", "b")} | {"c": dataset("c", hourly="ram")}
    with pytest.raises(ModeInvalid) as caught:
        eligibility.modes_for(datasets, datasets, BOTH, DEFAULT)
    assert str(caught.value).startswith("c: zvmsnap:mode 'ram': 'ram' is no level; say memory, ")
    assert str(caught.value).endswith("; 'off' leaves it out")


MODES = st.dictionaries(
    st.sampled_from(["all", "hourly", "daily"]), st.sampled_from(["off", "crash", "memory,crash"])
)


@given(st.lists(MODES, min_size=1, max_size=3), st.sampled_from([HOURLY, ("daily",), BOTH]))
def test_what_is_not_excluded_demands_something(
    said: list[Mapping[str, str]], types: tuple[str, ...]
) -> None:
    datasets = {f"tank/{number}": dataset("x", **modes) for number, modes in enumerate(said)}
    included = eligibility.without_excluded(datasets, datasets, types)
    for name in datasets:
        wanted = eligibility.modes_for([name], datasets, types, DEFAULT)
        assert bool(wanted.modes) is (name in included)
