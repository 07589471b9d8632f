"""`zvmsnap send`: another host has the datasets and the points, and can bring them to life."""

from __future__ import annotations

import json

import back
import far
import pytest
import scenario
from back import zvmsnap
from far import DESTINATION, ROOT
from scenario import WEB

from labkit import guests
from labkit.api import Lab


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    far.built(lab_session)
    return lab_session


def take_another(lab: Lab) -> None:
    scenario.pass_hours(lab, 1)
    scenario.take(lab)


def assert_sent(lab: Lab) -> None:
    """What is there is what is here, not mounted, and of the user alone."""
    for dataset in WEB.datasets:
        assert far.guids(lab, f"{ROOT}/{dataset}") == far.guids(lab, dataset)
    assert "yes" not in lab.run(f"zfs list -Hr -o mounted {ROOT}/tank").stdout
    modes = lab.run(f"find {far.VAULT}/web -printf '%y %m %u\\n' | sort -u").stdout.splitlines()
    assert modes == [f"d 700 {far.USER}", f"f 600 {far.USER}"]
    assert ".arriving" not in lab.run(f"find {far.VAULT}").stdout


def holds(lab: Lab) -> str:
    return lab.run("zfs list -H -t snapshot -o userrefs -r tank | sort -u").stdout.strip()


def test_full_then_incremental_then_pruned(lab: Lab) -> None:
    (first,) = scenario.points(lab)
    planned = far.send(lab, "--dry-run", "web", DESTINATION)
    assert [len(load["points"]) for load in planned["loads"]] == [1]
    assert lab.run(f"zfs list -Hr -o name {ROOT}").stdout.split() == [ROOT]

    (full,) = far.send(lab, "web", DESTINATION)["loads"]
    assert_sent(lab)
    image_bytes = first.manifest["memory"]["stored_bytes"]
    assert full["points_bytes"] > image_bytes
    assert [point["memory_bytes"] for point in full["points"]] == [image_bytes]
    assert sum(stream["stream_bytes"] for stream in full["datasets"]) > 0

    # Nothing is sent again.
    (again,) = far.send(lab, "web", DESTINATION)["loads"]
    assert again["points"] == [] and again["points_bytes"] == 0
    assert [stream["seconds"] for stream in again["datasets"]] == [0, 0]

    take_another(lab)
    second = scenario.points(lab)[-1]
    (more,) = far.send(lab, "web", DESTINATION)["loads"]
    assert_sent(lab)
    assert [point["name"] for point in more["points"]] == [f"web@{second.manifest['moment']}"]
    assert 0 < more["points_bytes"] < second.manifest["memory"]["stored_bytes"] + 200_000
    full_bytes, more_bytes = (
        sum(stream["stream_bytes"] for stream in load["datasets"]) for load in (full, more)
    )
    assert 0 < more_bytes < full_bytes
    print(f"SEND full {full} incremental {more}")
    listed = zvmsnap(lab, "list", "--remote", DESTINATION).stdout
    assert len(listed.splitlines()) == 3 and "memory" in listed
    status = json.loads(zvmsnap(lab, "status", "--json").stdout)
    (receipt,) = status["destinations"]
    assert receipt["newest_taken"] == second.manifest["taken"] and receipt["newest_memory"]
    assert holds(lab) == "0"
    scenario.counts_on(lab)
    scenario.assert_on_base(lab, "web", WEB.disks)

    # The destination keeps what it likes, and points follow.
    for name in first.names:
        lab.run(f"zfs destroy -r {ROOT}/tank/vm/web@{name}")
    far.send(lab, "web", DESTINATION)
    assert [point["moment"] for point in far.points(lab)] == [second.manifest["moment"]]
    assert len(scenario.points(lab)) == 2


def test_clone_and_restore_on_the_other_host(lab: Lab) -> None:
    name = back.hourly(lab)
    stored = back.stored_count(lab, name)
    far.send(lab, "web", DESTINATION)
    far.there(lab, "clone", "web@latest", "beside")
    guests.wait_counts(lab, "beside-web", stored + scenario.PROOF_COUNTS)
    counts = guests.counts(lab, "beside-web")
    assert counts[0] - stored in (0, 1)
    assert guests.boots(lab, "beside-web") == 0 and guests.mismatches(lab, "beside-web") == []
    assert scenario.disks(lab, "beside") == {
        "vda": f"/{ROOT}/tank/vm/beside/disk0.raw",
        "vdb": f"/dev/zvol/{ROOT}/tank/vm/beside/data",
    }
    scenario.counts_on(lab)
    far.there(lab, "clone", "--destroy", "beside")
    # What was received was not written to: the next stream fits.
    take_another(lab)
    (more,) = far.send(lab, "web", DESTINATION)["loads"]
    assert not more["failed"] and more["points"]
    assert_sent(lab)

    # That host burns; its zvmsnap is told where the disks are.
    lab.run("virsh destroy web && virsh undefine web")
    refused = far.there(lab, "restore", "--yes", f"web@{name}", status=1)
    assert f"zfs mount {ROOT}/tank/vm/web" in refused.stderr
    lab.run("zfs mount -a")
    since = guests.serial_size_bytes(lab, "web")
    far.there(lab, "restore", "--yes", f"web@{name}")
    back.assert_goes_on(lab, "web", stored, since)
    assert scenario.disks(lab, "web") == {
        "vda": f"/{ROOT}/tank/vm/web/disk0.raw", "vdb": f"/dev/zvol/{ROOT}/tank/vm/web/data"
    }
    scenario.counts_on(lab)


def burn(lab: Lab) -> None:
    """Nothing of the guest is left here."""
    lab.run(
        "virsh destroy web; virsh undefine web; "
        f"zfs destroy -r tank/vm && rm -rf {scenario.VAULT}/* {scenario.JOURNAL}/*"
    )
    lab.run(f"rm -f {scenario.VAULT}/.zvmsnap-vault")


def test_fetch_home(lab: Lab) -> None:
    take_another(lab)
    name = back.hourly(lab, 1)
    stored = back.stored_count(lab, name)
    far.send(lab, "--memory", "all", "web", DESTINATION)
    assert "runs here" in zvmsnap(lab, "fetch", "--yes", "web@latest", DESTINATION, status=1).stderr
    burn(lab)
    since = guests.serial_size_bytes(lab, "web")
    zvmsnap(lab, "fetch", "--dry-run", "web@latest", DESTINATION)
    assert lab.run("zfs list -Hr -o name tank").stdout.split() == ["tank"]
    zvmsnap(lab, "fetch", "--yes", "web@latest", DESTINATION)
    back.assert_goes_on(lab, "web", stored, since)
    scenario.assert_on_base(lab, "web", WEB.disks)
    for dataset in WEB.datasets:
        assert far.guids(lab, dataset) == far.guids(lab, f"{ROOT}/{dataset}")
    # And everything goes on as before.
    take_another(lab)
    (more,) = far.send(lab, "web", DESTINATION)["loads"]
    assert not more["failed"] and len(more["points"]) == 1
    scenario.counts_on(lab)
    back.assert_nothing_left(lab)
