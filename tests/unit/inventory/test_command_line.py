"""What arguments for QEMU name: harmless, only read, state, or not known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zvmsnap.inventory import reader
from zvmsnap.inventory.command_line import resources_of
from zvmsnap.inventory.resource import Kind, Resource

HARMLESS = [
    ["-cpu", "host,-hypervisor,kvm=off"],
    ["-machine", "q35,kernel_irqchip=on"],
    ["-global", "ICH9-LPC.disable_s3=1"],
    ["-smbios", "type=2,manufacturer=x"],
    ["-rtc", "base=utc"],
    ["-set", "device.net0.rombar=0"],
    ["-device", "isa-applesmc,osk=ourhardworkbythesewords"],
    ["-device", "virtio-serial-pci,id=s0"],
    ["-device", "{\"driver\":\"virtio-blk-pci\",\"drive\":\"d0\",\"id\":\"x\"}"],
    ["-object", "iothread,id=io1"],
    ["-object", "memory-backend-ram,id=m,size=1M"],
    ["-blockdev", "driver=raw,node-name=a,file=b"],
    ["-drive", "driver=null-co,if=none,id=n"],
    ["-nodefaults", "-no-hpet", "-S"],
    ["-netdev", "user,id=n"],
    ["-chardev", "spicevmc,id=c,name=usbredir"],
    ["-monitor", "stdio", "-serial", "none"],
    ["-audiodev", "pa,id=a"],
    ["-usbdevice", "tablet", "-soundhw", "hda", "-alt-grab", "-no-quit", "-localtime"],
]  # fmt: skip
READ = [
    (["-fw_cfg", "name=opt/com.coreos/config,file=/etc/ignition.json"], "/etc/ignition.json"),
    (["-smbios", "file=/srv/smbios.bin"], "/srv/smbios.bin"),
    (["-bios", "/srv/bios.bin"], "/srv/bios.bin"),
    (["-cdrom", "/srv/a.iso"], "/srv/a.iso"),
    (["-drive", "file=/srv/a.iso,media=cdrom"], "/srv/a.iso"),
    (["-drive", "if=pflash,readonly=on,file=/usr/share/OVMF_CODE.fd"], "/usr/share/OVMF_CODE.fd"),
    (["-blockdev", '{"driver":"file","filename":"/srv/a.raw","read-only":true,"node-name":"a"}'],
     "/srv/a.raw"),
    (["-object", "rng-random,id=r,filename=/dev/urandom"], "/dev/urandom"),
    (["-object", "secret,id=s,file=/etc/key"], "/etc/key"),
]  # fmt: skip
STATE = [
    (["-drive", "file=/srv/a.raw,if=virtio"], Kind.FILE, "/srv/a.raw"),
    (["-drive", "if=none,id=a,file=/srv/a,,b.raw"], Kind.FILE, "/srv/a,b.raw"),
    (["-drive", "file=/dev/sdb,format=raw"], Kind.BLOCK, "/dev/sdb"),
    (["-drive", "if=pflash,file=/srv/vars.fd"], Kind.FILE, "/srv/vars.fd"),
    (["-drive", "file.driver=file,file.filename=/srv/a"], Kind.FILE, "/srv/a"),
    (["-blockdev", '{"driver":"qcow2","file":{"driver":"file","filename":"/srv/a"}}'],
     Kind.FILE, "/srv/a"),
    (["-hda", "/srv/a.img"], Kind.FILE, "/srv/a.img"),
    (["-device", "vfio-pci,host=06:12.5"], Kind.HOST_DEVICE, "vfio-pci,host=06:12.5"),
    (["-device", "usb-host,hostbus=1,hostaddr=2"], Kind.HOST_DEVICE,
     "usb-host,hostbus=1,hostaddr=2"),
    (["-object", "memory-backend-file,id=m,mem-path=/dev/shm/lg,size=1M,share=on"],
     Kind.FILE, "/dev/shm/lg"),
]  # fmt: skip
UNKNOWN = [
    (["-drive", "file=nbd:unix:/run/nbd.sock"], "file=nbd:unix:/run/nbd.sock"),
    (["-drive", "file=relative.raw"], "file=relative.raw"),
    (["-drive", "if=none"], "if=none"),
    (["-blockdev", "{not json"], "{not json"),
    (["-device", "new-device,path=/srv/x"], "/srv/x"),
    (["-machine", "q35,dtb=/srv/x"], "/srv/x"),
    (["-incoming", "defer"], "defer"),
    (["-mem-path", "/dev/hugepages"], "/dev/hugepages"),
    (["/srv/disk.img"], "/srv/disk.img"),
    (["-new"], ""),
    (["-usbdevice", "host:046d:c52b"], "host:046d:c52b"),
]

ALONE = [
    (["-netdev", "user,id=n,hostfwd=tcp::2222-:22"], Kind.SOCKET,
     "user,id=n,hostfwd=tcp::2222-:22"),
    (["-chardev", "file,id=c,path=/log"], Kind.SOCKET, "file,id=c,path=/log"),
    (["-vnc", ":7"], Kind.SOCKET, ":7"),
    (["-monitor", "unix:/run/m,server"], Kind.SOCKET, "unix:/run/m,server"),
    (["-D", "/var/log/q.log"], Kind.FILE, "/var/log/q.log"),
    (["-audiodev", "wav,id=a,path=/srv/a.wav"], Kind.FILE, "/srv/a.wav"),
    (["-object", "input-linux,id=k,evdev=/dev/input/by-id/kbd,grab_all=on"], Kind.HOST_DEVICE,
     "/dev/input/by-id/kbd"),
    (["-object", '{"qom-type":"input-linux","id":"k","evdev":"/dev/input/event3"}'],
     Kind.HOST_DEVICE, "/dev/input/event3"),
    (["-virtfs", "local,path=/srv/share,mount_tag=t"], Kind.DIRECTORY, "/srv/share"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "kind", "place"), ALONE)
def test_writable_but_no_state(arguments: list[str], kind: Kind, place: str) -> None:
    assert facts(arguments) == [(kind, place, True, False)]


def facts(arguments: list[str]) -> list[tuple[Kind, str, bool, bool]]:
    return [(each.kind, each.place, each.writable, each.is_state) for each in of(arguments)]


def of(arguments: list[str]) -> list[Resource]:
    return list(resources_of(arguments))


@pytest.mark.parametrize("arguments", HARMLESS)
def test_harmless(arguments: list[str]) -> None:
    assert of(arguments) == []


@pytest.mark.parametrize(("arguments", "place"), READ)
def test_only_read(arguments: list[str], place: str) -> None:
    assert facts(arguments) == [(Kind.FILE, place, False, False)]


@pytest.mark.parametrize(("arguments", "kind", "place"), STATE)
def test_state(arguments: list[str], kind: Kind, place: str) -> None:
    assert facts(arguments) == [(kind, place, True, True)]


@pytest.mark.parametrize(("arguments", "place"), UNKNOWN)
def test_unknown(arguments: list[str], place: str) -> None:
    assert facts(arguments) == [(Kind.UNKNOWN, place, True, True)]


@pytest.mark.parametrize(
    ("name", "value", "is_known"),
    [
        ("QEMU_AUDIO_DRV", "pa", True),
        ("MALLOC_ARENA_MAX", "1", True),
        ("QEMU_PA_SERVER", "/run/user/1000/pulse/native", False),
        ("PULSE_SERVER", "unix:/run/pulse", False),
        ("LD_PRELOAD", "libx.so", False),
    ],
)
def test_environment(name: str, value: str, is_known: bool) -> None:
    env = f"<qemu:env name='{name}' value='{value}'/>"
    uri = "http://libvirt.org/schemas/domain/qemu/1.0"
    command_line = f"<qemu:commandline>{env}</qemu:commandline>"
    xml = f"<domain xmlns:qemu='{uri}'>{command_line}</domain>"
    read = [(each.kind, each.place, each.writable) for each in reader.resources_of(xml)]
    assert read == ([] if is_known else [(Kind.UNKNOWN, f"{name}={value}", False)])


def test_the_port_of_a_debugger() -> None:
    assert facts(["-s"]) == [(Kind.PORT, "tcp 127.0.0.1:1234", True, False)]


PARTS = st.sampled_from(["file=/a", "readonly=on", "/x", "if=virtio", "driver=raw", "{", ",,", "="])


@given(st.lists(st.one_of(st.text(max_size=8), PARTS, st.sampled_from(["-drive", "-device"]))))
def test_any_arguments_are_read(arguments: list[str]) -> None:
    of(arguments)


@given(st.sampled_from(["drive", "blockdev", "hdb", "pflash", "new", "object", "device"]))
def test_no_path_is_without_a_resource(option: str) -> None:
    assert "/srv/x" in " ".join(each.place for each in of([f"-{option}", "file=/srv/x"]))
