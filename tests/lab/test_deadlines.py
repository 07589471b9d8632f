"""Dumps that do not end by themselves, and hooks that lose their sanoid in the middle of one.

The guest `busy` changes its RAM faster than it is written, so that its dump lasts as long as the
limits let it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import scenario
from scenario import Guest, Running

from labkit import guests
from labkit.api import Completed, Lab

BUSY = Guest("busy", ("tank/vm/busy",), {"vda": "/tank/vm/busy/busy.raw"})
MEMORY_MIB = 64
DIRTY_MIB = 24
# Of one CPU: it still changes all its RAM many times a second, and leaves the lab room to work.
CPU_SHARE = "<cputune><period>100000</period><quota>30000</quota></cputune>"

DIED_OF_SIGALRM = 128 + 14
HOUR_S = 3600
# QEMU may not end the dump by a pause of its own: our deadlines decide alone.
NO_PAUSE_BY_QEMU = "pause_first_ms = 1\npause_max_ms = 1\n"
ENDLESS = (
    f"[limits]\n{NO_PAUSE_BY_QEMU}dump_raise_pause_after_s = {HOUR_S}\n"
    f"dump_pause_after_s = {HOUR_S}\ndump_abort_after_s = {HOUR_S}\ndump_max_ram_ratio = 1000\n"
)


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    scenario.stage(lab_session, "busy", scenario.configured, _make)
    return lab_session


def _make(lab: Lab) -> None:
    lab.run("virsh destroy web && virsh undefine web && zfs create tank/vm/busy")
    disk = guests.make_disk(
        lab, guests.Disk(BUSY.disks["vda"]), dirty_mib=DIRTY_MIB, memory_mib=MEMORY_MIB
    )
    guests.define(lab, guests.domain_xml("busy", [disk], memory_mib=MEMORY_MIB, extra=CPU_SHARE))
    guests.start(lab, "busy")
    sanoid_takes_hourly(lab)


def sanoid_takes_hourly(lab: Lab, **keys: str | None) -> None:
    scenario.write_sanoid_conf(lab, scenario.section(BUSY.top), daily="0", monthly="0", **keys)


def take_reporting_status(lab: Lab) -> tuple[Completed, int]:
    """Run sanoid, and whatever outlives it; its own exit status is the second of the pair."""
    done = scenario.take(lab, check=False, after="echo status $?")
    (status,) = [line for line in done.stdout.splitlines() if line.startswith("status ")]
    return done, int(status.removeprefix("status "))


def assert_untouched(lab: Lab) -> None:
    """As if no hook had been called: no snapshot, no point, no trace, and the guest counts."""
    assert scenario.vault_files(lab) == []
    scenario.assert_at_rest(lab, BUSY)
    scenario.counts_on(lab, "busy")
    scenario.assert_counted_through(lab, "busy")
    assert scenario.state(lab, "busy") == "running"


def allowed_pause(lab: Lab) -> str:
    return lab.run("virsh migrate-getmaxdowntime busy").stdout


@contextmanager
def endless_dump(lab: Lab) -> Iterator[Running]:
    """sanoid, whose pre hook is in the middle of a dump without end."""
    scenario.configure(lab, ENDLESS)
    with scenario.running(lab, "sanoid --take-snapshots --verbose") as sanoid:
        scenario.wait_until(
            "a RAM image that grows",
            lambda: (
                "memory.img" in lab.run(f"find {scenario.STAGING} -size +1M", check=False).stdout
            ),
        )
        yield sanoid


@pytest.mark.whole
def test_sanoids_own_timeout_kills_sanoid_and_the_hook_puts_the_guest_back(lab: Lab) -> None:
    scenario.configure(lab, ENDLESS)
    sanoid_takes_hourly(lab, script_timeout=None)
    done, status = take_reporting_status(lab)
    assert status == DIED_OF_SIGALRM, done
    assert scenario.snapshots(lab, BUSY.top) == {}
    assert_untouched(lab)


def test_sanoid_dies_in_the_middle_of_the_dump(lab: Lab) -> None:
    pause_before = allowed_pause(lab)
    with endless_dump(lab) as sanoid:
        lab.run(f"kill -ALRM {sanoid.pid}")
        stderr = sanoid.wait()
    assert "sanoid died (script_timeout?)" in stderr
    assert scenario.snapshots(lab, BUSY.top) == {}
    assert_untouched(lab)
    assert allowed_pause(lab) == pause_before


@pytest.mark.whole
def test_ctrl_c_in_the_middle_of_the_dump(lab: Lab) -> None:
    with endless_dump(lab) as sanoid:
        lab.run(f"kill -INT -- -{sanoid.pid}")
        stderr = sanoid.wait()
    assert "SIGINT" in stderr
    assert "Traceback" not in stderr
    # sanoid takes the snapshot in spite of it, and then calls post.
    assert len(scenario.snapshots(lab, BUSY.top)) == 1
    assert_untouched(lab)


def test_guest_that_never_converges_is_paused_to_finish(lab: Lab) -> None:
    pause_before = allowed_pause(lab)
    scenario.configure(
        lab,
        f"[limits]\n{NO_PAUSE_BY_QEMU}dump_raise_pause_after_s = 1\ndump_pause_after_s = 2\n"
        f"dump_abort_after_s = {HOUR_S}\ndump_max_ram_ratio = 1000\n",
    )
    with scenario.watched(lab, "busy") as watch:
        done = scenario.take(lab)
        scenario.counts_on(lab, "busy")
    assert "pausing it to finish" in done.stderr
    assert len(watch.pauses_s) == 1
    assert allowed_pause(lab) == pause_before
    scenario.assert_at_rest(lab, BUSY)
    scenario.assert_counted_through(lab, "busy")
    point = scenario.the_point(lab, "busy")
    assert point.manifest["level"] == "memory"
    assert point.timing["dump_s"] > 2
    (name,) = point.names
    scenario.assert_coherent(lab, BUSY, name, point.image)


@pytest.mark.whole
def test_image_that_outgrows_the_ram_is_ended_by_a_pause(lab: Lab) -> None:
    ratio = 1.0
    scenario.configure(
        lab,
        f"[limits]\n{NO_PAUSE_BY_QEMU}dump_raise_pause_after_s = {HOUR_S}\n"
        f"dump_pause_after_s = {HOUR_S}\ndump_abort_after_s = {HOUR_S}\n"
        f"dump_max_ram_ratio = {ratio}\n",
    )
    done = scenario.take(lab)
    assert "pausing it to finish" in done.stderr
    point = scenario.the_point(lab, "busy")
    assert point.manifest["level"] == "memory"
    assert point.manifest["memory"]["image_bytes"] > ratio * (MEMORY_MIB << 20)
    scenario.assert_at_rest(lab, BUSY)
    scenario.assert_counted_through(lab, "busy")


def test_dump_is_given_up_at_its_last_deadline(lab: Lab) -> None:
    pause_before = allowed_pause(lab)
    scenario.configure(
        lab,
        f"[limits]\n{NO_PAUSE_BY_QEMU}dump_raise_pause_after_s = 1\n"
        f"dump_pause_after_s = {HOUR_S}\ndump_abort_after_s = 2\ndump_max_ram_ratio = 1000\n",
    )
    done = scenario.take(lab)
    assert "WARN: pre_snapshot_script failed" in done.stderr
    assert "not of level memory" in done.stderr
    assert allowed_pause(lab) == pause_before
    point = scenario.the_point(lab, "busy")
    assert point.ties == {
        f"{BUSY.top}@{name}": guid for name, guid in scenario.snapshots(lab, BUSY.top).items()
    }
    assert point.manifest["level"] == "crash"
    assert point.manifest["memory"] is None
    assert "dump" in point.manifest["reason"]
    assert f"{point.directory}/memory.img" not in scenario.vault_files(lab)
    scenario.assert_at_rest(lab, BUSY)
    scenario.counts_on(lab, "busy")
    scenario.assert_counted_through(lab, "busy")
