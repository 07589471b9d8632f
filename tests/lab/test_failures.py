"""Snapshots that fail, hooks called at odd times, sanoids that die or get in each other's way."""

from __future__ import annotations

import json

import pytest
import scenario
from scenario import STAGING, VAULT, WEB

from labkit import guests
from labkit.api import Completed, Lab

# A `zfs` in front of the real one.
BIN = "/root/bin"
FIRST_IN_PATH = f"export PATH={BIN}:$PATH"
WARNED_OF_POST = "WARN: post_snapshot_script failed, 256"

KILL_SANOID = "/root/kill-sanoid"
KILLED = 128 + 9

# The night in which clocks are set back, and the second time that it is half past two in it.
EUROPE = "CET-1CEST,M3.5.0,M10.5.0/3"
SECOND_HALF_PAST_TWO = "2026-10-25T01:30:00"


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    scenario.configured(lab_session)
    return lab_session


def zfs_snapshot_does(lab: Lab, script: str) -> None:
    """Let a script have its way with `zfs snapshot`; it may `exec` the real one."""
    lab.put(
        f"{BIN}/zfs",
        f'#!/bin/sh\ncase "$1" in snapshot) {script};; esac\nexec /usr/sbin/zfs "$@"\n',
        mode=0o755,
    )


def on_overlay(lab: Lab) -> bool:
    return all(path.startswith(f"{STAGING}/") for path in scenario.disks(lab, "web").values())


def existing(lab: Lab) -> dict[str, int]:
    """`dataset@name` and guid of all snapshots of `web`."""
    return {
        f"{dataset}@{name}": guid
        for dataset in WEB.datasets
        for name, guid in scenario.snapshots(lab, dataset).items()
    }


def uuid_of(lab: Lab, domain: str) -> str:
    return lab.run(f"virsh domuuid {domain}").stdout.strip()


def lines_of_ours(done: Completed) -> list[str]:
    return [line for line in done.stderr.splitlines() if "zvmsnap: " in line]


# -- the snapshot fails


def test_no_snapshot_means_no_point_and_some_a_point_of_these(lab: Lab) -> None:
    zfs_snapshot_does(lab, "echo cannot create snapshots >&2; exit 1")
    done = scenario.take(lab, before=FIRST_IN_PATH)
    assert "CRITICAL ERROR" in done.stderr, done
    assert WARNED_OF_POST in done.stderr
    assert "the RAM image is discarded" in done.stderr
    assert scenario.snapshots(lab, WEB.top) == {}
    assert not [path for path in scenario.vault_files(lab) if path != f"{VAULT}/web"]
    scenario.assert_at_rest(lab)
    scenario.assert_counted_through(lab, "web")

    # The next round is due at once. Of what that takes, the point lists what is there.
    zfs_snapshot_does(lab, 'case "$3" in *_daily) echo cannot >&2; exit 1;; esac')
    done = scenario.take(lab, before=FIRST_IN_PATH)
    assert "CRITICAL ERROR" in done.stderr, done
    point = scenario.the_point(lab, "web")
    assert [name.rpartition("_")[2] for name in sorted(point.names)] == ["hourly", "monthly"]
    assert point.ties == existing(lab)
    scenario.assert_at_rest(lab)
    scenario.assert_counted_through(lab, "web")


def test_night_in_which_clocks_are_set_back(lab: Lab) -> None:
    """The announced name exists already, so sanoid takes another one: `dst` goes into it."""
    lab.set_clock(SECOND_HALF_PAST_TWO)
    an_hour_ago = "/root/an-hour-ago"
    lab.put(
        an_hour_ago,
        "#!/bin/sh\nzfs snapshot -r $SANOID_TARGET@$SANOID_SNAPNAME\n"
        f"exec {scenario.HOOKS}/pre-snapshot\n",
        mode=0o755,
    )
    scenario.write_sanoid_conf(lab, pre_snapshot_script=an_hour_ago, daily="0", monthly="0")
    done = scenario.take(lab, before=f"export TZ={EUROPE}")
    assert "taking dst snapshot" in done.stdout, done

    first, second = scenario.snapshots(lab, WEB.top)
    assert first.startswith("autosnap_2026-10-25_02:3")
    assert second == first.replace("_hourly", "dst_hourly")
    point = scenario.the_point(lab, "web")
    assert point.manifest["level"] == "memory"
    assert point.ties == {
        tie: guid for tie, guid in existing(lab).items() if tie.endswith(f"@{second}")
    }
    scenario.assert_at_rest(lab)
    scenario.assert_coherent(lab, WEB, second, point.image)


# -- post at odd times


def test_post_again_and_post_without_pre_do_nothing(lab_session: Lab) -> None:
    lab = lab_session
    scenario.taken(lab)
    point = scenario.the_point(lab, "web")
    everything = scenario.vault_files(lab)
    for names in (sorted(point.names), ["autosnap_2001-01-01_00:00:00_daily"]):
        done = scenario.hook(lab, "post-snapshot", WEB.top, names)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert scenario.vault_files(lab) == everything
    assert scenario.points(lab) == [point]
    scenario.assert_at_rest(lab)
    scenario.assert_counted_through(lab, "web")


def test_pre_fails_for_one_guest_of_two(lab: Lab) -> None:
    disk = guests.make_disk(lab, guests.Disk(f"/{WEB.top}/second.raw"))
    guests.define(lab, guests.domain_xml("second", [disk]))
    guests.start(lab, "second")
    scenario.configure(lab, "[limits]\nlock_timeout_s = 1")
    locked = f"/run/zvmsnap/{uuid_of(lab, 'second')}.lock"
    with (
        scenario.running(lab, f"sh -c 'mkdir -p /run/zvmsnap; flock {locked} sleep 600'"),
        scenario.watched(lab, "second") as second,
    ):
        done = scenario.take(lab)
    assert "WARN: pre_snapshot_script failed, 256" in done.stderr, done
    (error,) = [line for line in lines_of_ours(done) if "error" in line]
    assert f"second ({WEB.top}): no point" in error
    assert locked in error

    point = scenario.the_point(lab, "web")
    assert point.manifest["level"] == "memory"
    assert point.names == set(scenario.snapshots(lab, WEB.top))
    assert scenario.points(lab) == [point]
    assert second.pauses_s == []
    scenario.assert_at_rest(lab)
    scenario.assert_on_base(lab, "second", {"vda": disk.path})
    for name in ("web", "second"):
        scenario.assert_counted_through(lab, name)


# -- sanoid dies, or is not alone


@pytest.mark.whole
def test_sanoid_killed_between_snapshot_and_post(lab: Lab) -> None:
    lab.put(KILL_SANOID, "#!/bin/sh\nkill -KILL $PPID\n", mode=0o755)
    scenario.write_sanoid_conf(lab, post_snapshot_script=KILL_SANOID)
    done = scenario.take(lab, after="echo status $?")
    assert f"status {KILLED}" in done.stdout, done
    names = set(scenario.snapshots(lab, WEB.top))
    assert len(names) == 3
    scenario.wait_until(
        "the guard to finish the moment",
        lambda: scenario.leftovers(lab) == [] and len(scenario.points(lab)) == 1,
        timeout_s=scenario.ROUND_LIMIT_S,
    )
    scenario.assert_on_base(lab, "web", WEB.disks)

    scenario.write_sanoid_conf(lab)
    scenario.pass_hours(lab, 1)
    scenario.take(lab)
    abandoned, new = scenario.points(lab, "web")
    assert abandoned.names == names
    assert len(new.names) == 1
    for point in (abandoned, new):
        assert point.manifest["level"] == "memory"
    scenario.assert_at_rest(lab)
    scenario.assert_counted_through(lab, "web")
    (hourly,) = [name for name in names if name.endswith("_hourly")]
    scenario.assert_coherent(lab, WEB, hourly, abandoned.image)


@pytest.mark.whole
def test_second_sanoid_leaves_the_moment_of_the_first_alone(lab: Lab) -> None:
    """The first is held up in its first `zfs snapshot`: its guest is on its overlays."""
    scenario.configure(lab, "[limits]\nlock_timeout_s = 1")
    zfs_snapshot_does(lab, "touch /root/begun; until test -e /root/go-on; do sleep 0.2; done")
    held_up = f"env PATH={BIN}:/usr/sbin:/usr/bin sanoid --take-snapshots"
    with scenario.running(lab, held_up) as first:
        scenario.wait_until(
            "the first sanoid's snapshot",
            lambda: lab.run("test -e /root/begun", check=False).returncode == 0,
        )
        assert on_overlay(lab)
        second = scenario.take(lab)
        assert "WARN: pre_snapshot_script failed, 256" in second.stderr, second
        assert "is under way" in second.stderr
        of_second = set(scenario.snapshots(lab, WEB.top))
        assert on_overlay(lab)
        assert scenario.points(lab) == []

        # Started in the same second, it would have the same names.
        names = json.loads(lab.run(f"cat {scenario.JOURNAL}/*.json").stdout)["snapshot_names"]
        scenario.hook(lab, "post-snapshot", WEB.top, names)
        assert on_overlay(lab)
        assert scenario.points(lab) == []

        lab.run("touch /root/go-on")
        first.wait()
    point = scenario.the_point(lab, "web")
    assert point.manifest["level"] == "memory"
    assert point.names == set(scenario.snapshots(lab, WEB.top)) - of_second
    assert len(point.names) == 3
    scenario.assert_at_rest(lab)
    scenario.assert_counted_through(lab, "web")
    (hourly,) = [name for name in point.names if name.endswith("_hourly")]
    scenario.assert_coherent(lab, WEB, hourly, point.image)


@pytest.mark.long
def test_two_sanoids_at_once_take_turns(lab: Lab) -> None:
    scenario.configure(lab, "[limits]\nlock_timeout_s = 300")
    scenario.write_sanoid_conf(lab, daily="0", monthly="0")
    with scenario.watched(lab, "web") as watch:
        begun = f"until ls {scenario.JOURNAL}/*.json 2> /dev/null; do sleep 0.1; done"
        done = scenario.take(lab, before=f"sanoid --take-snapshots & {begun}", after="wait")
    assert "failed" not in done.stderr, done
    points = scenario.points(lab, "web")
    assert len(points) == len(watch.pauses_s) == 2
    assert {tie for point in points for tie in point.ties} == set(existing(lab))
    for point in points:
        assert point.manifest["level"] == "memory"
    scenario.assert_at_rest(lab)
    scenario.assert_counted_through(lab, "web")
    for point in reversed(points):
        (name,) = point.names
        scenario.assert_coherent(lab, WEB, name, point.image)


# -- called as nobody should


ABSURD = {
    "nothing": {},
    "empty": {"SANOID_TARGET": "", "SANOID_SNAPNAME": ""},
    "no-name": {"SANOID_TARGET": WEB.top},
    "no-dataset": {"SANOID_SNAPNAME": "autosnap_x_daily"},
    "commas": {"SANOID_TARGET": WEB.top, "SANOID_SNAPNAMES": ",,"},
    "option": {"SANOID_TARGET": "-rf", "SANOID_SNAPNAME": "x"},
    "shell": {"SANOID_TARGET": WEB.top, "SANOID_SNAPNAME": "$(touch /root/pwned)"},
    "path": {"SANOID_TARGET": f"{WEB.top}/../../..", "SANOID_SNAPNAME": "x"},
    "line-feed": {"SANOID_TARGET": WEB.top, "SANOID_SNAPNAME": "x\ny"},
    "too-long": {"SANOID_TARGET": WEB.top, "SANOID_SNAPNAME": "x" * 5000},
    "foreign": {"SANOID_TARGET": WEB.top, "SANOID_SNAPNAME": "cheap@x"},
    "not-there": {"SANOID_TARGET": "tank/none", "SANOID_SNAPNAME": "x"},
}


def test_what_cannot_be_is_refused_in_one_line(lab: Lab) -> None:
    """Absurd environments, a broken configuration, no libvirt."""
    everything = (
        "find /tank /cheap /root /var/lib/zvmsnap /run/zvmsnap 2>/dev/null | sort;"
        "zfs list -t all -Ho name; virsh dumpxml web"
    )
    before = lab.run(everything).stdout
    for case, environment in ABSURD.items():
        done = lab.run(f"{scenario.HOOKS}/pre-snapshot", check=False, env=environment)
        assert done.returncode == 2, (case, done)
        assert len(done.stderr.splitlines()) == 1, (case, done)
        assert "error: " in done.stderr
    assert lab.run(everything).stdout == before

    names = ["autosnap_2001-01-01_00:00:00_daily"]
    lab.put(scenario.CONFIG, "[limits]\npause_first = 3\n")
    done = scenario.hook(lab, "pre-snapshot", WEB.top, names)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert scenario.CONFIG in line
    assert "pause_first" in line

    scenario.configure(lab)
    lab.run("systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd")
    done = scenario.hook(lab, "pre-snapshot", WEB.top, names)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "qemu:///system" in line
    counted = f"{scenario.JOURNAL}/failures.count\n"
    assert lab.run("find /var/lib/zvmsnap -type f", check=False).stdout == counted
