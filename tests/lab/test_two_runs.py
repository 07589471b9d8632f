"""Two sanoids want the same guest at once: each snapshot has a point, of the level that it has."""

from __future__ import annotations

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
