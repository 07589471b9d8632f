"""What the pages show of guests with an agent, word for word, but for the name of the guest."""

from __future__ import annotations

from typing import Any

import pytest
import readme
import scenario
from back import zvmsnap
from terminal import run
from test_levels import TOP, prepared
from test_watching import MONITOR

from labkit import linux
from labkit.api import Lab

pytestmark = [pytest.mark.whole, pytest.mark.late]

# The Linux of the lab has no systemd. This lies in its RAM, and so in that of its points.
SYSTEMCTL = """\
cat > /bin/systemctl <<'END'
#!/bin/sh
[ "$*" = "is-active nginx" ] && echo active
END
chmod 755 /bin/systemctl
"""


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    prepared(lab_session)
    return lab_session


def in_guest(lab: Lab, script: str) -> None:
    """Run it there; it must succeed."""
    begun: Any = linux.agent(lab, "guest-exec", path="/bin/sh", arg=["-ec", script])
    while True:
        status: Any = linux.agent(lab, "guest-exec-status", pid=begun["pid"])
        if status["exited"]:
            assert status["exitcode"] == 0, status
            return


def of_debian(command: str) -> str:
    """The same, of the guest and the dataset that there are."""
    for shown in ("tank/vm/gpu", "tank/vm/web"):
        command = command.replace(shown, TOP)
    return command.replace("web", linux.NAME)


def test_a_guest_with_an_agent(lab: Lab) -> None:
    scenario.configure(lab, MONITOR)
    in_guest(lab, SYSTEMCTL)
    _, take = readme.commands("Take a point now")
    assert ": quiesced, stood still for " in run(lab, of_debian(take)).stdout

    monitor, mode = readme.commands("By Nagios or Icinga")
    # By hand a point with RAM is taken paused.
    assert "newest point is of level quiesced, not paused" in run(lab, monitor, status=1).stdout
    run(lab, of_debian(mode))
    run(lab, monitor)
    lab.run(f"zfs inherit zvmsnap:mode {TOP}")

    zvmsnap(lab, "take", linux.NAME)
    _, _, expect = readme.commands("Know that points are good")
    said = run(lab, of_debian(expect)).stdout
    assert "lives: its agent answers" in said and "'active'" in said
    in_guest(lab, "rm /bin/systemctl")
    zvmsnap(lab, "take", linux.NAME)
    said = run(lab, of_debian(expect), status=1).stdout
    assert "'systemctl is-active nginx' in its clone ended with 127" in said
    assert lab.run("virsh list --all --name").stdout.split() == [linux.NAME]
