"""What a point is made of, as `zfs set zvmsnap:mode` demands, with a Linux guest and its agent."""

from __future__ import annotations

import json

import back
import pytest
import scenario
from back import zvmsnap

from labkit import guests, linux
from labkit.api import Lab
from labkit.domains import Disk

TOP = "tank/vm/debian"
DEBIAN = scenario.Guest(
    linux.NAME, (TOP, f"{TOP}/data"), {"vda": linux.FILE.path, "vdb": linux.VOLUME.path}
)
NAME = "autosnap_2026-11-20_03:00:00_hourly"
# Beyond what the hooks measure: a write of its own, what the lab's clocks differ, and that it is
# emulated beside another one.
SLACK_S = 5.0
CLOCK_SLACK_S = 15.0

# An agent that is whoever is root in the guest: a refusal to freeze, with commands for a terminal.
HOSTILE_AGENT = r"""
killall -9 qemu-ga
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = org.qemu.guest_agent.0 ] && agent=/dev/${port##*/}
done
until exec 3<>$agent; do sleep 0.1; done
verbs='{"name":"guest-fsfreeze-freeze","enabled":true}'
for verb in thaw status; do
    verbs="$verbs,{\"name\":\"guest-fsfreeze-$verb\",\"enabled\":true}"
done
while :; do
    read -r line <&3 || { sleep 0.1; continue; }
    id=${line##*\"id\":}; id=${id%%\}*}
    case $line in
        *guest-sync*) answer="{\"return\":$id}" ;;
        *guest-info*) answer="{\"return\":{\"version\":\"0\",\"supported_commands\":[$verbs]}}" ;;
        *fsfreeze-thaw*) answer='{"return":0}' ;;
        *fsfreeze-status*) answer='{"return":"thawed"}' ;;
        *fsfreeze-freeze*) answer='{"error":{"class":"GenericError","desc":"@EVIL@"}}' ;;
        *) answer='{"return":{}}' ;;
    esac
    printf '%s\n' "$answer" >&3
done
"""
EVIL_JSON = r"\u001b]0;owned\u0007\nzvmsnap: error: web: lost\u202e\u009b2J"
EVIL_SHOWN = r"\x1b]0;owned\x07 zvmsnap: error: web: lost\u202e\x9b2J"


def prepared(lab: Lab) -> None:
    """The Linux guest runs, and sanoid knows of it."""

    def make(lab: Lab) -> None:
        scenario.write_sanoid_conf(lab, scenario.section(TOP))
        scenario.configure(lab)
        lab.run(f"zfs set snapdev=visible {TOP}")

    scenario.stage(lab, "levels", lambda lab: scenario.with_code(lab, "linux"), make)


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    prepared(lab_session)
    return lab_session


def mode(lab: Lab, order: str, of_type: str = "") -> None:
    lab.run(f"zfs set zvmsnap:mode{':' if of_type else ''}{of_type}={order} {TOP}")


def needs_recovery(lab: Lab, name: str) -> list[bool]:
    """Of the file systems in a snapshot: would a mount replay their journals?"""
    images = (f"/{TOP}/.zfs/snapshot/{name}/disk0.raw", f"/dev/zvol/{TOP}/data@{name}")
    lab.run(f"udevadm settle -E {images[1]}")
    said = [lab.run(f"dumpe2fs -h '{image}' 2>/dev/null").stdout for image in images]
    assert all("Filesystem state" in text for text in said)
    return ["needs_recovery" in text for text in said]


def guest_clock_s(lab: Lab) -> float:
    """What time the guest thinks it is; asking takes a while, so it is a bit late."""
    said = linux.agent(lab, "guest-get-time")
    assert isinstance(said, int)
    return said / 1e9


def hooked(lab: Lab) -> list[str]:
    """What the agent's own hook was called with, in the guest."""
    text = guests.serial(lab, linux.NAME)
    return [line.split()[1] for line in text.replace("\r", "").splitlines() if line[:2] == "H "]


def pre(lab: Lab, **environment: str) -> None:
    done = scenario.hook(lab, "pre-snapshot", TOP, [NAME], **environment)
    assert done.returncode == 0, done.stderr


def post(lab: Lab) -> None:
    done = scenario.hook(lab, "post-snapshot", TOP, [NAME])
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.parametrize("overlay", [
    pytest.param(False, id="frozen for the round"),
    pytest.param(True, id="with overlays", marks=pytest.mark.whole),
])
def test_quiesced(lab: Lab, overlay: bool) -> None:
    scenario.configure(lab, f"quiesce_overlay = {str(overlay).lower()}")
    mode(lab, "quiesced,crash")
    before = linux.writes(lab)[-1].count
    scenario.take(lab)
    scenario.assert_at_rest(lab, DEBIAN)
    point = scenario.the_point(lab, linux.NAME)
    assert (point.manifest["level"], point.manifest["reason"]) == ("quiesced", None)
    assert point.manifest["memory"] is None
    assert hooked(lab) == ["freeze", "thaw"]
    linux.wait_writes(lab, linux.NAME, linux.writes(lab)[-1].count + 3)
    seen = [write for write in linux.writes(lab) if write.count >= before]
    frozen_s = point.timing["pause_s"]
    print(f"MEASURED quiesced, overlay {overlay}: frozen {frozen_s:.2f} s, "
          f"writer blocked {linux.longest_wait_s(seen):.2f} s")
    assert 0 < linux.longest_wait_s(seen) < frozen_s + SLACK_S
    name = next(name for name in sorted(point.names) if name.endswith("_hourly"))
    assert needs_recovery(lab, name) == [False, False]
    # That this tells anything is seen of one that nobody froze.
    lab.run(f"zfs snapshot -r {TOP}@as-it-is")
    assert needs_recovery(lab, "as-it-is") == [True, True]
    # Such a point boots: with less than RAM, and says so.
    assert "boots from the restored disks" in zvmsnap(
        lab, "restore", "--dry-run", f"{linux.NAME}@{name}").stdout


def test_paused(lab: Lab) -> None:
    mode(lab, "paused")
    pre(lab)
    assert scenario.state(lab, linux.NAME) == "paused"
    scenario.assert_on_base(lab, linux.NAME, DEBIAN.disks)
    assert lab.run(f"find {scenario.STAGING} -name '*.qcow2'").stdout == ""
    stored = linux.writes(lab)[-1].count
    lab.run(f"zfs snapshot -r {TOP}@{NAME}")
    post(lab)
    scenario.assert_at_rest(lab, DEBIAN)
    assert scenario.state(lab, linux.NAME) == "running"
    point = scenario.the_point(lab, linux.NAME)
    assert (point.manifest["level"], point.manifest["reason"]) == ("paused", None)
    assert point.timing["pause_s"] > 0
    parts = point.pause_parts
    assert parts["ram_s"] > 0 and parts["overlays_s"] == 0
    assert parts["snapshot_s"] + parts["resume_s"] > point.timing["pause_s"] / 2, parts
    assert abs(sum(parts.values()) - point.timing["pause_s"]) < 0.01
    print(f"MEASURED paused: {point.timing['pause_s']:.2f} s by hand")
    linux.wait_writes(lab, linux.NAME, stored + 3)
    scenario.pass_hours(lab, 1)
    since = guests.serial_size_bytes(lab, linux.NAME)
    back.restore(lab, f"{linux.NAME}@{NAME}", "--no-safety")
    scenario.wait_until("it goes on where it stood", lambda: stored + 1 in [
        write.count for write in linux.writes(lab, linux.NAME, since)], timeout_s=180)
    assert "B" not in guests.serial(lab, linux.NAME, since).split()
    assert scenario.state(lab, linux.NAME) == "running"
    assert abs(guest_clock_s(lab) - float(lab.run("date +%s.%N").stdout)) < CLOCK_SLACK_S


@pytest.mark.whole
def test_the_level_of_each_type(lab: Lab) -> None:
    lab.set_clock("2031-05-06T12:01:00")
    mode(lab, "quiesced,crash", "hourly")
    mode(lab, "paused,crash", "daily")
    mode(lab, "crash", "monthly")
    with scenario.watched(lab, linux.NAME) as seen:
        scenario.take(lab)
    (point,) = scenario.points(lab, linux.NAME)
    # The best that is demanded, once for all.
    assert point.manifest["level"] == "paused" and len(seen.pauses_s) == 1
    print(f"MEASURED paused: {point.timing['pause_s']:.2f} s in a round of sanoid, "
          f"{seen.pauses_s[0]:.2f} s by libvirt's events")
    assert abs(point.timing["pause_s"] - seen.pauses_s[0]) < SLACK_S
    scenario.pass_hours(lab, 1)
    linux.wait_agent(lab)
    scenario.take(lab)
    second = scenario.points(lab, linux.NAME)[1]
    assert second.manifest["level"] == "quiesced"
    assert {name.rpartition("_")[2] for name in second.names} == {"hourly"}
    listed = zvmsnap(lab, "list", linux.NAME).stdout
    assert "quiesced" in listed and "paused" in listed


@pytest.mark.whole
def test_agent_that_died(lab: Lab) -> None:
    mode(lab, "quiesced,crash")
    lab.run(f"virsh qemu-agent-command {linux.NAME} \"$(cat)\"", check=False, stdin=json.dumps(
        {"execute": "guest-exec",
         "arguments": {"path": "/bin/busybox", "arg": ["killall", "-9", "qemu-ga"]}}))
    lab.run(f"while virsh dumpxml {linux.NAME} | grep -q \"state='connected'\"; do sleep 0.2; done")
    done = scenario.take(lab)
    assert "agent is not connected" in done.stderr
    point = scenario.the_point(lab, linux.NAME)
    assert point.manifest["level"] == "crash"
    assert point.manifest["reason"] == "its agent is not connected"
    mode(lab, "quiesced,required")
    scenario.pass_hours(lab, 1)
    assert "no point, as less is not good enough" in scenario.take(lab).stderr
    assert len(scenario.points(lab, linux.NAME)) == 1
    scenario.assert_at_rest(lab, DEBIAN)


def is_printable(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.whole
def test_what_guests_and_properties_say_reaches_no_terminal(lab: Lab) -> None:
    """And any bytes in properties and mountpoints keep no dataset from being served."""
    mode(lab, "quiesced,crash")
    lab.run("zfs create tank/odd && zfs set \"$(cat)\" tank/odd",
            stdin=f"zvmsnap:mode=\x1b[2J\t\n{TOP}\tfilesystem\toff")
    lab.run("zfs set \"$(cat)\" tank/odd", stdin=f"note:any=a\tb\nzvmsnap:mode\t{TOP}\tlocal\toff")
    lab.run("zfs create -o \"$(cat)\" tank/odd/place", stdin="mountpoint=/srv/a\rb\tc")
    lab.run(f"virsh qemu-agent-command {linux.NAME} \"$(cat)\"", check=False, stdin=json.dumps(
        {"execute": "guest-exec", "arguments": {
            "path": "/bin/sh", "arg": ["-c", HOSTILE_AGENT.replace("@EVIL@", EVIL_JSON)]}}))
    lab.run(f"until virsh qemu-agent-command {linux.NAME} '{{\"execute\":\"guest-info\"}}' "
            "| grep -q '\"version\":\"0\"'; do sleep 0.5; done")
    done = scenario.take(lab)
    point = scenario.the_point(lab, linux.NAME)
    assert point.manifest["level"] == "crash"
    for text in (point.manifest["reason"], done.stderr):
        assert EVIL_SHOWN in text and is_printable(text)
    for words in (("list",), ("show", f"{linux.NAME}@latest"), ("prune", "--dry-run")):
        said = zvmsnap(lab, *words)
        assert is_printable(said.stdout + said.stderr)
    scenario.assert_at_rest(lab, DEBIAN)


def thawed_after_s(lab: Lab) -> float:
    """Wait until the guest's file systems are thawed; how long that took, by the lab's clock."""
    status = f"virsh qemu-agent-command {linux.NAME} '{{\"execute\":\"guest-fsfreeze-status\"}}'"
    said = lab.run(
        f"begun=$(date +%s.%N); until {status} | grep -q thawed; do sleep 0.1; done; "
        "echo $begun $(date +%s.%N)", timeout_s=scenario.ROUND_LIMIT_S).stdout.split()
    return float(said[1]) - float(said[0])


@pytest.mark.whole
@pytest.mark.parametrize("order", ["quiesced", "quiesced,required"])
def test_nobody_calls_post(lab: Lab, order: str) -> None:
    scenario.configure(lab, "[limits]\nmax_freeze_s = 8")
    mode(lab, order)
    pre(lab)
    assert 0 < thawed_after_s(lab) < 8 + SLACK_S
    # Too late: what was snapshotted since then is as after a power cut, and the point says so.
    lab.run(f"zfs snapshot -r {TOP}@{NAME}")
    done = scenario.hook(lab, "post-snapshot", TOP, [NAME])
    scenario.assert_at_rest(lab, DEBIAN)
    why = "its file systems thawed before its snapshot was known"
    if order == "quiesced":
        point = scenario.the_point(lab, linux.NAME)
        assert (done.returncode, point.manifest["level"]) == (0, "crash")
        assert point.manifest["reason"] == why
    else:
        assert (done.returncode, scenario.points(lab, linux.NAME)) == (1, [])
        assert f"no point, as less than quiesced is not good enough: {why}" in done.stderr


@pytest.mark.whole
def test_all_of_ours_is_killed_while_paused(lab: Lab) -> None:
    scenario.configure(lab, "[limits]\nmax_freeze_s = 8")
    mode(lab, "paused")
    pre(lab)
    assert scenario.state(lab, linux.NAME) == "paused"
    # With the guard itself; systemd starts that again.
    lab.run("pkill -9 -f '[z]vmsnap'")
    said = lab.run(
        f"begun=$(date +%s.%N); until virsh domstate {linux.NAME} | grep -q running; do "
        "sleep 0.1; done; echo $begun $(date +%s.%N)", timeout_s=120).stdout.split()
    assert float(said[1]) - float(said[0]) < 8 + SLACK_S
    lab.run(f"zfs snapshot -r {TOP}@{NAME}")
    post(lab)
    point = scenario.the_point(lab, linux.NAME)
    assert point.manifest["level"] == "crash"
    scenario.assert_at_rest(lab, DEBIAN)


@pytest.mark.whole
def test_the_administrators_own_programs(lab: Lab) -> None:
    mode(lab, "quiesced,crash")
    note = 'echo "$(basename "$0") $ZVMSNAP_DOMAIN $ZVMSNAP_SNAPNAMES" >> /root/noted'
    for program in ("pre-freeze", "post-thaw"):
        path = f"/etc/zvmsnap/guest.d/{linux.NAME}/{program}"
        lab.put(path, f"#!/bin/sh\n{note}\n", 0o755)
    pre(lab)
    assert lab.get("/root/noted").decode() == f"pre-freeze {linux.NAME} {NAME}\n"
    lab.run(f"zfs snapshot -r {TOP}@{NAME}")
    post(lab)
    assert lab.get("/root/noted").decode().splitlines()[1:] == [f"post-thaw {linux.NAME} {NAME}"]
    assert scenario.the_point(lab, linux.NAME).manifest["level"] == "quiesced"
    # One that fails: nothing is frozen, and post-thaw still runs.
    failing = f"/etc/zvmsnap/guest.d/{linux.NAME}/pre-freeze"
    lab.put(failing, f"#!/bin/sh\n{note}\necho no database >&2\nexit 3\n", 0o755)
    lab.run("rm /root/noted")
    frozen = len(hooked(lab))
    done = scenario.hook(lab, "pre-snapshot", TOP, [NAME.replace("03", "04")])
    assert "pre-freeze: failed (3): no database" in done.stderr
    assert [line.split()[0] for line in lab.get("/root/noted").decode().splitlines()] == [
        "pre-freeze", "post-thaw"]
    assert len(hooked(lab)) == frozen


def test_ram_that_cannot_be_saved(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    shared = ("<shmem name='db' role='peer'><model type='ivshmem-plain'/>"
              "<size unit='M'>4</size></shmem>")
    # The smaller cell comes first: QEMU would end.
    cells = ("<cpu><numa><cell id='0' cpus='0' memory='24' unit='MiB'/>"
             "<cell id='1' memory='40' unit='MiB'/></numa></cpu>")
    reasons = {
        "db": "shared memory db (shmem) without role='master'",
        "cells": "NUMA cells or memory modules, with emulated CPUs: QEMU misses what they write",
    }
    for name, devices, extra in (("db", shared, ""), ("cells", "", cells)):
        lab.run(f"zfs create tank/{name}")
        disk = guests.make_disk(lab, Disk(f"/tank/{name}/disk0.raw"))
        guests.define(lab, guests.domain_xml(name, [disk], devices=devices, extra=extra))
        guests.start(lab, name)
    scenario.write_sanoid_conf(lab, *(scenario.section(f"tank/{name}") for name in reasons))
    done = scenario.take(lab)
    for name, reason in reasons.items():
        why = f"its RAM cannot be saved because of {reason}"
        assert why in done.stderr
        point = scenario.the_point(lab, name)
        assert (point.manifest["level"], point.manifest["reason"]) == ("crash", why)
        scenario.assert_counted_through(lab, name)
    # And libvirt says so too.
    assert "shmem" in lab.run("virsh save db /tmp/x", check=False).stderr


def _as_volume(xml: str, path: str, pool: str) -> str:
    """The definition, with the disk at that path as a volume of a storage pool."""
    head, tail = xml.split(f'<source file="{path}"/>')
    before, _, after = head.rpartition("<disk type='file'")
    source = f"<source pool='{pool}' volume='{path.rpartition('/')[2]}'/>"
    return f"{before}<disk type='volume'{after}{source}{tail}"


@pytest.mark.whole
def test_a_volume_of_a_pool_a_data_file_and_a_floppy(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    lab.run("zfs create tank/pool && zfs create tank/pool/data &&"
            "virsh -q pool-define-as images dir --target /tank/pool && virsh -q pool-start images")
    volume, metadata, data = "/tank/pool/a.qcow2", "/tank/pool/b.qcow2", "/tank/pool/data/b.raw"
    disks = [guests.make_disk(lab, Disk(volume, "qcow2")), Disk(metadata, "qcow2")]
    lab.run(f"qemu-img create -q -f qcow2 -o data_file={data},data_file_raw=on {metadata} 16M")
    guests.make_disk(lab, Disk(data))
    lab.run("truncate -s 1440K /tank/pool/f.img && virsh -q pool-refresh images")
    floppy = ("<disk type='file' device='floppy'><source file='/tank/pool/f.img'/>"
              "<target dev='fda' bus='fdc'/></disk>")
    # What an administrator does: virt-aa-helper does not ask where a volume is.
    lab.run("mkdir -p /etc/apparmor.d/local/abstractions &&"
            "echo '/tank/** rwk,' >> /etc/apparmor.d/local/abstractions/libvirt-qemu")
    guests.define(lab, _as_volume(
        guests.domain_xml("pool", disks, devices=floppy), volume, "images"))
    guests.start(lab, "pool")
    scenario.write_sanoid_conf(lab, scenario.section("tank/pool"))
    scenario.take(lab)
    point = scenario.the_point(lab, "pool")
    assert (point.manifest["level"], point.manifest["reason"]) == ("memory", None)
    assert sorted(disk["target"] for disk in point.manifest["disks"]) == ["fda", "vda", "vdb"]
    (state,) = point.manifest["other_state"]
    assert (state["called"], state["dataset"], state["path"], state["why"]) == (
        "data file of disk vdb", "tank/pool/data", "b.raw", "")
    assert {snapshot["dataset"] for snapshot in point.manifest["snapshots"]} == {
        "tank/pool", "tank/pool/data"}
    scenario.assert_counted_through(lab, "pool")
    assert "data file of disk vdb" in lab.run("zvmsnap show pool@latest").stdout
    for persistent in (False, True):
        assert "<source pool='images' volume='a.qcow2'" in scenario.dumpxml(
            lab, "pool", persistent=persistent)
    assert scenario.leftovers(lab) == []
    # It comes back with its RAM, on disks and data of that instant.
    since = guests.serial_size_bytes(lab, "pool")
    last = guests.counts(lab, "pool")[-1]
    lab.run("zvmsnap restore --yes pool@latest", timeout_s=300)
    counts = guests.wait_counts(lab, "pool", 0, since_byte=since)
    scenario.wait_until("it counts on", lambda: guests.counts(lab, "pool", since)[-1] > counts + 5)
    assert min(guests.counts(lab, "pool", since)) <= last
    assert (guests.boots(lab, "pool", since), guests.mismatches(lab, "pool", since)) == (0, [])
    assert "<source pool='images' volume='a.qcow2'" in scenario.dumpxml(lab, "pool")
    # Without the data in the snapshot, that disk is no part of a point.
    lab.run("zfs set zvmsnap:mode=off tank/pool/data")
    scenario.pass_hours(lab, 1)
    scenario.take(lab)
    newest = max(scenario.points(lab, "pool"), key=lambda each: each.manifest["created"])
    assert newest.manifest["level"] == "crash"
    assert "vdb (data file of disk vdb (/tank/pool/data/b.raw on tank/pool/data) is not" in (
        newest.manifest["reason"])
    assert "vdb" not in {disk["target"] for disk in newest.manifest["disks"]}
