import pytest

from zvmsnap.inventory.beyond import beyond
from zvmsnap.inventory.resource import Resource

WHOLE = """\
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name>
  <os><type arch='x86_64' machine='q35'>hvm</type>{boot}</os>
  <devices>{devices}</devices>{top}
</domain>
"""


def is_own(resource: Resource) -> bool:
    return resource.place.startswith("/own/")


def reached(devices: str = "", boot: str = "", top: str = "") -> tuple[str, ...]:
    return beyond(WHOLE.format(devices=devices, boot=boot, top=top), is_own)


def disk(source: str, driver: str = "type='qcow2'", more: str = "", top: str = "") -> str:
    return (
        f"<disk type='file' device='disk' {top}><driver name='qemu' {driver}/>{source}{more}"
        "<target dev='vda'/></disk>"
    )


ORDINARY = [
    "<emulator>/usr/bin/qemu-system-x86_64</emulator>",
    "<emulator>/usr/bin/kvm</emulator>",
    disk("<source file='/own/a.qcow2'/>"),
    disk(
        "<source file='/own/a'/>",
        more="<backingStore type='file'><format type='raw'/><source file='/own/b'/></backingStore>",
    ),
    "<disk type='block' device='disk'><source dev='/own/dev'/><target dev='vdb'/></disk>",
    "<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>",
    "<serial type='pty'><source path='/dev/pts/3'/><target port='0'/></serial>",
    "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
    "<channel type='unix'><source mode='bind' path='/run/libvirt/qemu/channel/3-web/org.x.0'/>"
    "<target type='virtio' name='org.x.0'/></channel>",
    "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>",
    "<interface type='network'><source network='default' portid='x' bridge='virbr0'/>"
    "<target dev='vnet1'/></interface>",
    "<interface type='bridge'><source bridge='br0'/></interface>",
    "<interface type='direct'><source dev='eth0' mode='bridge'/></interface>",
    "<interface type='user'/>",
    "<graphics type='vnc' port='5901' autoport='yes' listen='127.0.0.1'/>",
    "<graphics type='spice' port='5901'><listen type='address' address='0.0.0.0'/></graphics>",
    "<graphics type='vnc' socket='/var/lib/libvirt/qemu/domain-3-web/vnc.sock'>"
    "<listen type='socket' socket='/var/lib/libvirt/qemu/domain-3-web/vnc.sock'/></graphics>",
    "<graphics type='spice'>"
    "<listen type='socket' socket='/var/lib/libvirt/qemu/domain-3-web/spice.sock'/></graphics>",
    "<graphics type='egl-headless'><gl rendernode='/dev/dri/renderD128'/></graphics>",
    "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>",
    "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>",
    "<vsock><cid auto='no' address='4'/></vsock>",
    "<video><model type='vga'/></video><memballoon model='virtio'/><watchdog model='itco'/>",
]


@pytest.mark.parametrize("devices", ORDINARY)
def test_what_every_guest_has(devices: str) -> None:
    assert reached(devices) == ()


def test_firmware_of_the_host_and_variables_of_its_own() -> None:
    loader = "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>"
    nvram = "<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/own/web_VARS.fd</nvram>"
    assert reached(boot=loader + nvram) == ()


def test_a_store_of_firmware_variables_of_its_own() -> None:
    store = "<varstore path='{}' template='/usr/share/qemu/vars.json'/>"
    assert reached(boot=store.format("/own/web.json")) == ()
    assert reached(boot=store.format("/etc/x")) == ("firmware variables: file /etc/x",)


@pytest.mark.parametrize(
    "path", ["domain-3-web/monitor.sock", "domain-3-db/vnc.sock", "domain-3-web/../vnc.sock"]
)
def test_a_screen_on_another_socket(path: str) -> None:
    (what,) = reached(f"<graphics type='vnc' socket='/var/lib/libvirt/qemu/{path}'/>")
    assert path in what


def test_labels_that_libvirt_chooses() -> None:
    label = "<seclabel type='dynamic' model='dac' relabel='yes'><label>+1:+1</label></seclabel>"
    assert reached(top=label) == ()


def channel(
    path: str = "/run/libvirt/qemu/channel/3-web/org.x.0",
    mode: str = "mode='bind'",
    target: str = "<target type='virtio' name='org.x.0'/>",
    kind: str = "unix",
) -> str:
    return f"<channel type='{kind}'><source {mode} path='{path}'/>{target}</channel>"


CHANNELS = "/run/libvirt/qemu/channel"


@pytest.mark.parametrize(
    "path",
    [
        f"{CHANNELS}/3-web/org.x.0",
        "/var/lib/libvirt/qemu/channel/target/domain-12-web/org.x.0",
        "/var/run/libvirt/qemu/channel/target/3-web/org.x.0",
    ],
)
def test_a_channel_on_the_socket_that_libvirt_made(path: str) -> None:
    assert reached(channel(path)) == ()


@pytest.mark.parametrize(
    "devices",
    [
        channel(f"{CHANNELS}/2-victim/org.x.0"),
        channel(f"{CHANNELS}/3-web2/org.x.0"),
        channel(f"{CHANNELS}/web/org.x.0"),
        channel(f"{CHANNELS}/3-web/org.other.0"),
        channel(f"{CHANNELS}/3-web/../org.x.0"),
        channel(f"{CHANNELS}/3-web/..", target="<target type='virtio' name='..'/>"),
        channel(mode=""),
        channel(mode="mode='connect'"),
        channel(kind="file"),
        channel(target=""),
        channel(target="<target type='guestfwd' name='org.x.0'/>"),
        channel(target="<target type='virtio' name='org.x.0'/><target type='virtio' name='y'/>"),
        channel() + channel(mode="mode='connect'"),
    ],
)
def test_a_channel_on_another_socket(devices: str) -> None:
    assert any(CHANNELS in what for what in reached(devices))


@pytest.mark.parametrize(("short", "count"), [("a" * 20, 0), ("a" * 19, 1), ("a" * 21, 1)])
def test_libvirt_shortens_a_long_name(short: str, count: int) -> None:
    xml = WHOLE.format(devices=channel(f"{CHANNELS}/3-{short}/org.x.0"), boot="", top="")
    assert len(beyond(xml.replace("<name>web", "<name>" + "a" * 30), is_own)) == count


QEMU = "<qemu:commandline>{}</qemu:commandline>"
BEYOND = [
    ("<emulator>/own/qemu</emulator>", "/own/qemu"),
    ("<emulator>/usr/bin/python3</emulator>", "/usr/bin/python3"),
    ("<emulator>/usr/bin/qemu-system-x86_64/../python3</emulator>", "python3"),
    (disk("<source file='/etc/shadow'/>"), "disk vda: file /etc/shadow"),
    (disk("<source file='/etc/shadow'/>", more="<readonly/>"), "/etc/shadow"),
    (
        disk(
            "<source file='/own/a'/>",
            more="<backingStore type='file'><format type='raw'/><source file='/etc/b'/>"
            "</backingStore>",
        ),
        "backing file of disk vda: file /etc/b",
    ),
    (
        disk(
            "<source file='/own/a'><dataStore type='file'><format type='raw'/>"
            "<source file='/etc/b'/></dataStore></source>"
        ),
        "/etc/b",
    ),
    (disk("<source file='/own/a'/>", driver="type='vmdk'"), "format vmdk"),
    (disk("<source file='/own/a'/>", top="rawio='yes'"), "rawio"),
    (disk("<source file='/own/a'/>", top="sgio='unfiltered'"), "sgio"),
    (disk("<source file='/own/a'><seclabel relabel='no'/></source>"), "seclabel"),
    (
        "<disk type='block' device='disk'><source dev='/dev/sda'/><target dev='vdb'/></disk>",
        "block device /dev/sda",
    ),
    (
        "<disk type='volume'><source pool='default' volume='x'/><target dev='vdb'/></disk>",
        "default/x",
    ),
    (
        "<disk type='network'><source protocol='nbd' name='x'><host name='h' port='1'/></source>"
        "<target dev='vdb'/></disk>",
        "nbd:x",
    ),
    ("<serial type='file'><source path='/etc/cron.d/x'/></serial>", "/etc/cron.d/x"),
    ("<serial type='file'><source path='/own/x.log'/></serial>", "/own/x.log"),
    ("<serial type='pty'><log file='/etc/cron.d/x'/></serial>", "/etc/cron.d/x"),
    ("<serial type='dev'><source path='/dev/sda'/></serial>", "/dev/sda"),
    (
        "<serial type='unix'><source mode='connect' path='/run/docker.sock'/></serial>",
        "/run/docker.sock",
    ),
    (
        "<serial type='tcp'><source mode='connect' host='127.0.0.1' service='22'/></serial>",
        "127.0.0.1:22",
    ),
    (
        "<channel type='unix'><source path='/var/lib/libvirt/qemu/domain-1-db/monitor.sock'/>"
        "<target type='virtio' name='x'/></channel>",
        "monitor.sock",
    ),
    (
        "<channel type='unix'><source path='/run/libvirt/qemu/channel/../x'/>"
        "<target type='virtio' name='x'/></channel>",
        "channel/../x",
    ),
    ("<filesystem type='mount'><source dir='/'/><target dir='x'/></filesystem>", "directory /"),
    ("<filesystem><source socket='/run/x'/><target dir='x'/></filesystem>", "/run/x"),
    (
        "<hostdev mode='subsystem' type='usb'><source><vendor id='1'/><product id='2'/></source>"
        "</hostdev>",
        "hostdev",
    ),
    ("<interface type='ethernet'><script path='/own/x'/></interface>", "script of interface"),
    (
        "<interface type='vhostuser'><source type='unix' path='/run/x' mode='server'/></interface>",
        "/run/x",
    ),
    ("<graphics type='vnc' socket='/run/x'/>", "/run/x"),
    ("<graphics type='egl-headless'><gl rendernode='/dev/dri/card0'/></graphics>", "card0"),
    (
        "<graphics type='egl-headless'><gl rendernode='/dev/dri/../sda'/></graphics>",
        "/dev/dri/../sda",
    ),
    ("<rng><backend model='random'>/etc/shadow</backend></rng>", "/etc/shadow"),
    ("<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>", "/dev/tpm0"),
    ("<tpm><backend type='emulator'><source type='dir' path='/etc'/></backend></tpm>", "/etc"),
    ("<memory model='nvdimm'><source><path>/dev/sda</path></source></memory>", "/dev/sda"),
    ("<shmem name='x'/>", "/dev/shm/x"),
    ("<audio id='1' type='file' path='/etc/x'/>", "/etc/x"),
    ("<input type='evdev'><source dev='/dev/input/event1'/></input>", "event1"),
    ("<pstore backend='acpi-erst'><path>/etc/x</path></pstore>", "/etc/x"),
    (
        "<smartcard mode='passthrough' type='tcp'><source mode='bind' host='h' service='1'/>"
        "</smartcard>",
        "h:1",
    ),
    ("<lease><target path='/etc/x'/></lease>", "/etc/x"),
    ("<novelty file='/etc/x'/>", "/etc/x"),
]


@pytest.mark.parametrize(("devices", "says"), BEYOND)
def test_beyond(devices: str, says: str) -> None:
    (what,) = reached(devices)
    assert says in what


@pytest.mark.parametrize(
    ("boot", "top", "says"),
    [
        ("<kernel>/etc/shadow</kernel>", "", "kernel"),
        ("<initrd>/usr/share/../../etc/shadow</initrd>", "", "initrd"),
        ("<dtb>/etc/x</dtb>", "", "/etc/x"),
        ("<loader>/own/bios</loader>", "", "/own/bios"),
        ("<loader readonly='no' type='pflash'>/usr/share/x</loader>", "", "/usr/share/x"),
        ("<loader readonly='yes'>/usr/share/../x</loader>", "", "/usr/share/../x"),
        ("<nvram>/etc/x</nvram>", "", "firmware variables: file /etc/x"),
        ("<nvram template='/etc/x'>/own/x</nvram>", "", "template"),
        ("<acpi><table type='slic'>/etc/x</table></acpi>", "", "/etc/x"),
        ("", "<sysinfo type='fwcfg'><entry name='o' file='/etc/x'/></sysinfo>", "/etc/x"),
        ("", "<seclabel type='none'/>", "a security label of its own (seclabel)"),
        ("", "<seclabel type='static' model='dac'><label>0:0</label></seclabel>", "seclabel dac"),
        ("", "<seclabel model='dac' relabel='no'/>", "seclabel dac"),
        ("", QEMU.format(""), "arguments for QEMU itself"),
        ("", QEMU.format("<qemu:arg value='-s'/>"), "tcp 127.0.0.1:1234"),
        ("", "<qemu:override><qemu:device alias='x'/></qemu:override>", "arguments for QEMU"),
    ],
)
def test_beyond_in_other_places(boot: str, top: str, says: str) -> None:
    assert any(says in what for what in reached(boot=boot, top=top))
