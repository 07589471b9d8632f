import pytest

from tests.fakes.clone_definition import INTERFACE, POINT, cloned, domain, last_device, only, plain
from zvmsnap.clone.identity import Network
from zvmsnap.common.errors import CloneImpossible


def unix(tag: str, path: str, mode: str = "bind", inner: str = "") -> str:
    return f"<{tag} type='unix'><source mode='{mode}' path='{path}'/>{inner}</{tag}>"


AGENT = "<target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>"
FREE_AGENT = f"<channel type='unix'><source mode='bind'/>{AGENT}</channel>"

CHAIN = "<backingStore type='{}'><format type='qcow2'/><source {}/></backingStore>"

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
    *(
        pytest.param(
            f"<disk type='file'><source file='/tank/web2/x'/>{chain}<target dev='vda'/></disk>",
            "<disk type='file'><source file='/tank/web2/a.raw'/>"
            f"{kept}<target dev='vda'/><driver name='qemu' type='raw'/></disk>",
            id=f"chain of type {kind}",
        )
        for kind, chain, kept in (
            (
                "file",
                CHAIN.format("file", "file='/golden'"),
                CHAIN.format("file", "file='/golden'"),
            ),
            ("volume", CHAIN.format("volume", "pool='p' volume='v'"), ""),
        )
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
    pytest.param(
        "<audio id='1' type='file' path='/log/web.wav'/>",
        "<audio id='1' type='file' path='/log/web2-web.wav'/>",
        id="sound into a file",
    ),
    pytest.param("<audio id='1' type='spice'/>", "<audio id='1' type='spice'/>", id="sound"),
    pytest.param(
        "<graphics type='dbus' address='unix:path=/run/bus'/>",
        "<graphics type='dbus'/>",
        id="screen on a bus of its own",
    ),
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
        "<graphics type='sdl' display=':0.1' xauth='/root/.Xauthority'/>",
        None,
        "graphics of type sdl: left out",
        id="window",
    ),
    *(
        pytest.param(
            unix("channel", path, "connect", "<target type='virtio' name='a'/>"),
            "<channel type='null'><target type='virtio' name='a'/></channel>",
            "channel a of type unix is not connected",
            id=f"channel that connects to {path}",
        )
        for path in ("/run/peer", "/var/lib/libvirt/qemu/channel/target/domain-1-web/a")
    ),
]


@pytest.mark.parametrize("cold", [False, True], ids=["with RAM", "cold"])
def test_evdev_is_left_out_as_no_guest_sees_it(cold: bool) -> None:
    device = "<input type='evdev'><source dev='/dev/input/event1' grab='all'/></input>"
    root, warnings = cloned(domain(device), cold=cold)
    assert last_device(root) is None
    assert warnings == ("evdev /dev/input/event1 is one device of the host: left out",)


@pytest.mark.parametrize(("device", "expected", "warning"), WARNED)
def test_device_with_a_warning(device: str, expected: str | None, warning: str) -> None:
    root, warnings = cloned(domain(device))
    assert last_device(root) == (expected and plain(expected))
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
            f"<interface type='ethernet'><mac address='{{mac}}'/>{SEEN}"
            "<link state='down'/></interface>",
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
        "<interface type='ethernet'><link state='down'/></interface>"
    )


# What a card has on the host alone. Each needs something of it, or is there once.
HOST_SIDE = (
    "<source bridge='br-not-here'/><virtualport type='midonet'><parameters interfaceid='i'/>"
    "</virtualport><backend type='passt' logFile='/var/log/web.log'/><portForward proto='tcp'>"
    "<range start='20022' to='22'/></portForward><filterref filter='not-here'/><vlan><tag id='7'/>"
    "</vlan><script path='/s'/><port isolated='yes'/><ip address='192.0.2.1'/><coalesce/>"
    "<bandwidth><inbound average='1' floor='1'/></bandwidth>"
)


@pytest.mark.parametrize(
    "kind", ["bridge", "network", "direct", "vhostuser", "vdpa", "user", "server", "client", "udp"]
)
@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (Network.NONE, "<interface type='ethernet'>{seen}<link state='down'/></interface>"),
        (
            Network.ISOLATED,
            "<interface type='network'>{seen}<source network='zvmsnap-isolated'/></interface>",
        ),
    ],
)
def test_needs_nothing_of_the_originals_network(kind: str, network: Network, expected: str) -> None:
    seen = "<model type='virtio'/><mtu size='9000'/><driver queues='2'/>"
    device = f"<interface type='{kind}'>{HOST_SIDE}{seen}</interface>"
    root, warnings = cloned(domain(device), network=network)
    assert last_device(root) == plain(expected.format(seen=seen))
    assert warnings == ()


def test_kept_network_without_log_and_ports_of_the_original() -> None:
    device = (
        "<interface type='user'><mac address='52:54:00:11:22:33'/>"
        "<backend type='passt' logFile='/var/log/passt-web.log'/>"
        "<portForward proto='tcp'><range start='20022' to='22'/></portForward></interface>"
    )
    root, warnings = cloned(domain(device), network=Network.KEEP)
    assert only(root, "devices/interface/backend") == plain(
        "<backend type='passt' logFile='/var/log/web2-passt-web.log'/>"
    )
    assert root.find("devices/interface/portForward") is None
    assert warnings == (
        "interface 52:54:00:11:22:33 has no ports of the host: these are the original's",
    )


def test_passt_serves_each_machine_anew() -> None:
    device = "<interface type='vhostuser'><backend type='passt'/><source dev='eth0'/></interface>"
    root, _ = cloned(domain(device), network=Network.KEEP)
    assert last_device(root) == plain(device)


ONE_PEER = [
    *(
        pytest.param(INTERFACE.format(kind=kind), kind, id=kind)
        for kind in ("vhostuser", "vdpa", "server", "client", "udp")
    ),
    pytest.param(
        "<interface type='bridge'><mac address='52:54:00:AA:bb:cc'/><source bridge='midonet'/>"
        "<virtualport type='midonet'><parameters interfaceid='i'/></virtualport></interface>",
        "midonet",
        id="midonet",
    ),
]


@pytest.mark.parametrize(("device", "kind"), ONE_PEER)
def test_network_with_one_peer_cannot_be_kept(device: str, kind: str) -> None:
    with pytest.raises(CloneImpossible) as caught:
        cloned(domain(device), network=Network.KEEP)
    assert str(caught.value).startswith(
        f"{POINT} cannot be cloned as web2: interface 52:54:00:AA:bb:cc of type {kind} serves one "
        "machine: choose the isolated network, or none"
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
        "<interface type='network'><mac address='52:54:00:AA:bb:cc'/>"
        "<source network='vf-pool'/><teaming type='transient' persistent='ua-b'/></interface>",
        "interface 52:54:00:AA:bb:cc is one device of the host",
        id="interface of a pool of hostdevs",
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
        "<filesystem type='mount'><source dir='/s'/><target dir='share'/></filesystem>",
        "filesystem share would be shared: both machines would write to the same directory",
        id="share",
    ),
    pytest.param(
        "<filesystem type='mount'><driver type='virtiofs'/><source socket='/tmp/sock'/>"
        "<target dir='tag'/><readonly/></filesystem>",
        "filesystem tag: the server at /tmp/sock serves one machine",
        id="virtiofs of a socket",
    ),
    pytest.param("<shmem name='area'/>", "shmem area would be shared by both machines", id="shmem"),
    pytest.param(
        "<input type='passthrough' bus='virtio'><source evdev='/dev/input/event1'/></input>",
        "passed-through input serves one machine",
        id="passed-through input",
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
            "",
            f"<os><loader {readonly} type='pflash'>/fw</loader></os>",
            "it writes to its firmware /fw: give it an <nvram> first",
            id=f"firmware that is written to, {readonly or 'without a word'}",
        )
        for readonly in ("readonly='no'", "")
    ),
    pytest.param(
        "<tpm><backend type='emulator'><source type='file' path='/t/state'/></backend></tpm>",
        "",
        "the state of its TPM is in /t/state, which is in no dataset of the point",
        id="TPM, file elsewhere",
    ),
]


@pytest.mark.parametrize("cold", [False, True], ids=["with RAM", "cold"])
@pytest.mark.parametrize(("device", "top", "why"), IMPOSSIBLE)
def test_no_clone_at_all(device: str, top: str, why: str, cold: bool) -> None:
    with pytest.raises(CloneImpossible) as caught:
        cloned(domain(device, top), cold=cold)
    assert str(caught.value).startswith(f"{POINT} cannot be cloned as web2: {why}")
