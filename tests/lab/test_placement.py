"""Guests of all kinds under one sanoid: each gets the best point that its disks allow.

One round of the real sanoid serves them all; each test looks at what it left for one of them.
"""

from __future__ import annotations

from shlex import quote

import pytest
import scenario
from scenario import WEB, Guest

from labkit import guests
from labkit.api import Lab
from labkit.domains import OVMF_CODE
from labkit.guests import Disk

GOLDEN = "/var/lib/libvirt/images/golden.qcow2"
ELSEWHERE = "/var/lib/libvirt/images/split-b.raw"
ODD_DATASET = "tank/vm/odd name:1.2"
ODD_NAME = "odd name.x:1"
ODD_DISK = f"/{ODD_DATASET}/disk.raw"

OFF = Guest("off", ("tank/vm/off",), {"vda": "/tank/vm/off/disk.raw"})
EFI = Guest("efi", ("tank/vm/efi",), {"vda": "/tank/vm/efi/disk.raw"})
PAIR = tuple(
    Guest(name, ("tank/vm/pair",), {"vda": f"/tank/vm/pair/{name}.raw"}) for name in ("one", "two")
)
SPLIT = Guest("split", ("tank/vm/split",), {"vda": "/tank/vm/split/a.raw", "vdb": ELSEWHERE})
GOLD = Guest("gold", ("tank/vm/gold",), {"vda": "/tank/vm/gold/disk.qcow2"})
ODD = Guest(ODD_NAME, (ODD_DATASET,), {"vda": ODD_DISK})
EVERYONE = (OFF, EFI, *PAIR, SPLIT, GOLD, ODD)

# OVMF does not survive nested emulation for long; SeaBIOS lies in the same kind of flash.
FLASH = "/var/lib/libvirt/images/seabios.img"

SAID = "/root/round"
GOLDEN_SUM = "/root/golden.sum"


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    """All these guests, after one round of sanoid for all but `web`."""
    scenario.stage(lab_session, "everyone", scenario.configured, _make)
    return lab_session


def _make(lab: Lab) -> None:
    lab.run("virsh destroy web && virsh undefine web")
    for dataset in dict.fromkeys(guest.top for guest in EVERYONE):
        lab.run(f"zfs create {quote(dataset)}")
    for guest in PAIR:
        drives = [guests.make_disk(lab, Disk(path)) for path in guest.disks.values()]
        guests.define(lab, guests.domain_xml(guest.name, drives))
    _make_gold(lab)
    _make_flash(lab)
    # These have nothing to boot: they cost the lab no time, and their disks are where they are.
    for guest in (OFF, SPLIT, ODD):
        for path in guest.disks.values():
            lab.run(f"truncate -s {guests.DISK_MIB}M {quote(path)}")
        drives = [Disk(path) for path in guest.disks.values()]
        guests.define(lab, guests.domain_xml(guest.name, drives, uefi=guest is OFF))
    lab.run("cp /usr/share/OVMF/OVMF_VARS_4M.fd /var/lib/libvirt/qemu/nvram/off_VARS.fd")
    for guest in (SPLIT, ODD):
        lab.run(f"virsh start {quote(guest.name)}")
    for guest in (EFI, *PAIR, GOLD):
        guests.start(lab, guest.name)
    lab.run(f"sha256sum {GOLDEN} > {GOLDEN_SUM}")
    tops = dict.fromkeys(guest.top for guest in EVERYONE)
    scenario.write_sanoid_conf(lab, *map(scenario.section, tops), daily="0", monthly="0")
    said = scenario.take(lab)
    lab.put(SAID, said.stdout + said.stderr)


def _make_gold(lab: Lab) -> None:
    golden = guests.make_disk(lab, Disk(GOLDEN, format="qcow2"))
    own = GOLD.disks["vda"]
    lab.run(f"qemu-img create -q -f qcow2 -F qcow2 -b {golden.path} {own}")
    guests.define(lab, guests.domain_xml(GOLD.name, [Disk(own, format="qcow2")]))


def _make_flash(lab: Lab) -> None:
    drive = guests.make_disk(lab, Disk(EFI.disks["vda"]))
    lab.run(f"cp -L /usr/share/seabios/bios-256k.bin {FLASH}")
    xml = guests.domain_xml(EFI.name, [drive], uefi=True).replace("machine='q35'", "machine='pc'")
    guests.define(lab, xml.replace(OVMF_CODE, FLASH))


def said_of(lab: Lab, guest: Guest) -> str:
    """The lines of the round that speak of a guest."""
    lines = lab.get(SAID).decode().splitlines()
    return "\n".join(line for line in lines if f": {guest.name} (" in line)


def test_guest_that_is_off_gets_its_definition_and_nvram(lab: Lab) -> None:
    point = scenario.the_point(lab, OFF.name)
    assert point.manifest["level"] == "offline"
    assert point.manifest["memory"] is None
    assert set(point.ties) == {f"{OFF.top}@{name}" for name in scenario.snapshots(lab, OFF.top)}
    lab.run(f"cmp {point.directory}/nvram.fd /var/lib/libvirt/qemu/nvram/off_VARS.fd")
    lab.run(f"grep -q '<name>off</name>' {point.directory}/persistent.xml")
    (name,) = point.names
    lab.run(
        f"cmp {point.directory}/nvram.fd /tank/vm/off/.zfs/snapshot/{name}/.zvmsnap/off/nvram.fd"
    )
    assert scenario.state(lab, OFF.name) == "shut off"


def test_guest_with_flash_gets_ram_and_nvram(lab: Lab) -> None:
    point = scenario.the_point(lab, EFI.name)
    assert point.manifest["level"] == "memory"
    lab.run(f"cmp {point.directory}/nvram.fd /var/lib/libvirt/qemu/nvram/efi_VARS.fd")
    scenario.assert_at_rest(lab, EFI)
    (name,) = point.names
    scenario.assert_coherent(lab, EFI, name, point.image)


def test_two_guests_on_one_dataset_get_a_point_each_of_one_moment(lab: Lab) -> None:
    first, second = (scenario.the_point(lab, guest.name) for guest in PAIR)
    assert first.manifest["level"] == second.manifest["level"] == "memory"
    assert first.ties == second.ties
    for guest, point in zip(PAIR, (first, second), strict=True):
        scenario.assert_at_rest(lab, guest)
        scenario.assert_counted_through(lab, guest.name)
        (name,) = point.names
    lab.run("virsh destroy one")
    scenario.assert_coherent(lab, PAIR[1], name, second.image)


def test_disk_elsewhere_means_no_ram_and_says_so(lab: Lab) -> None:
    point = scenario.the_point(lab, SPLIT.name)
    assert point.manifest["level"] == "crash"
    assert point.manifest["memory"] is None
    assert ELSEWHERE in point.manifest["reason"]
    assert [disk["target"] for disk in point.manifest["disks"]] == ["vda"]
    (line,) = said_of(lab, SPLIT).splitlines()[:1]
    assert "level crash" in line and ELSEWHERE in line
    scenario.assert_at_rest(lab, SPLIT)
    (name,) = point.names
    planned = lab.run(f"zvmsnap restore --dry-run {SPLIT.name}@{name}").stdout.splitlines()
    assert [line.strip() for line in planned if " vda" in line or " vdb" in line] == [
        f"disk vda will be as of {SPLIT.top}@{name}",
        f"disk vdb ({ELSEWHERE}) is no part of the point: it STAYS as it is now",
    ]


def test_qcow2_base_over_a_golden_image_that_stays_as_it_is(lab: Lab) -> None:
    point = scenario.the_point(lab, GOLD.name)
    assert point.manifest["level"] == "memory"
    assert [disk["format"] for disk in point.manifest["disks"]] == ["qcow2"]
    scenario.assert_at_rest(lab, GOLD)
    scenario.assert_counted_through(lab, GOLD.name)
    lab.run(f"sha256sum -c {GOLDEN_SUM}")
    chain = lab.run(f"qemu-img info -U --backing-chain {GOLD.disks['vda']} | grep ^image").stdout
    assert chain.split() == ["image:", GOLD.disks["vda"], "image:", GOLDEN]


def test_names_with_blanks_dots_and_colons(lab: Lab) -> None:
    point = scenario.the_point(lab, ODD_NAME)
    assert point.manifest["level"] == "memory"
    assert point.directory == f"{scenario.VAULT}/{ODD_NAME}/{point.manifest['run']}"
    assert set(point.ties) == {f"{ODD_DATASET}@{name}" for name in point.names}
    scenario.assert_at_rest(lab, ODD)
    shown = lab.run(f"zvmsnap show {quote(f'{ODD_NAME}@{next(iter(point.names))}')}").stdout
    assert ODD_DISK in shown


def test_paused_guest_stays_paused_and_excluded_dataset_is_left_alone(lab: Lab) -> None:
    lab.run("virsh suspend two && zfs set zvmsnap:mode=off tank/vm/gold")
    tops = (PAIR[0].top, GOLD.top)
    scenario.write_sanoid_conf(lab, *map(scenario.section, tops), daily="0", monthly="0")
    scenario.pass_hours(lab, 1)
    said = scenario.take(lab)
    one, two = (scenario.points(lab, guest.name)[-1] for guest in PAIR)
    assert one.manifest["level"] == "memory"
    assert (two.manifest["level"], two.manifest["memory"]) == ("crash", None)
    assert "paused" in two.manifest["reason"]
    assert one.ties == two.ties
    assert scenario.state(lab, "two") == "paused"
    assert len(scenario.points(lab, GOLD.name)) == 1
    assert f": {GOLD.name} (" not in said.stderr
    assert len(scenario.snapshots(lab, GOLD.top)) == 2
    for guest in (*PAIR, GOLD):
        scenario.assert_at_rest(lab, guest)


def test_property_overrides_what_sanoid_conf_says_of_recursion(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    lab.run("zfs set zvmsnap:recursive=off tank/vm/web")
    names = ["first_hourly"]
    assert scenario.hook(lab, "pre-snapshot", WEB.top, names).returncode == 0
    lab.run(f"zfs snapshot {WEB.top}@{names[0]}")
    assert scenario.hook(lab, "post-snapshot", WEB.top, names).returncode == 0
    alone = scenario.the_point(lab, "web")
    assert alone.manifest["level"] == "crash"
    assert "vdb (on tank/vm/web/data)" in alone.manifest["reason"]

    lab.run("zfs set zvmsnap:recursive=on tank/vm/web && rm /etc/sanoid/sanoid.conf")
    names = ["second_hourly"]
    assert scenario.hook(lab, "pre-snapshot", WEB.top, names).returncode == 0
    lab.run(f"zfs snapshot -r {WEB.top}@{names[0]}")
    assert scenario.hook(lab, "post-snapshot", WEB.top, names).returncode == 0
    both = scenario.points(lab, "web")[-1]
    assert both.manifest["level"] == "memory"
    assert set(both.ties) == {f"{dataset}@{names[0]}" for dataset in WEB.datasets}
    scenario.assert_at_rest(lab)


def test_metadata_of_older_scripts_is_forgotten(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    names = ["by_hand_hourly"]
    overlays = {target: f"/var/lib/libvirt/images/old-{target}.qcow2" for target in WEB.disks}
    specs = " ".join(
        f"--diskspec {target},snapshot=external,file={path}" for target, path in overlays.items()
    )
    lab.run(f"virsh snapshot-create-as web {names[0]} --disk-only --atomic {specs}")
    for verb in ("blockcommit web {} --active --shallow", "blockjob web {} --pivot"):
        for target in WEB.disks:
            lab.run(f"for try in 1 2 3 4 5; do virsh {verb.format(target)} && break; sleep 1; done")
    assert scenario.leftovers(lab) == names

    assert scenario.hook(lab, "pre-snapshot", WEB.top, names).returncode == 0
    lab.run(f"zfs snapshot -r {WEB.top}@{names[0]}")
    done = scenario.hook(lab, "post-snapshot", WEB.top, names)
    assert done.returncode == 0, done
    assert f"metadata {names[0]}" in done.stderr
    assert scenario.the_point(lab, "web").manifest["level"] == "memory"
    scenario.assert_at_rest(lab)


def test_dataset_without_guests_needs_nothing(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    scenario.configure(lab, 'staging = "/cheap"')
    done = scenario.hook(lab, "pre-snapshot", "cheap", ["by_hand_hourly"])
    assert (done.returncode, done.stderr) == (0, "")
    assert scenario.points(lab) == []
    scenario.assert_at_rest(lab)


def test_libvirt_that_gives_qemu_no_files(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    # The images are QEMU's for good, as an administrator sees to it who wants it so.
    lab.run("virsh destroy web")
    lab.run("""echo 'KERNEL=="zd*", OWNER="libvirt-qemu"' > /etc/udev/rules.d/99-volumes.rules""")
    lab.run("udevadm control --reload && udevadm trigger --settle --subsystem-match=block")
    lab.run(f"chown libvirt-qemu:libvirt-qemu {WEB.disks['vda']}")
    lab.run("echo 'dynamic_ownership = 0' >> /etc/libvirt/qemu.conf && systemctl restart libvirtd")
    lab.run("virsh start web")
    scenario.counts_on(lab)
    scenario.take(lab)
    point = scenario.the_point(lab, "web")
    assert (point.manifest["level"], point.manifest["reason"]) == ("memory", None)
    scenario.assert_at_rest(lab)
    assert guests.mismatches(lab, "web") == []
    (hourly,) = [name for name in point.names if name.endswith("_hourly")]
    scenario.assert_coherent(lab, WEB, hourly, point.image)
