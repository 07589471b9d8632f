"""Points follow their snapshots, by guid, whatever gets another name; and the order is ZFS's."""

from __future__ import annotations

import json

import back
import pytest
import scenario
from back import zvmsnap

from labkit import guests
from labkit.api import Lab
from labkit.domains import Disk

KEPT = "keep-before-upgrade"
ROUNDS = 20
FARM = tuple(
    scenario.Guest(name, (f"tank/farm/{name}",), {"vda": f"/tank/farm/{name}/disk0.raw"})
    for name in ("one", "two", "three")
)


def names_of(lab: Lab) -> list[str]:
    return [each["name"] for each in back.listed(lab)]


@pytest.mark.long
@pytest.mark.whole
def test_snapshot_dataset_and_pool_get_other_names(lab_session: Lab) -> None:
    lab = lab_session
    scenario.taken(lab)
    moment = back.hourly(lab).removesuffix("_hourly")
    stored = back.stored_count(lab, f"{moment}_hourly")
    scenario.pass_hours(lab, 2)
    scenario.take(lab)
    later = back.hourly(lab, 1)

    # The user keeps one of the three, and sanoid prunes its twins: the RAM stays.
    lab.run(f"zfs rename -r tank/vm/web@{moment}_monthly tank/vm/web@{KEPT}")
    scenario.write_sanoid_conf(lab, hourly="1", daily="0", monthly="0")
    scenario.prune(lab)
    assert list(scenario.snapshots(lab, "tank/vm/web")) == [KEPT, later]
    assert [point.manifest["run"] for point in scenario.points(lab)] == [
        moment, later.removesuffix("_hourly")
    ]

    # Dataset and pool get other names.
    lab.run(
        "virsh destroy web && zfs rename tank/vm/web tank/vm/www && zpool export tank &&"
        "zpool import tank pond"
    )
    first, second = back.listed(lab)
    assert first["alive"] == [f"pond/vm/www@{KEPT}", f"pond/vm/www/data@{KEPT}"]
    assert (first["note"], second["note"]) == ("", "")
    shown = zvmsnap(lab, "show", f"web@{moment}").stdout
    assert f"pond/vm/www@{KEPT}" in shown and f"(was tank/vm/web@{moment}_monthly)" in shown
    zvmsnap(lab, "verify", "web")
    lab.run(f"zfs destroy -r pond/vm/www@{later}")
    pruned = json.loads(zvmsnap(lab, "prune", "--json").stdout)
    assert (pruned["removed"], pruned["kept_unknown"]) == ([second["name"]], [])
    assert names_of(lab) == [first["name"]]

    since = guests.serial_size_bytes(lab, "web")
    done = back.restore(lab, "web@latest")
    assert f"pond/vm/www holds pond/vm/www@{KEPT} again" in done.stdout
    back.assert_goes_on(lab, "web", stored, since)
    expected = {"vda": "/pond/vm/www/disk0.raw", "vdb": "/dev/zvol/pond/vm/www/data"}
    scenario.assert_on_base(lab, "web", expected)

    # A clock that stood in 2031 for a while is no future.
    now = lab.run("date -u +%FT%T").stdout.strip()
    lab.set_clock("2031-06-01T00:00:00")
    zvmsnap(lab, "take", "web")
    lab.set_clock(now)
    scenario.pass_hours(lab, 1)
    taken = json.loads(zvmsnap(lab, "take", "web", "--keep", "1", "--json").stdout)
    (newest,) = [each["name"] for each in taken["points"]]
    assert [name[:13] for name in taken["dropped"]] == ["web@zvmsnap_2"]
    assert "2031" in taken["dropped"][0]
    assert names_of(lab)[-1] == newest and not any("2031" in name for name in names_of(lab))
    shown = zvmsnap(lab, "show", "--json", "web@latest").stdout
    assert json.loads(shown)["name"] == newest


@pytest.mark.whole
def test_rounds_with_pruning_in_between_and_every_point_loads(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    lab.run("virsh destroy web; virsh undefine web --nvram; zfs create tank/farm")
    for guest in FARM:
        lab.run(f"zfs create {guest.top}")
        drives = [guests.make_disk(lab, Disk(path)) for path in guest.disks.values()]
        guests.define(lab, guests.domain_xml(guest.name, drives))
        guests.start(lab, guest.name)
    scenario.write_sanoid_conf(lab, scenario.section("tank/farm"), hourly="6", daily="2")
    kept = ""
    for number in range(ROUNDS):
        scenario.pass_hours(lab, 1)
        scenario.take(lab)
        said = scenario.prune(lab)
        assert "failed" not in said.stderr and "Traceback" not in said.stderr, said
        if number == 2:
            last = list(scenario.snapshots(lab, "tank/farm"))[-1]
            kept = last.removesuffix("_hourly")
            lab.run(f"zfs rename -r tank/farm@{last} tank/farm@{KEPT}")
    for guest in FARM:
        scenario.assert_at_rest(lab, guest)
        scenario.assert_counted_through(lab, guest.name)

    existing = {
        guest.name: {guid: name for name, guid in scenario.snapshots(lab, guest.top).items()}
        for guest in FARM
    }
    points = scenario.points(lab)
    # Not one too many, not one too few: each snapshot has its point, each point a snapshot.
    of_points = {guid for point in points for guid in point.ties.values()}
    assert of_points >= {guid for own in existing.values() for guid in own}
    assert {(guest.name, kept) for guest in FARM} <= {
        (point.manifest["domain"], point.manifest["run"]) for point in points
    }
    assert 3 * 7 <= len(points) < 3 * ROUNDS
    for number, point in enumerate(points):
        domain, run = point.manifest["domain"], point.manifest["run"]
        assert point.manifest["level"] == "memory", point
        names = [existing[domain][g] for g in point.ties.values() if g in existing[domain]]
        stored = guests.disk_count(
            lab, f"/tank/farm/{domain}/.zfs/snapshot/{names[0]}/disk0.raw"
        )
        clone = f"c{number}"
        zvmsnap(lab, "clone", f"{domain}@{run}", clone)
        back.assert_goes_on(lab, f"{clone}-{domain}", stored, 0)
        zvmsnap(lab, "clone", "--destroy", clone)
        print(f"{domain}@{run}: goes on from {stored}")
