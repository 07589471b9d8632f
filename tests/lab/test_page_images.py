"""RAM that is stored as pages: on all file systems, shared by many points, beside older ones."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

import back
import pytest
import scenario
from back import zvmsnap
from scenario import WEB, Guest, Point, assert_pages

from labkit import guests
from labkit.api import Lab

LOADED = Guest("loaded", ("tank/vm/loaded",), {"vda": "/tank/vm/loaded/loaded.raw"})
MEMORY_MIB, DIRTY_MIB = 64, 8
CPU_SHARE = "<cputune><period>100000</period><quota>30000</quota></cputune>"
HOURS = 12
SEED = 16


def assert_whole(lab: Lab, points: Sequence[Point]) -> None:
    """These are all the points of the guest, and all that they have was read."""
    domain = points[0].manifest["domain"]
    assert [each.directory for each in scenario.points(lab, domain)] == [
        each.directory for each in points
    ]
    verified = json.loads(zvmsnap(lab, "verify", "--json", domain).stdout)["points"]
    assert [result["why"] for result in verified.values()] == [""] * len(points)


def assert_loads(lab: Lab, point: Point, disk: str, clone: str) -> None:
    """A clone goes on with the RAM of that point, and with its disks."""
    domain, name = point.manifest["domain"], min(point.names)
    dataset, _, file = disk.removeprefix("/").rpartition("/")
    stored = guests.disk_count(lab, f"/{dataset}/.zfs/snapshot/{name}/{file}")
    zvmsnap(lab, "clone", f"{domain}@{name}", clone)
    back.assert_goes_on(lab, f"{clone}-{domain}", stored, 0)
    zvmsnap(lab, "clone", "--destroy", clone)


def _make_loaded(lab: Lab) -> None:
    lab.run("virsh destroy web && virsh undefine web && zfs create tank/vm/loaded")
    disk = guests.make_disk(
        lab, guests.Disk(LOADED.disks["vda"]), dirty_mib=DIRTY_MIB, memory_mib=MEMORY_MIB
    )
    guests.define(lab, guests.domain_xml("loaded", [disk], memory_mib=MEMORY_MIB, extra=CPU_SHARE))
    guests.start(lab, "loaded")
    scenario.write_sanoid_conf(lab, scenario.section(LOADED.top), daily="0", monthly="0")


@pytest.mark.whole
@pytest.mark.long
def test_each_of_twelve_hours_loads_and_counts_on(lab_session: Lab) -> None:
    """Each is loaded, and then removed, in no order: what its neighbours share with it stays."""
    lab = lab_session
    scenario.configured(lab)
    _make_loaded(lab)
    for _ in range(HOURS):
        scenario.pass_hours(lab, 1)
        scenario.take(lab)
        scenario.counts_on(lab, "loaded")
    left = scenario.points(lab, "loaded")
    assert len(left) == HOURS
    for point in left:
        assert_pages(point)

    for number, point in enumerate(random.Random(SEED).sample(left, HOURS)):
        assert_whole(lab, left)
        assert_loads(lab, point, LOADED.disks["vda"], f"load{number}")
        left.remove(point)
        for name in point.names:
            lab.run(f"zfs destroy {LOADED.top}@{name}")
        zvmsnap(lab, "prune")
    assert scenario.vault_files(lab) == []
    scenario.assert_counted_through(lab, "loaded")
    back.assert_nothing_left(lab, LOADED)


# -- vaults on all file systems, and older points


@dataclass(frozen=True)
class Place:
    """A file system at the vault's place: what makes it, and whether its files can share."""

    make: str
    shares: bool


def _mounted(mkfs: str) -> str:
    return (
        f"zfs set mountpoint=none cheap/vault && truncate -s 400M /srv/vault && {mkfs} /srv/vault"
        f" && mkdir -p {scenario.VAULT} && mount /srv/vault {scenario.VAULT}"
    )


PLACES = {
    "zfs": Place("true", True),
    "zfs without cloning": Place(
        "echo 0 > /sys/module/zfs/parameters/zfs_bclone_enabled", False
    ),
    "ext4": Place(_mounted("mkfs.ext4 -q -m 0"), False),
    "xfs": Place(_mounted("mkfs.xfs -q"), True),
}


def _shared_bytes(lab: Lab, point: Point) -> tuple[int, int]:
    """What the RAM of a point shares with others, and what it takes in all."""
    lab.run(f"sync -f {scenario.VAULT}")
    (told,) = [each for each in back.listed(lab) if each["directory"] == point.directory]
    usage = told["memory_on_disk"]
    shared = usage["shared_bytes"]
    if shared is None:
        # ZFS says it of a whole pool: here one guest has cloned one file in it.
        shared = lab.run("zpool sync cheap; zpool get -Hpo value bclonesaved cheap").stdout
    return int(shared), usage["disk_bytes"]


@pytest.mark.whole
@pytest.mark.parametrize("place", PLACES)
def test_vault_on_file_systems_that_share_and_that_do_not(lab_session: Lab, place: str) -> None:
    lab = lab_session
    scenario.configured(lab)
    scenario.write_sanoid_conf(lab, daily="0", monthly="0")
    # As the docs advise for a vault.
    lab.run("zfs set recordsize=16K cheap/vault")
    lab.run(PLACES[place].make)
    stored = []
    for number in range(2):
        scenario.pass_hours(lab, 1)
        scenario.take(lab)
        stored.append(back.stored_count(lab, back.hourly(lab, number)))
    points = scenario.points(lab, "web")
    for point in points:
        assert_pages(point)
    assert_whole(lab, points)
    shared, taken = _shared_bytes(lab, points[1])
    print(f"MEASURED vault on {place}: of {taken >> 10} KiB {shared >> 10} are shared")
    assert shared > taken / 2 if PLACES[place].shares else shared == 0

    for times, point, count in zip((1, 2), points[::-1], stored[::-1], strict=True):
        back.restore(lab, f"web@{min(point.names)}", "--rollback", "--no-safety")
        back.assert_jumped_to(lab, count, times=times)
    back.assert_nothing_left(lab)


@pytest.mark.whole
def test_images_follow_the_record_size_of_the_vault(lab_session: Lab) -> None:
    """What a clone takes over of the last image is its bytes, not its records."""
    lab = lab_session
    scenario.configured(lab)
    scenario.write_sanoid_conf(lab, daily="0", monthly="0")
    sizes = ("128K", "16K", "16K")
    for record in sizes:
        lab.run(f"zfs set recordsize={record} cheap/vault")
        scenario.pass_hours(lab, 1)
        scenario.take(lab)
    points = scenario.points(lab, "web")
    for point in points:
        assert_pages(point)
    assert_whole(lab, points)
    files = " ".join(f"{point.directory}/memory.pages" for point in points)
    assert lab.run(f"stat -c %o {files}").stdout.split() == ["131072", "16384", "16384"]
    # The last one shares most of what it has with the one before, which shares nothing.
    shared, taken = _shared_bytes(lab, points[2])
    assert taken / 2 < shared <= taken


STORED_AS = {
    "memory.img": 'pages = false\ncompression = "none"',
    "memory.img.zst": 'pages = false\ncompression = "zstd"',
    "memory.pages": "pages = true",
}


@pytest.mark.whole
def test_points_of_before_load_beside_page_images(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    scenario.write_sanoid_conf(lab, daily="0", monthly="0")
    for image in (*STORED_AS.values(), *STORED_AS.values()):
        scenario.configure(lab, f"[image]\n{image}")
        scenario.pass_hours(lab, 1)
        scenario.take(lab)
    points = scenario.points(lab, "web")
    assert [each.manifest["memory"]["file"] for each in points] == [*STORED_AS, *STORED_AS]
    assert_whole(lab, points)
    for times, point in enumerate(points[::-1], 1):
        (name,) = point.names
        count = back.stored_count(lab, name)
        back.restore(lab, f"web@{name}", "--rollback", "--no-safety")
        back.assert_jumped_to(lab, count, times=times)
    back.assert_nothing_left(lab)


# Both are at the step before, and go on together.
TOGETHER = """
for each in web loaded; do
    (ZVMSNAP_TEST_STOP_BEFORE=store zvmsnap take $each > /root/$each.log 2>&1
     echo $? > /root/$each.code) < /dev/null &
done
until test $(ps -C zvmsnap,python3 -o stat=,args= | grep -c '^T.*zvmsnap take') = 2; do
    sleep 0.1
done
pkill -CONT -f '[z]vmsnap take'
wait
cat /root/*.log >&2
cat /root/*.code
"""


@pytest.mark.whole
def test_two_guests_are_published_at_once(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    lab.run(f"zfs create {LOADED.top}")
    disk = guests.make_disk(lab, guests.Disk(LOADED.disks["vda"]))
    guests.define(lab, guests.domain_xml("loaded", [disk]))
    guests.start(lab, "loaded")
    for name in ("web", "loaded"):
        zvmsnap(lab, "take", name)
    scenario.pass_hours(lab, 1)
    done = lab.run(TOGETHER, timeout_s=scenario.ROUND_LIMIT_S)
    assert done.stdout.split() == ["0", "0"], done

    times = []
    for guest in (WEB, LOADED):
        points = scenario.points(lab, guest.name)
        assert len(points) == 2
        for point in points:
            assert_pages(point)
        assert_whole(lab, points)
        first, last = f"{points[1].directory}/domain.xml", f"{points[1].directory}/memory.rest"
        times.append(lab.run(f"stat -c %.Y {first} {last}").stdout.split())
        assert_loads(lab, points[1], guest.disks["vda"], f"of-{guest.name}")
        scenario.assert_counted_through(lab, guest.name)
    (web_begins, web_ends), (loaded_begins, loaded_ends) = times
    assert max(web_begins, loaded_begins) < min(web_ends, loaded_ends), times
    back.assert_nothing_left(lab)
    back.assert_nothing_left(lab, LOADED)
