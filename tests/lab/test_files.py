"""Files out of a point: ext4, XFS in LVM on a volume, NTFS in a chain of images; nothing stays.

Each start of libguestfs' machine is emulation within emulation, and takes minutes: so it is started
once for all that is copied, and once for all that is mounted, and is made as light as it can be.
"""

from __future__ import annotations

import pytest
import scenario
from back import clones, zfs_names, zvmsnap

from labkit import domains, guests
from labkit.api import Completed, Lab
from labkit.domains import Disk

pytestmark = [pytest.mark.whole, pytest.mark.late]

NAME = "files"
POINT = f"{NAME}@latest"
LIMIT_S = 3600.0
OUT = "/root/out"
TOP = f"/tank/vm/{NAME}"
VOLUME = f"tank/vm/{NAME}/data"
DISKS = [Disk(f"{TOP}/a.raw"), Disk(f"/dev/zvol/{VOLUME}"), Disk(f"{TOP}/c.qcow2", "qcow2")]
BLOB = "/root/blob"
MACHINE = "/var/tmp/guestfs"
SUPERMIN_D = "/usr/lib/x86_64-linux-gnu/guestfs/supermin.d"
# What libguestfs makes of the lab's packages, and its own first program without what costs minutes
# here: udev with a process for each device, mdadm, ldmtool, tmpfiles. All else is the real one.
INIT = r"""#!/bin/bash
export PATH=/sbin:/usr/sbin:/bin:/usr/bin LVM_SYSTEM_DIR=/tmp/lvm
mount -t proc /proc /proc
mount -t sysfs /sys /sys
mount -t devtmpfs /dev /dev
ln -s /proc/self/fd /dev/fd
mkdir -p /dev/virtio-ports /dev/shm /dev/disk/by-path /sysroot
for port in /sys/class/virtio-ports/*; do
    read -r name < "$port/name"
    ln -s "../${port##*/}" "/dev/virtio-ports/$name"
done
[[ $(< /proc/cmdline) =~ disks=([0-9]+) ]]
until disks=(/sys/block/sd*) && ((${#disks[@]} >= BASH_REMATCH[1])); do  # the kernel looks for them
    sleep 0.1
done
for disk in "${disks[@]}"; do
    cd -P "$disk/device"
    ln -s "../../${disk##*/}" "/dev/disk/by-path/scsi-${PWD##*/}"
done
cd /
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p /run/lock /tmp/lvm
cat > /tmp/lvm/lvm.conf <<'END'
devices { use_devicesfile = 0 }
activation { udev_sync = 0 udev_rules = 0 }
END
modprobe dm_mod
lvm vgchange -ay
echo guestfsd
guestfsd
reboot -f
"""
MAKE_MACHINE = f"""
mkdir -p {MACHINE} /mnt/machine
supermin --build --copy-kernel -f ext2 --host-cpu x86_64 {SUPERMIN_D} -o {MACHINE}
mount -o loop {MACHINE}/root /mnt/machine
cat > /mnt/machine/init
chmod 755 /mnt/machine/init
umount /mnt/machine
rmdir /mnt/machine
touch {MACHINE}/README.fixed
"""
# Emulation within emulation: of the CPU that the lab has, not of the newest one; with a clock that
# goes as instructions do, or most would be those of the timer. What the machine says is kept.
QEMU = r"""#!/bin/bash
real=/usr/bin/qemu-system-x86_64.real
[[ "$*" == *panic=1* ]] || exec -a "$0" "$real" "$@"  # as libvirt asks what it can
disks=$(printf '%s\n' "$@" | grep -c 'scsi-hd[,"]')
words=(-icount shift=1,sleep=off)
for word; do
    case $word in
        max*) word=qemu64 ;;
        panic=1*) word="$word mitigations=off nokaslr rcupdate.rcu_expedited=1 disks=$disks" ;;
    esac
    words+=("$word")
done
exec -a "$0" "$real" "${words[@]}" > >(tee -a /var/tmp/machine.log)
"""
REPLACE_QEMU = """
mv /usr/bin/qemu-system-x86_64 /usr/bin/qemu-system-x86_64.real
cat > /usr/bin/qemu-system-x86_64
chmod 755 /usr/bin/qemu-system-x86_64
"""
# The ext4 stays mounted while the point is taken, as that of a guest that runs: so its journal must
# be replayed. And what must never come out of a guest is on it.
MAKE = f"""
dd if=/dev/urandom of={BLOB} bs=64k count=40 2> /dev/null
truncate -s 64M {TOP}/a.raw
mkfs.ext4 -q -F {TOP}/a.raw
mkdir /mnt/a
mount -o loop {TOP}/a.raw /mnt/a
mkdir /mnt/a/dir
cp {BLOB} "/mnt/a/dir/a name"
chmod 4755 "/mnt/a/dir/a name"
ln -s /etc/shadow /mnt/a/dir/out
ln -s "a name" /mnt/a/dir/in
mknod /mnt/a/dir/null c 1 3
sync -f /mnt/a
pvcreate -q /dev/zvol/{VOLUME}
vgcreate -q data /dev/zvol/{VOLUME}
lvcreate -q -L 320M -n files data
mkfs.xfs -q /dev/data/files
mkdir /mnt/b
mount /dev/data/files /mnt/b
cp {BLOB} /mnt/b/blob
umount /mnt/b
vgchange -q -an data
truncate -s 16M {TOP}/base.raw
mkntfs -q -F -p 0 -S 63 -H 255 {TOP}/base.raw
qemu-img create -q -f qcow2 -F raw -b {TOP}/base.raw {TOP}/c.qcow2
ntfscp -q -f {TOP}/base.raw {BLOB} Bericht.bin
"""


def prepare(lab: Lab) -> None:
    """Let libguestfs start its machine as quickly as the lab can: in minutes. No guest may run."""
    lab.run(f"set -e\n{MAKE_MACHINE}", stdin=INIT, timeout_s=LIMIT_S)
    lab.run(f"set -e\n{REPLACE_QEMU}", stdin=QEMU)


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    def make(lab: Lab) -> None:
        scenario.configure(lab)
        lab.run(f"zfs create {TOP[1:]} && zfs create -s -V 512M {VOLUME} && udevadm settle")
        lab.run(f"set -e\n{MAKE}", timeout_s=scenario.ROUND_LIMIT_S)
        guests.define(lab, domains.domain_xml(NAME, DISKS))
        zvmsnap(lab, "take", NAME)
        # What the disks have now is of no matter.
        lab.run(f"umount /mnt/a && truncate -s 0 {TOP}/a.raw {TOP}/base.raw")
        prepare(lab)

    scenario.stage(
        lab_session, "disks-with-files", lambda lab: scenario.with_code(lab, "ready"), make
    )
    return lab_session


def slow(lab: Lab, command: str) -> Completed:
    """Run what starts libguestfs' machine, as it was prepared."""
    done = lab.run(
        f"export LIBGUESTFS_PATH={MACHINE}; {command}", check=False, timeout_s=LIMIT_S
    )
    said = lab.run("tail -n 30 /var/tmp/machine.log", check=False).stdout
    assert "Traceback" not in done.stderr and done.returncode == 0, (done, said)
    return done


def sums(lab: Lab, *paths: str) -> set[str]:
    return {lab.run(f"sha256sum < '{path}'").stdout.split()[0] for path in paths}


def assert_nothing_left(lab: Lab) -> None:
    assert clones(lab) == []
    left = lab.run(
        f"find {scenario.STAGING}/views {scenario.JOURNAL}/views -mindepth 1 2>/dev/null; "
        "grep fuse /proc/self/mountinfo | grep zvmsnap; "
        "pgrep -f '[z]vmsnap keep-view|qemu-system-x86_64.*[g]uestfsd'",
        check=False,
    )
    assert left.stdout == ""


def test_all_files_of_all_disks(lab: Lab) -> None:
    before = zfs_names(lab)
    done = slow(lab, f"zvmsnap files --by-device {POINT} --to {OUT}")
    top = f"{OUT}/{NAME}"
    copies = (f"{top}/vda/dir/a name", f"{top}/data-files/blob", f"{top}/vdc/Bericht.bin")
    assert sums(lab, *copies) == sums(lab, BLOB)
    assert lab.run(f"stat -c %a '{copies[0]}'").stdout.strip() == "755"
    assert lab.run(f"ls {top}/vda/dir").stdout.split("\n") == ["a name", "in", ""]
    assert "vda/dir/out: is a symlink that leads out: /etc/shadow" in done.stderr
    assert "vda/dir/null: is a device" in done.stderr
    assert ", 0 not copied" in done.stdout
    assert zfs_names(lab) == before
    assert_nothing_left(lab)


def test_a_mount_whose_process_is_killed(lab: Lab) -> None:
    lab.run("mkdir -p /mnt/point")
    slow(lab, f"zvmsnap mount --by-device {POINT} /mnt/point")
    seen = ("vda/dir/a name", "data-files/blob", "vdc/Bericht.bin")
    assert sums(lab, *(f"/mnt/point/{path}" for path in seen)) == sums(lab, BLOB)
    assert lab.run("touch /mnt/point/vda/new", check=False).returncode == 1
    # Whoever works at it keeps it; the view is whole after that.
    busy = lab.run("cd /mnt/point/vda && zvmsnap mount --off /mnt/point", check=False)
    assert busy.returncode == 1 and "busy" in busy.stderr, busy
    assert len(clones(lab)) == 1
    lab.run("pkill -KILL -f '[z]vmsnap keep-view'")
    assert lab.run("ls /mnt/point", check=False).returncode != 0
    assert len(clones(lab)) == 1
    done = zvmsnap(lab, "recover")
    assert "has lost its process" in done.stdout
    assert lab.run("ls /mnt/point").stdout == ""
    assert_nothing_left(lab)
    zvmsnap(lab, "mount", "--off", "/mnt/point", status=1)
