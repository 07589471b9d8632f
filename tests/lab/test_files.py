"""Files out of a point: of an image file and of a volume; nothing stays, also after a kill.

The appliance of libguestfs boots in emulation within emulation: each of these boots it once.
"""

from __future__ import annotations

from typing import Any

import pytest
import scenario
from back import zfs_names, zvmsnap

from labkit import linux
from labkit.api import Completed, Lab

pytestmark = [pytest.mark.whole, pytest.mark.late]

POINT = f"{linux.NAME}@latest"
LIMIT_S = 3600.0
OUT = "/root/out"
BLOB = "/data/blob"
# On both disks: files, and what must never come out of a guest.
WRITE = f"""
dd if=/dev/urandom of={BLOB} bs=64k count=40 2> /dev/null
chmod 4755 {BLOB}
mkdir /more/dir
cp {BLOB} "/more/dir/a name"
ln -s /etc/shadow /more/dir/out
ln -s "a name" /more/dir/in
mknod /more/dir/null c 1 3
sync
sha256sum < {BLOB} > /data/sum
sync
"""


def in_guest(lab: Lab, script: str) -> None:
    """Run it there; it must succeed."""
    begun: Any = linux.agent(lab, "guest-exec", path="/bin/sh", arg=["-ec", script])
    while True:
        status: Any = linux.agent(lab, "guest-exec-status", pid=begun["pid"])
        if status["exited"]:
            assert status["exitcode"] == 0, status
            return


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    def make(lab: Lab) -> None:
        scenario.configure(lab)
        in_guest(lab, WRITE)
        zvmsnap(lab, "take", "--mode", "crash", linux.NAME)
        # What the disks have now is of no matter. Off, the guest leaves the CPU to libguestfs.
        in_guest(lab, f"echo other > {BLOB}; rm '/more/dir/a name'; sync")
        lab.run(f"virsh -q destroy {linux.NAME}")

    scenario.stage(
        lab_session, "linux-with-files", lambda lab: scenario.with_code(lab, "linux"), make
    )
    return lab_session


def slow(lab: Lab, command: str) -> Completed:
    done = lab.run(command, check=False, timeout_s=LIMIT_S)
    assert "Traceback" not in done.stderr and done.returncode == 0, done
    return done


def sums(lab: Lab, *paths: str) -> set[str]:
    """The checksums of these files, and the one that the guest has noted at the first's side."""
    return {lab.run(f"sha256sum < '{path}'").stdout.split()[0] for path in paths}


def assert_nothing_left(lab: Lab) -> None:
    assert not [name for name in zfs_names(lab) if "zvmsnap-temporary" in name]
    left = lab.run(
        f"find {scenario.STAGING}/views {scenario.JOURNAL}/views -mindepth 1 2>/dev/null; "
        "grep fuse /proc/self/mountinfo | grep zvmsnap; pgrep -f '[z]vmsnap keep-view|[g]uestfsd'",
        check=False,
    )
    assert left.stdout == ""


def test_all_files_of_two_disks(lab: Lab) -> None:
    before = zfs_names(lab)
    done = slow(lab, f"zvmsnap files {POINT} --to {OUT}")
    top = f"{OUT}/{linux.NAME}"
    blob, copy = f"{top}/vda/blob", f"{top}/vdb/dir/a name"
    noted = lab.run(f"cut -d' ' -f1 {top}/vda/sum").stdout.strip()
    assert sums(lab, blob, copy) == {noted}
    assert lab.run(f"stat -c %a {blob}").stdout.strip() == "755"
    assert lab.run(f"ls {top}/vdb/dir").stdout.split("\n") == ["a name", "in", ""]
    assert "vdb/dir/out: is a symlink that leads out: /etc/shadow" in done.stderr
    assert "vdb/dir/null: is a device" in done.stderr
    assert ", 2 left out, 0 not copied" in done.stdout
    assert zfs_names(lab) == before
    assert_nothing_left(lab)


def test_a_mount_whose_process_is_killed(lab: Lab) -> None:
    lab.run("mkdir -p /mnt/point")
    slow(lab, f"zvmsnap mount {POINT} /mnt/point")
    noted = lab.run("cut -d' ' -f1 /mnt/point/vda/sum").stdout.strip()
    assert sums(lab, "/mnt/point/vda/blob", "/mnt/point/vdb/dir/a name") == {noted}
    assert lab.run("touch /mnt/point/vda/new", check=False).returncode == 1
    # Whoever works at it keeps it; the view is whole after that.
    busy = lab.run("cd /mnt/point/vda && zvmsnap mount --off /mnt/point", check=False)
    assert busy.returncode == 1 and "busy" in busy.stderr, busy
    lab.run("pkill -KILL -f '[z]vmsnap keep-view'")
    assert lab.run("ls /mnt/point", check=False).returncode != 0
    assert [name for name in zfs_names(lab) if "zvmsnap-temporary" in name]
    done = zvmsnap(lab, "recover")
    assert "has lost its process" in done.stdout
    assert lab.run("ls /mnt/point").stdout == ""
    assert_nothing_left(lab)
    zvmsnap(lab, "mount", "--off", "/mnt/point", status=1)
