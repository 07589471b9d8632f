from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from zvmsnap.points import compatibility
from zvmsnap.points.manifest import HostDescription, Manifest
from zvmsnap.virt.host import Host


class Here(Host):
    """A host that says this of itself."""

    def __init__(self, *, machine: str | None = None, cpu: bool = True, qemu: str = "10.0.2"):
        self.asked: list[tuple[str, ...]] = []
        self._machine = machine
        self._cpu = cpu
        self._qemu = qemu

    def why_no_machine(self, emulator: str, arch: str, machine: str, kind: str) -> str | None:
        self.asked.append((emulator, arch, machine, kind))
        return self._machine

    def has_cpu(self, emulator: str, arch: str, machine: str, kind: str, cpu_xml: str) -> bool:
        self.asked.append((emulator, arch, machine, kind, cpu_xml.strip()))
        return self._cpu

    def has_network(self, name: str) -> bool:
        return name == "default"

    def why_no_secret(self, uuid: str, kind: str = "", usage: str = "") -> str | None:
        return None if (uuid, kind, usage) in SECRETS else "Secret not found"

    def versions(self) -> dict[str, str]:
        return {"libvirt": "11.3.0", "qemu": self._qemu, "host_cpu": "Skylake"}


@pytest.fixture
def made_on(manifest: Callable[..., Manifest]) -> HostDescription:
    """A host as this one: QEMU 10.0.2, a Skylake."""
    return manifest().host


SECRETS = [("aa", "passphrase", ""), ("", "ceph", "vm's"), ("cc", "", "")]


def xml(devices: str = "", *, os: str = "", cpu: str = "") -> str:
    return (
        "<domain type='kvm'><os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type>"
        f"{os}</os>{cpu}<devices><emulator>/bin/sh</emulator>{devices}</devices></domain>"
    )


def disk(source: str, more: str = "<readonly/>", device: str = "cdrom") -> str:
    return f"<disk type='file' device='{device}'>{source}<target dev='sda'/>{more}</disk>"


def card(source: str) -> str:
    return f"<interface>{source}</interface>"


NETWORKS = [
    pytest.param(card("<source network='default'/>"), [], id="network that is up"),
    pytest.param(
        card("<source network='lab'/>"),
        ["libvirt's network lab is not up: virsh net-start lab"],
        id="network that is not",
    ),
    pytest.param(card("<source bridge='br9'/>"), ["the bridge br9 is not here"], id="no bridge"),
    pytest.param(card("<source bridge='lo'/>"), [], id="bridge"),
    pytest.param(card("<source network='default' bridge='br9'/>"), [], id="a network's own bridge"),
    pytest.param(card("<source dev='eth9' mode='bridge'/>"), [], id="neither"),
]
FILES = [
    pytest.param(
        disk("<source file='/no/a.iso'/>"), ["/no/a.iso is not here (cdrom sda)"], id="cd"
    ),
    pytest.param(disk("<source file='/bin/sh'/>"), [], id="cd that exists"),
    pytest.param(disk(""), [], id="empty drive"),
    pytest.param(disk("<source file='/no/a.raw'/>", "", "disk"), [], id="a disk of the point"),
    pytest.param(
        disk("<source dev='/dev/no'/>", device="lun").replace("'file'", "'block'"),
        ["/dev/no is not here (lun sda)"],
        id="device",
    ),
    pytest.param(disk("<source protocol='http' name='x'/>"), [], id="elsewhere"),
    pytest.param(disk("<source file='/no/a.iso' startupPolicy='optional'/>"), [], id="optional cd"),
    pytest.param(
        "<hostdev><rom file='/no/rom'/></hostdev>",
        ["/no/rom is not here (ROM of hostdev)"],
        id="ROM",
    ),
    pytest.param("<serial type='file'><source path='/no/log'/></serial>", [], id="log"),
]

LUKS = "<encryption format='luks'><secret type='passphrase' {}/></encryption>"
OF_BB = LUKS.format("uuid='bb'")
LOGIN = "<auth username='x'><secret type='ceph' usage='{}'/></auth></source>"
TPM = "<tpm model='tpm-crb'><backend type='emulator'><encryption secret='{}'/></backend></tpm>"
UNKNOWN = (
    "its secret {} cannot be used here: Secret not found: virsh secret-define it, and give it its "
    "value: virsh secret-set-value"
)
KEYS = [
    pytest.param(
        disk(f"<source file='/bin/sh'>{LUKS.format(key)}</source>", "", "disk"), reasons, id=name
    )
    for key, reasons, name in (
        ("uuid='aa'", [], "key of a disk"),
        ("uuid='bb'", [UNKNOWN.format("bb")], "unknown key of a disk"),
        ("usage='/a'", [UNKNOWN.format("/a")], "unknown key of a disk, by its use"),
    )
] + [
    pytest.param(
        disk(f"<source file='/bin/sh'/>{OF_BB * 2}", "", "disk"),
        [UNKNOWN.format("bb")],
        id="where <encryption> was of old; told once",
    ),
    pytest.param(
        disk(
            "<source file='/bin/sh'/><backingStore type='file'><source file='/a'>"
            f"{OF_BB}</source></backingStore>",
            "",
            "disk",
        ),
        [UNKNOWN.format("bb")],
        id="key of an image below",
    ),
    pytest.param(disk(f"<source protocol='rbd'>{LOGIN.format('vm&apos;s')}"), [], id="ceph"),
    pytest.param(
        disk(f"<source protocol='rbd'>{LOGIN.format('no')}"),
        [UNKNOWN.format("no")],
        id="ceph, without the login",
    ),
    pytest.param(TPM.format("cc"), [], id="key of a TPM"),
    pytest.param(TPM.format("dd"), [UNKNOWN.format("dd")], id="unknown key of a TPM"),
]


@pytest.mark.parametrize("cold", [True, False])
@pytest.mark.parametrize(("devices", "reasons"), NETWORKS + FILES + KEYS)
def test_devices(made_on: HostDescription, devices: str, reasons: list[str], cold: bool) -> None:
    assert compatibility.why_not(Here(), xml(devices), made_on, cold=cold) == reasons


# startupPolicy, device, and whether libvirt starts the guest without the file: with RAM, and cold.
POLICIES = [
    ("optional", "cdrom", True, True),
    ("optional", "disk", False, True),
    ("requisite", "cdrom", True, False),
    ("mandatory", "cdrom", False, False),
    ("", "cdrom", False, False),
]


@pytest.mark.parametrize(("policy", "device", "with_ram", "cold"), POLICIES)
def test_image_that_may_be_missing(
    made_on: HostDescription, policy: str, device: str, with_ram: bool, cold: bool
) -> None:
    definition = xml(disk(f"<source file='/no/a.iso' startupPolicy='{policy}'/>", device=device))
    for is_cold, starts in ((False, with_ram), (True, cold)):
        reasons = compatibility.why_not(Here(), definition, made_on, cold=is_cold)
        assert reasons == ([] if starts else [f"/no/a.iso is not here ({device} sda)"])


def test_what_will_be_made_need_not_be_here(made_on: HostDescription) -> None:
    definition = xml(card("<source network='lab'/>") + disk("<source file='/no/a.iso'/>"))
    made = compatibility.why_not(Here(), definition, made_on, cold=True, made=("lab", "/no"))
    assert made == []
    assert len(compatibility.why_not(Here(), definition, made_on, cold=True, made=("/n",))) == 2


@pytest.mark.parametrize("tag", ["loader", "kernel", "initrd"])
def test_files_to_boot_from(made_on: HostDescription, tag: str) -> None:
    gone = compatibility.why_not(Here(), xml(os=f"<{tag}> /no/x </{tag}>"), made_on, cold=True)
    assert gone == [f"/no/x is not here ({'firmware' if tag == 'loader' else tag})"]
    assert not compatibility.why_not(Here(), xml(os=f"<{tag}>/bin/sh</{tag}>"), made_on, cold=True)


def test_another_architecture(made_on: HostDescription) -> None:
    other = xml().replace("/bin/sh", "/usr/bin/qemu-system-no")
    [reason] = compatibility.why_not(Here(), other, made_on, cold=True)
    assert reason.startswith("/usr/bin/qemu-system-no is not here: install")


@pytest.mark.parametrize("cold", [True, False])
def test_no_such_machine(made_on: HostDescription, cold: bool) -> None:
    here = Here(machine="unknown machine", cpu=False, qemu="1.0.0")
    reasons = compatibility.why_not(
        here, xml(cpu="<cpu><model>x</model></cpu>"), made_on, cold=cold
    )
    assert reasons == ["QEMU here cannot be that machine: unknown machine"]
    assert here.asked == [("/bin/sh", "x86_64", "pc-q35-10.0", "kvm")]


@dataclass(frozen=True)
class Cpu:
    """A CPU and where it was seen."""

    xml: str
    made_by: str = "Skylake"
    known: bool = True


CPUS = [
    pytest.param(Cpu(""), "", id="none"),
    pytest.param(Cpu("<cpu mode='host-passthrough'/>"), "", id="as it is"),
    pytest.param(
        Cpu("<cpu mode='host-passthrough'/>", made_by="EPYC"), "saw a CPU EPYC", id="another one"
    ),
    pytest.param(Cpu("<cpu mode='maximum'/>", made_by="EPYC"), "saw a CPU EPYC", id="all of it"),
    pytest.param(Cpu("<cpu mode='custom'><model>x</model></cpu>"), "", id="a model"),
    pytest.param(
        Cpu("<cpu mode='custom'><model>x</model></cpu>", known=False),
        "its CPU (x) has features",
        id="a model that cannot be",
    ),
    pytest.param(Cpu("<cpu><topology sockets='1'/></cpu>", known=False), "", id="only a topology"),
]


@pytest.mark.parametrize(("cpu", "says"), CPUS)
def test_cpu(made_on: HostDescription, cpu: Cpu, says: str) -> None:
    made_by = msgspec.structs.replace(made_on, host_cpu=cpu.made_by)
    here = Here(cpu=cpu.known)
    reasons = compatibility.why_not(here, xml(cpu=cpu.xml), made_by, cold=False)
    assert bool(reasons) is bool(says)
    assert says in "".join(reasons)
    assert here.asked[1:] in (
        [],
        [("/bin/sh", "x86_64", "pc-q35-10.0", "kvm", cpu.xml.replace("'", '"'))],
    )
    assert not compatibility.why_not(here, xml(cpu=cpu.xml), made_by, cold=True)


@pytest.mark.parametrize(
    ("made_by", "here", "older"),
    [
        ("10.0.2", "10.0.2", False),
        ("9.2.0", "10.0.2", False),
        ("10.0.2", "9.2.0", True),
        ("10.0.2", "10.0.1", True),
        ("8.2.2+ds", "8.2.2", False),
        ("", "8.2.2", False),
        ("unknown", "8.2.2", False),
        ("1.\u00b2", "8.2.2", False),
        ("9" * 5000, "8.2.2", True),
    ],
)
def test_qemu(made_on: HostDescription, made_by: str, here: str, older: bool) -> None:
    made = msgspec.structs.replace(made_on, qemu=made_by)
    reasons = compatibility.why_not(Here(qemu=here), xml(), made, cold=False)
    assert reasons == ([f"its RAM was written by QEMU {made_by}; {here} here is older"] * older)


def test_everything_in_the_way_is_told_at_once(made_on: HostDescription) -> None:
    devices = disk("<source file='/no/a.iso'/>") + card("<source network='lab'/>")
    cpu = "<cpu mode='custom'><model>x</model></cpu>"
    here = Here(cpu=False, qemu="9.0.0")
    assert len(compatibility.why_not(here, xml(devices, cpu=cpu), made_on, cold=False)) == 4


def test_available_memory(tmp_path: Path) -> None:
    table = tmp_path / "meminfo"
    table.write_text("MemTotal: 99 kB\nMemAvailable:   5 kB\nMemFree: 1 kB\n")
    assert compatibility.available_memory_bytes(table) == 5 << 10
    table.write_text("MemTotal: 99 kB\n")
    assert compatibility.available_memory_bytes(table) == 0
    assert compatibility.available_memory_bytes() > 1 << 20
