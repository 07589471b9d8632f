"""Dumps that do not end by themselves, and hooks that lose their sanoid in the middle of one.

The guest `busy` changes its RAM faster than it is written, so that its dump lasts as long as the
limits let it. `calm` changes nothing, but its RAM is written slowly.
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
# QEMU may not end the dump by a pause of its own: our limits decide alone.
NO_PAUSE_BY_QEMU = "pause_first_ms = 1\npause_max_ms = 1\n"
# Each pass takes half a minute then, and there is room for many.
SLOW_MIB_PER_S = 1
SLOW = f"[limits]\n{NO_PAUSE_BY_QEMU}dump_min_mib_per_s = 0.1\ndump_max_ram_ratio = 8\n"
CALM = Guest("calm", ("tank/vm/calm",), {"vda": "/tank/vm/calm/calm.raw"})
CALM_MIB = 40


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


@pytest.fixture
def calm(lab_session: Lab) -> Lab:
    scenario.stage(lab_session, "calm", scenario.configured, _make_calm)
    return lab_session


def _make_calm(lab: Lab) -> None:
    lab.run("virsh destroy web && virsh undefine web && zfs create tank/vm/calm")
    disk = guests.make_disk(
        lab, guests.Disk(CALM.disks["vda"]), fill_mib=CALM_MIB, memory_mib=MEMORY_MIB
    )
    guests.define(lab, guests.domain_xml("calm", [disk], memory_mib=MEMORY_MIB))
    guests.start(lab, "calm")
    scenario.write_sanoid_conf(lab, scenario.section(CALM.top), daily="0", monthly="0")


def slow_disk(lab: Lab, domain: str) -> None:
    """Let QEMU write slowly, from the beginning of the next dump on: libvirt sets no limit."""
    lab.start(
        f"until ls {scenario.STAGING}/*/point/memory.img > /dev/null 2>&1; do :; done;"
        f"virsh migrate-setspeed {domain} {SLOW_MIB_PER_S}"
    )


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
def endless_dump(lab: Lab, config: str = SLOW) -> Iterator[Running]:
    """sanoid, whose pre hook is in the middle of a dump of minutes."""
    scenario.configure(lab, config)
    slow_disk(lab, "busy")
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
    scenario.configure(lab, SLOW)
    slow_disk(lab, "busy")
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
def test_dump_that_nobody_bounds_any_more_is_ended(lab: Lab) -> None:
    """Sanoid and its hook are killed; libvirt goes on, and the watchdog comes."""
    pause_before = allowed_pause(lab)
    with endless_dump(lab) as sanoid:
        lab.run(f"pkill -KILL -x pre-snapshot; kill -KILL {sanoid.pid}")
        sanoid.wait()
        scenario.wait_until(
            "the watchdog",
            lambda: scenario.leftovers(lab) == [],
            timeout_s=scenario.ROUND_LIMIT_S,
        )
    said = lab.run("journalctl --no-pager -u 'zvmsnap-watchdog-*'").stdout
    assert "libvirt goes on with the dump of its RAM: aborting it" in said
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
    scenario.configure(lab, f"[limits]\n{NO_PAUSE_BY_QEMU}dump_max_ram_ratio = 8\n")
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
    # All of it is written once, and what it changes three times before it is paused.
    assert point.manifest["memory"]["image_bytes"] > 4 * DIRTY_MIB << 20
    (name,) = point.names
    scenario.assert_coherent(lab, BUSY, name, point.image)


@pytest.mark.whole
def test_slow_dump_of_a_guest_that_does_nothing_is_left_alone(calm: Lab) -> None:
    scenario.configure(calm, "[limits]\ndump_min_mib_per_s = 0.1\n")
    slow_disk(calm, "calm")
    with scenario.watched(calm, "calm") as watch:
        done = scenario.take(calm)
        scenario.counts_on(calm, "calm")
    assert "pausing" not in done.stderr
    point = scenario.the_point(calm, "calm")
    assert point.manifest["level"] == "memory"
    assert point.timing["dump_s"] > CALM_MIB / SLOW_MIB_PER_S / 2
    (paused_s,) = watch.pauses_s
    # The last of RAM, the flush, and the overlay.
    assert paused_s < point.timing["dump_s"] / 3
    scenario.assert_at_rest(calm, CALM)
    scenario.assert_counted_through(calm, "calm")
    (name,) = point.names
    scenario.assert_coherent(calm, CALM, name, point.image)


def test_guest_that_would_be_paused_for_too_long_gets_the_next_level(calm: Lab) -> None:
    """Its last point tells how long it would be."""
    scenario.configure(calm)
    scenario.take(calm)
    first = scenario.the_point(calm, "calm")
    assert first.manifest["level"] == "memory"
    scenario.pass_hours(calm, 1)
    scenario.configure(calm, "[limits]\nmemory_max_pause_s = 0.05\n")
    with scenario.watched(calm, "calm") as watch:
        done = scenario.take(calm)
        scenario.counts_on(calm, "calm")
    assert watch.pauses_s == []
    assert "failed" not in done.stderr
    (second,) = [
        point for point in scenario.points(calm, "calm") if point.directory != first.directory
    ]
    expected = f"paused for about {first.timing['pause_s']:.1f} s, by its last points"
    assert second.manifest["level"] == "crash"
    assert expected in second.manifest["reason"]
    assert expected in done.stderr
    scenario.assert_at_rest(calm, CALM)


@pytest.mark.whole
def test_journal_becomes_full_while_a_dump_runs(lab: Lab) -> None:
    """It cannot be noted that the guest is paused: it is not, and the dump is given up instead."""
    pause_before = allowed_pause(lab)
    small = scenario.mount_small(lab, 8)
    config = SLOW.replace("dump_max_ram_ratio = 8", "dump_max_ram_ratio = 2.5")
    with (
        endless_dump(lab, f'journal = "{small}/journal"\n{config}') as sanoid,
        scenario.watched(lab, "busy") as watch,
    ):
        full = "No space left on device"
        filled = lab.run(f"dd if=/dev/zero of={small}/filler bs=512", check=False)
        assert full in filled.stderr
        said = sanoid.wait()
        scenario.counts_on(lab, "busy")
    assert watch.pauses_s == []
    assert f"while its RAM is dumped: [Errno 28] {full}" in said, said
    assert "Traceback" not in said
    assert allowed_pause(lab) == pause_before
    assert scenario.points(lab) == []
    lab.run(f"rm {small}/filler && zvmsnap recover", timeout_s=scenario.ROUND_LIMIT_S)
    left = f"find {small}/journal {scenario.STAGING} -mindepth 1 {scenario.LASTING} -type f"
    assert lab.run(left).stdout == ""
    scenario.assert_on_base(lab, "busy", BUSY.disks)
    scenario.assert_counted_through(lab, "busy")
    # With room again the next one has its RAM.
    scenario.configure(lab, f'journal = "{small}/journal"')
    scenario.pass_hours(lab, 1)
    scenario.take(lab)
    assert [point.manifest["level"] for point in scenario.points(lab, "busy")] == ["memory"]


def assert_given_up(lab: Lab, done: Completed, why: str) -> None:
    """The point has no RAM, and says why; nothing of the dump is left."""
    assert "WARN: pre_snapshot_script failed" in done.stderr
    assert "not of level memory" in done.stderr
    assert "pausing" not in done.stderr
    point = scenario.the_point(lab, "busy")
    assert point.ties == {
        f"{BUSY.top}@{name}": guid for name, guid in scenario.snapshots(lab, BUSY.top).items()
    }
    assert point.manifest["level"] == "crash"
    assert point.manifest["memory"] is None
    assert why in point.manifest["reason"]
    assert not [path for path in scenario.vault_files(lab) if f"{point.directory}/memory" in path]
    scenario.assert_at_rest(lab, BUSY)
    scenario.counts_on(lab, "busy")
    scenario.assert_counted_through(lab, "busy")


def test_guest_is_not_paused_for_longer_than_the_limit(lab: Lab) -> None:
    pause_before = allowed_pause(lab)
    limit_s = 0.01  # less than what it changes takes to be written
    scenario.configure(
        lab, f"[limits]\n{NO_PAUSE_BY_QEMU}dump_max_ram_ratio = 8\nmax_freeze_s = {limit_s}\n"
    )
    assert_given_up(lab, scenario.take(lab), f"limits.max_freeze_s is {limit_s}")
    assert allowed_pause(lab) == pause_before


@pytest.mark.whole
def test_dump_that_outgrows_what_is_reserved_is_given_up(lab: Lab) -> None:
    """Slow enough to be looked at in each pass."""
    scenario.configure(
        lab,
        f"[limits]\n{NO_PAUSE_BY_QEMU}dump_min_mib_per_s = 0.1\ndump_max_ram_ratio = 0.01\n",
    )
    slow_disk(lab, "busy")
    assert_given_up(lab, scenario.take(lab), "reserved for it in staging")
