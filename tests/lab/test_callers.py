"""Others than sanoid call the hooks: zfs_autobackup, and zrepl as far as its environment goes.

zfs_autobackup is the real one, of the development environment. zrepl cannot be had from the
registries that this is tested with; its contract is that of its sources (internal/daemon/hooks).
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import back
import pytest
import readme
import scenario
import zfs_autobackup
from scenario import HOOKS, WEB

from labkit.api import Completed, Lab

# As pip would make it.
PROGRAM = """#!/usr/bin/python3
import sys
sys.path.insert(0, "/opt/autobackup")
from zfs_autobackup.ZfsAutobackup import cli
sys.exit(cli())
"""
NAME = "zrepl_20261121_030000_000"


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    scenario.configured(lab_session)
    return lab_session


def autobackup(lab: Lab) -> Completed:
    (command,) = readme.commands("zfs_autobackup")
    return lab.run(command, check=False, timeout_s=scenario.ROUND_LIMIT_S)


@pytest.mark.whole
def test_zfs_autobackup(lab: Lab) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(Path(zfs_autobackup.__file__).parent, "zfs_autobackup")
    lab.run("mkdir /opt/autobackup && tar -C /opt/autobackup -x", stdin=packed.getvalue())
    lab.put("/usr/local/bin/zfs-autobackup", PROGRAM, 0o755)
    lab.run(f"zfs set autobackup:offsite=true {WEB.top}")
    lab.run(f"zfs snapshot -r {WEB.top}@there-before")
    done = autobackup(lab)
    assert done.returncode == 0, done
    scenario.assert_at_rest(lab)
    scenario.assert_counted_through(lab, "web")
    point = scenario.the_point(lab, "web")
    (name,) = point.names
    assert name.startswith("offsite-") and point.manifest["run"] == name
    assert set(point.ties) == {f"{dataset}@{name}" for dataset in WEB.datasets}
    assert point.manifest["level"] == "memory"
    # A second one is a moment of its own, and the first is brought back by its name.
    assert autobackup(lab).returncode == 0
    assert len(scenario.points(lab, "web")) == 2
    scenario.assert_coherent(lab, WEB, name, point.image)
    # Its snapshots go without a hook; `prune` sees it.
    lab.run(f"zfs destroy -r {WEB.top}@{name}")
    back.zvmsnap(lab, "prune")
    assert name not in {n for each in scenario.points(lab, "web") for n in each.names}


def zrepl(lab: Lab, *steps: str) -> Completed:
    """A daemon of that name runs these steps; `pre` and `post` are its hook, as it calls it."""
    hook = f"ZREPL_FS={WEB.top} ZREPL_SNAPNAME={NAME} ZREPL_TIMEOUT=600 {HOOKS}/zrepl"
    text = "\n".join({
        "pre": f"ZREPL_DRYRUN= ZREPL_HOOKTYPE=pre_snapshot {hook}; echo pre $?",
        "post": f"ZREPL_DRYRUN= ZREPL_HOOKTYPE=post_snapshot {hook}; echo post $?",
        "rehearsal": f"ZREPL_DRYRUN=true ZREPL_HOOKTYPE=pre_snapshot {hook}; echo rehearsal $?",
    }.get(step, step) for step in steps)
    lab.put("/root/steps.sh", text)
    return lab.run("bash -c 'exec -a zrepl bash /root/steps.sh'", timeout_s=scenario.ROUND_LIMIT_S)


@pytest.mark.whole
def test_the_hooks_of_zrepl(lab: Lab) -> None:
    # zrepl snapshots each dataset by itself; a guest with all its disks in one has its RAM.
    lab.run("virsh destroy web && virsh detach-disk web vdb --config && virsh start web")
    only = scenario.Guest("web", (WEB.top,), {"vda": WEB.disks["vda"]})
    done = zrepl(lab, "rehearsal", "pre", f"zfs snapshot {WEB.top}@{NAME}", "post")
    assert done.stdout.split("\n")[:3] == ["rehearsal 0", "pre 0", "post 0"]
    scenario.assert_at_rest(lab, only)
    point = scenario.the_point(lab, "web")
    assert (point.manifest["level"], point.names) == ("memory", {NAME})

    # A guest for which something failed still waits for post, which must not be lost.
    lab.run(f"zfs destroy {WEB.top}@{NAME}")
    lab.run("echo 'snapshot_image_format = \"sparse\"' >> /etc/libvirt/qemu.conf")
    done = zrepl(lab, "pre", f"zfs snapshot {WEB.top}@{NAME}", "post")
    assert done.stdout.split("\n")[:2] == ["pre 0", "post 0"]
    assert "exits with 0 all the same" in done.stderr
    scenario.assert_at_rest(lab, only)
    levels = [each.manifest["level"] for each in scenario.points(lab, "web")]
    assert sorted(levels) == ["crash", "memory"]


@pytest.mark.whole
def test_zrepl_kills_a_hook_that_takes_too_long(lab: Lab) -> None:
    """Then it does not call post, and lives: the guard waits no longer than a while."""
    kill = ("(sleep 1; until ps -eo stat=,args= | grep -q '^T.*hooks/zrepl'; do sleep 0.1; done; "
            "pkill -9 -f '[h]ooks/zrepl') &")
    done = zrepl(lab, kill, "export ZVMSNAP_TEST_STOP_BEFORE=frozen", "pre",
                 "until virsh dumpxml web | grep -q zvmsnap.qcow2; do sleep 0.1; done; "
                 "while virsh dumpxml web | grep -q zvmsnap.qcow2; do sleep 1; done; echo back")
    assert done.stdout.split("\n")[-2] == "back"
    scenario.wait_until("all is at rest", lambda: scenario.leftovers(lab) == [], 60)
    scenario.assert_at_rest(lab)
    scenario.assert_counted_through(lab, "web")
