"""The page about backups, word for word, but for the time in the name of a backup."""

from __future__ import annotations

import re

import pytest
import readme
import scenario
from scenario import WEB
from terminal import run, typed
from test_backup import BACKUP, assert_nothing_left, listed

from labkit import guests
from labkit.api import Lab

pytestmark = pytest.mark.whole

SHOWN = re.compile(r"web@2026-11-20T030000Z\b")
KEPT = 7


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    """The guest `web` has a point; the directory of backups is no ZFS."""
    scenario.taken(lab_session)
    lab_session.run(f"mkdir {BACKUP}")
    return lab_session


def test_back_up_consolidate_and_import(lab: Lab) -> None:
    commands = readme.commands("Back a guest up without ZFS")
    plain, with_ram, running, of_point, listing, verify = commands
    for command in (plain, with_ram, running, of_point):
        typed(lab, command)
    taken = listed(lab)
    assert [each["level"] for each in taken] == ["full", "inc", "inc", "inc"]
    assert [each["consistency"] for each in taken] == ["crash", "paused", "crash", "memory"]
    said = run(lab, listing).stdout
    assert all(each["name"] in said for each in taken)
    assert run(lab, verify).stdout.count(": is whole") == len(taken)
    assert_nothing_left(lab)

    (consolidate,) = readme.commands("Remove old backups")
    while len(listed(lab)) <= KEPT:
        run(lab, f"zvmsnap backup --crash web {BACKUP}")
    typed(lab, consolidate)
    left = listed(lab)
    assert len(left) == KEPT and left[0]["level"] == "full"
    assert [each["name"] for each in left[:3]] == [each["name"] for each in taken[1:]]
    assert run(lab, verify).stdout.count(": is whole") == KEPT

    itself, volumes, resumed = (
        SHOWN.sub(taken[1]["name"], command) for command in readme.commands("Import a backup")
    )
    lab.run("virsh -q destroy web && virsh -q undefine web")
    lab.run("until zfs destroy -r tank/vm/web; do sleep 1; done", timeout_s=300)
    since = guests.serial_size_bytes(lab, "web")
    run(lab, itself)
    assert scenario.disks(lab, "web") == {
        target: f"/tank/vm/web/{target}.raw" for target in WEB.disks
    }
    guests.wait_counts(lab, "web", 3, since_byte=since)
    run(lab, volumes)
    assert scenario.disks(lab, "web2") == {
        target: f"/dev/zvol/tank/vm/web2/{target}" for target in WEB.disks
    }
    assert scenario.state(lab, "web2") == "shut off"
    run(lab, resumed)
    guests.wait_counts(lab, "web3-web", 3)
    assert guests.boots(lab, "web3-web") == 0
    assert guests.mismatches(lab, "web3-web") == []
