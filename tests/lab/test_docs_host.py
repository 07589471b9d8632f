"""The pages about a host, word for word: check, levels, the vault, watching."""

from __future__ import annotations

import json
import re

import installed
import pytest
import readme
import scenario
from back import zvmsnap
from scenario import CONFIG, SANOID_CONF, WEB
from terminal import run, typed
from test_watching import MONITOR

from labkit import guests
from labkit.api import Lab
from labkit.domains import Disk

pytestmark = pytest.mark.whole

SCRATCH = "tank/vm/scratch"
PROGRAM = "/etc/zvmsnap/notify.d/keep"
SECRET = """\
<secret ephemeral='no' private='no'>
  <description>the disk of web</description>
  <usage type='volume'><volume>/tank/vm/web/disk0.raw</volume></usage>
</secret>
"""


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    """A host that is well; the guest `scratch` is off, and nobody snapshots it."""

    def make(lab: Lab) -> None:
        lab.run(f"zfs create -s -V 16M {SCRATCH} && udevadm settle")
        disk = Disk(f"/dev/zvol/{SCRATCH}")
        guests.define(lab, guests.domain_xml("scratch", [disk]))

    scenario.stage(lab_session, "documented-host", installed.well, make)
    return lab_session


def test_set_up_and_check(lab: Lab) -> None:
    look, init = readme.commands("Set up a host")
    before = lab.get(SANOID_CONF)
    assert f"+[{SCRATCH}]" in run(lab, look).stdout
    assert lab.get(SANOID_CONF) == before
    typed(lab, init)
    after = lab.get(SANOID_CONF).decode()
    assert after.startswith(before.decode()) and f"[{SCRATCH}]" in after
    (copy,) = lab.run(f"ls {SANOID_CONF}.before-zvmsnap-*").stdout.split()
    assert lab.get(copy) == before

    (check,) = readme.commands("Check a host")
    # Nothing of an off guest is wrong, but that it has no point yet.
    lines = run(lab, check).stdout.splitlines()
    assert re.fullmatch(r"\d+ green, 0 yellow, 0 red", lines[-1]), lines


def test_levels(lab: Lab) -> None:
    scenario.write_sanoid_conf(lab, scenario.section(WEB.top), scenario.section(SCRATCH))
    scenario.take(lab)
    assert levels(lab, "web") == ["memory"] and levels(lab, "scratch") == ["offline"]

    mode, hourly, look = readme.commands("Say what a point must be")
    run(lab, mode)
    run(lab, hourly)
    shown = [line.split() for line in run(lab, look).stdout.splitlines()]
    assert [WEB.top, "zvmsnap:mode", "memory,quiesced,crash", "local"] in shown
    assert [WEB.top, "zvmsnap:mode:hourly", "quiesced,crash", "local"] in shown
    (off,) = readme.commands("Leave a guest out, or a disk of it")
    run(lab, off)
    scenario.pass_hours(lab, 1)
    scenario.take(lab)
    # An hourly snapshot alone; `web` has no agent. `scratch` is snapshotted, without a point.
    assert levels(lab, "web") == ["memory", "crash"] and levels(lab, "scratch") == ["offline"]
    assert len(scenario.snapshots(lab, SCRATCH)) == 4

    (recursive,) = readme.commands("Say that a snapshot is recursive")
    run(lab, recursive)
    lab.run(f"zfs inherit zvmsnap:mode:hourly {WEB.top}")
    scenario.pass_hours(lab, 1)
    scenario.take(lab)
    assert levels(lab, "web") == ["memory", "crash", "memory"]
    scenario.assert_at_rest(lab)
    scenario.assert_counted_through(lab, "web")


def levels(lab: Lab, guest: str) -> list[str]:
    """Of its points, the oldest first."""
    return [point.manifest["level"] for point in scenario.points(lab, guest)]


def test_a_secret(lab: Lab) -> None:
    define, value = readme.commands("Encrypted disks")
    lab.put("/root/secret/secret.xml", SECRET)
    lab.put("/root/secret/passphrase", "correct horse")
    uuid = re.findall(r"Secret (\S+) created", run(lab, f"cd /root/secret && {define}").stdout)[0]
    run(lab, f"cd /root/secret && {value.replace('UUID', uuid)}")
    assert lab.run(f"virsh -q secret-get-value {uuid} --plain").stdout == "correct horse"


def test_a_dataset_for_the_vault(lab: Lab) -> None:
    (create,) = readme.commands("Let the file system of the vault share")
    run(lab, create)
    scenario.configure(lab, vault="/tank/vault")
    zvmsnap(lab, "take", "web")
    files = lab.run("find /tank/vault/web -name memory.pages").stdout.split()
    assert len(files) == 1
    said = lab.run("zvmsnap check --json", check=False, timeout_s=scenario.ROUND_LIMIT_S).stdout
    wrong = {each["check"] for each in json.loads(said)["findings"] if each["colour"] != "green"}
    assert not wrong & {"storage.recordsize", "storage.compression", "storage.vault-unmounted"}


def test_watching(lab: Lab) -> None:
    scenario.configure(lab, MONITOR)
    scenario.take(lab)
    monitor, _ = readme.commands("By Nagios or Icinga")
    assert run(lab, monitor).stdout.startswith("ZVMSNAP OK - ")

    web, scratch = readme.commands("Say what is too old")
    scenario.pass_hours(lab, 2)
    run(lab, monitor)
    run(lab, web)
    assert re.search(r"web: newest point web@\S+ is \S+ old", run(lab, monitor, status=1).stdout)
    scenario.pass_hours(lab, 5)
    run(lab, monitor, status=2)
    lab.run(f"zfs set zvmsnap:warn-age=30m {SCRATCH}")
    assert "scratch: has no point" in run(lab, monitor, status=2).stdout
    run(lab, scratch)
    scenario.take(lab)
    said = run(lab, monitor).stdout
    assert said.startswith("ZVMSNAP OK - ") and said.count("\n") == 1

    (write,) = readme.commands("By Prometheus")
    file = write.split()[-1]
    lab.run(f"mkdir -p {file.rpartition('/')[0]}")
    run(lab, write)
    metrics = lab.run(f"cat {file}").stdout.splitlines()
    assert "zvmsnap_monitor_state 0" in metrics
    assert 'zvmsnap_guest_points{guest="web"} 2' in metrics


def test_being_told(lab: Lab) -> None:
    (notify,) = readme.commands("Be told")
    assert "has no program" in run(lab, notify, status=1).stderr
    lab.put(PROGRAM, "#!/bin/sh\ncat > /root/told\n", mode=0o755)
    assert run(lab, notify).stdout == f"told {PROGRAM}\n"
    told = json.loads(lab.run("cat /root/told").stdout)
    assert (told["kind"], told["cause"]) == ("other", "this is a test")

    (journal,) = readme.commands("In the journal")
    assert "valut" not in run(lab, journal).stdout
    lab.put(CONFIG, "valut = 1\n")
    lab.run("systemctl start sanoid.service", timeout_s=scenario.ROUND_LIMIT_S)
    lines = [line for line in run(lab, journal).stdout.splitlines() if "zvmsnap[" in line]
    assert any("valut" in line for line in lines), lines
