"""`zvmsnap clone` and `verify`: a stored machine lives beside its original."""

from __future__ import annotations

import json

import back
import pytest
import scenario
from back import zvmsnap
from scenario import WEB

from labkit import guests
from labkit.api import Lab


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    scenario.taken(lab_session)
    return lab_session


def counts_of_clone(lab: Lab, name: str) -> list[int]:
    """A clone's serial log has its own name before the original's."""
    return guests.counts(lab, f"{name}-web")


def assert_clone_goes_on(lab: Lab, name: str, stored: int) -> None:
    guests.wait_counts(lab, f"{name}-web", stored + scenario.PROOF_COUNTS)
    counts = counts_of_clone(lab, name)
    assert counts[0] - stored in (0, 1)
    assert counts == list(range(counts[0], counts[-1] + 1))
    assert guests.boots(lab, f"{name}-web") == 0
    assert guests.mismatches(lab, f"{name}-web") == []


@pytest.mark.long
def test_two_clones_beside_their_original(lab: Lab) -> None:
    name = back.hourly(lab)
    stored = back.stored_count(lab, name)
    image = scenario.the_point(lab, "web").image
    sum_before = lab.run(f"sha256sum {image}").stdout
    zvmsnap(lab, "clone", f"web@{name}", "one")
    zvmsnap(lab, "clone", "web@latest", "two")
    for clone in ("one", "two"):
        assert_clone_goes_on(lab, clone, stored)
        assert scenario.disks(lab, clone) == {
            "vda": f"/tank/vm/{clone}/disk0.raw", "vdb": f"/dev/zvol/tank/vm/{clone}/data"
        }
    scenario.assert_counted_through(lab, "web")
    scenario.assert_on_base(lab, "web", WEB.disks)
    assert lab.run(f"sha256sum {image}").stdout == sum_before
    assert len(set(lab.run("virsh list --uuid").stdout.split())) == 3
    assert "yes" not in lab.run("virsh list --autostart --name").stdout
    back.assert_nothing_left(lab)

    # Each goes on from where it is, on disks of its own.
    ends = [guests.disk_count(lab, f"/tank/vm/{each}/disk0.raw") for each in ("web", "one", "two")]
    assert ends[0] > ends[1] > ends[2] > stored
    # It is a machine like any other: off and on again.
    lab.run("virsh destroy two && virsh start two")
    scenario.wait_until("two boots", lambda: guests.boots(lab, "two-web") == 1, timeout_s=180)

    # Another's is never touched; what somebody else made of it stands in the way.
    assert "is no clone" in zvmsnap(lab, "clone", "--destroy", "web", status=1).stderr
    lab.run("zfs snapshot tank/vm/one@mine")
    assert "tank/vm/one@mine" in zvmsnap(lab, "clone", "--destroy", "one", status=1).stderr
    assert scenario.state(lab, "one") == "running"
    lab.run("zfs destroy tank/vm/one@mine")
    for clone in ("one", "two"):
        zvmsnap(lab, "clone", "--destroy", clone)
    assert lab.run("virsh list --all --name").stdout.split() == ["web"]
    assert not [each for each in back.zfs_names(lab) if "one" in each or "two" in each]
    for dataset in WEB.datasets:
        lab.run(f"zfs destroy {dataset}@{name}")
    scenario.counts_on(lab)


def test_refused_before_anything_is_made(lab: Lab) -> None:
    name = back.hourly(lab)
    lab.run("zfs create tank/vm/there")
    before = lab.run("zfs list -Hp -t all -o name,guid; virsh list --all").stdout
    assert "exists already" in zvmsnap(lab, "clone", f"web@{name}", "there", status=1).stderr
    assert "there is a guest" in zvmsnap(lab, "clone", f"web@{name}", "web", status=1).stderr
    point = scenario.the_point(lab, "web").directory
    lab.run(f"sed -i s/pc-i440fx[-0-9.]*/pc-i440fx-99.9/ {point}/*.xml")
    assert "cannot be that machine" in zvmsnap(lab, "clone", f"web@{name}", "x", status=1).stderr
    assert lab.run("zfs list -Hp -t all -o name,guid; virsh list --all").stdout == before


@pytest.mark.whole
def test_cold_and_of_packed_ram(lab: Lab) -> None:
    scenario.configure(lab, '[image]\ncompression = "zstd"')
    scenario.pass_hours(lab, 1)
    scenario.take(lab)
    name = back.hourly(lab, 1)
    stored = back.stored_count(lab, name)
    zvmsnap(lab, "clone", f"web@{name}", "packed")
    assert_clone_goes_on(lab, "packed", stored)
    zvmsnap(lab, "clone", "--cold", "--paused", f"web@{name}", "cold")
    disks = ["/tank/vm/cold/disk0.raw", "/dev/zvol/tank/vm/cold/data"]
    back.assert_boots(lab, disks, stored, "cold", "cold-web")
    back.restore(lab, f"web@{name}")
    back.assert_jumped_to(lab, stored)
    back.assert_nothing_left(lab)


@pytest.mark.long
def test_verify_by_reading_and_by_starting(lab: Lab) -> None:
    scenario.pass_hours(lab, 1)
    scenario.take(lab)
    good, bad = scenario.points(lab, "web")
    lab.run(f"printf XXXX | dd of={bad.image} bs=1 seek=500000 conv=notrunc status=none")
    said = json.loads(zvmsnap(lab, "verify", "--json", status=1).stdout)["points"]
    assert [bool(verdict["why"]) for verdict in said.values()] == [False, True]
    good_name, bad_name = said
    done = zvmsnap(lab, "verify", "--boot", "web", status=1)
    assert f"{good_name}: lives" in done.stdout
    assert f"{bad_name}: FAILED" in done.stdout and "checksum" in done.stdout
    assert lab.get(f"{good.directory}/verify.png").startswith(b"\x89PNG")
    table = zvmsnap(lab, "list").stdout
    assert "booted" in table and "FAILED" in table
    assert lab.run("virsh list --all --name").stdout.split() == ["web"]
    assert not [each for each in back.zfs_names(lab) if "verify" in each]
    scenario.assert_counted_through(lab, "web")
    back.assert_nothing_left(lab)
