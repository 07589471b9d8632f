"""`zvmsnap monitor`: eight troubles that were planted, each with its exit code; and what hangs.

| trouble                           | kind    | exit code |
|-----------------------------------|---------|-----------|
| a guest without a point           | point   | 2         |
| its newest point is too old       | age     | 1, 2      |
| and of less than what is demanded | level   | 1         |
| a point did not pass verify       | verify  | 2         |
| a guest was never sent            | offsite | 1         |
| staging is full                   | room    | 2         |
| an overlay is open for too long   | overlay | 1         |
| somebody else's job is in the way | merge   | 1, 2      |
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from typing import Any

import back
import pytest
import scenario
from scenario import WEB
from test_hanging import suspend, suspended_pool
from test_recover import BACKUP

from labkit import guests
from labkit.api import Lab

LINE = re.compile(r"ZVMSNAP (?P<state>[A-Z]+) - (?P<text>[^|\n]+) \| (?P<perfdata>\S.*)\n")
STATES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
# The lab's disks are small.
MONITOR = "[monitor]\nwarn_room_percent = 0.5\ncrit_room_percent = 0.2\n"
NAMES = ("autosnap_2031-01-01_00:00:00_hourly",)
METRICS = "/root/zvmsnap.prom"
# A guard against a hang: far above what it takes on a loaded machine, far below forever.
SOON_S = 90.0


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    scenario.taken(lab_session)
    scenario.configure(lab_session, MONITOR)
    return lab_session


def monitor(lab: Lab, *words: str, status: int) -> str:
    """What one run says: one line, which is of that status."""
    done = back.zvmsnap(lab, "monitor", *words, status=status)
    found = LINE.fullmatch(done.stdout)
    assert found, done
    assert found["state"] == STATES[status]
    print(done.stdout)
    return found["text"]


def kinds(lab: Lab) -> set[tuple[str, str, str]]:
    """Guest, kind and severity of all that is wrong."""
    done = lab.run("zvmsnap monitor --json", check=False)
    found: Sequence[dict[str, str]] = json.loads(done.stdout)["findings"]
    return {(each["guest"], each["kind"], each["severity"]) for each in found}


@pytest.mark.whole
def test_six_troubles_of_a_host_at_rest(lab: Lab) -> None:
    assert monitor(lab, status=0).startswith("1 of 1 guests have points")

    # A guest that nobody has put into sanoid.conf; it need not have a point at once.
    lab.run("zfs create -s -V 16M tank/bare && zfs set zvmsnap:warn-age=30m tank/bare &&"
            "udevadm settle")
    guests.define(lab, guests.domain_xml("bare", [guests.Disk("/dev/zvol/tank/bare")]))
    monitor(lab, status=0)
    scenario.pass_hours(lab, 1)
    assert "bare: has no point: its disks are on tank/bare" in monitor(lab, status=2)
    assert kinds(lab) == {("bare", "point", "critical")}
    lab.run("virsh -q undefine bare")

    # Too old, by its own property.
    monitor(lab, status=0)
    lab.run(f"zfs set zvmsnap:warn-age=30m {WEB.top}")
    assert re.search(r"web: newest point web@\S+ is \S+ old", monitor(lab, "web", status=1))
    lab.run(f"zfs set zvmsnap:crit-age=40m {WEB.top}")
    monitor(lab, status=2)
    lab.run(f"zfs inherit zvmsnap:warn-age {WEB.top} && zfs inherit zvmsnap:crit-age {WEB.top}")
    monitor(lab, "--warn-age", "30m", status=1)

    # Less than memory, which the configuration demands.
    lab.run(f"zfs set zvmsnap:mode=crash {WEB.top}")
    scenario.take(lab)
    monitor(lab, status=0)
    lab.run(f"zfs inherit zvmsnap:mode {WEB.top}")
    assert "web: newest point is of level crash, not memory" in monitor(lab, status=1)
    assert kinds(lab) == {("web", "level", "warning")}
    lab.run(f"zfs set zvmsnap:mode=crash {WEB.top}")

    # Its RAM is damaged, and verify has found that; a program of the administrator hears of it.
    lab.run("mkdir -p /etc/zvmsnap/notify.d")
    lab.put("/etc/zvmsnap/notify.d/keep", "#!/bin/sh\ncat > /root/told\n", mode=0o755)
    first = scenario.points(lab)[0]
    name = f"web@{first.manifest['run']}"
    lab.run(f"mv {first.image} /root/kept && touch {first.image}")
    back.zvmsnap(lab, "verify", name, status=1)
    told = json.loads(lab.run("cat /root/told").stdout)
    assert (told["kind"], told["guest"], told["error"]) == ("verify", "web", "VerifyFailed")
    assert f"web: {name} did not pass zvmsnap verify: " in monitor(lab, status=2)
    lab.run(f"mv /root/kept {first.image}")
    back.zvmsnap(lab, "verify", name)
    monitor(lab, status=0)

    # A destination that has nothing of it.
    scenario.configure(lab, f'{MONITOR}\n[[destination]]\ntarget = "cheap/offsite"\n')
    assert monitor(lab, status=1) == "web: was never sent to cheap/offsite"

    # No room in staging.
    small = scenario.mount_small(lab, 64)
    scenario.configure(lab, f'staging = "{small}/staging"\n{MONITOR}')
    lab.run(f"dd if=/dev/zero of={small}/filler bs=64k 2>/dev/null", check=False)
    assert f"staging {small}/staging has 0B free of " in monitor(
        lab, "--prometheus", METRICS, status=2
    )
    metrics = lab.run(f"stat -c %a {METRICS} && cat {METRICS}").stdout.splitlines()
    assert metrics[0] == "644"
    assert 'zvmsnap_problems{guest="",kind="room",severity="critical"} 1' in metrics
    assert 'zvmsnap_point_level_info{guest="web",level="crash"} 1' in metrics
    assert 'zvmsnap_failures_total{cause="VerifyFailed"} 1' in metrics
    lab.run(f"umount {small}")
    scenario.assert_at_rest(lab)


@pytest.mark.whole
def test_a_guest_that_stays_on_its_overlays(lab: Lab) -> None:
    scenario.configure(lab, f"[limits]\nbusy_timeout_s = 2\n{MONITOR}")
    lab.run(f"zfs set zvmsnap:recursive=on {WEB.top}")
    # Of a hook that is called by hand nobody calls post, and no watchdog knows when that is so.
    scenario.hook(lab, "pre-snapshot", WEB.top, NAMES)
    assert ".zvmsnap." in scenario.dumpxml(lab, "web")
    monitor(lab, status=0)
    scenario.pass_hours(lab, 1)
    text = monitor(lab, status=1)
    assert "web: run autosnap_2031-01-01_00:00:00 is on overlays for " in text
    assert kinds(lab) == {("web", "overlay", "warning")}

    lab.put("/root/backup.xml", BACKUP)
    lab.run("virsh backup-begin web /root/backup.xml")
    scenario.hook(lab, "post-snapshot", WEB.top, NAMES)
    assert "because of a job (backup) on vda" in monitor(lab, status=1)
    assert kinds(lab) == {("web", "merge", "warning")}
    scenario.pass_hours(lab, 2)
    monitor(lab, status=2)
    lab.run("virsh domjobabort web")
    scenario.hook(lab, "post-snapshot", WEB.top, NAMES)
    monitor(lab, status=0)
    scenario.assert_at_rest(lab)
    scenario.assert_counted_through(lab, "web")


@pytest.mark.whole
def test_what_hangs(lab: Lab) -> None:
    """libvirt, and a pool: it ends soon, and says so."""
    lab.run("systemctl kill --kill-whom=main -s STOP libvirtd")
    try:
        begun_s = time.monotonic()
        assert "libvirt: no answer within 5 s" in monitor(lab, "--timeout", "5", status=3)
        assert time.monotonic() - begun_s < SOON_S
    finally:
        lab.run("systemctl kill --kill-whom=main -s CONT libvirtd")
    monitor(lab, status=0)
    with suspended_pool(lab):
        scenario.configure(lab, MONITOR, vault="/sick/vault")
        suspend(lab)
        begun_s = time.monotonic()
        assert "pool sick is suspended" in monitor(lab, "--timeout", "10", status=2)
        assert time.monotonic() - begun_s < SOON_S


def entries(lab: Lab, since: str, *words: str) -> list[dict[str, Any]]:
    """What is in the journal behind that place of it."""
    chosen = " ".join(words)
    said = lab.run(f"journalctl --sync; journalctl -q -o json --after-cursor='{since}' {chosen}")
    return [json.loads(line) for line in said.stdout.splitlines()]


def here(lab: Lab) -> str:
    """Where the journal ends now."""
    said = lab.run("journalctl --sync; journalctl -q -n 1 -o json").stdout
    place: str = json.loads(said)["__CURSOR"]
    return place


def round_under_systemd(lab: Lab) -> None:
    """A round of sanoid in a unit: what it and its hooks print leads to the journal."""
    lab.run(
        "systemd-run --quiet --wait --collect --unit=a-round sanoid --take-snapshots",
        timeout_s=scenario.ROUND_LIMIT_S,
    )


@pytest.mark.whole
def test_the_journal_has_all_that_went_wrong(lab: Lab) -> None:
    """By one identifier, of the hooks as of the watchdog; each line once, with its cause."""
    scenario.pass_hours(lab, 1)
    since = here(lab)
    round_under_systemd(lab)
    assert entries(lab, since, "-t", "zvmsnap", "-p", "err") == []
    assert entries(lab, since, "-t", "zvmsnap") != []

    # No room for its RAM.
    small = scenario.mount_small(lab, 64)
    scenario.configure(lab, f'staging = "{small}/staging"\n')
    scenario.pass_hours(lab, 1)
    since = here(lab)
    round_under_systemd(lab)
    wrong = entries(lab, since, "-t", "zvmsnap", "-p", "warning")
    assert wrong and {each["ZVMSNAP_SUBJECT"] for each in wrong} == {"web"}
    scenario.configure(lab)

    # A configuration that cannot be read: pre and post both say so.
    lab.put(scenario.CONFIG, "valut = 1\n")
    scenario.pass_hours(lab, 1)
    since = here(lab)
    round_under_systemd(lab)
    wrong = entries(lab, since, "-t", "zvmsnap", "-p", "err")
    assert [each["ZVMSNAP_CAUSE"] for each in wrong] == ["ConfigInvalid"] * len(wrong)
    assert len({each["MESSAGE_ID"] for each in wrong}) == 1
    texts = [each["MESSAGE"] for each in wrong]
    assert texts and all("valut" in text for text in texts)
    # Among sanoid's lines, too; and none of them was printed as well.
    of_unit = entries(lab, since, "-u", "a-round.service")
    assert [each["MESSAGE"] for each in of_unit if "valut" in each["MESSAGE"]] == texts
    assert not [each for each in entries(lab, since, "-t", "sanoid") if "valut" in each["MESSAGE"]]
    # Each hook is a process of its own.
    assert len({each["_PID"] for each in wrong}) == len(wrong)
