"""pre is killed while libvirt writes the RAM image; libvirt goes on without it."""

import scenario
from scenario import WEB

from labkit.api import Lab

# The kernel keeps 15 characters of a process's name.
STOP_THE_DUMP = """
until pid=$(pgrep -x libvirt_iohelpe); do sleep 0.05; done
kill -STOP $pid; echo $pid
"""


def test_image_that_comes_too_late_is_not_published(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    sanoid = lab.start("sanoid --take-snapshots --verbose 2>&1")
    stopped = lab.run(STOP_THE_DUMP, timeout_s=scenario.ROUND_LIMIT_S).stdout.split()
    lab.run("pkill -KILL -x pre-snapshot")
    said = sanoid.communicate(timeout=scenario.ROUND_LIMIT_S)[0]
    said = said.decode() if isinstance(said, bytes) else said
    assert "is under way" in said, said
    names = scenario.snapshots(lab, WEB.top)
    assert len(names) == 3, said
    assert scenario.points(lab) == []

    lab.run(f"kill -CONT {' '.join(stopped)}")
    scenario.wait_until(
        "libvirt to put the guest on its overlays",
        lambda: all(".zvmsnap." in path for path in scenario.disks(lab, "web").values()),
        timeout_s=scenario.ROUND_LIMIT_S,
    )

    scenario.pass_hours(lab, 1)
    said_next = scenario.take(lab)
    assert "which nobody finished" in said_next.stderr, said_next
    late, whole = scenario.points(lab, "web")
    assert (late.manifest["level"], late.manifest["memory"]) == ("crash", None)
    assert "killed" in late.manifest["reason"]
    assert late.names == set(names)
    assert whole.manifest["level"] == "memory"
    scenario.assert_at_rest(lab)
    scenario.assert_counted_through(lab, "web")
    (name,) = whole.names
    scenario.assert_coherent(lab, WEB, name, whole.image)
