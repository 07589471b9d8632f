"""`zvmsnap backup` and `import`: a guest in plain files, and a guest of them again."""

from __future__ import annotations

import json
from typing import Any

import pytest
import readme
import scenario
from back import assert_goes_on, clones, zvmsnap
from scenario import WEB

from labkit import guests
from labkit.api import Lab

BACKUP = "/backup"


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    """The guest `web` counts; the directory of backups is no ZFS."""
    scenario.configured(lab_session)
    lab_session.run(f"mkdir {BACKUP}")
    return lab_session


def listed(lab: Lab) -> list[dict[str, Any]]:
    """The backups, as `backup list` tells them."""
    said = zvmsnap(lab, "backup", "list", BACKUP, "--json").stdout
    found: list[dict[str, Any]] = json.loads(said)["backups"]
    return found


def snapshot_file(name: str) -> str:
    return f"/tank/vm/web/.zfs/snapshot/{name}/disk0.raw"


def assert_nothing_left(lab: Lab) -> None:
    """No clone, no snapshot, no file of work under way."""
    scenario.assert_at_rest(lab)
    assert clones(lab) == []
    assert "_backup" not in lab.run("zfs list -H -t snapshot -o name").stdout
    assert "zvmsnap:temporary" not in lab.run("zfs get -H -s local -o property all").stdout
    assert lab.run(f"find {BACKUP} -name '.*'").stdout == ""


@pytest.mark.whole
def test_from_snapshots_and_into_another_guest(lab: Lab) -> None:
    zvmsnap(lab, "backup", "web", BACKUP)
    assert_nothing_left(lab)
    scenario.counts_on(lab)
    # Two increments of points: with RAM, and without.
    zvmsnap(lab, "take", "web", "--name", "held", "--mode", "paused,required")
    scenario.counts_on(lab)
    zvmsnap(lab, "take", "web", "--name", "later", "--mode", "crash")
    for name in ("held", "later"):
        zvmsnap(lab, "backup", "--from", f"web@{name}", BACKUP)
    full, held, later = listed(lab)
    assert [each["level"] for each in (full, held, later)] == ["full", "inc", "inc"]
    assert [each["consistency"] for each in (held, later)] == ["paused", "crash"]
    # A bookmark, and a snapshot, of the backup before: only what ZFS names was read.
    for each in (held, later):
        assert all("as ZFS says" in disk["compared"] for disk in each["disks"]), each["disks"]
    assert (held["parent"], later["parent"]) == (full["name"], held["name"])
    for name, each in (("held", held), ("later", later)):
        stored = guests.disk_count(lab, snapshot_file(name))
        for target in ("vda", "vdb"):
            image = f"{BACKUP}/{each['name']}/{target}.qcow2"
            assert guests.disk_count(lab, image, "qcow2") - stored in (-1, 0, 1)
        lab.run(f"qemu-img compare -f raw -F qcow2 {snapshot_file(name)} "
                f"{BACKUP}/{each['name']}/vda.qcow2")
    said = zvmsnap(lab, "backup", "verify", BACKUP).stdout
    assert said.count(": is whole") == 3

    # On another pool, beside its original, with the RAM of its own instant.
    stored = guests.disk_count(lab, snapshot_file("held"))
    zvmsnap(lab, "import", f"{BACKUP}/{held['name']}", "--as", "web2", "--to", "cheap", "--resume")
    assert scenario.disks(lab, "web2") == {
        "vda": "/cheap/web2/vda.raw", "vdb": "/cheap/web2/vdb.raw"
    }
    assert_goes_on(lab, "web2-web", stored)
    scenario.counts_on(lab)
    assert_nothing_left(lab)
    zvmsnap(lab, "take", "web2", "--mode", "crash")

    # Into volumes, without RAM: it boots. The same guest comes back once the first one is gone.
    refused = zvmsnap(lab, "import", f"{BACKUP}/{later['name']}", "--to", "cheap", status=1)
    assert "is here already" in refused.stderr
    lab.run("virsh -q destroy web && virsh -q undefine web && zfs destroy -r tank/vm/web")
    since = guests.serial_size_bytes(lab, "web")
    zvmsnap(lab, "import", f"{BACKUP}/{later['name']}", "--to", "tank/vm", "--volume", "--start")
    assert scenario.disks(lab, "web") == {
        "vda": "/dev/zvol/tank/vm/web/vda", "vdb": "/dev/zvol/tank/vm/web/vdb"
    }
    guests.wait_counts(lab, "web", 3, since_byte=since)
    assert guests.boots(lab, "web", since) == 1


@pytest.mark.whole
def test_a_flipped_byte(lab: Lab) -> None:
    zvmsnap(lab, "backup", "--crash", "web", BACKUP)
    (only,) = listed(lab)
    image = f"{BACKUP}/{only['name']}/vdb.qcow2"
    lab.run(f"printf x | dd of={image} bs=1 seek=$(($(stat -c %s {image}) - 70000)) "
            "conv=notrunc status=none")
    said = zvmsnap(lab, "backup", "verify", BACKUP, status=1).stdout
    assert said == f"{only['name']}: vdb.qcow2 does not match its checksum\n"
    refused = zvmsnap(lab, "import", f"{BACKUP}/{only['name']}", "--as", "x", "--to", "cheap",
                      status=1)
    assert "vdb.qcow2 does not match its checksum" in refused.stderr


@pytest.mark.whole
def test_the_recipe_without_us(lab: Lab) -> None:
    """The last backup of a chain, read by qemu-img alone, word for word."""
    for _ in range(3):
        zvmsnap(lab, "backup", "--crash", "web", BACKUP)
        scenario.counts_on(lab)
    zvmsnap(lab, "take", "web", "--name", "last", "--mode", "crash")
    zvmsnap(lab, "backup", "--from", "web@last", BACKUP)
    assert len(listed(lab)) == 4
    # Neither ZFS nor zvmsnap has a part in it.
    stored = guests.disk_count(lab, snapshot_file("last"))
    lab.run("virsh -q destroy web && zpool export tank && mv $(command -v zvmsnap) /root/")
    said = [lab.run(command).stdout
            for command in readme.commands("A copy that needs neither ZFS nor us")]
    assert said[0].count("image: ") == 4 and "identical" in said[2]
    assert guests.disk_count(lab, "/var/tmp/vda.raw") == stored
    assert WEB.name in lab.run(f"cat {BACKUP}/web@*/persistent.xml").stdout


@pytest.mark.whole
@pytest.mark.parametrize("fault", ["KILL", "TERM", "power cut"])
def test_killed_on_the_way(lab: Lab, fault: str) -> None:
    """A backup that waits for qemu-img; what it has left, recover removes."""
    lab.run("mkdir -p /root/bin")
    lab.put("/root/bin/qemu-img", "#!/bin/sh\ncase $1 in convert) touch /root/there; sleep 600;; "
            'esac\nexec /usr/bin/qemu-img "$@"\n')
    lab.run("chmod +x /root/bin/qemu-img")
    command = f"env PATH=/root/bin:$PATH zvmsnap backup --crash web {BACKUP}"
    with scenario.running(lab, command) as under_way:
        scenario.wait_until("qemu-img is called", lambda: not lab.run(
            "test -e /root/there", check=False).returncode, timeout_s=120)
        assert clones(lab) != []
        if fault == "power cut":
            lab.run("sync; zpool sync")
            lab.powercut()
        else:
            lab.run(f"kill -{fault} {under_way.pid}")
        if fault == "TERM":
            under_way.wait()
    if fault != "TERM":
        said = zvmsnap(lab, "recover").stdout
        assert "web: recovered" in said
    assert_nothing_left(lab)
    assert listed(lab) == []
    if fault == "power cut":
        guests.start(lab, "web")
    zvmsnap(lab, "backup", "--crash", "web", BACKUP)
    assert len(listed(lab)) == 1


ELSEWHERE = "/var/lib/libvirt/images/plain.qcow2"


@pytest.mark.whole
def test_disks_on_no_zfs(lab: Lab) -> None:
    """While it runs, by libvirt's job; off, as the image is, and only if that has changed."""
    guests.make_disk(lab, guests.Disk(ELSEWHERE, "qcow2"))
    guests.define(lab, guests.domain_xml("plain", [guests.Disk(ELSEWHERE, "qcow2")]))
    guests.start(lab, "plain")
    for _ in range(2):
        before = guests.counts(lab, "plain")[-1]
        zvmsnap(lab, "backup", "plain", BACKUP)
        image = f"{BACKUP}/{listed(lab)[-1]['name']}/vda.qcow2"
        stored = guests.disk_count(lab, image, "qcow2")
        assert before <= stored <= guests.counts(lab, "plain")[-1] + 1
        scenario.counts_on(lab, "plain")
    assert [(each["way"], each["level"]) for each in listed(lab)] == [
        ("push", "full"), ("push", "inc")
    ]
    lab.run("virsh -q destroy plain")
    zvmsnap(lab, "backup", "plain", BACKUP)
    off = listed(lab)[-1]
    assert (off["way"], off["level"], off["consistency"]) == ("offline", "inc", "offline")
    lab.run(f"qemu-img compare -F qcow2 -f qcow2 {ELSEWHERE} {BACKUP}/{off['name']}/vda.qcow2")
    assert "nothing has changed" in zvmsnap(lab, "backup", "plain", BACKUP).stderr
    assert len(listed(lab)) == 3

    zvmsnap(lab, "backup", "consolidate", "plain", BACKUP, "--keep", "1")
    (kept,) = listed(lab)
    assert (kept["name"], kept["level"]) == (off["name"], "full")
    lab.run(f"qemu-img compare -F qcow2 -f qcow2 {ELSEWHERE} {BACKUP}/{off['name']}/vda.qcow2")
    assert ": is whole" in zvmsnap(lab, "backup", "verify", BACKUP).stdout
    assert_nothing_left(lab)
