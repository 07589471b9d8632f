"""Several commands want the same guest at once: each snapshot has a point, of its own level."""

from __future__ import annotations

import json
from shlex import quote

import back
import pytest
import scenario
from back import zvmsnap
from scenario import WEB

from labkit.api import Lab

STOPPED = "until grep -qs '^State:.T' /proc/$(pgrep -x {hook})/status; do sleep 0.1; done"


@pytest.mark.whole
def test_snapshot_that_is_taken_while_the_guest_is_on_overlays_of_another_run(
    lab_session: Lab,
) -> None:
    lab = lab_session
    scenario.configured(lab)
    scenario.configure(lab, "[limits]\nlock_timeout_s = 3")
    first = lab.start("ZVMSNAP_TEST_STOP_BEFORE='read header' exec sanoid --take-snapshots 2>&1")
    lab.run(STOPPED.format(hook="pre-snapshot"), timeout_s=scenario.ROUND_LIMIT_S)
    scenario.pass_hours(lab, 1)
    second = scenario.take(lab)
    assert "level crash: " in second.stderr, second.stderr
    assert scenario.points(lab) == []
    lab.run("pkill -CONT -x pre-snapshot")
    first.communicate(timeout=scenario.ROUND_LIMIT_S)
    scenario.wait_until(
        "the watchdog of the second", lambda: len(scenario.points(lab)) == 2, timeout_s=120
    )
    points = {point.manifest["level"]: point for point in scenario.points(lab, "web")}
    one, other = points["memory"], points["crash"]
    assert "during another run" in other.manifest["reason"]
    assert not one.names & other.names
    assert {disk["source"] for disk in other.manifest["disks"]} == {*WEB.disks.values()}
    assert ".zvmsnap." not in lab.run(f"cat {other.directory}/domain.xml").stdout
    scenario.wait_until("the watchdogs to end", lambda: scenario.leftovers(lab) == [])
    scenario.assert_at_rest(lab)
    scenario.assert_counted_through(lab, "web")


@pytest.mark.whole
def test_snapshot_of_the_same_name_that_is_taken_during_the_dump(lab_session: Lab) -> None:
    """Two sanoids that are started in the same second announce the same names."""
    lab = lab_session
    scenario.configured(lab)
    scenario.configure(lab, "[limits]\nlock_timeout_s = 1")
    first = lab.start("ZVMSNAP_TEST_STOP_BEFORE=dump exec sanoid --take-snapshots --verbose 2>&1")
    lab.run(STOPPED.format(hook="pre-snapshot"), timeout_s=scenario.ROUND_LIMIT_S)
    names = json.loads(lab.run(f"cat {scenario.JOURNAL}/*.json").stdout)["snapshot_names"]
    second = scenario.hook(lab, "pre-snapshot", WEB.top, names)
    assert (second.returncode, "level crash: " in second.stderr) == (1, True), second
    for name in names:
        lab.run(f"zfs snapshot -r {WEB.top}@{name}")
    taken = scenario.snapshots(lab, WEB.top)
    lab.run("pkill -CONT -x pre-snapshot")
    said, _ = first.communicate(timeout=scenario.ROUND_LIMIT_S)
    assert "dataset already exists" in said
    assert "was taken after pre: the RAM image is discarded" in said
    scenario.hook(lab, "post-snapshot", WEB.top, names)
    scenario.wait_until("the watchdogs to end", lambda: scenario.leftovers(lab) == [])
    point = scenario.the_point(lab, "web")
    assert (point.manifest["level"], set(point.names)) == ("crash", set(names))
    assert "during another run" in point.manifest["reason"]
    assert scenario.snapshots(lab, WEB.top) == taken
    scenario.assert_at_rest(lab)
    scenario.assert_counted_through(lab, "web")


IMPATIENT = "/etc/zvmsnap/impatient.toml"
# The sanoids do not wait for each other, nor for `take`: who comes late gets a late run.
AT_ONCE = {
    "verify": "zvmsnap verify --boot web",
    "sanoid": f"env ZVMSNAP_CONFIG={IMPATIENT} sanoid --cron --verbose",
    "other-sanoid": f"env ZVMSNAP_CONFIG={IMPATIENT} sanoid --cron --verbose",
    "take": "zvmsnap take web --keep 1",
    "prune": "zvmsnap prune",
}
CLONES = "zvmsnap-verify-"
WITH_RAM = ("memory", "paused")


def all_at_once(lab: Lab) -> dict[str, tuple[int, str]]:
    """Exit code and output of each, all begun while verify has its first clone."""
    script = []
    for name, command in AT_ONCE.items():
        log = f"/root/{name}"
        script.append(f"(sh -c {quote(command)} > {log}.log 2>&1; echo $? > {log}.code) &")
        if name == "verify":
            script.append(f"until virsh list --name | grep -q {CLONES}; do sleep 0.2; done")
    lab.run("\n".join([*script, "wait"]), timeout_s=scenario.ROUND_LIMIT_S)
    return {
        name: (int(lab.get(f"/root/{name}.code")), lab.get(f"/root/{name}.log").decode())
        for name in AT_ONCE
    }


@pytest.mark.whole
def test_five_commands_at_once(lab_session: Lab) -> None:
    lab = lab_session
    scenario.taken(lab)
    scenario.configure(lab, "[limits]\nlock_timeout_s = 1")
    lab.run(f"mv {scenario.CONFIG} {IMPATIENT}")
    scenario.configure(lab, "[limits]\nlock_timeout_s = 300")
    scenario.write_sanoid_conf(lab, hourly="2", daily="0", monthly="0")
    for _ in range(2):
        scenario.pass_hours(lab, 1)
        zvmsnap(lab, "take", "web")
        scenario.take(lab)
    scenario.pass_hours(lab, 1)
    before = back.listed(lab)
    done = all_at_once(lab)
    for name, (code, said) in done.items():
        print(name, code, said, sep="\n")
        assert "Traceback" not in said and "Errno" not in said, (name, said)
        # Two sanoids that start in the same second want the same snapshot: one of them gets it.
        assert code == 0 or ("sanoid" in name and "dataset already exists" in said), (name, said)
    # What it says of each: what it found, or that the point was removed; and nothing else.
    lines = done["verify"][1].splitlines()
    verified = dict(line.split(": ", 1) for line in lines)
    assert list(verified) != [] and set(verified) == {point["name"] for point in before}
    removed = {name for name, found in verified.items() if found == "was removed meanwhile"}
    assert all("its CPU works" in verified[name] for name in verified.keys() - removed)
    scenario.wait_until("the watchdogs to end", lambda: scenario.leftovers(lab) == [], 120)

    # Nothing is left, and each snapshot has a point, of the level that it has.
    back.assert_nothing_left(lab)
    assert CLONES not in lab.run("virsh list --all --name; zfs list -Ho name").stdout
    scenario.assert_counted_through(lab, "web")
    points = scenario.points(lab, "web")
    existing = scenario.snapshots(lab, WEB.top)
    of_points = {guid for point in points for guid in point.ties.values()}
    logs = "".join(said for _, said in done.values())
    logs += lab.run("journalctl --no-pager -u 'zvmsnap-watchdog-*'").stdout
    for name, guid in existing.items():
        # One that was taken while overlays were merged has no level at all, and that is said.
        assert guid in of_points or f"in the middle of a merge: {WEB.top}@{name}" in logs, name
    for point in points:
        assert set(point.ties.values()) & set(existing.values())
        assert (point.manifest["level"] in WITH_RAM) is (point.manifest["reason"] is None)
    runs = {point.manifest["run"] for point in points}
    old = {point["run"] for point in before}
    assert len(runs - old) >= 2  # one of take, and those of the sanoids
    by_hand = {run for run in runs if run.startswith("zvmsnap_")}
    assert len(by_hand - old) == 1
    # One that verify had a clone of was kept, which is said; the next `--keep` drops it.
    assert all(f"web@{run}: kept: " in done["take"][1] for run in by_hand & old)
    pruned = json.loads(zvmsnap(lab, "prune", "--json").stdout)
    assert not any(pruned[what] for what in ("removed", "leftovers", "kept_unknown", "damaged"))

    # All of them load.
    for number, point in enumerate(points):
        (name,) = [name for name, guid in existing.items() if guid in point.ties.values()][:1]
        stored = back.stored_count(lab, name)
        clone = f"c{number}"
        zvmsnap(lab, "clone", f"web@{name}", clone)
        if point.manifest["level"] in WITH_RAM:
            back.assert_goes_on(lab, f"{clone}-web", stored, 0)
        zvmsnap(lab, "clone", "--destroy", clone)
