"""Several commands want the same guest at once: each snapshot has a point, of its own level."""

from __future__ import annotations

import json

import pytest
import scenario
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
