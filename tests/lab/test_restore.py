"""`zvmsnap restore`: a point comes back in place of its guest, and nothing is lost."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator

import back
import pytest
import scenario
from back import restore, zvmsnap
from scenario import WEB

from labkit import guests
from labkit.api import Lab


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    """Two moments of `web` are taken, an hour apart."""

    def make(lab: Lab) -> None:
        scenario.pass_hours(lab, 1)
        scenario.take(lab)

    scenario.stage(lab_session, "taken-twice", scenario.taken, make)
    return lab_session


def test_back_and_forth_with_ram(lab: Lab) -> None:
    name, newer = back.hourly(lab), back.hourly(lab, 1)
    stored = back.stored_count(lab, name)
    before = lab.run("zfs list -Hp -t all -o name,guid").stdout
    planned = zvmsnap(lab, "restore", "--dry-run", f"web@{name}").stdout
    assert f"tank/vm/web holds tank/vm/web@{name} again" in planned
    assert "no terminal to ask on" in zvmsnap(lab, "restore", f"web@{name}", status=2).stderr
    assert lab.run("zfs list -Hp -t all -o name,guid").stdout == before
    scenario.counts_on(lab)

    planned = restore(lab, f"web@{name}").stdout
    last_of_former = back.assert_jumped_to(lab, stored)
    back.assert_nothing_left(lab)
    # The names that were shown are those that are in use now.
    (safety,) = re.findall(r"the replaced guest becomes the point (\S+)$", planned, re.MULTILINE)
    assert safety == back.safety_point(lab)
    (aside,) = re.findall(r"newer snapshots, are on (\S+) afterwards", planned)
    assert [each for each in back.zfs_names(lab) if ".before-" in each] == [aside, f"{aside}/data"]

    # The newer snapshots live on, with their point, beside what was there.
    (moved,) = [point for point in back.listed(lab) if f"web@{newer}".startswith(point["name"])]
    assert moved["complete_names"] and moved["note"] == ""
    assert all(each.startswith("tank/vm/web.before-") for each in moved["alive"])
    assert f"tank/vm/web@{name}" in back.zfs_names(lab, "snapshot")

    # And what was there comes back the same way, RAM and all, with all history.
    restore(lab, back.safety_point(lab))
    back.assert_jumped_to(lab, last_of_former, times=2)
    names = back.zfs_names(lab, "snapshot")
    for dataset in WEB.datasets:
        assert f"{dataset}@{name}" in names and f"{dataset}@{newer}" in names
    back.assert_nothing_left(lab)


@pytest.mark.whole
def test_point_that_this_host_has_not_made_as_far_as_it_knows(lab: Lab) -> None:
    """Its images are looked at in the snapshot, whose mount is in the way of nothing."""
    lab.run(f"rm {scenario.JOURNAL}/seal.key")
    name = back.hourly(lab)
    stored = back.stored_count(lab, name)
    refused = zvmsnap(lab, "restore", "--yes", "--rollback", f"web@{name}", status=1).stderr
    assert "say --trust" in refused
    scenario.counts_on(lab)
    restore(lab, f"web@{name}")
    back.assert_jumped_to(lab, stored)
    back.assert_nothing_left(lab)


MEANWHILE = "tank/vm/web@precious"
# On a terminal: waits for the question, does something else, and agrees.
AGREES_LATE = """
import os, pty, subprocess, sys

child, terminal = pty.fork()
if not child:
    os.execvp(sys.argv[2], sys.argv[2:])
said = b""
agreed = False
while True:
    try:
        some = os.read(terminal, 4096)
    except OSError:
        break
    said += some
    if b"Do it?" in said and not agreed:
        subprocess.run(sys.argv[1], shell=True, check=True)
        os.write(terminal, b"y\\n")
        agreed = True
print(said.decode(), "exits with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_rollback_says_what_it_destroys(lab: Lab) -> None:
    name, newer = back.hourly(lab), back.hourly(lab, 1)
    stored = back.stored_count(lab, name)
    lab.run(f"zfs clone tank/vm/web/data@{newer} tank/in-the-way")
    refused = restore(lab, f"web@{name}", "--rollback", status=1)
    assert "tank/in-the-way" in refused.stderr
    lab.run(f"zfs destroy tank/in-the-way && zfs hold mine tank/vm/web@{newer}")
    assert "is held" in restore(lab, f"web@{name}", "--rollback", status=1).stderr
    lab.run(f"zfs release mine tank/vm/web@{newer}")
    # What was agreed to is done, and nothing else.
    lab.put("/root/agree.py", AGREES_LATE)
    agreed = lab.run(f"python3 /root/agree.py 'zfs snapshot {MEANWHILE}' "
                     f"zvmsnap restore --rollback web@{name}", timeout_s=scenario.ROUND_LIMIT_S)
    assert "exits with 1" in agreed.stdout, agreed
    assert "the plan does not fit any more" in agreed.stdout
    assert f"now it would be: DESTROYS snapshot {MEANWHILE}" in agreed.stdout
    assert MEANWHILE in back.zfs_names(lab, "snapshot")
    scenario.counts_on(lab)

    done = restore(lab, f"web@{name}", "--rollback")
    assert f"DESTROYS snapshot tank/vm/web@{newer}" in done.stdout
    assert f"DESTROYS snapshot tank/vm/web/data@{newer}" in done.stdout
    assert f"DESTROYS point web@{newer.removesuffix('_hourly')}" in done.stdout
    back.assert_jumped_to(lab, stored)
    assert [n for n in back.zfs_names(lab, "snapshot") if newer in n] == []
    assert not any(".before-" in each for each in back.zfs_names(lab))
    back.assert_nothing_left(lab)


@pytest.mark.whole
def test_cold_and_paused(lab: Lab) -> None:
    name = back.hourly(lab)
    stored = back.stored_count(lab, name)
    restore(lab, f"web@{name}", "--paused")
    assert scenario.state(lab, "web") == "paused"
    held = [guests.disk_count(lab, path) for path in WEB.disks.values()]
    assert max(held) - stored in (0, 1)
    lab.run("virsh resume web")
    back.assert_jumped_to(lab, stored)

    done = restore(lab, f"web@{name}", "--cold", "--paused", "--no-safety")
    assert "the replaced guest is NOT kept" in done.stdout
    back.assert_boots(lab, WEB.disks.values(), stored, "web", "web")
    back.assert_nothing_left(lab)


@pytest.mark.whole
def test_load_that_does_not_go_on_is_given_up(lab: Lab) -> None:
    """QEMU is stopped as soon as it waits for the RAM: libvirt would wait for it for ever."""
    name = back.hourly(lab)
    stop = lab.start(
        "until pid=$(pgrep -f -- 'guest=[w]eb,.* -incoming'); do sleep 0.05; done; kill -STOP $pid"
    )
    refused = restore(lab, f"web@{name}", status=1)
    assert stop.wait(10) == 0
    assert "given up: QEMU has neither read nor worked for 300 s" in refused.stderr
    assert "All is as it was: web is running" in refused.stderr
    assert back.jumps(lab) == [] and guests.boots(lab, "web") == 1
    scenario.counts_on(lab)
    back.assert_nothing_left(lab)


def test_guest_that_was_undefined_and_dataset_that_was_renamed(lab: Lab) -> None:
    name = back.hourly(lab)
    stored = back.stored_count(lab, name)
    lab.run("virsh destroy web && virsh undefine web --nvram && rm -f /etc/libvirt/qemu/web.xml")
    lab.run("zfs rename tank/vm/web tank/vm/www")
    since = guests.serial_size_bytes(lab, "web")
    done = restore(lab, f"web@{name}")
    assert "disk vda is at /tank/vm/www/disk0.raw now" in done.stdout
    back.assert_goes_on(lab, "web", stored, since)
    expected = {"vda": "/tank/vm/www/disk0.raw", "vdb": "/dev/zvol/tank/vm/www/data"}
    scenario.assert_on_base(lab, "web", expected)


@pytest.mark.whole
def test_other_datasets_and_properties_keep_their_place(lab: Lab) -> None:
    name = back.hourly(lab)
    lab.run(
        "zfs create tank/vm/web/notes && echo mine > /tank/vm/web/notes/file &&"
        "zfs set recordsize=64K zvmsnap:mine=yes quota=100M tank/vm/web &&"
        "zfs set refreservation=1M tank/vm/web/data"
    )
    guid = lab.run("zfs get -Hpo value guid tank/vm/web/notes").stdout
    restore(lab, f"web@{name}")
    assert lab.run("cat /tank/vm/web/notes/file").stdout == "mine\n"
    assert lab.run("zfs get -Hpo value guid tank/vm/web/notes").stdout == guid
    told = lab.run(
        "zfs get -Hpo value recordsize,zvmsnap:mine,quota tank/vm/web;"
        "zfs get -Hpo value refreservation tank/vm/web/data"
    ).stdout.split()
    assert told == ["65536", "yes", str(100 << 20), str(1 << 20)]
    scenario.counts_on(lab)


@pytest.mark.whole
def test_replication_finds_its_common_snapshot(lab: Lab) -> None:
    name, newer = back.hourly(lab), back.hourly(lab, 1)
    sync = "syncoid --no-sync-snap --recursive --quiet tank/vm/web cheap/copy"
    lab.run(sync, timeout_s=scenario.ROUND_LIMIT_S)
    assert f"cheap/copy@{newer}" in back.zfs_names(lab, "snapshot")
    restore(lab, f"web@{name}")
    scenario.pass_hours(lab, 2)
    scenario.take(lab)
    youngest = list(scenario.snapshots(lab, WEB.top))[-1]
    lab.run(sync, timeout_s=scenario.ROUND_LIMIT_S)
    copied = scenario.snapshots(lab, "cheap/copy")
    assert copied[name] == scenario.snapshots(lab, WEB.top)[name]
    assert copied[youngest] == scenario.snapshots(lab, WEB.top)[youngest]


SETUP = """
zfs set reservation=40M autobackup:nas=true syncoid:sync=true tank/vm/web
zfs set zvmsnap:group=shop org:owner=me tank/vm/web
zfs set autobackup:all=true tank/vm
zfs set refreservation=16M autobackup:nas=child tank/vm/web/data
zfs allow -u nobody send,hold,snapshot tank/vm/web
zfs allow -l -g staff mount tank/vm/web
zfs allow -s @mine snapshot,destroy tank/vm/web
zfs allow -u nobody @mine tank/vm/web
zfs allow -c destroy tank/vm/web
zfs allow -l -u 54321 rollback tank/vm/web/data
zfs allow -d -e hold tank/vm/web/data
zfs set quota=$(($(zfs get -Hpo value used tank/vm) + 24000000)) tank/vm
"""
BELONGINGS = (
    "zfs allow tank/vm/web; zfs allow tank/vm/web/data; "
    "zfs get -Hp -s local -o name,property,value all tank/vm/web tank/vm/web/data |"
    "grep -v canmount | sort"
)
SET_ASIDE = "zfs list -Ho name -t filesystem,volume -r tank/vm | grep [.]before-"
TOOLS = "autobackup:nas,autobackup:all,syncoid:sync,com.sun:auto-snapshot,zvmsnap:group,org:owner"


@pytest.mark.whole
def test_what_belongs_to_a_name_goes_with_it(lab: Lab) -> None:
    """On a quota that a second reservation would break, and killed in the middle once."""
    name = back.hourly(lab)
    lab.run(SETUP)
    before = lab.run(BELONGINGS).stdout
    assert before.count("autobackup:nas") == 2 and "user (unknown: 54321) rollback" in before
    restore(lab, f"web@{name}", "--no-safety")
    assert lab.run(BELONGINGS).stdout == before
    lab.run(
        f"ZVMSNAP_TEST_STOP_BEFORE=promote zvmsnap restore --yes web@{name} & "
        'until grep -Eq \'"step": ?"promote"\' /var/lib/zvmsnap/journal/operations/*.json; '
        "do sleep 0.2; done; kill -9 $!; wait; zvmsnap recover",
        timeout_s=scenario.ROUND_LIMIT_S,
    )
    assert lab.run(BELONGINGS).stdout == before
    restore(lab, f"web@{name}", "--no-safety")
    assert lab.run(BELONGINGS).stdout == before
    back.assert_nothing_left(lab)

    aside = lab.run(SET_ASIDE).stdout.split()
    assert len(aside) == 6
    for dataset in aside:
        told = lab.run(f"zfs get -Hpo value reservation,refreservation,{TOOLS} {dataset}").stdout
        assert told.split() == ["0", "0", *["false"] * 4, "-", "-"], (dataset, told)
        assert f"Permissions on {dataset}" not in lab.run(f"zfs allow {dataset}").stdout
    scenario.counts_on(lab)


def test_running_send_is_found_before_anything_stops(lab: Lab) -> None:
    name = back.hourly(lab)
    send = f"zfs send tank/vm/web@{name}"
    sender = f"pgrep -f '^{send}'"
    for options in ((), ("--end-sends",), ("--wait",)):
        running = lab.start(f"{send} | sleep {'15' if options == ('--wait',) else '1000'}")
        scenario.wait_until("the send", lambda: lab.run(sender, check=False).stdout != "")
        lab.run(f"zfs clone tank/vm/web@{name} tank/vm/x")
        assert "busy" in lab.run("zfs promote tank/vm/x", check=False).stderr
        lab.run("zfs destroy tank/vm/x")
        if not options:
            pid = lab.run(sender).stdout.split()[0]
            for command in ("--dry-run", "--yes"):
                refused = lab.run(f"zvmsnap restore {command} web@{name}", check=False)
                assert refused.returncode == 1, refused
                assert f"tank/vm/web@{name} is being sent by pid {pid} ({send})" in refused.stderr
            planned = zvmsnap(lab, "restore", "--dry-run", "--wait", f"web@{name}").stdout
            assert f"first waits for the end of: tank/vm/web@{name} is being sent" in planned
            scenario.counts_on(lab)
            lab.run(f"kill {pid}")
        else:
            restore(lab, f"web@{name}", "--no-safety", *options)
            assert lab.run(sender, check=False).stdout == ""
        running.kill()
    back.assert_nothing_left(lab)

    # And a name that ZFS would not allow.
    long = "tank/vm/" + "l" * 199
    lab.run(f"virsh destroy web && zfs rename tank/vm/web {long}")
    renamed = lab.run(f"zfs rename {long} {long}.before-20261121T120000", check=False)
    assert "too long" in renamed.stderr
    refused = zvmsnap(lab, "restore", "--dry-run", f"web@{name}", status=1)
    assert "characters long, and ZFS allows 255" in refused.stderr


# What was done to the point or its guest, and what is said of it.
HARMS = {
    "echo x >> {point}/memory.rest": "damaged",
    "truncate -s -1 {point}/memory.pages": "damaged",
    "printf X | dd of={point}/memory.pages bs=1 seek=500000 conv=notrunc status=none": "checksum",
    "truncate -s 100 {point}/manifest.json": "manifest.json",
    "rm {point}/persistent.xml {point}/domain.xml": "definition is gone",
    "sed -i s/pc-i440fx[-0-9.]*/pc-i440fx-99.9/ {point}/*.xml": "cannot be that machine",
    "zfs destroy tank/vm/web/data@{moment}_monthly%{moment}_hourly": "any more that fits",
    "zfs list -Ho name -t snapshot -r tank/vm/web | xargs -n 1 zfs destroy;"
    "for each in monthly daily hourly; do zfs snapshot -r tank/vm/web@{moment}_$each; done":
        "any more that fits",
}


def test_refused_before_anything_stops(lab_session: Lab) -> None:
    lab = lab_session
    scenario.taken(lab)
    moment = back.hourly(lab).removesuffix("_hourly")
    point = scenario.the_point(lab, "web").directory
    lab.run("virsh destroy web && virsh domrename web other && virsh start other")
    assert "is called other now" in back.restore(lab, f"web@{moment}", status=1).stderr
    lab.run("virsh destroy other && virsh domrename other web && virsh start web")
    lab.run(f"cp -a {point} /root/point")
    # Our own directories on a dataset that would be swapped.
    for key in ("vault", "journal"):
        own = f"/{WEB.top}/{key}"
        lab.run(f"cp -a {scenario.VAULT if key == 'vault' else scenario.JOURNAL} {own}")
        if key == "vault":
            scenario.configure(lab, vault=own)
        else:
            scenario.configure(lab, f'journal = "{own}"')
        for command in ("--dry-run", "--yes"):
            done = zvmsnap(lab, "restore", command, f"web@{moment}", status=1)
            assert f"{key} is on {WEB.top}, which would be restored, too" in done.stderr, done
        lab.run(f"rm -r {own}")
    scenario.configure(lab)
    for harm, why in HARMS.items():
        lab.run(harm.format(point=point, moment=moment))
        before = lab.run("zfs list -Hp -t all -o name,guid; virsh list --all").stdout
        done = lab.run(f"zvmsnap restore --yes web@{moment}", check=False)
        assert done.returncode in (1, 2), done
        assert why in done.stderr, (harm, done)
        assert "Traceback" not in done.stderr
        assert lab.run("zfs list -Hp -t all -o name,guid; virsh list --all").stdout == before
        lab.run(f"rm -r {point} && cp -a /root/point {point}")


# The places of all records of pages that are not zeros.
WITH_DATA = """
import sys
with open(sys.argv[1], "rb") as pages:
    place = 0
    while record := pages.read(16384):
        if record.strip(b"\\0"):
            print(place)
        place += len(record)
"""
FLIP = """
import sys
with open(sys.argv[1], "r+b") as file:
    place, bit = map(int, sys.argv[2:])
    file.seek(place)
    (byte,) = file.read(1)
    file.seek(place)
    file.write(bytes([byte ^ 1 << bit]))
"""
SEED = 16


def places(lab: Lab, directory: str) -> Iterator[tuple[str, int]]:
    """Bytes of a page image: of each part some, its first and its last."""
    dice = random.Random(SEED)
    pages = f"{directory}/memory.pages"
    told = lab.run(f"stat -c %s {pages}; python3 - {pages}", stdin=WITH_DATA).stdout.split()
    length, *records = map(int, told)
    hole = next(place for place in range(0, length, 16384) if place not in records)
    in_data = [each + dice.randrange(16384) for each in dice.sample(records, 3)]
    for place in (records[0], *in_data, records[-1] + 16383, hole + dice.randrange(16384),
                  length - 1):
        yield "memory.pages", place

    rest = lab.get(f"{directory}/memory.rest")
    begin = 24 + int.from_bytes(rest[20:24])
    table = json.loads(rest[24:begin])
    ends = [0, 16, 20, 24, begin]  # what it is, its version, how long its table is, the table
    ends.append(begin + 16)  # libvirt's magic
    for part in ("head_bytes", "opening_bytes", "closing_bytes"):
        begin += table[part]
        ends.append(begin)
    assert begin == len(rest)
    for first, end in itertools.pairwise(ends):
        yield "memory.rest", dice.randrange(first, end)
    yield "memory.rest", len(rest) - 1


@pytest.mark.whole
@pytest.mark.long
def test_a_byte_that_has_changed_anywhere_is_found_and_refused(lab_session: Lab) -> None:
    lab = lab_session
    scenario.taken(lab)
    name = back.hourly(lab)
    directory = scenario.the_point(lab, "web").directory
    lab.put("/root/flip.py", FLIP)
    before = lab.run("zfs list -Hp -t all -o name,guid; virsh list --all").stdout
    for bit, (file, place) in enumerate(places(lab, directory)):
        flip = f"python3 /root/flip.py {directory}/{file} {place} {bit % 8}"
        lab.run(flip)
        found = zvmsnap(lab, "verify", f"web@{name}", status=1).stdout
        assert file in found, (file, place, found)
        # What is looked at first may be wrong for it, too.
        refused = restore(lab, f"web@{name}", status=1).stderr
        # A fault of ours names its line.
        assert not re.search(r" at \w+\.py:\d+", refused), (file, place, refused)
        lab.run(flip)
    zvmsnap(lab, "verify", f"web@{name}")
    assert lab.run("zfs list -Hp -t all -o name,guid; virsh list --all").stdout == before
    scenario.assert_counted_through(lab, "web")
    back.assert_nothing_left(lab)
    stored = back.stored_count(lab, name)
    restore(lab, f"web@{name}", "--no-safety")
    back.assert_jumped_to(lab, stored)


def test_pool_without_room_is_found_out_before_anything_stops(lab_session: Lab) -> None:
    lab = lab_session
    scenario.taken(lab)
    name = back.hourly(lab)
    # What has been written since is kept, and reserved once more for the restored dataset.
    lab.run(
        "head -c 10M /dev/urandom > /tank/vm/web/file && sync &&"
        "zfs set refreservation=40M tank/vm/web && zpool sync &&"
        "zfs set quota=$(($(zfs get -Hpo value used tank/vm) + 2000000)) tank/vm"
    )
    for command in ("--dry-run", "--yes"):
        refused = lab.run(f"zvmsnap restore {command} web@{name}", check=False)
        assert refused.returncode == 1, refused
        assert "restore with --rollback, which needs none" in refused.stderr
    scenario.assert_counted_through(lab, "web")
    lab.run("zfs set quota=$(($(zfs get -Hpo value used tank/vm) + 16000000)) tank/vm")
    back.restore(lab, f"web@{name}")
    back.assert_nothing_left(lab)
