"""The lab itself: can its guests be trusted to find out an incoherent snapshot?"""

import time
from collections.abc import Callable

import pytest

from labkit import guests
from labkit.api import Lab
from labkit.errors import CommandError
from labkit.recipes import WEB_FILE, WEB_VOLUME

SAVED = "/var/lib/libvirt/qemu/save/web.ram"


def test_guest_counts_in_ram_and_on_both_disks_saved_and_restarted(lab: Lab) -> None:
    first = guests.counts(lab, "web")[-1]
    guests.wait_counts(lab, "web", first + 3)
    lab.run("virsh suspend web")
    counts = guests.counts(lab, "web")
    assert counts == list(range(1, counts[-1] + 1))
    on_disk = [guests.disk_count(lab, disk.path) for disk in (WEB_FILE, WEB_VOLUME)]
    # Suspended between two writes, a disk may be one ahead of what was printed.
    assert all(count - counts[-1] in (0, 1) for count in on_disk), (on_disk, counts[-1])

    # Saved and restored it counts on.
    lab.run(f"virsh resume web && virsh save web {SAVED}")
    before = guests.counts(lab, "web")[-1]
    lab.run(f"virsh restore {SAVED}")
    guests.wait_counts(lab, "web", before + 3)
    assert guests.boots(lab, "web") == 1

    # Restarted it starts again at one.
    lab.run("virsh destroy web")
    since = guests.serial_size_bytes(lab, "web")
    guests.start(lab, "web")
    assert guests.boots(lab, "web", since) == 1
    assert guests.counts(lab, "web", since)[0] == 1


@pytest.mark.parametrize("disk", [WEB_FILE, WEB_VOLUME], ids=["file", "volume"])
def test_guest_finds_a_disk_of_another_instant(lab: Lab, disk: guests.Disk) -> None:
    lab.run(f"virsh save web {SAVED}")
    since = guests.serial_size_bytes(lab, "web")
    lab.run(f"dd of={disk.path} bs=512 seek=1 conv=notrunc,fsync",
            stdin=b"\x0d\xf0\xad\x0bZVMC".ljust(512, b"\0") * 2)
    lab.run(f"virsh restore {SAVED}")
    deadline = time.monotonic() + 180
    while not guests.mismatches(lab, "web", since) and time.monotonic() < deadline:
        time.sleep(0.2)
    drive = 0x80 + (disk is WEB_VOLUME)
    (complaint,) = guests.mismatches(lab, "web", since)
    assert complaint.startswith(f"!{drive:02x} 0badf00d ")


@pytest.mark.state("ready")
def test_filled_guest_has_a_large_image_and_dirties_it(lab: Lab) -> None:
    disk = guests.Disk("/var/lib/libvirt/images/big.qcow2", format="qcow2")
    guests.make_disk(lab, disk, fill_mib=32, dirty_mib=8)
    guests.define(lab, guests.domain_xml("big", [disk]))
    guests.start(lab, "big")
    lab.run("virsh suspend big")
    assert abs(guests.disk_count(lab, disk.path, "qcow2") - guests.counts(lab, "big")[-1]) <= 1
    lab.run(f"virsh resume big && virsh save big {SAVED}")
    assert int(lab.run(f"stat -c %s {SAVED}").stdout) > 32 << 20


@pytest.mark.state("ready")
def test_uefi_guest_with_tpm_starts(lab: Lab) -> None:
    disk = guests.make_disk(lab, guests.Disk("/var/lib/libvirt/images/uefi.raw"))
    guests.define(lab, guests.domain_xml("uefi", [disk], uefi=True, tpm=True, memory_mib=128))
    lab.run("virsh start uefi")
    assert lab.run("virsh domstate uefi").stdout.strip() == "running"
    assert int(lab.run(f"stat -c %s {guests.NVRAM_DIR}/uefi_VARS.fd").stdout) > 0


def test_apparmor_confines_the_guest(lab: Lab) -> None:
    profile = f"libvirt-{lab.run('virsh domuuid web').stdout.strip()} (enforce)"
    assert profile in lab.run("cat /sys/kernel/security/apparmor/profiles").stdout
    process = lab.run("pidof qemu-system-x86_64").stdout.strip()
    assert lab.run(f"cat /proc/{process}/attr/current").stdout.strip() == profile


@pytest.mark.whole
def test_power_cut_boots_again(lab: Lab) -> None:
    lab.run("echo kept > /tank/vm/kept && zpool sync && echo kept > /root/kept && sync")
    before = lab.run("cat /proc/sys/kernel/random/boot_id").stdout
    lab.powercut()
    assert lab.run("cat /proc/sys/kernel/random/boot_id").stdout != before
    assert lab.run("cat /tank/vm/kept /root/kept").stdout == "kept\nkept\n"
    assert lab.run("zpool list -Ho name,health").stdout == "cheap\tONLINE\ntank\tONLINE\n"
    assert lab.run("zfs get -Ho value mounted cheap/vault").stdout == "yes\n"
    assert lab.run("virsh domstate web").stdout.strip() == "shut off"
    since = guests.serial_size_bytes(lab, "web")
    guests.start(lab, "web")
    assert guests.counts(lab, "web", since)[0] == 1


def test_two_labs_at_once(lab: Lab, other_lab: Callable[[str], Lab]) -> None:
    other = other_lab("guests")
    lab.run("zfs snapshot tank/vm@here")
    other.run("zfs snapshot tank/vm@there")
    assert "@there" not in lab.run("zfs list -Ho name -t snapshot").stdout
    assert "@here" not in other.run("zfs list -Ho name -t snapshot").stdout
    for one in (lab, other):
        guests.wait_counts(one, "web", guests.counts(one, "web")[-1] + 3)


@pytest.mark.state("ready")
def test_commands_files_and_clock(lab: Lab) -> None:
    assert lab.run("cat; echo $WORD >&2", stdin="in", env={"WORD": "it's"}).stderr == "it's\n"
    with pytest.raises(CommandError, match=r"(?s)returned 3.*said"):
        lab.run("echo said; exit 3")
    with pytest.raises(CommandError, match="no end after"):
        lab.run("sleep 30", timeout_s=0.5)
    assert lab.python("print(6 * 7)") == "42\n"
    lab.put("/root/new/file", b"\x00\xff", mode=0o640)
    assert lab.get("/root/new/file") == b"\x00\xff"
    lab.set_clock("2031-02-03T04:05:06")
    assert lab.run("date -u +%FT%H:%M").stdout == "2031-02-03T04:05\n"


@pytest.mark.state("ready")
def test_saved_state_comes_back(lab: Lab) -> None:
    lab.run("zfs create tank/vm/saved")
    lab.save("aside")
    lab.run("zfs destroy tank/vm/saved")
    lab.save("aside-later")
    lab.reset("aside")
    assert "tank/vm/saved" in lab.run("zfs list -Ho name").stdout
    lab.save("aside")  # once more under the same name, on top of the first
    lab.reset("aside")
    assert "tank/vm/saved" in lab.run("zfs list -Ho name").stdout
    lab.reset("aside-later")
    assert "tank/vm/saved" not in lab.run("zfs list -Ho name").stdout
