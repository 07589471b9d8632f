"""`zvmsnap recover`: guests that are on overlays, in every way that one can come to be on one."""

from __future__ import annotations

import json
import re

import pytest
import readme
import scenario
from scenario import JOURNAL, STAGING, VAULT, WEB
from terminal import typed

from labkit import guests
from labkit.api import Completed, Lab

STOPPED = "until grep -qs '^State:.T' /proc/$(pgrep -x {hook})/status; do sleep 0.1; done"
KILL_GUARD = "systemctl stop 'zvmsnap-watchdog-*'"  # one that is killed is started again


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    """`web` is on its overlays, its snapshot is taken, and everything that would end it is dead."""

    def make(lab: Lab) -> None:
        lab.start("ZVMSNAP_TEST_STOP_BEFORE=commit exec sanoid --take-snapshots")
        lab.run(STOPPED.format(hook="post-snapshot"), timeout_s=scenario.ROUND_LIMIT_S)
        lab.run(f"{KILL_GUARD}; pkill -KILL -x sanoid; pkill -KILL -x post-snapshot")

    scenario.stage(lab_session, "abandoned", scenario.configured, make)
    assert set(scenario.disks(lab_session, "web").values()) & set(WEB.disks.values()) == set()
    return lab_session


def recover(lab: Lab, *options: str, status: int = 0) -> Completed:
    done = lab.run(f"zvmsnap recover {' '.join(options)}", check=False)
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr
    return done


def assert_recovered(lab: Lab, done: Completed) -> None:
    assert "web: recovered" in done.stdout
    scenario.assert_at_rest(lab)
    assert recover(lab).stdout == "nothing to recover: every guest is on its own disks\n"


def overlays(lab: Lab) -> list[str]:
    return lab.run(f"find {STAGING} -name '*.qcow2' | sort").stdout.split()


def lose_the_journal(lab: Lab) -> None:
    lab.run(f"rm {JOURNAL}/*.json")


def assert_disks_hold_what_was_printed(lab: Lab) -> None:
    """The guest, which is off, printed no count that its disks have not."""
    printed = guests.counts(lab, "web")[-1]
    held = [guests.disk_count(lab, path) for path in WEB.disks.values()]
    assert max(held) in (printed, printed + 1)
    assert max(held) - min(held) in (0, 1)


def test_running_guest_and_its_point(lab: Lab) -> None:
    assert re.search("^web: .* is interrupted at step", lab.run("zvmsnap list").stdout, re.M)
    look, now = readme.commands("Bring guests back from overlays")
    assert "web: needs recovery" in typed(lab, look).stdout
    assert len(overlays(lab)) == 2
    assert_recovered(lab, typed(lab, now))
    point = scenario.the_point(lab, "web")
    assert point.manifest["level"] == "memory"
    scenario.assert_counted_through(lab, "web")
    (hourly,) = [name for name in point.names if name.endswith("_hourly")]
    scenario.assert_coherent(lab, WEB, hourly, point.image)


def test_guest_that_was_destroyed(lab: Lab) -> None:
    owner = lab.run("stat -c %U:%G:%a /tank/vm/web/disk0.raw").stdout
    scenario.counts_on(lab)
    lab.run("virsh destroy web")
    done = recover(lab, "--json")
    (outcome,) = json.loads(done.stdout)["outcomes"]
    assert (outcome["domain"], outcome["result"]) == ("web", "recovered")
    assert scenario.state(lab, "web") == "shut off"
    assert scenario.disks(lab, "web", persistent=True) == WEB.disks
    assert scenario.leftovers(lab) == []
    assert_disks_hold_what_was_printed(lab)
    assert lab.run("stat -c %U:%G:%a /tank/vm/web/disk0.raw").stdout == owner.replace(
        "libvirt-qemu:libvirt-qemu", "root:root"
    ) or lab.run("stat -c %U:%G:%a /tank/vm/web/disk0.raw").stdout == owner
    assert scenario.the_point(lab, "web").manifest["level"] == "memory"
    lab.run("virsh start web")
    scenario.counts_on(lab)
    scenario.assert_on_base(lab, "web", WEB.disks)


@pytest.mark.parametrize(
    "how", ["lost", pytest.param("damaged", marks=pytest.mark.whole)]
)
def test_started_on_its_overlays_and_without_journal(lab: Lab, how: str) -> None:
    """AppArmor then denies QEMU the bases, whatever the journal says."""
    lab.run("virsh destroy web && virsh start web")
    if how == "lost":
        lose_the_journal(lab)
    else:
        lab.run(f"for each in {JOURNAL}/*.json; do head -c 100 $each > $each.cut; "
                "mv $each.cut $each; done")
    guests.wait_counts(lab, "web", 5)
    done = recover(lab)
    assert "its AppArmor profile denied it its own disks" in done.stderr
    assert (how == "damaged") == ("cannot be read; renamed" in done.stderr)
    lab.run(f"rm -f {JOURNAL}/*.damaged.seen")
    assert_recovered(lab, done)
    assert scenario.points(lab) == []
    scenario.counts_on(lab)


def test_off_and_without_journal(lab: Lab) -> None:
    lab.run("virsh destroy web")
    lose_the_journal(lab)
    assert_recovered(lab, recover(lab))
    assert_disks_hold_what_was_printed(lab)


def test_one_disk_was_brought_back_by_somebody_else(lab: Lab) -> None:
    """Its overlay is not proven to be merged by us; the profile denies the base of the other."""
    lab.run("virsh blockcommit web vda --active --shallow --pivot --wait")
    done = recover(lab, status=1)
    assert "its AppArmor profile denied it its own disks /dev/zvol/" in done.stderr
    scenario.assert_on_base(lab, "web", WEB.disks)
    (kept,) = overlays(lab)
    assert kept in done.stdout
    assert "qemu-img commit" in done.stdout
    scenario.assert_counted_through(lab, "web")


@pytest.mark.whole
def test_overlays_piled_up(lab: Lab) -> None:
    uuid = lab.run("virsh domuuid web").stdout.strip()
    again = f"{STAGING}/{uuid}.0badcafe"
    lab.run(
        f"install -d -m 711 {again}; virsh snapshot-create-as web --no-metadata --disk-only "
        f"--diskspec vda,file={again}/vda.zvmsnap.qcow2 "
        f"--diskspec vdb,file={again}/vdb.zvmsnap.qcow2"
    )
    scenario.counts_on(lab)
    assert len(overlays(lab)) == 4
    assert_recovered(lab, recover(lab))
    scenario.counts_on(lab)
    scenario.assert_counted_through(lab, "web")


def test_foreign_overlay_on_ours(lab: Lab) -> None:
    foreign = "/var/lib/libvirt/images/vda.foreign.qcow2"
    lab.run(
        "virsh snapshot-create-as web theirs --disk-only "
        f"--diskspec vda,file={foreign} --diskspec vdb,snapshot=no"
    )
    done = recover(lab, status=1)
    assert foreign in done.stdout
    assert "snapshot theirs was made by somebody else" in done.stdout
    assert scenario.disks(lab, "web")["vda"] == foreign
    assert lab.run("virsh snapshot-list --name web").stdout.split() == ["theirs"]

    lab.run(
        "virsh blockcommit web vda --active --shallow --pivot --wait; "
        f"virsh snapshot-delete --metadata web theirs; rm {foreign}"
    )
    assert_recovered(lab, recover(lab))
    scenario.assert_counted_through(lab, "web")


def test_guest_that_stands_still_on_a_full_overlay(lab_session: Lab) -> None:
    """Staging fills up to the last byte just before the guest writes to its fresh overlay."""
    lab = lab_session
    scenario.configured(lab)
    scenario.mount_small(lab, 240)
    scenario.configure(lab, 'staging = "/srv/small/staging"\n[limits]\noverlay_room_mib = 1')
    held = "ZVMSNAP_TEST_STOP_BEFORE='dump,read header'"
    sanoid = lab.start(f"{held} exec sanoid --take-snapshots 2>&1")
    stopped = STOPPED.format(hook="pre-snapshot")
    lab.run(stopped, timeout_s=scenario.ROUND_LIMIT_S)
    # Paused while it is frozen, so that its first write is not before staging is full.
    lab.run(f"virsh suspend web; pkill -CONT -x pre-snapshot; sleep 2; {stopped}",
            timeout_s=scenario.ROUND_LIMIT_S)
    lab.run(f"{KILL_GUARD}; cat /dev/zero > /srv/small/filler; virsh resume web", check=False)
    scenario.wait_until("the guest to stand still", lambda: scenario.state(lab, "web") == "paused")
    lab.run("pkill -CONT -x pre-snapshot")
    said = sanoid.communicate(timeout=scenario.ROUND_LIMIT_S)[0]
    assert "is paused because of an I/O error" in said, said
    scenario.assert_on_base(lab, "web", WEB.disks)
    scenario.counts_on(lab)
    scenario.assert_counted_through(lab, "web")


# A zfs that takes no snapshot before it may.
WAITING_ZFS = """#!/bin/sh
test "$1" = snapshot && until test -e /root/go; do sleep 0.2; done
exec /usr/sbin/zfs "$@"
"""
FILL = ("free=$(df -B1 --output=avail /srv/small | tail -1);"
        "fallocate -l $((free - (32 << 20))) /srv/small/filler")


@pytest.fixture
def small_staging(lab_session: Lab) -> Lab:
    scenario.configured(lab_session)
    scenario.mount_small(lab_session, 300)
    scenario.configure(
        lab_session,
        'staging = "/srv/small/staging"\n'
        "[limits]\noverlay_room_mib = 64\nstaging_reserve_mib = 64",
    )
    return lab_session


def wait_merged(lab: Lab) -> None:
    scenario.wait_until(
        "the guard to merge", lambda: scenario.disks(lab, "web") == WEB.disks, timeout_s=120
    )
    said = lab.run("journalctl --no-pager -u 'zvmsnap-watchdog-*'").stdout
    assert "nearly full: merging overlays now" in said


def test_guard_gives_a_point_up_before_staging_is_full(small_staging: Lab) -> None:
    lab = small_staging
    lab.put("/root/bin/zfs", WAITING_ZFS, 0o755)
    sanoid = lab.start("PATH=/root/bin:$PATH exec sanoid --take-snapshots 2>&1")
    lab.run("until pgrep -f '[r]oot/bin/zfs snapshot'; do sleep 0.2; done",
            timeout_s=scenario.ROUND_LIMIT_S)
    lab.run(FILL)
    wait_merged(lab)
    lab.run("rm /srv/small/filler; touch /root/go")
    said = sanoid.communicate(timeout=scenario.ROUND_LIMIT_S)[0]
    assert "in the middle of a merge: tank/vm/web" in said
    assert scenario.points(lab) == []
    scenario.assert_at_rest(lab)
    scenario.assert_counted_through(lab, "web")


def test_guard_merges_behind_the_snapshot_before_staging_is_full(small_staging: Lab) -> None:
    lab = small_staging
    sanoid = lab.start("ZVMSNAP_TEST_STOP_BEFORE=commit exec sanoid --take-snapshots 2>&1")
    lab.run(STOPPED.format(hook="post-snapshot"), timeout_s=scenario.ROUND_LIMIT_S)
    # A stopped post holds the guest's lock, as a working one would: the guard must not wait on it.
    lab.run(f"pkill -KILL -x post-snapshot; pkill -STOP -x sanoid; {FILL}")
    wait_merged(lab)
    lab.run("rm /srv/small/filler; pkill -CONT -x sanoid")
    sanoid.communicate(timeout=scenario.ROUND_LIMIT_S)
    scenario.wait_until(
        "the guard to end", lambda: scenario.leftovers(lab) == [], timeout_s=scenario.ROUND_LIMIT_S
    )
    assert scenario.the_point(lab, "web").manifest["level"] == "memory"
    scenario.assert_counted_through(lab, "web")


@pytest.mark.long
@pytest.mark.whole
def test_vault_that_is_not_mounted(lab: Lab) -> None:
    """Nothing is written below its mountpoint, and the point appears as soon as it is back."""
    recover(lab)
    scenario.the_point(lab, "web")
    scenario.pass_hours(lab, 1)
    lab.run("zfs unmount cheap/vault")
    done = scenario.take(lab)
    lab.run(KILL_GUARD)
    assert "is not the vault that was used so far" in done.stderr
    assert lab.run(f"find {VAULT} -mindepth 1").stdout == ""
    scenario.assert_on_base(lab, "web", WEB.disks)
    assert "is not the vault" in lab.run("zvmsnap list", check=False).stderr
    recover(lab, status=1)
    # The next one waits as well; and what waits is found where it was put.
    scenario.pass_hours(lab, 1)
    scenario.configure(lab, 'staging = "/srv/other"')
    done = scenario.take(lab)
    lab.run(KILL_GUARD)
    assert "is not the vault that was used so far" in done.stderr
    scenario.assert_on_base(lab, "web", WEB.disks)
    lab.run(f"ls {STAGING}/*/point/memory.img /srv/other/*/point/memory.img")
    lab.run("zfs mount cheap/vault")
    assert_recovered(lab, recover(lab))
    assert [point.manifest["level"] for point in scenario.points(lab, "web")] == ["memory"] * 3
    assert lab.run("find /srv/other -type f").stdout == ""
    lab.run("zvmsnap verify web")


@pytest.mark.whole
def test_at_boot(lab: Lab) -> None:
    lab.run(
        "cp /opt/zvmsnap/systemd/zvmsnap-recover.service /etc/systemd/system/ && "
        "systemctl enable zvmsnap-recover.service && sync"
    )
    scenario.counts_on(lab)
    lab.run("sync; zpool sync")
    lab.powercut()
    lab.run("systemctl is-system-running --wait", check=False, timeout_s=300)
    scenario.wait_until(
        "the unit to end",
        lambda: lab.run("systemctl show -P ActiveState zvmsnap-recover").stdout.strip()
        != "activating",
    )
    said = lab.run("journalctl --no-pager -b -u zvmsnap-recover").stdout
    assert "web: recovered" in said
    assert scenario.disks(lab, "web", persistent=True) == WEB.disks
    assert scenario.leftovers(lab) == []
    assert scenario.the_point(lab, "web").manifest["level"] == "memory"
    lab.run("virsh start web")
    scenario.counts_on(lab)


BACKUP = """<domainbackup mode='pull'>
  <server transport='tcp' name='127.0.0.1' port='10809'/>
  <disks>
    <disk name='vda' backup='yes' type='file'>
      <scratch file='/var/lib/libvirt/images/scratch.qcow2'/>
    </disk>
    <disk name='vdb' backup='no'/>
  </disks>
</domainbackup>
"""
COPY = "virsh blockcopy web vda /srv/copy.raw --format raw --transient-job"


@pytest.mark.parametrize(
    ("begin", "end", "work"),
    [
        pytest.param("virsh backup-begin web /root/backup.xml", "virsh domjobabort web",
                     "a job (backup) on vda", id="backup"),
        pytest.param(COPY, "virsh blockjob web vda --abort",
                     "a block job (copy) on vda", id="copy", marks=pytest.mark.whole),
    ],
)
def test_somebody_else_begins_to_work_on_the_guest_while_it_is_on_its_overlays(
    lab_session: Lab, begin: str, end: str, work: str
) -> None:
    """Its overlays cannot be merged: the watchdog goes on until they are, and says so once."""
    lab = lab_session
    scenario.configured(lab)
    scenario.configure(lab, "[limits]\nbusy_timeout_s = 2")
    lab.put("/root/backup.xml", BACKUP)
    sanoid = lab.start("ZVMSNAP_TEST_STOP_BEFORE=commit exec sanoid --take-snapshots 2>&1")
    lab.run(STOPPED.format(hook="post-snapshot"), timeout_s=scenario.ROUND_LIMIT_S)
    lab.run(begin)
    lab.run("pkill -CONT -x post-snapshot")
    sanoid.communicate(timeout=scenario.ROUND_LIMIT_S)
    tries = "journalctl --no-pager -u 'zvmsnap-watchdog-*'"
    scenario.wait_until("the watchdog to say so", lambda: work in lab.run(tries).stdout)
    for command in ("list", "status"):
        assert f"stays on its overlays because of {work}" in lab.run(f"zvmsnap {command}").stdout
    assert work in recover(lab, status=1).stdout
    lab.run("sleep 15")
    assert lab.run(tries).stdout.count(work) == 1
    scenario.counts_on(lab)
    lab.run(end)
    scenario.wait_until(
        "the watchdog to merge", lambda: scenario.leftovers(lab) == [], timeout_s=120
    )
    scenario.assert_at_rest(lab)
    assert scenario.the_point(lab, "web").manifest["level"] == "memory"
    scenario.assert_counted_through(lab, "web")


def test_somebody_else_works_on_the_guest(lab_session: Lab) -> None:
    """A mirror of a disk: it is waited for, and then there is a point without RAM."""
    lab = lab_session
    scenario.configured(lab)
    scenario.configure(lab, "[limits]\nbusy_timeout_s = 2")
    lab.run("virsh blockcopy web vda /srv/copy.raw --format raw --transient-job")
    scenario.take(lab)
    point = scenario.the_point(lab, "web")
    assert point.manifest["level"] == "crash"
    assert "a block job (copy) on vda" in point.manifest["reason"]
    assert "<mirror" in scenario.dumpxml(lab, "web")

    scenario.pass_hours(lab, 1)
    scenario.configure(lab, "[limits]\nbusy_timeout_s = 120")
    # Not before pre can have seen it.
    seen = "until pgrep -x pre-snapshot; do sleep 0.2; done; sleep 5"
    scenario.take(lab, before=f"({seen}; virsh blockjob web vda --abort) > /dev/null & true")
    assert scenario.points(lab, "web")[-1].manifest["level"] == "memory"
    scenario.assert_at_rest(lab)
    scenario.assert_counted_through(lab, "web")
