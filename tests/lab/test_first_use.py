"""From a bare Debian 13 with one guest on a volume to a point that is proven: README's commands."""

from __future__ import annotations

import json
import re

import installed
import pytest
import readme
import scenario
from back import zvmsnap
from terminal import typed

from labkit import domains, guests
from labkit.api import Lab
from labkit.domains import Disk

VOLUME = "tank/vm/web"


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    def make(lab: Lab) -> None:
        # A bare host has no place for points yet.
        lab.run("zfs destroy cheap/vault")
        disk = domains.make_disk(lab, Disk(f"/dev/zvol/{VOLUME}"))
        domains.define(lab, domains.domain_xml("web", [disk]))
        guests.start(lab, "web")
        installed.install(lab)

    scenario.stage(lab_session, "bare", lambda lab: scenario.with_code(lab, "ready"), make)
    return lab_session


def listed(lab: Lab) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(zvmsnap(lab, "list", "--json").stdout)["points"]
    return found


@pytest.mark.whole
def test_two_commands(lab: Lab) -> None:
    guests.wait_counts(lab, "web", 0)
    first, second = readme.commands("First use")
    assert (first, second) == ("zvmsnap init", "zvmsnap take --verify web")
    said = typed(lab, first).stdout
    assert f"+[{VOLUME}]" in said
    assert said.splitlines()[-1].endswith(" 0 red")
    said = typed(lab, second).stdout
    assert re.search(r"^web@zvmsnap_\S+_manual: paused, stood still for [\d.]+ s", said, re.M)
    assert "lives: " in said
    (point,) = listed(lab)
    assert point["level"] == "paused"
    scenario.counts_on(lab, "web")

    # The other way: sanoid, by what init has written.
    before = scenario.snapshots(lab, VOLUME)
    scenario.take(lab)
    taken = scenario.snapshots(lab, VOLUME).keys() - before.keys()
    assert {name.rpartition("_")[2] for name in taken} == {"hourly", "daily", "monthly"}
    levels = sorted(str(each["level"]) for each in listed(lab))
    assert levels == ["memory", "paused"]
    scenario.counts_on(lab, "web")
    # Nothing is left to be done, and nothing is added a second time.
    conf = lab.get(scenario.SANOID_CONF)
    again = typed(lab, first).stdout
    assert "nothing is missing" in again
    assert lab.get(scenario.SANOID_CONF) == conf


@pytest.mark.whole
def test_lines_of_an_administrator_stay(lab: Lab) -> None:
    own = (
        "# ours   \n[cheap]\n\trecursive = no\n\thourly = 3\n\n"
        f"# the guest\n[{VOLUME}]\n\thourly = 5\n\tdaily = 0\n\tmonthly = 0\n# the end"
    )
    lab.put(scenario.SANOID_CONF, own)
    shown = zvmsnap(lab, "init", "--dry-run").stdout
    assert "pre_snapshot_script = /opt/zvmsnap/hooks/pre-snapshot" in shown
    assert lab.get(scenario.SANOID_CONF).decode() == own
    printed = zvmsnap(lab, "init", "--print-sanoid").stdout
    assert lab.get(scenario.SANOID_CONF).decode() == own
    zvmsnap(lab, "init", "--yes")
    conf = lab.get(scenario.SANOID_CONF).decode()
    assert conf == printed
    lines = iter(conf.splitlines())
    assert all(line in lines for line in own.splitlines())
    (copy,) = lab.run("ls /etc/sanoid/sanoid.conf.before-zvmsnap-*").stdout.split()
    assert lab.get(copy).decode() == own
    scenario.take(lab)
    (point,) = listed(lab)
    assert point["level"] == "memory"
