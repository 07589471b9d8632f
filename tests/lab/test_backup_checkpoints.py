"""`zvmsnap backup` of a guest on no ZFS: increments by libvirt's checkpoints, and what breaks them.

The disk is written to through its QEMU by a program of ours beside the guest's own counts: each of
its writes follows from its number, so each backup must be what the disk was after some number of
them, that lies between those before and after it: byte by byte, but for the guest's own mebibyte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from shlex import quote
from typing import Any

import pytest
import scenario
from back import zvmsnap

from labkit import guests
from labkit.api import Lab

GUEST = "plain"
SIZE_MIB = 64
IMAGE = "/var/lib/libvirt/images/plain.qcow2"
BACKUP, SECOND = "/backup", "/second"
WRITER = "/root/writer.py"
DONE = "/root/done"

# Numbers of writes: data, zeros and zeros that may be unmapped, of 4 to 160 KiB.
PROGRAM = f"""
import os, sys, time

MIB = 1 << 20
SIZE = {SIZE_MIB} * MIB
DISK = "/machine/peripheral/virtio-disk0/virtio-backend"

def step(number):
    at = MIB + number * 7919 * 4096 % (SIZE - 2 * MIB)
    length = min(4096 * (1 + number * 31 % 40), SIZE - at)
    return at, length, 0 if number % 5 == 4 else number % 255 + 1

def write(first):
    import libvirt, libvirt_qemu
    domain = libvirt.open("qemu:///system").lookupByName("{GUEST}")
    number = first
    while True:
        at, length, byte = step(number)
        how = f"-P {{byte}}" if byte else "-z -u" if number % 2 else "-z"
        said = libvirt_qemu.qemuMonitorCommand(
            domain, f'qemu-io -d {{DISK}} "write {{how}} {{at}} {{length}}"', 1)
        assert not said.strip(), said  # what is written is told on QEMU's own output
        number += 1
        with open("{DONE}.new", "w") as file:
            file.write(str(number))
        os.replace("{DONE}.new", "{DONE}")  # whoever reads it reads a number
        time.sleep(0.05)

def check(path, low, high):
    with open(path, "rb") as file:
        seen = file.read()
    assert len(seen) == SIZE, len(seen)
    model = bytearray(SIZE)
    for number in range(high + 1):
        if number >= low and seen[MIB:] == model[MIB:]:
            print(number)
            return
        at, length, byte = step(number)
        model[at:at + length] = bytes([byte]) * length
    different = [at >> 16 for at in range(MIB, SIZE, 65536)
                 if seen[at:at + 65536] != model[at:at + 65536]]
    sys.exit(f"is not as after {{low}} to {{high}} writes: {{different}}")

if sys.argv[1] == "write":
    write(int(sys.argv[2]))
else:
    check(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
"""


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    """The guest `plain` counts, on a disk on ext4."""

    def make(lab: Lab) -> None:
        lab.run("virsh -q destroy web && virsh -q undefine web")
        disk = guests.Disk(IMAGE, "qcow2")
        guests.make_disk(lab, disk, size_mib=SIZE_MIB)
        guests.define(lab, guests.domain_xml(GUEST, [disk]))
        lab.run(f"cp {IMAGE} {IMAGE}.before && mkdir {BACKUP} {SECOND} && echo 0 > {DONE}")
        lab.put(WRITER, PROGRAM)
        guests.start(lab, GUEST)

    scenario.stage(lab_session, "plain", scenario.configured, make)
    return lab_session


def done(lab: Lab) -> int:
    return int(lab.run(f"cat {DONE}").stdout)


@contextmanager
def writing(lab: Lab) -> Iterator[None]:
    """The program writes, on from where it was."""
    before = done(lab)
    with scenario.running(lab, f"python3 {WRITER} write {before}"):
        scenario.wait_until("some writes", lambda: done(lab) > before + 20, 300)
        yield


def write_some(lab: Lab) -> None:
    with writing(lab):
        pass


def listed(lab: Lab, directory: str = BACKUP) -> list[dict[str, Any]]:
    said = zvmsnap(lab, "backup", "list", directory, "--json").stdout
    found: list[dict[str, Any]] = json.loads(said)["backups"]
    return found


def back_up(lab: Lab, *options: str, directory: str = BACKUP) -> dict[str, Any]:
    """A backup, compared with what was written; as `backup list` tells it."""
    low = done(lab)
    zvmsnap(lab, "backup", *options, GUEST, directory)
    high = done(lab) + 1
    made = listed(lab, directory)[-1]
    assert_holds(lab, f"{directory}/{made['name']}/vda.qcow2", low, high)
    return made


def assert_holds(lab: Lab, image: str, low: int, high: int) -> None:
    lab.run(f"qemu-img convert -O raw {image} /root/vda.raw")
    lab.run(f"python3 {WRITER} check /root/vda.raw {low} {high}")
    lab.run("rm /root/vda.raw")


def checkpoints(lab: Lab) -> list[str]:
    return lab.run(f"virsh -q checkpoint-list {GUEST} --name").stdout.split()


def compared(backup: dict[str, Any]) -> str:
    text: str = backup["disks"][0]["compared"]
    return text


def is_by_checkpoint(backup: dict[str, Any]) -> bool:
    return backup["level"] == "inc" and "since checkpoint zvmsnap-" in compared(backup)


def assert_nothing_left(lab: Lab) -> None:
    assert scenario.leftovers(lab) == []
    for directory in (BACKUP, SECOND):
        assert lab.run(f"find {directory} -name '.*'").stdout == ""
    assert "None" in lab.run(f"virsh domjobinfo {GUEST}").stdout
    scenario.counts_on(lab, GUEST)


@pytest.mark.whole
def test_full_and_five_increments(lab: Lab) -> None:
    made = []
    with writing(lab):
        for _ in range(6):
            made.append(back_up(lab))
            scenario.counts_on(lab, GUEST)
    assert [each["level"] for each in made] == ["full", *["inc"] * 5]
    assert all(map(is_by_checkpoint, made[1:])), list(map(compared, made))
    assert checkpoints(lab) == [made[0]["checkpoint"], made[5]["checkpoint"]]
    # A difference from the full one, and a chain that goes on from it.
    write_some(lab)
    diff = back_up(lab, "--level", "diff")
    assert diff["parent"] == made[0]["name"] and "since checkpoint" in compared(diff)
    write_some(lab)
    assert is_by_checkpoint(back_up(lab))
    assert ": is whole" in zvmsnap(lab, "backup", "verify", BACKUP).stdout
    # Off and on again: QEMU has written the bitmaps to the image.
    lab.run(f"virsh -q destroy {GUEST}")
    guests.start(lab, GUEST)
    assert_nothing_left(lab)
    # A process that is ended so leaves them in use, which libvirt sees.
    write_some(lab)
    again = back_up(lab)
    assert again["level"] == "inc", again
    write_some(lab)
    assert is_by_checkpoint(back_up(lab, "--compress"))
    # Imported, it is the same disk.
    name = listed(lab)[-1]["name"]
    low = done(lab)
    zvmsnap(lab, "import", f"{BACKUP}/{name}", "--as", "again", "--to", "cheap")
    assert_holds(lab, "/cheap/again/vda.raw", low, low + 1)
    assert_nothing_left(lab)


@pytest.mark.whole
def test_two_directories_side_by_side(lab: Lab) -> None:
    with writing(lab):
        for _ in range(3):
            one, two = back_up(lab), back_up(lab, directory=SECOND)
    assert is_by_checkpoint(one) and is_by_checkpoint(two)
    assert one["checkpoint"][:24] != two["checkpoint"][:24]
    assert len(checkpoints(lab)) == 4
    assert {one["checkpoint"], two["checkpoint"]} < set(checkpoints(lab))
    assert_nothing_left(lab)


@pytest.mark.whole
def test_a_disk_of_before_the_checkpoint(lab: Lab) -> None:
    """Its image is replaced while the guest is off; libvirt still lists the checkpoint."""
    back_up(lab)
    write_some(lab)
    known = back_up(lab)["checkpoint"]
    lab.run(f"virsh -q destroy {GUEST} && cp {IMAGE}.before {IMAGE} && echo 0 > {DONE}")
    guests.start(lab, GUEST)
    write_some(lab)
    made = back_up(lab)
    assert known not in checkpoints(lab)
    assert "as libvirt refuses an increment" in compared(made), compared(made)
    assert f"bitmap '{known}' for disk 'vda'" in compared(made)
    write_some(lab)
    assert is_by_checkpoint(back_up(lab))
    assert_nothing_left(lab)


@pytest.mark.whole
def test_longer_and_raw(lab: Lab) -> None:
    """Whole, and compared: a disk that has grown, and one that is raw; the other one is not."""
    back_up(lab)
    lab.run(f"virsh -q blockresize {GUEST} vda {SIZE_MIB + 16}M")
    lab.run("truncate -s 8M /var/lib/libvirt/images/raw.img && "
            f"virsh -q attach-disk {GUEST} /var/lib/libvirt/images/raw.img vdb --live --config")
    zvmsnap(lab, "backup", GUEST, BACKUP)
    grown = listed(lab)[-1]
    assert f"and is {(SIZE_MIB + 16) << 20}" in compared(grown)
    lab.run("dd if=/dev/urandom of=/root/noise bs=1M count=1 status=none")
    zvmsnap(lab, "backup", GUEST, BACKUP)
    made = listed(lab)[-1]
    vda, vdb = made["disks"]
    assert "since checkpoint" in vda["compared"]
    assert vdb["compared"] == "all of it was compared, as it is raw, which has no bitmaps"
    lab.run(f"qemu-img compare -U -f raw -F qcow2 /var/lib/libvirt/images/raw.img "
            f"{BACKUP}/{made['name']}/vdb.qcow2")
    assert_nothing_left(lab)


# With a double quote in its name AppArmor starts no guest.
OTHER = "it's other"


@pytest.mark.whole
def test_all_that_run(lab: Lab) -> None:
    """Two at once; interrupted, neither leaves anything."""
    disk = guests.Disk("/var/lib/libvirt/images/other.qcow2", "qcow2")
    guests.make_disk(lab, disk)
    xml = guests.domain_xml("other", [disk]).replace("<name>other<", f"<name>{OTHER}<")
    guests.define(lab, xml)
    lab.run(f"virsh -q start {quote(OTHER)}")
    said = zvmsnap(lab, "backup", "--all-running", BACKUP).stdout
    assert {line.partition("@")[0] for line in said.splitlines()} == {GUEST, OTHER}
    assert [each["level"] for each in listed(lab)] == ["full", "full"]
    write_some(lab)
    told = json.loads(zvmsnap(lab, "backup", "--all-running", "--json", BACKUP).stdout)["backups"]
    assert len(told) == 2 and all(map(is_by_checkpoint, told)), told
    fill(lab)
    known = checkpoints(lab)
    with scenario.running(lab, f"zvmsnap backup --all-running --level full {BACKUP}") as under_way:
        lab.run(f"until ls {BACKUP}/.making-*/vda.pushed.qcow2 >/dev/null 2>&1; do :; done; "
                f"kill -INT {under_way.pid}")
        said = under_way.wait()
        assert under_way.process.returncode == 1
    assert "Traceback" not in said and "SIGINT" in said
    assert_nothing_left(lab)
    assert {each["name"] for each in listed(lab)} >= {each["name"] for each in told}
    assert checkpoints(lab) == known


# -- what happens in the middle of it


def fill(lab: Lab) -> None:
    """So that a backup takes its time; it is not what the program would write."""
    lab.run(f"virsh -q qemu-monitor-command {GUEST} --hmp "
            "'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "
            f'"write -P 1 1M {SIZE_MIB - 1}M"\'')


@contextmanager
def in_the_middle(lab: Lab, directory: str) -> Iterator[scenario.Running]:
    """An increment that QEMU writes, into a directory that has just stopped taking writes."""
    lab.run(
        f"truncate -s 512M /srv/target.img && mkfs.ext4 -q -m 0 /srv/target.img && "
        f"mkdir -p {directory} && mount /srv/target.img {directory} && rmdir {directory}/lost+found"
    )
    back_up(lab, directory=directory)
    fill(lab)
    lab.run("sync")
    with scenario.running(lab, f"zvmsnap backup {GUEST} {directory}") as under_way:
        # The job has begun when libvirt has written down the second checkpoint.
        lab.run(f"until set -- /var/lib/libvirt/qemu/checkpoint/{GUEST}/*.xml && [ $# = 2 ]; "
                f"do :; done; fsfreeze -f {directory}")
        try:
            yield under_way
        finally:
            lab.run(f"fsfreeze -u {directory}", check=False)


def goes_on(lab: Lab, directory: str) -> None:
    """Whoever died, the next backup is an increment since the last one that was published."""
    assert_nothing_left(lab)
    last = listed(lab, directory)[-1]
    assert last["checkpoint"] in checkpoints(lab)
    zvmsnap(lab, "backup", GUEST, directory)
    made = listed(lab, directory)[-1]
    assert made["parent"] == last["name"]
    assert f"since checkpoint {last['checkpoint']}" in compared(made)
    assert_same_as_a_full_one(lab, directory)
    assert len(checkpoints(lab)) == 3  # of the full one, the last one, and the other directory


def assert_same_as_a_full_one(lab: Lab, directory: str) -> None:
    """One more increment, and a full backup, of a guest that stands still."""
    lab.run(f"virsh -q suspend {GUEST}")
    try:
        zvmsnap(lab, "backup", GUEST, directory)
        zvmsnap(lab, "backup", "--level", "full", GUEST, SECOND)
    finally:
        lab.run(f"virsh -q resume {GUEST}")
    third, full = listed(lab, directory)[-1], listed(lab, SECOND)[-1]
    assert is_by_checkpoint(third)
    lab.run(f"qemu-img compare {directory}/{third['name']}/vda.qcow2 "
            f"{SECOND}/{full['name']}/vda.qcow2")


@pytest.mark.whole
@pytest.mark.parametrize("ended_by", ["recover", "the next backup"])
def test_killed(lab: Lab, ended_by: str) -> None:
    with in_the_middle(lab, "/srv/target") as under_way:
        (known, made) = checkpoints(lab)
        lab.run(f"kill -KILL {under_way.pid}")
    if ended_by == "recover":
        assert f"{GUEST}: recovered" in zvmsnap(lab, "recover").stdout
        assert checkpoints(lab) == [known]
        assert lab.run("ls -A /srv/target").stdout.count("\n") == 2
    else:
        zvmsnap(lab, "backup", "--level", "copy", GUEST, "/srv/target")
        copied = listed(lab, "/srv/target")[-1]["name"]
        assert checkpoints(lab) == [known] and made != known
        lab.run(f"rm -r /srv/target/{copied}")
    goes_on(lab, "/srv/target")


@pytest.mark.whole
def test_power_cut(lab: Lab) -> None:
    """QEMU has not written its bitmaps: libvirt lists a checkpoint that is good for nothing."""
    with in_the_middle(lab, "/srv/target"):
        known, made = checkpoints(lab)
        lab.powercut()
        lab.run("mount /srv/target.img /srv/target")
    assert f"{GUEST}: recovered" in zvmsnap(lab, "recover").stdout
    (only,) = listed(lab, "/srv/target")
    assert lab.run("ls -A /srv/target").stdout.count("\n") == 2
    guests.start(lab, GUEST)
    zvmsnap(lab, "backup", GUEST, "/srv/target")
    after = listed(lab, "/srv/target")[-1]
    assert after["parent"] == only["name"] and only["checkpoint"] == known
    assert "as libvirt refuses an increment" in compared(after), compared(after)
    assert checkpoints(lab) == [known, after["checkpoint"]] and made != known
    assert_same_as_a_full_one(lab, "/srv/target")
    assert_nothing_left(lab)


@pytest.mark.whole
def test_interrupted(lab: Lab) -> None:
    with in_the_middle(lab, "/srv/target") as under_way:
        known = checkpoints(lab)[0]
        lab.run(f"kill -INT {under_way.pid} && fsfreeze -u /srv/target")
        under_way.wait()
    assert checkpoints(lab) == [known]
    goes_on(lab, "/srv/target")


@pytest.mark.whole
def test_libvirtd_is_started_again(lab: Lab) -> None:
    with in_the_middle(lab, "/srv/target") as under_way:
        known = checkpoints(lab)[0]
        lab.run("systemctl restart libvirtd && fsfreeze -u /srv/target")
        said = under_way.wait()
    scenario.wait_until("libvirt", lambda: "running" in lab.run(
        f"virsh domstate {GUEST}", check=False).stdout)
    # If nobody asked meanwhile, it is a backup as any other.
    if len(listed(lab, "/srv/target")) == 1:
        assert said.count("\n") == 1 and f"{GUEST}: libvirt was ended" in said, said
        assert checkpoints(lab) == [known]
    goes_on(lab, "/srv/target")


@pytest.mark.whole
def test_no_room_and_a_guest_that_ends(lab: Lab) -> None:
    small = scenario.mount_small(lab, 40)
    lab.run(f"rmdir {small}/lost+found")
    made = back_up(lab, directory=small)
    fill(lab)
    before = lab.run(f"ls -A {small}").stdout
    said = zvmsnap(lab, "backup", "--level", "full", GUEST, small, status=1).stderr
    assert said.count("\n") == 1 and "MiB free, and the backup may need" in said, said
    # Of an increment nobody knows how large it is.
    said = zvmsnap(lab, "backup", GUEST, small, status=1).stderr
    assert said.count("\n") == 1 and GUEST in said and "No space left" in said, said
    assert checkpoints(lab) == [made["checkpoint"]]
    assert lab.run(f"ls -A {small}").stdout == before
    assert_nothing_left(lab)
    with scenario.running(lab, f"zvmsnap backup {GUEST} {BACKUP}") as under_way:
        lab.run(f"until ls {BACKUP}/.making-*/vda.pushed.qcow2 >/dev/null 2>&1; do :; done; "
                f"virsh -q destroy {GUEST}")
        said = under_way.wait()
    assert said.count("\n") == 1 and f"{GUEST}: " in said, said
    assert lab.run(f"ls -A {BACKUP}").stdout == "zvmsnap-destination\n"
    assert scenario.leftovers(lab) == []
    guests.start(lab, GUEST)
    zvmsnap(lab, "backup", GUEST, BACKUP)
    assert set(checkpoints(lab)) == {made["checkpoint"], listed(lab)[-1]["checkpoint"]}
