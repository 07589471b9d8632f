"""`zvmsnap clone` and `verify`: a stored machine lives beside its original."""

from __future__ import annotations

import json
import re

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
    back.assert_goes_on(lab, f"{name}-web", stored)


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


# What would make a clone write to what is the original's.
SHARED = [
    (
        r"</os>",
        "<loader type='pflash'>/var/lib/libvirt/images/both.fd</loader></os>",
        "it writes to its firmware /var/lib/libvirt/images/both.fd",
    ),
    (
        r"(<source file=[^>]*disk0.raw[^>]*)/>",
        r"\1><dataStore type='file'><format type='raw'/><source file='/srv/a.raw'/></dataStore>"
        "</source>",
        "data file of disk vda would be shared with the original: /srv/a.raw",
    ),
    (
        r"</domain>",
        "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>"
        "<q:arg value='-drive'/><q:arg value='file=/srv/b.raw,format=raw'/></q:commandline>"
        "</domain>",
        "QEMU argument -drive would be shared with the original: /srv/b.raw",
    ),
]


def test_refused_before_anything_is_made(lab: Lab) -> None:
    name = back.hourly(lab)
    lab.run("zfs create tank/vm/there")
    before = lab.run("zfs list -Hp -t all -o name,guid; virsh list --all").stdout
    assert "exists already" in zvmsnap(lab, "clone", f"web@{name}", "there", status=1).stderr
    assert "there is a guest" in zvmsnap(lab, "clone", f"web@{name}", "web", status=1).stderr
    point = scenario.the_point(lab, "web").directory
    definition = lab.get(f"{point}/domain.xml").decode()
    for pattern, replacement, why in SHARED:
        changed = re.sub(pattern, replacement, definition)
        assert changed != definition
        lab.put(f"{point}/domain.xml", changed)
        assert why in zvmsnap(lab, "clone", f"web@{name}", "x", status=1).stderr
    lab.put(f"{point}/domain.xml", definition)
    lab.run(f"sed -i s/pc-i440fx[-0-9.]*/pc-i440fx-99.9/ {point}/*.xml")
    assert "cannot be that machine" in zvmsnap(lab, "clone", f"web@{name}", "x", status=1).stderr
    assert lab.run("zfs list -Hp -t all -o name,guid; virsh list --all").stdout == before


@pytest.mark.whole
def test_cold_and_of_packed_ram(lab: Lab) -> None:
    for compression in ("none", "zstd"):
        scenario.configure(lab, f'[image]\npages = false\ncompression = "{compression}"')
        scenario.pass_hours(lab, 1)
        scenario.take(lab)
        point = scenario.points(lab, "web")[-1]
        assert point.manifest["memory"]["compression"] == compression
        assert point.manifest["memory"]["why_plain"] == "image.pages is false"
    plain = back.hourly(lab, 1)
    zvmsnap(lab, "clone", f"web@{plain}", "plain")
    assert_clone_goes_on(lab, "plain", back.stored_count(lab, plain))
    zvmsnap(lab, "clone", "--destroy", "plain")
    name = back.hourly(lab, 2)
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
    for file in ("memory.rest", "memory.pages"):
        spoilt = f"{bad.directory}/{file}"
        lab.run(f"cp --sparse=always {spoilt} /root/{file}")
        lab.run(f"printf XXXX | dd of={spoilt} bs=1 seek=5000 conv=notrunc status=none")
        said = json.loads(zvmsnap(lab, "verify", "--json", status=1).stdout)["points"]
        assert [file in verdict["why"] for verdict in said.values()] == [False, True]
        for command in ("restore --yes", "clone", "export-memory"):
            other = {"restore --yes": "", "clone": "spoilt", "export-memory": "/root/spoilt"}
            words = [*command.split(), f"web@{bad.manifest['run']}", other[command]]
            refused = zvmsnap(lab, *filter(None, words), status=1)
            assert f"{file} " in refused.stderr and "damaged" in refused.stderr, refused
        if file == "memory.rest":
            lab.run(f"cp /root/{file} {spoilt}")
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


KEPT, ISO = "/tank/vm/kept", "/var/lib/libvirt/images/tools.iso"
KEPT_DEVICES = (
    "<interface type='bridge'><mac address='52:54:00:7a:76:02'/><source bridge='br-old'/>"
    "<model type='virtio'/></interface><disk type='file' device='cdrom'>"
    f"<source file='{ISO}' startupPolicy='optional'/><target dev='hdc' bus='ide'/><readonly/>"
    "</disk>"
)


def make_kept(lab: Lab) -> None:
    """A guest whose images name others by absolute paths: a backing file, and a data file."""
    lab.run("zfs create tank/vm/kept && ip link add br-old type bridge && ip link set br-old up")
    base = guests.make_disk(lab, guests.Disk(f"{KEPT}/base.qcow2", "qcow2"))
    guests.make_disk(lab, guests.Disk(f"{KEPT}/b.raw"))
    lab.run(
        f"qemu-img create -q -f qcow2 -F qcow2 -b {base.path} {KEPT}/a.qcow2 && qemu-img convert "
        f"-O qcow2 -o data_file={KEPT}/d.raw,data_file_raw=on {KEPT}/b.raw {KEPT}/b.qcow2 && "
        f"rm {KEPT}/b.raw && truncate -s 1M {ISO}"
    )
    disks = [guests.Disk(f"{KEPT}/{name}.qcow2", "qcow2") for name in ("a", "b")]
    guests.define(lab, guests.domain_xml("kept", disks, devices=KEPT_DEVICES))
    lab.run("virsh -q start kept")
    guests.wait_counts(lab, "kept", scenario.PROOF_COUNTS)


def open_files(lab: Lab, name: str) -> set[str]:
    """The files of the pool that its QEMU has open."""
    pid = f"$(cat /run/libvirt/qemu/{name}.pid)"
    opened = lab.run(f"ls -l /proc/{pid}/fd").stdout
    return {line.rpartition(" -> ")[2] for line in opened.splitlines() if " -> /tank/" in line}


@pytest.mark.long
@pytest.mark.whole
def test_shares_nothing_with_its_original(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    make_kept(lab)
    zvmsnap(lab, "take", "kept", "--name", "before")
    assert scenario.the_point(lab, "kept").image
    stored = guests.disk_count(lab, f"{KEPT}/.zfs/snapshot/before/d.raw")
    # The original goes on, and away; its base is made anew. The bridge and the ISO are no more.
    guests.wait_counts(lab, "kept", stored + scenario.PROOF_COUNTS)
    lab.run(f"virsh -q destroy kept && ip link delete br-old && rm {ISO}")
    lab.run(f"dd if=/dev/urandom of={KEPT}/base.qcow2 bs=1M count=1 conv=fsync status=none")
    sums = lab.run(f"sha256sum {KEPT}/*").stdout

    # One that is cold begins to count anew.
    for name, options, count in (("one", (), stored), ("two", ("--cold",), 0)):
        zvmsnap(lab, "clone", *options, "--network", "none", "kept@before", name)
        guests.wait_counts(lab, f"{name}-kept", count + scenario.PROOF_COUNTS)
        assert guests.mismatches(lab, f"{name}-kept") == []
        own = {f"/tank/vm/{name}/{file}" for file in ("a.qcow2", "base.qcow2", "b.qcow2", "d.raw")}
        assert open_files(lab, name) == own
        said = lab.run(f"cd /tank/vm/{name} && qemu-img info -U --backing-chain a.qcow2 && "
                       "qemu-img info -U b.qcow2").stdout
        assert KEPT not in said
        definition = scenario.dumpxml(lab, name) + scenario.dumpxml(lab, name, persistent=True)
        assert KEPT not in definition and "br-old" not in definition
    assert lab.run(f"sha256sum {KEPT}/*").stdout == sums
    # A clone is a machine like any other: it can be captured, and started again.
    lab.run("virsh -q destroy one && virsh -q start one")
    scenario.wait_until("one boots", lambda: guests.boots(lab, "one-kept") == 1, timeout_s=180)
    assert "the bridge br-old is not here" in zvmsnap(
        lab, "clone", "--network", "keep", "kept@before", "three", status=1
    ).stderr
    for name in ("one", "two"):
        zvmsnap(lab, "clone", "--destroy", name)
    assert lab.run(f"sha256sum {KEPT}/*").stdout == sums


EXTRA, ELSEWHERE = "/tank/vm/web/extra.raw", "/var/lib/libvirt/images/elsewhere.raw"


@pytest.mark.long
@pytest.mark.whole
def test_two_definitions_and_properties(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    # Its next start has another disk of its dataset, one of another place, and no volume.
    for path in (EXTRA, ELSEWHERE):
        lab.run(f"truncate -s 8M {path}")
    lab.run(f"virsh attach-disk web {EXTRA} vdc --config")
    lab.run(f"virsh attach-disk web {ELSEWHERE} vdd --config")
    lab.run("virsh detach-disk web vdb --config")
    # What is below tank/vm has no devices; but this volume has, as it had before.
    lab.run("zfs set volmode=full com.sun:auto-snapshot=true tank/vm/web/data")
    lab.run("zfs set volmode=none tank/vm && zfs set recordsize=64K refquota=2G tank/vm/web")
    scenario.take(lab)
    name = back.hourly(lab)
    stored = back.stored_count(lab, name)
    shown = zvmsnap(lab, "show", f"web@{name}").stdout
    assert f"vdc  raw  tank/vm/web extra.raw  ({EXTRA})" in shown
    assert f"vdd  not part of the point  ({ELSEWHERE})" in shown

    done = zvmsnap(lab, "clone", f"web@{name}", "one")
    assert "disk vdd is not part of the point: left out" in done.stderr
    assert_clone_goes_on(lab, "one", stored)
    assert scenario.disks(lab, "one") == {
        "vda": "/tank/vm/one/disk0.raw", "vdb": "/dev/zvol/tank/vm/one/data"
    }
    next_start = {"vda": "/tank/vm/one/disk0.raw", "vdc": "/tank/vm/one/extra.raw"}
    assert scenario.disks(lab, "one", persistent=True) == next_start
    properties = "volmode,recordsize,refquota,com.sun:auto-snapshot,zvmsnap:clone"
    assert lab.run(
        f"zfs get -Hpo value -s local {properties} tank/vm/one tank/vm/one/data"
    ).stdout.split() == ["65536", "one", "full", "one"]

    # Its own snapshot and checkpoint, of which libvirt keeps metadata, go with it.
    # Checkpoints need qcow2, and are refused where a snapshot exists already.
    for options in ("overlay --no-metadata", "before"):
        overlay = f"/var/lib/libvirt/images/one-{options.split()[0]}.qcow2"
        lab.run(f"virsh snapshot-create-as one {options} --disk-only --diskspec vda,file={overlay}"
                " --diskspec vdb,snapshot=no")
        if options != "before":
            lab.run("virsh checkpoint-create-as one c --diskspec vda --diskspec vdb,checkpoint=no")
    lab.run("zfs snapshot tank/vm/one/data@mine && zfs hold mine tank/vm/one/data@mine")
    refused = zvmsnap(lab, "clone", "--destroy", "one", status=1).stderr
    assert "tank/vm/one/data@mine" in refused and "it is held" in refused
    assert scenario.state(lab, "one") == "running"
    lab.run("zfs release mine tank/vm/one/data@mine && zfs destroy tank/vm/one/data@mine")
    zvmsnap(lab, "clone", "--destroy", "one")
    assert lab.run("virsh list --all --name").stdout.split() == ["web"]
    assert not [each for each in back.zfs_names(lab) if "one" in each]

    zvmsnap(lab, "clone", "--cold", "--paused", f"web@{name}", "two")
    cold = {target: path.replace("one", "two") for target, path in next_start.items()}
    assert scenario.disks(lab, "two") == scenario.disks(lab, "two", persistent=True) == cold
    zvmsnap(lab, "clone", "--destroy", "two")

    back.restore(lab, f"web@{name}")
    back.assert_jumped_to(lab, stored)
    assert scenario.disks(lab, "web") == WEB.disks
    assert scenario.disks(lab, "web", persistent=True) == {
        "vda": WEB.disks["vda"], "vdc": EXTRA, "vdd": ELSEWHERE
    }

    # A volume that has no device is not waited for.
    lab.run("virsh destroy web && zfs set volmode=none tank/vm/web/data")
    failed = zvmsnap(lab, "clone", f"web@{name}", "three", status=1).stderr
    assert "/dev/zvol/tank/vm/three/data: does not appear: " in failed
    assert "tank/vm/three/data has volmode=none" in failed
    assert not [each for each in back.zfs_names(lab) if "three" in each]


VERIFY = "pgrep -f '[z]vmsnap verify --boot'"


def stop_verify(lab: Lab, which: str = "") -> str:
    """Start `verify --boot`, and stop it while its clone runs; returns the clone's name."""
    lab.start("ZVMSNAP_TEST_STOP_BEFORE='undo load' exec zvmsnap verify --boot "
              f"{which} >/root/verify 2>&1")
    states = f"$({VERIFY} | sed 's,.*,/proc/&/status,') /dev/null"
    lab.run(f"until grep -qs '^State:.T' {states}; do sleep 0.1; done",
            timeout_s=scenario.ROUND_LIMIT_S)
    (clone,) = set(lab.run("virsh list --name").stdout.split()) - {"web"}
    assert clone.startswith("zvmsnap-verify-")
    return clone


def kill_verify(lab: Lab, point: str) -> str:
    """The same, and kill it."""
    clone = stop_verify(lab, point)
    lab.run(f"kill -KILL $({VERIFY})")
    assert f"{clone}: clone of {point}" in zvmsnap(lab, "list").stdout
    return clone


def assert_clone_is_gone(lab: Lab) -> None:
    assert lab.run("virsh list --all --name").stdout.split() == ["web"]
    assert not [each for each in back.zfs_names(lab) if "verify" in each]
    back.assert_nothing_left(lab)


@pytest.mark.long
@pytest.mark.whole
def test_verify_that_is_killed_while_its_clone_lives(lab: Lab) -> None:
    (point,) = back.listed(lab)
    clone = kill_verify(lab, point["name"])
    done = zvmsnap(lab, "recover")
    assert f"{clone}: recovered" in done.stdout
    assert_clone_is_gone(lab)

    kill_verify(lab, point["name"])
    done = zvmsnap(lab, "verify", "--boot", point["name"])
    assert f"{point['name']}: lives" in done.stdout
    assert_clone_is_gone(lab)

    # The point is removed meanwhile.
    lab.run(f"cp -a {point['directory']} /root/kept")
    stop_verify(lab)
    lab.run(f"rm -r {point['directory']} && kill -CONT $({VERIFY})")
    lab.run(f"while {VERIFY}; do sleep 0.1; done", timeout_s=scenario.ROUND_LIMIT_S)
    said = lab.run("cat /root/verify").stdout.splitlines()
    assert said[-1] == f"{point['name']}: was removed meanwhile"
    assert_clone_is_gone(lab)

    lab.run(f"cp -a /root/kept {point['directory']}")
    clone = kill_verify(lab, point["name"])
    lab.run(f"rm -r {point['directory']}")
    assert f"{clone}: recovered" in zvmsnap(lab, "recover").stdout
    assert_clone_is_gone(lab)
    scenario.counts_on(lab)
