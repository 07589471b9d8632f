"""Disks of which libvirt knows more than a path: encrypted ones, and those with dirty bitmaps."""

from __future__ import annotations

import re

import back
import pytest
import scenario
from back import zvmsnap
from scenario import Guest

from labkit import bootsector, guests
from labkit.api import Lab
from labkit.guests import Disk

SECRET = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f"
ENCRYPTION = (
    f"<encryption format='luks'><secret type='passphrase' uuid='{SECRET}'/></encryption>"
)
WHY = "a disk cannot be frozen: vda is encrypted (LUKS): an overlay would hold its data in clear"
LUKS = Guest(
    "luks", ("tank/vm/luks",), {"vda": "/tank/vm/luks/raw.img", "vdb": "/tank/vm/luks/b.qcow2"}
)
INC = Guest("inc", ("tank/vm/inc",), {"vda": "/tank/vm/inc/disk0.qcow2"})
BACKUPS = "/var/lib/libvirt/images"


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    scenario.configured(lab_session)
    lab_session.run("virsh destroy web")
    return lab_session


def know_secret(lab: Lab) -> None:
    lab.put("/root/secret.xml", f"<secret ephemeral='no'><uuid>{SECRET}</uuid></secret>")
    lab.run(
        f"virsh secret-define /root/secret.xml && printf opensesame > /root/key && "
        f"virsh secret-set-value {SECRET} --file /root/key --plain"
    )


def make_luks(lab: Lab) -> None:
    """A guest with a raw LUKS disk and a qcow2 one that is encrypted inside."""
    lab.run("zfs create tank/vm/luks")
    know_secret(lab)
    raw, qcow2 = LUKS.disks.values()
    code = bootsector.boot_code(fill_mib=0, dirty_mib=0, memory_mib=64)
    lab.run("cat > /root/boot.raw && truncate -s 16M /root/boot.raw", stdin=code)
    made = "qemu-img convert --object secret,id=s,data=opensesame -f raw"
    lab.run(f"{made} -O luks -o key-secret=s,iter-time=10 /root/boot.raw {raw}")
    inside = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    lab.run(f"{made} -O qcow2 -o {inside} /root/boot.raw {qcow2}")
    xml = guests.domain_xml("luks", [Disk(raw, extra=ENCRYPTION), Disk(qcow2, "qcow2")])
    file = f"<source file=\"{qcow2}\"/>"
    assert file in xml
    inner = f"<source file=\"{qcow2}\">{ENCRYPTION}</source>"
    guests.define(lab, xml.replace(file, inner))
    guests.start(lab, "luks")


@pytest.mark.whole
def test_encrypted(lab: Lab) -> None:
    """No overlay, which would hold its data in clear text; RAM while it is paused; and back."""
    make_luks(lab)
    zvmsnap(lab, "take", "luks", "--name", "one", "--mode", "memory,paused")
    point = scenario.the_point(lab, "luks")
    assert (point.manifest["level"], point.manifest["reason"][: len(WHY)]) == ("paused", WHY)
    scenario.assert_at_rest(lab, LUKS)
    taken = guests.counts(lab, "luks")[-1]
    guests.wait_counts(lab, "luks", taken + 5)

    zvmsnap(lab, "clone", "luks@one", "twin")
    guests.wait_counts(lab, "twin-luks", scenario.PROOF_COUNTS)
    assert guests.mismatches(lab, "twin-luks") == [] and guests.boots(lab, "twin-luks") == 0
    zvmsnap(lab, "clone", "--destroy", "twin")

    back.restore(lab, "luks@one")
    scenario.wait_until("it goes back", lambda: len(back.jumps(lab, "luks")) == 1, timeout_s=180)
    scenario.counts_on(lab, "luks")
    assert guests.mismatches(lab, "luks") == [] and guests.boots(lab, "luks") == 1
    scenario.assert_on_base(lab, "luks", LUKS.disks)

    # As on a host that never had the secret, and on one where its value is missing.
    told = f"its secret {SECRET} cannot be used here: Secret not found"
    datasets = back.zfs_names(lab)
    lab.run(f"virsh secret-undefine {SECRET}")
    assert told in zvmsnap(lab, "clone", "luks@one", "twin", status=1).stderr
    lab.run("virsh secret-define /root/secret.xml")
    assert told in back.restore(lab, "luks@one", status=1).stderr
    assert back.zfs_names(lab) == datasets
    scenario.counts_on(lab, "luks")


def backup(lab: Lab, name: str, since: str = "") -> bool:
    """A backup of `inc` to a file, with a checkpoint of that name; False if libvirt refuses it."""
    increment = f"<incremental>{since}</incremental>" if since else ""
    lab.run(f"rm -f {BACKUPS}/{name}.qcow2")
    lab.put("/root/backup.xml", (
        f"<domainbackup mode='push'>{increment}<disks><disk name='vda' type='file'>"
        f"<driver type='qcow2'/><target file='{BACKUPS}/{name}.qcow2'/></disk></disks>"
        "</domainbackup>"))
    lab.put("/root/checkpoint.xml", f"<domaincheckpoint><name>{name}</name></domaincheckpoint>")
    done = lab.run("virsh backup-begin inc /root/backup.xml /root/checkpoint.xml", check=False)
    if done.returncode:
        print(done.stderr)
        return False
    lab.run("while virsh domjobinfo inc | grep -q Backup; do sleep 0.2; done")
    return "Completed" in lab.run("virsh domjobinfo inc --completed").stdout


def checkpoints(lab: Lab) -> list[str]:
    return lab.run("virsh checkpoint-list --name inc").stdout.split()


@pytest.mark.whole
@pytest.mark.long
def test_checkpoints(lab: Lab) -> None:
    """Those whose bitmaps come back with the disk stay, and give increments; others are gone."""
    lab.run("zfs create tank/vm/inc")
    disk = guests.make_disk(lab, Disk(INC.disks["vda"], "qcow2"))
    guests.define(lab, guests.domain_xml("inc", [disk]))
    guests.start(lab, "inc")
    assert backup(lab, "monday")
    zvmsnap(lab, "take", "inc", "--name", "one", "--mode", "memory")
    assert scenario.the_point(lab, "inc").manifest["level"] == "memory"
    assert backup(lab, "tuesday", "monday")
    # And a snapshot of its user's own, of which libvirt still knows when it is merged.
    overlay = f"{BACKUPS}/own.qcow2"
    lab.run(
        f"virsh snapshot-create-as inc own --disk-only --diskspec vda,file={overlay} && "
        "virsh blockcommit inc vda --active --pivot --wait"
    )
    lab.run("zfs set zvmsnap:mode=crash tank/vm/inc")
    zvmsnap(lab, "take", "inc", "--name", "two")

    planned = zvmsnap(lab, "restore", "--dry-run", "inc@one").stdout
    assert "libvirt forgets its checkpoints tuesday, which are newer" in planned
    assert "of its checkpoints monday whose bitmaps the restored disks do not have" in planned
    assert "libvirt forgets its snapshots own, which are newer" in planned
    assert checkpoints(lab) == ["monday", "tuesday"]
    done = back.restore(lab, "inc@one")
    assert "libvirt forgets its checkpoints tuesday" in done.stderr
    assert "the next backup must be a full one, or from an older checkpoint" in done.stderr
    assert checkpoints(lab) == ["monday"]
    assert lab.run("virsh snapshot-list --name inc").stdout.split() == []
    scenario.counts_on(lab, "inc")
    assert backup(lab, "tuesday", "monday")

    # A crash leaves bitmaps in use: they do not tell any more what has changed.
    done = back.restore(lab, "inc@two", "--no-safety")
    assert re.search("forgets its checkpoints .*tuesday", done.stderr)
    assert checkpoints(lab) == []
    assert not backup(lab, "wednesday", "monday")
    # Their names are free: the next full backup begins anew.
    assert backup(lab, "monday") and backup(lab, "tuesday", "monday")
    scenario.counts_on(lab, "inc")
    assert guests.mismatches(lab, "inc") == []
