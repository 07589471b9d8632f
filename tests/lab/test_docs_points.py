"""The pages about points, word for word: take, list, show, export, clone, verify, prune, keep."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import back
import installed
import pytest
import readme
import scenario
from back import zvmsnap
from scenario import WEB, Guest
from terminal import run, typed

from labkit import guests
from labkit.api import Completed, Lab
from labkit.domains import Disk

pytestmark = pytest.mark.whole

DB = Guest("db", ("tank/vm/db",), {"vda": "/tank/vm/db/disk0.raw"})
NAME = "before-upgrade"
STAMP = re.compile(r"autosnap_2026-11-20_03:00:00(?=_)")


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    """A host that is well; sanoid has taken `web` once, beside it runs `db`."""

    def make(lab: Lab) -> None:
        lab.run("zfs create tank/vm/db")
        disks = [guests.make_disk(lab, Disk(path)) for path in DB.disks.values()]
        guests.define(lab, guests.domain_xml(DB.name, disks))
        guests.start(lab, DB.name)
        scenario.take(lab)

    scenario.stage(lab_session, "documented", installed.well, make)
    return lab_session


def the_row(done: Completed) -> dict[str, str]:
    """The only line of a table, by its headings; none of these cells has a blank."""
    heading, line = done.stdout.splitlines()
    return {title: line[heading.index(title):].split(" ")[0] for title in heading.split()}


def names_of(lab: Lab) -> list[str]:
    """The names of the points, as `zvmsnap list` has them."""
    return [str(point["name"]) for point in back.listed(lab)]


def of_now(lab: Lab, command: str) -> str:
    """The command with the second at which sanoid took its snapshots, instead of the page's."""
    name = back.hourly(lab).removesuffix("_hourly")
    assert STAMP.search(command), command
    return STAMP.sub(name, command)


def assert_all_on_base(lab: Lab) -> None:
    for guest in (WEB, DB):
        scenario.assert_at_rest(lab, guest)
        scenario.assert_counted_through(lab, guest.name)


def test_take_and_drop(lab: Lab) -> None:
    now, quiesced = readme.commands("Take a point now")
    said = run(lab, now).stdout
    assert re.search(r"^web@zvmsnap_\S+_manual: paused, stood still for [\d.]+ s", said, re.M)
    # As the page says: of less than is required no point is made, and no snapshot stays.
    before = names_of(lab), scenario.snapshots(lab, WEB.top)
    assert "agent" in run(lab, quiesced, status=1).stderr
    assert (names_of(lab), scenario.snapshots(lab, WEB.top)) == before

    group, take = readme.commands("Several guests at one instant")
    run(lab, group)
    said = run(lab, take).stdout
    for guest in (WEB, DB):
        assert f"{guest.name}@{NAME}: paused" in said
    txgs = lab.run("zfs list -Hp -t snapshot -o name,createtxg -r tank").stdout.splitlines()
    taken = dict(line.split("\t") for line in txgs if f"@{NAME}\t" in line)
    assert set(taken) == {f"{dataset}@{NAME}" for dataset in (*WEB.datasets, *DB.datasets)}
    assert len(set(taken.values())) == 1

    (drop,) = readme.commands("Drop a point")
    typed(lab, drop)
    assert not [name for name in names_of(lab) if name.endswith(NAME)]
    assert NAME not in lab.run("zfs list -H -t snapshot -o name -r tank").stdout
    assert_all_on_base(lab)


def test_look_at_points_and_take_ram_out(lab: Lab) -> None:
    listing, show = readme.commands("See which points exist")
    row = the_row(run(lab, listing))
    assert row["LEVEL"] == "memory"
    assert set(row["SNAPSHOTS"].split(",")) == {"hourly", "daily", "monthly"}
    said = run(lab, of_now(lab, show)).stdout
    assert re.search(r"^web@\S+: level memory", said, re.M)
    assert "/tank/vm/web/disk0.raw" in said

    (completion,) = readme.commands("Name a point")
    typed(lab, completion)
    completed = lab.run("bash -ic 'complete -p zvmsnap'").stdout
    assert "_zvmsnap_completion" in completed

    listing, show = readme.commands("See what RAM takes")
    row = the_row(run(lab, listing))
    # What others share, ZFS does not say.
    assert row["RAM"][-1] in "KM" and row["ALONE"] == "?"
    assert "how much of it is shared is unknown" in run(lab, show).stdout

    (export,) = readme.commands("Take a RAM image out")
    run(lab, export)
    image = export.split()[-1]
    assert lab.run(f"stat -c '%a %U' {image}").stdout == "600 root\n"
    scenario.assert_coherent(lab, WEB, back.hourly(lab), image)


def test_clone_and_verify(lab: Lab) -> None:
    name = back.hourly(lab)
    stored = back.stored_count(lab, name)
    clone, look, remove = readme.commands("Look into an old machine, beside the running one")
    run(lab, clone)
    said = run(lab, look).stdout
    assert "/tank/vm/web-look/disk0.raw" in said and "/dev/zvol/tank/vm/web-look/data" in said
    guests.wait_counts(lab, "web-look-web", stored + scenario.PROOF_COUNTS)
    assert guests.boots(lab, "web-look-web") == 0
    typed(lab, remove)
    assert "web-look" not in lab.run("virsh list --all --name; zfs list -H -o name").stdout

    read, boot, expect = readme.commands("Know that points are good")
    assert "good: its files have their checksums" in run(lab, read).stdout
    assert "lives: " in run(lab, boot).stdout
    # Without an agent it cannot be known: see test_docs_agent.py.
    assert "agent" in run(lab, expect, status=1).stdout.partition("FAILED: ")[2]
    assert_all_on_base(lab)


def removed(lab: Lab, dry_run: str) -> Sequence[str]:
    """Whose points or RAM that would remove."""
    return re.findall(r"^would remove (?:RAM of )?point (\S+): ", run(lab, dry_run).stdout, re.M)


def test_prune(lab: Lab) -> None:
    look, prune = readme.commands("Remove points that sanoid did not prune")
    assert "nothing to remove" in run(lab, look).stdout
    (name,) = names_of(lab)
    for snapshot in scenario.snapshots(lab, WEB.top):
        lab.run(f"zfs destroy -r {WEB.top}@{snapshot}")
    assert removed(lab, look) == [name]
    assert names_of(lab) == [name]
    assert f"removed point {name}" in run(lab, prune).stdout
    assert names_of(lab) == [] and scenario.vault_files(lab) == []


def test_keep_for_good_and_for_some_time(lab: Lab) -> None:
    lab.run(f"zfs inherit zvmsnap:keep-memory {WEB.top}")
    count, days, look = readme.commands("Keep RAM for some time only")
    for command in (count, days):
        run(lab, command)
    shown = json.loads(zvmsnap(lab, "show", "--json", "web@latest").stdout)
    for kept in ("until 24 more points have RAM (24)", "d 23 h more (14d daily)"):
        assert kept in shown["memory_kept"]
    assert removed(lab, look) == []

    rename, keep = readme.commands("Keep a point for good")
    run(lab, of_now(lab, rename))
    run(lab, keep)
    kept_name = rename.rpartition("@")[2]
    for name in scenario.snapshots(lab, WEB.top).keys() - {kept_name}:
        lab.run(f"zfs destroy -r {WEB.top}@{name}")
    # Of 16 days later, and of the many points that sanoid has taken since, one is enough here.
    lab.run("zfs set zvmsnap:keep-memory=1 tank/vm")
    scenario.pass_hours(lab, 16 * 24)
    scenario.take(lab)
    zvmsnap(lab, "prune")
    shown = json.loads(zvmsnap(lab, "show", "--json", f"web@{kept_name}").stdout)
    assert shown["memory_kept"] == "as long as the point"
    assert shown["level"] == "memory"
    assert "good: " in zvmsnap(lab, "verify", f"web@{kept_name}").stdout
