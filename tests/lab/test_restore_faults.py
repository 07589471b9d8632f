"""Restore and clone die at each of their steps: there is always one machine, whole.

| died at               | SIGKILL, then recover      | power cut, then boot                     |
|-----------------------|----------------------------|------------------------------------------|
| keep, clone, stop     | the former runs on         | the former, off as the cut left it       |
| safety to load        | the restored one goes on   | the same                                 |
| resume and later      | the same                   | the restored one boots                   |
| any step of a clone   | no clone, nothing of it    | the same                                 |

`--faults=` chooses: by default some of these cells, `all`, or parts of their names.
"""

from __future__ import annotations

from pathlib import Path

import back
import pytest
import scenario
from scenario import WEB

from labkit import guests, settings
from labkit.api import Lab

RESTORE = (
    "keep", "clone", "stop", "safety", "swap", "promote", "definition", "load", "resume",
    "clock", "points", "publish", "close",
)
CLONE = ("datasets", "disks", "image", "firmware", "define", "load", "resume", "close")
UNTOUCHED = ("keep", "clone", "stop")
RAN = ("resume", "clock", "points", "publish", "close")
CELLS = [
    f"{command} {step} {fault}"
    for command, steps in (("restore", RESTORE), ("clone", CLONE))
    for step in steps
    for fault in ("KILL", "power cut")
]
FEW = ("restore swap power cut", "restore load KILL")
UNIT = "zvmsnap-recover.service"
STOPPED = "until ps -C zvmsnap,python3 -o stat=,args= | grep -q '^T.*zvmsnap'; do sleep 0.1; done"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--faults")
        if wanted == "few":
            cells = list(FEW)
        elif wanted == "all":
            cells = CELLS
        else:
            cells = [cell for cell in CELLS if any(part in cell for part in wanted.split(","))]
        metafunc.parametrize("cell", cells)


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    """Two moments of `web` are taken, which writes through; a boot recovers."""

    def make(lab: Lab) -> None:
        lab.put(
            f"/etc/systemd/system/{UNIT}",
            (Path(settings.CHECKOUT_DIR) / "systemd" / UNIT).read_text(),
        )
        lab.run(f"systemctl enable {UNIT}")
        scenario.take(lab)

    scenario.stage(lab_session, "to-be-restored", scenario.configured, make)
    return lab_session


def test_one_machine_whole(lab: Lab, cell: str) -> None:
    command, step, fault = cell.split(" ", 2)
    name = back.hourly(lab)
    stored = back.stored_count(lab, name)
    scenario.counts_on(lab)
    words = f"restore --yes web@{name}" if command == "restore" else f"clone web@{name} other"
    lab.run("sync; zpool sync")
    held = lab.start(f"ZVMSNAP_TEST_STOP_BEFORE={step} exec zvmsnap {words}")
    lab.run(STOPPED, timeout_s=scenario.ROUND_LIMIT_S)
    if fault == "KILL":
        lab.run("pkill -KILL -f 'zvmsnap [rc]' || true")
        held.wait(60)
        back.zvmsnap(lab, "recover")
    else:
        lab.powercut()
        scenario.wait_until("recovery at boot", lambda: at_rest(lab), timeout_s=300)

    if command == "clone":
        assert_no_clone(lab, stopped=fault != "KILL")
    elif step in UNTOUCHED:
        assert_former(lab, stopped=fault != "KILL")
    elif fault == "KILL" or step not in RAN:
        back.assert_jumped_to(lab, stored)
    else:
        scenario.wait_until("boot", lambda: guests.boots(lab, "web") == 2, timeout_s=180)
        assert guests.mismatches(lab, "web") == []
    back.assert_nothing_left(lab)
    assert scenario.state(lab, "web") == "running"


def at_rest(lab: Lab) -> bool:
    asked = lab.run(f"systemctl show -P ActiveState {UNIT}").stdout.strip()
    left = lab.run(f"ls {scenario.JOURNAL}/operations 2>/dev/null").stdout
    return asked in ("inactive", "active", "failed") and not left


def assert_former(lab: Lab, *, stopped: bool) -> None:
    """It was never away, or the cut stopped it, and its disks are its own."""
    if stopped:
        assert scenario.state(lab, "web") == "shut off"
        guests.start(lab, "web")
        assert guests.mismatches(lab, "web") == []
    else:
        scenario.assert_counted_through(lab, "web")
        scenario.counts_on(lab)
    assert not any(".before-" in each for each in back.zfs_names(lab))
    assert scenario.snapshots(lab, WEB.top)


def assert_no_clone(lab: Lab, *, stopped: bool) -> None:
    assert_former(lab, stopped=stopped)
    assert lab.run("virsh list --all --name").stdout.split() == ["web"]
    assert not any("other" in each for each in back.zfs_names(lab))
    assert "other" not in lab.run("ls /var/lib/libvirt/qemu/nvram").stdout
