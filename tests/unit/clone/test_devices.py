import pytest

from tests.fakes.clone_definition import INTERFACE, POINT, cloned, domain, last_device, only, plain
from zvmsnap.clone.identity import Network
from zvmsnap.common.errors import CloneImpossible


def unix(tag: str, path: str, mode: str = "bind", inner: str = "") -> str:
    return f"<{tag} type='unix'><source mode='{mode}' path='{path}'/>{inner}</{tag}>"


AGENT = "<target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>"
FREE_AGENT = f"<channel type='unix'><source mode='bind'/>{AGENT}</channel>"

DEVICES = [
    pytest.param(
        "<serial type='file'><source path='/log/web.log' append='on'/><target port='0'/></serial>",
        "<serial type='file'><source path='/log/web2-web.log' append='on'/><target port='0'/>"
        "</serial>",
        id="serial into a file",
    ),
    pytest.param(
        "<serial type='file'><source path='/dev/null'/></serial>",
        "<serial type='file'><source path='/dev/null'/></serial>",
        id="serial into nothing",
    ),
    pytest.param(
        "<serial type='pty'><source path='/dev/pts/3'/><log file='/log/a'/><target port='0'/>"
        "<alias name='serial0'/></serial>",
        "<serial type='pty'><log file='/log/web2-a'/><target port='0'/><alias name='serial0'/>"
        "</serial>",
        id="terminal with a log",
    ),
    pytest.param(
        "<console type='pty' tty='/dev/pts/3'><source path='/dev/pts/3'/>"
        "<target type='serial' port='0'/></console>",
        "<console type='pty'><target type='serial' port='0'/></console>",
        id="console",
    ),
    *(
        pytest.param(
            unix("channel", f"{folder}/org.qemu.guest_agent.0", inner=AGENT), FREE_AGENT, id=folder
        )
        for folder in (
            "/var/lib/libvirt/qemu/channel/target/domain-1-web",
            "/var/lib/libvirt/qemu/domain-1-web",
            "/run/libvirt/qemu/channel/1-web",
            "/home/me/.config/libvirt/qemu/channel/target",
        )
    ),
    pytest.param(
        unix("channel", "/run/web/agent.sock", inner=AGENT),
        unix("channel", "/run/web/web2-agent.sock", inner=AGENT),
        id="channel with a path of the operator",
    ),
    pytest.param(
        unix("channel", "/run/domain-1-web/x", inner="<target type='guestfwd' port='1'/>"),
        unix("channel", "/run/domain-1-web/web2-x", inner="<target type='guestfwd' port='1'/>"),
        id="libvirt makes paths for virtio channels alone",
    ),
    *(
        pytest.param(unix(tag, "/run/a.sock"), unix(tag, "/run/web2-a.sock"), id=f"{tag}, unix")
        for tag in ("serial", "parallel", "console", "redirdev", "smartcard")
    ),
    pytest.param(
        "<rng model='virtio'><backend model='egd' type='unix'><source mode='bind' path='/r/e'/>"
        "</backend></rng>",
        "<rng model='virtio'><backend model='egd' type='unix'>"
        "<source mode='bind' path='/r/web2-e'/></backend></rng>",
        id="rng, unix",
    ),
    pytest.param(
        "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>",
        "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>",
        id="rng",
    ),
    pytest.param(
        "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>",
        "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>",
        id="channel of SPICE",
    ),
    pytest.param(
        "<graphics type='vnc' port='5900' autoport='no' websocket='5700' listen='127.0.0.1' "
        "passwd='p'><listen type='address' address='127.0.0.1'/></graphics>",
        "<graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1' passwd='p'>"
        "<listen type='address' address='127.0.0.1'/></graphics>",
        id="VNC",
    ),
    pytest.param(
        "<graphics type='vnc' socket='/run/v'><listen type='socket' socket='/run/v'/></graphics>",
        "<graphics type='vnc'><listen type='socket'/></graphics>",
        id="VNC at a socket",
    ),
    pytest.param(
        "<graphics type='spice' port='5901' tlsPort='5902' autoport='yes'/>",
        "<graphics type='spice' port='-1' autoport='yes'/>",
        id="SPICE",
    ),
    pytest.param(
        "<graphics type='egl-headless'><gl rendernode='/dev/dri/renderD128'/></graphics>",
        "<graphics type='egl-headless'><gl rendernode='/dev/dri/renderD128'/></graphics>",
        id="graphics without a port",
    ),
    pytest.param(
        "<vsock model='virtio'><cid auto='no' address='3'/></vsock>",
        "<vsock model='virtio'><cid auto='yes'/></vsock>",
        id="vsock",
    ),
    pytest.param(
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0'>"
        "<source type='dir' path='/t/web'/></backend></tpm>",
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>",
        id="TPM",
    ),
    pytest.param(
        "<pstore backend='acpi-erst'><path>/n/web_PSTORE.raw</path></pstore>",
        "<pstore backend='acpi-erst'><path>/n/web2-web_PSTORE.raw</path></pstore>",
        id="pstore",
    ),
    pytest.param(
        "<disk type='file' device='cdrom'><source file='/iso'/><target dev='sda'/><readonly/>"
        "</disk>",
        "<disk type='file' device='cdrom'><source file='/iso'/><target dev='sda'/><readonly/>"
        "</disk>",
        id="CD",
    ),
    pytest.param(
        "<filesystem type='mount'><source dir='/s'/><target dir='s'/><readonly/></filesystem>",
        "<filesystem type='mount'><source dir='/s'/><target dir='s'/><readonly/></filesystem>",
        id="read-only share",
    ),
    pytest.param(
        "<memory model='dimm'><target><size>1</size></target></memory>",
        "<memory model='dimm'><target><size>1</size></target></memory>",
        id="memory",
    ),
    pytest.param("<lease><key>k</key></lease>", None, id="lease"),
]


@pytest.mark.parametrize(("device", "expected"), DEVICES)
def test_device(device: str, expected: str | None) -> None:
    root, warnings = cloned(domain(device))
    assert last_device(root) == (expected and plain(expected))
    assert warnings == ()


WARNED = [
    *(
        pytest.param(
            f"<{tag} type='{kind}'>{source}<protocol type='raw'/><target port='1'/></{tag}>",
            f"<{tag} type='null'><target port='1'/></{tag}>",
            f"{tag} 1 of type {kind} is not connected",
            id=f"{tag}, {kind}",
        )
        for tag in ("serial", "parallel", "redirdev")
        for kind, source in (
            ("tcp", "<source mode='bind' host='0.0.0.0' service='4555'/>"),
            ("udp", "<source mode='bind' service='1'/><source mode='connect' service='2'/>"),
            ("dev", "<source path='/dev/ttyS0'/>"),
            ("pipe", "<source path='/run/pipe'/>"),
            ("unix", "<source mode='connect' path='/run/peer'/>"),
        )
    ),
    pytest.param(
        "<rng model='virtio'><backend model='egd' type='tcp'><source mode='bind' service='1'/>"
        "</backend></rng>",
        "<rng model='virtio'><backend model='egd' type='null'/></rng>",
        "rng of type tcp is not connected",
        id="rng",
    ),
    pytest.param(
        "<disk type='file' device='floppy'><source file='/f'/><target dev='fda'/></disk>",
        "<disk type='file' device='floppy'><target dev='fda'/></disk>",
        "floppy fda: the drive is empty",
        id="floppy",
    ),
    pytest.param(
        "<filesystem type='mount'><source dir='/s'/><target dir='share'/></filesystem>",
        "<filesystem type='mount'><source dir='/s'/><target dir='share'/></filesystem>",
        "filesystem share is shared: both machines write",
        id="share",
    ),
    pytest.param(
        "<shmem name='area'/>", "<shmem name='area'/>", "shmem area is shared", id="shmem"
    ),
]


@pytest.mark.parametrize(("device", "expected", "warning"), WARNED)
def test_device_with_a_warning(device: str, expected: str, warning: str) -> None:
    root, warnings = cloned(domain(device))
    assert last_device(root) == plain(expected)
    assert len(warnings) == 1 and warnings[0].startswith(warning)


@pytest.mark.parametrize("kind", ["file", "unix", "pty", "tcp"])
def test_console_is_the_first_serial(kind: str) -> None:
    inner = "<source mode='bind' path='/run/a' host='h' service='1'/>"
    root, warnings = cloned(
        domain(
            f"<serial type='{kind}'>{inner}<target port='0'/></serial>"
            f"<console type='{kind}'>{inner}<target type='serial' port='0'/></console>"
        )
    )
    serial, console = root.find("devices/serial"), root.find("devices/console")
    assert serial is not None and console is not None
    assert serial.get("type") == console.get("type")
    assert [plain(each) for each in serial.findall("source")] == [
        plain(each) for each in console.findall("source")
    ]
    assert len(warnings) == (kind == "tcp")


KEPT = (
    "<source network='default' bridge='virbr0'/>"
    "<virtualport type='openvswitch'><parameters profileid='f'/></virtualport>"
)
SEEN = "<model type='virtio'/><alias name='net0'/><address type='pci'/>"


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        pytest.param(
            Network.NONE,
            "<interface type='network' trustGuestRxFilters='yes'><mac address='{mac}'/>"
            f"{KEPT}{SEEN}<link state='down'/></interface>",
            id="none",
        ),
        pytest.param(
            Network.KEEP,
            "<interface type='network' trustGuestRxFilters='yes'><mac address='{mac}'/>"
            f"{KEPT}{SEEN}</interface>",
            id="keep",
        ),
        pytest.param(
            Network.ISOLATED,
            f"<interface type='network'><mac address='{{mac}}'/>{SEEN}"
            "<source network='zvmsnap-isolated'/></interface>",
            id="isolated",
        ),
    ],
)
def test_interface(network: Network, expected: str) -> None:
    root, warnings = cloned(domain(INTERFACE.format(kind="network")), network=network)
    mac = root.find("devices/interface/mac")
    assert mac is not None
    assert last_device(root) == plain(expected.format(mac=mac.get("address")))
    assert warnings == ()


def test_link_that_is_up_goes_down() -> None:
    root, _ = cloned(domain("<interface type='user'><link state='up'/></interface>"))
    assert only(root, "devices/interface") == plain(
        "<interface type='user'><link state='down'/></interface>"
    )


def test_any_interface_can_be_isolated() -> None:
    for kind in ("bridge", "direct", "vhostuser", "vdpa", "user"):
        root, _ = cloned(domain(INTERFACE.format(kind=kind)), network=Network.ISOLATED)
        (interface,) = root.findall("devices/interface")
        assert interface.get("type") == "network"
        assert only(root, "devices/interface/source") == plain(
            "<source network='zvmsnap-isolated'/>"
        )


# What cannot exist twice, what messages call it, and whether --cold can leave it out.
ALONE = [
    pytest.param(
        "<hostdev mode='subsystem' type='pci'><source/></hostdev>",
        "hostdev of type pci is one device of the host",
        id="hostdev",
    ),
    pytest.param(
        INTERFACE.format(kind="hostdev"),
        "interface 52:54:00:AA:bb:cc is one device of the host",
        id="interface that is a hostdev",
    ),
    pytest.param(
        "<disk type='block' device='lun'><source dev='/dev/sdz'/><target dev='sda'/></disk>",
        "disk sda is not part of the point",
        id="LUN",
    ),
    pytest.param(
        "<disk type='network'><source protocol='rbd'/><target dev='vdb'/></disk>",
        "disk vdb is not part of the point",
        id="disk elsewhere",
    ),
    pytest.param(
        "<disk type='file'><source file='/x'/></disk>",
        "disk  is not part of the point",
        id="disk without a target",
    ),
]


@pytest.mark.parametrize(("device", "why"), ALONE)
@pytest.mark.parametrize("network", [Network.NONE, Network.KEEP, Network.ISOLATED])
def test_only_one_machine_can_have_it(device: str, why: str, network: Network) -> None:
    with pytest.raises(CloneImpossible) as caught:
        cloned(domain(device), network=network)
    assert str(caught.value).startswith(f"{POINT} cannot be cloned as web2: {why}")
    assert "--cold" in str(caught.value)
    root, warnings = cloned(domain(device), network=network, cold=True)
    assert last_device(root) is None
    assert warnings == (f"{why}: left out",)


def test_cold_without_redirected_devices() -> None:
    device = "<redirdev bus='usb' type='spicevmc'/>"
    assert cloned(domain(device))[1] == ()
    root, warnings = cloned(domain(device), cold=True)
    assert last_device(root) is None
    assert warnings == ("redirdev serves one machine: left out",)


IMPOSSIBLE = [
    *(
        pytest.param(
            f"<tpm><backend type='{kind}'><device path='/dev/tpm0'/></backend></tpm>",
            "",
            f"its TPM of type {kind} serves one machine alone",
            id=f"TPM, {kind}",
        )
        for kind in ("passthrough", "external")
    ),
    *(
        pytest.param(
            f"<memory model='{model}'><source><path>/tank/pmem</path></source></memory>",
            "",
            f"its {model} memory is in /tank/pmem",
            id=model,
        )
        for model in ("nvdimm", "virtio-pmem")
    ),
    *(
        pytest.param(
            INTERFACE.format(kind=kind),
            "",
            f"interface 52:54:00:AA:bb:cc of type {kind} serves one machine: "
            "choose the isolated network",
            id=kind,
        )
        for kind in ("vhostuser", "vdpa", "server", "udp")
    ),
    pytest.param(
        "",
        "<os><loader readonly='no' type='pflash'>/fw</loader></os>",
        "it writes to its firmware /fw",
        id="firmware that is written to",
    ),
]


@pytest.mark.parametrize("cold", [False, True], ids=["with RAM", "cold"])
@pytest.mark.parametrize(("device", "top", "why"), IMPOSSIBLE)
def test_no_clone_at_all(device: str, top: str, why: str, cold: bool) -> None:
    with pytest.raises(CloneImpossible) as caught:
        cloned(domain(device, top), cold=cold)
    assert str(caught.value).startswith(f"{POINT} cannot be cloned as web2: {why}")
