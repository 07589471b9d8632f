"""What hangs: dumps that are slow all at once, a QEMU that does not answer, a suspended pool.

Whatever hangs, the hook ends, the other guests get what is theirs, and what was given up is made
good as soon as it answers again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pytest
import scenario
from scenario import Guest

from labkit import guests
from labkit.api import Completed, Lab

CROWD = tuple(
    Guest(f"guest{number}", (f"tank/vm/guest{number}",), {"vda": f"/tank/vm/guest{number}/vda.raw"})
    for number in range(8)
)
THREE = CROWD[:3]
HUNG = CROWD[1]
MEMORY_MIB = 48
FILL_MIB = 8  # more than the pipe to libvirt's helper holds: see test_killed_hook

HELPER = "/usr/lib/libvirt/libvirt_iohelper"
# libvirtd closes a connection that is kept busy for 35 s.
SLOW_S = 50
NAMES = ("autosnap_2026-11-20_03:00:00_hourly",)

SICK = "/run/sick"


def _crowd(lab: Lab, members: Sequence[Guest]) -> None:
    lab.run("virsh destroy web && virsh undefine web")
    for guest in members:
        lab.run(f"zfs create {guest.top}")
        disk = guests.make_disk(
            lab, guests.Disk(guest.disks["vda"]), fill_mib=FILL_MIB, memory_mib=MEMORY_MIB
        )
        guests.define(lab, guests.domain_xml(guest.name, [disk], memory_mib=MEMORY_MIB))
        guests.start(lab, guest.name)
    scenario.write_sanoid_conf(lab, scenario.section("tank/vm"), daily="0", monthly="0")


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    scenario.stage(lab_session, "three", scenario.configured, lambda lab: _crowd(lab, THREE))
    return lab_session


def slow_dumps(lab: Lab, seconds: int) -> None:
    """Let each dump begin, and write nothing for so long."""
    lab.run(f"mv {HELPER} {HELPER}.real")
    lab.put(HELPER, f'#!/bin/sh\nsleep {seconds}\nexec {HELPER}.real "$@"\n', mode=0o755)


def levels(lab: Lab) -> dict[str, str]:
    return {point.manifest["domain"]: point.manifest["level"] for point in scenario.points(lab)}


@pytest.mark.whole
def test_slow_dumps_of_eight_guests_at_once(lab_session: Lab) -> None:
    lab = lab_session
    scenario.stage(lab, "crowd", scenario.configured, lambda lab: _crowd(lab, CROWD))
    scenario.configure(
        lab, "[limits]\nparallel_dumps = 8\noverlay_room_mib = 64\ndump_min_mib_per_s = 0.01\n"
    )
    slow_dumps(lab, SLOW_S)
    done = scenario.take(lab)
    assert levels(lab) == {guest.name: "memory" for guest in CROWD}, done.stderr
    for guest in CROWD:
        scenario.assert_at_rest(lab, guest)
        scenario.counts_on(lab, guest.name)
        scenario.assert_counted_through(lab, guest.name)
    point = scenario.points(lab, CROWD[-1].name)[0]
    (name,) = point.names
    scenario.assert_coherent(lab, CROWD[-1], name, point.image)


# -- a QEMU that does not answer


def stop(lab: Lab, guest: Guest) -> None:
    lab.run(f"kill -STOP $(cat /run/libvirt/qemu/{guest.name}.pid)")


def go_on(lab: Lab, guest: Guest) -> None:
    lab.run(f"kill -CONT $(cat /run/libvirt/qemu/{guest.name}.pid)")


def is_on_its_disks(lab: Lab, guest: Guest) -> bool:
    return ".zvmsnap." not in scenario.dumpxml(lab, guest.name)


def assert_all_at_rest(lab: Lab) -> None:
    """All three are on their own disks, and have counted through."""
    for guest in THREE:
        scenario.wait_until(
            f"{guest.name} to be on its own disks",
            partial(is_on_its_disks, lab, guest),
            timeout_s=scenario.ROUND_LIMIT_S,
        )
        scenario.counts_on(lab, guest.name)
        scenario.assert_counted_through(lab, guest.name)
    scenario.wait_until(
        "nothing under way", lambda: scenario.leftovers(lab) == [], scenario.ROUND_LIMIT_S
    )
    for guest in THREE:
        scenario.assert_at_rest(lab, guest)


def test_qemu_that_does_not_answer(lab: Lab) -> None:
    stop(lab, HUNG)
    done = scenario.take(lab)
    assert f"{HUNG.name} (tank/vm)" in done.stderr
    assert "its QEMU is stopped" in done.stderr
    assert levels(lab) == {guest.name: "memory" for guest in THREE} | {HUNG.name: "crash"}
    listed = lab.run("zvmsnap list && zvmsnap recover", timeout_s=120).stdout
    assert HUNG.name in listed
    go_on(lab, HUNG)
    assert_all_at_rest(lab)


@pytest.mark.whole
def test_qemu_that_hangs_in_the_middle_of_its_dump(lab: Lab) -> None:
    scenario.configure(lab, "[limits]\nparallel_dumps = 3\nbusy_timeout_s = 5")
    slow_dumps(lab, 10)
    with scenario.running(lab, "sanoid --take-snapshots --verbose") as sanoid:
        scenario.wait_until(
            "its dump to begin",
            lambda: lab.run(f"pgrep -f '[i]ohelper.*{HUNG.name}' || "
                            f"test $(pgrep -fc '[l]ibvirt_iohelper') -ge 3",
                            check=False).returncode == 0,
            timeout_s=scenario.ROUND_LIMIT_S,
        )
        stop(lab, HUNG)
        said = sanoid.wait()
    assert {name: level for name, level in levels(lab).items() if name != HUNG.name} == {
        guest.name: "memory" for guest in THREE if guest is not HUNG
    }, said
    assert "Traceback" not in said
    go_on(lab, HUNG)
    assert_all_at_rest(lab)


@pytest.mark.whole
@pytest.mark.parametrize("step", ["staging", "read header", "frozen", "commit", "tidy"])
def test_qemu_that_hangs_from_a_step_on(lab: Lab, step: str) -> None:
    scenario.configure(lab, "[limits]\nbusy_timeout_s = 5")
    hooks = "hooks.(pre|post)-snapsho[t]"
    lab.run(
        f"ZVMSNAP_TEST_STOP_BEFORE='{step}' setsid sanoid --take-snapshots > /root/round.log 2>&1 &"
        " sanoid=$!; stopped=;"
        " while kill -0 $sanoid 2> /dev/null; do"
        f"  if ps -eo stat=,args= | grep -E '^T.*{hooks}' > /dev/null; then"
        f"   test -n \"$stopped\" || kill -STOP $(cat /run/libvirt/qemu/{HUNG.name}.pid);"
        "   stopped=1;"
        f"   pkill -CONT -f '{hooks}';"
        "  fi; sleep 0.2; done; test -n \"$stopped\"",
        timeout_s=scenario.ROUND_LIMIT_S,
    )
    said = lab.get("/root/round.log").decode()
    assert "Traceback" not in said
    found = levels(lab)
    assert all(found.get(guest.name) for guest in THREE if guest is not HUNG), said
    go_on(lab, HUNG)
    assert_all_at_rest(lab)


# -- a suspended pool


@contextmanager
def suspended_pool(lab: Lab) -> Iterator[None]:
    """The pool `sick` of a file on a full file system: it waits for room, and so do all its users.

    zpool(7): failmode=wait, the default.
    """
    lab.run(
        f"mkdir -p {SICK} && mount -t tmpfs -o size=80M tmpfs {SICK} &&"
        f"truncate -s 256M {SICK}/file && zpool create sick {SICK}/file &&"
        "zfs create sick/vault && zfs set compression=off sick"
    )
    try:
        yield
    finally:
        lab.run(f"mount -o remount,size=400M {SICK}; zpool clear sick; zpool sync sick",
                check=False, timeout_s=120)


def suspend(lab: Lab) -> None:
    lab.start("dd if=/dev/urandom of=/sick/filler bs=1M count=200 conv=fsync")
    scenario.wait_until(
        "the pool to be suspended",
        lambda: "SUSPENDED" in lab.run("cat /proc/spl/kstat/zfs/sick/state").stdout,
    )


def hook(lab: Lab, name: str) -> Completed:
    return scenario.hook(lab, name, "tank/vm", NAMES, SANOID_TYPES="hourly")


@pytest.mark.whole
def test_vault_on_a_pool_that_is_suspended(lab: Lab) -> None:
    lab.put(scenario.SANOID_CONF, lab.get(scenario.SANOID_CONF).decode())
    with suspended_pool(lab):
        lab.put(scenario.CONFIG, 'vault = "/sick/vault"\n')
        done = scenario.take(lab)
        assert "WARN" not in done.stderr, done.stderr
        scenario.pass_hours(lab, 1)
        suspend(lab)
        done = scenario.take(lab, check=False)
        assert "hangs in the kernel" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        for command in ("list", "prune --dry-run"):
            read = lab.run(f"zvmsnap {command}", check=False, timeout_s=scenario.ROUND_LIMIT_S)
            (line,) = read.stderr.splitlines()
            assert (read.returncode, "hangs in the kernel" in line) == (1, True), read
        for guest in THREE:
            scenario.assert_on_base(lab, guest.name, guest.disks)
            scenario.counts_on(lab, guest.name)
            scenario.assert_counted_through(lab, guest.name)
