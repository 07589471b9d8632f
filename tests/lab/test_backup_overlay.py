"""`zvmsnap backup` of guests that run off ZFS, on overlays: whole, and killed at each step."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import scenario
from back import assert_goes_on, zvmsnap
from test_backup import BACKUP, assert_nothing_left, listed
from test_levels import hooked

from labkit import guests, linux
from labkit.api import Lab

IMAGES = "/var/lib/libvirt/images"
DISKS = [
    guests.Disk(f"{IMAGES}/plain.qcow2", "qcow2"),
    guests.Disk(f"{IMAGES}/plain-data.raw", "raw"),
]
PLAIN = scenario.Guest("plain", (), {"vda": DISKS[0].path, "vdb": DISKS[1].path})
BY_CONFIG = "backup_overlay = true"
STOPPED = "ps -C zvmsnap,python3 -o stat=,args= | grep -q '^T.*zvmsnap'"


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    """The guest `plain` counts, on ext4; the directory of backups is there, too."""

    def make(lab: Lab) -> None:
        scenario.configure(lab, BY_CONFIG)
        lab.run(f"mkdir {BACKUP}")
        guests.define(lab, guests.domain_xml(PLAIN.name, [
            guests.make_disk(lab, disk) for disk in DISKS
        ]))
        guests.start(lab, PLAIN.name)

    scenario.stage(lab_session, "plain-elsewhere", scenario.configured, make)
    return lab_session


def assert_over(lab: Lab) -> None:
    """The guest is on its own disks, and nothing is left of a backup, nor a point made of it."""
    scenario.assert_at_rest(lab, PLAIN)
    assert_nothing_left(lab)
    assert scenario.points(lab, PLAIN.name) == []


def stored_counts(lab: Lab, name: str) -> list[int]:
    """The last count on each disk of a backup."""
    return [
        guests.disk_count(lab, f"{BACKUP}/{name}/{target}.qcow2", "qcow2")
        for target in PLAIN.disks
    ]


def stopped_at(lab: Lab, step: str, words: Sequence[str]) -> None:
    """Begin a command that stops itself at that step, and wait until it has."""
    lab.start(f"ZVMSNAP_TEST_STOP_BEFORE='{step}' exec zvmsnap {' '.join(words)}")
    lab.run(f"until {STOPPED}; do sleep 0.1; done", timeout_s=scenario.ROUND_LIMIT_S)


@pytest.mark.whole
def test_full_and_increment(lab: Lab) -> None:
    for _ in range(2):
        before = guests.counts(lab, PLAIN.name)[-1]
        zvmsnap(lab, "backup", PLAIN.name, BACKUP)
        assert_over(lab)
        counts = stored_counts(lab, listed(lab)[-1]["name"])
        assert max(counts) - min(counts) in (0, 1)
        assert before <= max(counts) <= guests.counts(lab, PLAIN.name)[-1] + 1
        scenario.counts_on(lab, PLAIN.name)
    full, increment = listed(lab)
    assert [(each["way"], each["level"]) for each in (full, increment)] == [
        ("overlay", "full"), ("overlay", "inc")
    ]
    for each in (full, increment):
        assert each["consistency"] == "crash"
        assert "no channel for an agent" in each["reason"], each
    refused = zvmsnap(lab, "backup", "--quiesce", PLAIN.name, BACKUP, status=1)
    assert "plain: it has no channel for an agent" in refused.stderr
    assert_over(lab)
    scenario.assert_counted_through(lab, PLAIN.name)

    zvmsnap(lab, "backup", "verify", BACKUP)
    zvmsnap(lab, "import", f"{BACKUP}/{increment['name']}", "--as", "twin", "--to", "cheap")
    for target in PLAIN.disks:
        lab.run(f"qemu-img compare -f raw -F qcow2 /cheap/twin/{target}.raw "
                f"{BACKUP}/{increment['name']}/{target}.qcow2")


@pytest.mark.whole
def test_with_its_ram(lab: Lab) -> None:
    scenario.configure(lab)  # by libvirt's job it would be, without RAM
    for _ in range(2):
        zvmsnap(lab, "backup", "--state", PLAIN.name, BACKUP)
        assert_over(lab)
        scenario.counts_on(lab, PLAIN.name)
    scenario.assert_counted_through(lab, PLAIN.name)
    full, increment = listed(lab)
    assert [(each["way"], each["level"]) for each in (full, increment)] == [
        ("overlay", "full"), ("overlay", "inc")
    ]
    stored = max(stored_counts(lab, increment["name"]))
    zvmsnap(lab, "import", f"{BACKUP}/{increment['name']}", "--as", "twin", "--to", "cheap",
            "--resume")
    assert_goes_on(lab, "twin-plain", stored)
    scenario.counts_on(lab, PLAIN.name)


@pytest.mark.whole
@pytest.mark.parametrize(("option", "steps"), [
    ("--crash", "staging,definition,overlay,frozen,commit,release vda,release vdb,tidy,close"),
    ("--state", "dump,read header,frozen,commit"),
])
def test_killed_at_each_step(lab: Lab, option: str, steps: str) -> None:
    for step in steps.split(","):
        stopped_at(lab, step, ["backup", option, PLAIN.name, BACKUP])
        lab.run("pkill -9 -f '[z]vmsnap backup'")
        zvmsnap(lab, "recover")
        scenario.wait_until(f"rest after {step}", lambda: not scenario.leftovers(lab), 300)
        assert_over(lab)
        assert listed(lab) == []
        scenario.counts_on(lab, PLAIN.name)
    scenario.assert_counted_through(lab, PLAIN.name)
    zvmsnap(lab, "backup", option, PLAIN.name, BACKUP)
    assert len(listed(lab)) == 1
    assert_over(lab)


@pytest.mark.whole
@pytest.mark.long
def test_power_cut_at_each_step(lab: Lab) -> None:
    for step in ("definition", "overlay", "frozen", "commit", "release vdb", "tidy", "close"):
        scenario.counts_on(lab, PLAIN.name)
        stopped_at(lab, step, ["backup", "--crash", PLAIN.name, BACKUP])
        lab.run("sync")
        last = guests.counts(lab, PLAIN.name)[-1]
        lab.powercut()
        zvmsnap(lab, "recover")
        assert_over(lab)
        assert listed(lab) == []
        # What it wrote to its overlays is on its disks.
        held = [guests.disk_count(lab, disk.path, disk.format) for disk in DISKS]
        assert min(held) >= last - 1, (step, held, last)
        guests.start(lab, PLAIN.name)
        assert guests.mismatches(lab, PLAIN.name) == []
    zvmsnap(lab, "backup", "--crash", PLAIN.name, BACKUP)
    assert len(listed(lab)) == 1
    assert_over(lab)


def while_copied(lab: Lab) -> None:
    """Let qemu-img wait while it copies, until it is let go."""
    lab.run("mkdir -p /root/bin")
    lab.put("/root/bin/qemu-img", "#!/bin/sh\ncase $1 in convert) touch /root/there; until test -e "
            '/root/go; do sleep 0.2; done;; esac\nexec /usr/bin/qemu-img "$@"\n')
    lab.run("chmod +x /root/bin/qemu-img")


@pytest.mark.whole
@pytest.mark.parametrize("fault", ["KILL", "TERM", "the watchdog does it", "the guest dies"])
def test_while_it_is_copied(lab: Lab, fault: str) -> None:
    while_copied(lab)
    command = f"env PATH=/root/bin:$PATH zvmsnap backup --crash {PLAIN.name} {BACKUP}"
    with scenario.running(lab, command) as under_way:
        scenario.wait_until("qemu-img is called", lambda: not lab.run(
            "test -e /root/there", check=False).returncode, timeout_s=120)
        for target in PLAIN.disks:
            assert ".zvmsnap.qcow2" in scenario.disks(lab, PLAIN.name)[target]
        said = zvmsnap(lab, "recover").stdout
        assert "zvmsnap backup has pid" in said, said
        scenario.counts_on(lab, PLAIN.name)
        if fault == "the guest dies":
            last = guests.counts(lab, PLAIN.name)[-1]
            lab.run(f"virsh destroy {PLAIN.name} && touch /root/go")
            under_way.wait()
        else:
            lab.run(f"kill -{'TERM' if fault == 'TERM' else 'KILL'} {under_way.pid}")
        if fault == "TERM":
            assert "nothing of the backup is kept" in under_way.wait()
    if fault == "the watchdog does it":
        scenario.wait_until("the watchdog has been there", lambda: not lab.run(
            f"ls {scenario.STAGING}").stdout, timeout_s=300)
        scenario.assert_on_base(lab, PLAIN.name, PLAIN.disks)
    if fault in ("KILL", "the watchdog does it"):
        zvmsnap(lab, "recover")
    if fault == "the guest dies":
        (only,) = listed(lab)
        held = [guests.disk_count(lab, disk.path, disk.format) for disk in DISKS]
        assert max(stored_counts(lab, only["name"])) < last <= max(held) + 1
        assert_over(lab)
        return
    assert_over(lab)
    assert listed(lab) == []
    scenario.assert_counted_through(lab, PLAIN.name)


@pytest.mark.whole
def test_a_linux_guest_is_quiesced(lab_session: Lab) -> None:
    lab, name = lab_session, linux.NAME
    scenario.with_code(lab, "linux")
    lab.run(f"mkdir {BACKUP}")
    elsewhere = {target: f"{IMAGES}/debian/{target}.raw" for target in ("vda", "vdb")}
    for target, path in elsewhere.items():
        lab.run(f"virsh blockcopy {name} {target} --dest {path} --format raw --transient-job "
                "--wait --pivot", timeout_s=scenario.ROUND_LIMIT_S)
    assert scenario.disks(lab, name) == elsewhere
    for way, config in (("overlay", BY_CONFIG), ("push", "")):
        scenario.configure(lab, config)
        already = len(hooked(lab))
        zvmsnap(lab, "backup", "--quiesce", name, BACKUP)
        assert hooked(lab)[already:] == ["freeze", "thaw"]
        scenario.assert_on_base(lab, name, elsewhere)
        last = listed(lab)[-1]
        assert (last["way"], last["consistency"]) == (way, "quiesced"), last["reason"]
        linux.wait_writes(lab, name, linux.writes(lab)[-1].count + 3)
        zvmsnap(lab, "import", f"{BACKUP}/{last['name']}", "--as", way, "--to", "cheap")
        for target in elsewhere:
            said = lab.run(f"dumpe2fs -h /cheap/{way}/{target}.raw 2>/dev/null").stdout
            assert "Filesystem state" in said and "needs_recovery" not in said
        assert_nothing_left_of(lab)


def assert_nothing_left_of(lab: Lab) -> None:
    assert scenario.leftovers(lab) == []
    assert lab.run(f"find {BACKUP} -name '.*'").stdout == ""
