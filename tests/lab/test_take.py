"""`zvmsnap take`: guests on unrelated datasets at one instant, without sanoid; all or none."""

from __future__ import annotations

import back
import pytest
import scenario
from back import zvmsnap
from scenario import WEB

from labkit import bootsector, guests
from labkit.api import Lab
from labkit.domains import Disk

DB = scenario.Guest("db", ("tank/db",), {"vda": "/tank/db/disk0.raw"})
NAME = "before-upgrade"


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    def make(lab: Lab) -> None:
        lab.run("zfs create tank/db")
        drives = [guests.make_disk(lab, Disk(path)) for path in DB.disks.values()]
        guests.define(lab, guests.domain_xml(DB.name, drives))
        guests.start(lab, DB.name)
        lab.run("zfs set zvmsnap:group=shop tank/db && zfs set zvmsnap:group=shop tank/vm/web")

    scenario.stage(lab_session, "pair", scenario.configured, make)
    return lab_session


def txgs(lab: Lab) -> set[str]:
    listed = lab.run("zfs list -Hp -t snapshot -o name,createtxg -r tank").stdout.splitlines()
    return {line.split("\t")[1] for line in listed if line.partition("\t")[0].endswith(NAME)}


@pytest.mark.whole
def test_two_guests_at_one_instant_and_back(lab: Lab) -> None:
    zvmsnap(lab, "take", "--group", "shop", "--name", NAME, "--hold", "audit")
    assert len(txgs(lab)) == 1
    for guest in (WEB, DB):
        scenario.assert_at_rest(lab, guest)
        scenario.counts_on(lab, guest.name)
        # Both stood still together, until the disks of both were snapshotted.
        assert scenario.the_point(lab, guest.name).manifest["level"] == "paused"
    scenario.prune(lab)
    stored = {
        guest.name: guests.disk_count(lab, f"/{guest.top}/.zfs/snapshot/{NAME}/disk0.raw")
        for guest in (WEB, DB)
    }
    for guest in (WEB, DB):
        since = guests.serial_size_bytes(lab, guest.name)
        back.restore(lab, f"{guest.name}@{NAME}", "--no-safety")
        guests.wait_counts(
            lab, guest.name, stored[guest.name] + scenario.PROOF_COUNTS, since_byte=since
        )
        assert guests.boots(lab, guest.name, since) == 0
        assert guests.mismatches(lab, guest.name, since) == []
        assert stored[guest.name] + 1 in guests.counts(lab, guest.name, since)
    # A former machine lies on it, and it is held: it is not dropped.
    assert "depends on it" in zvmsnap(lab, "drop", "--yes", f"db@{NAME}", status=1).stderr
    lab.run("zfs destroy -r $(zfs list -Ho name | grep tank/db.before)")
    assert "is held" in zvmsnap(lab, "drop", "--yes", f"db@{NAME}", status=1).stderr
    lab.run(f"zfs release audit tank/db@{NAME}")
    zvmsnap(lab, "drop", "--yes", f"db@{NAME}")
    assert scenario.snapshots(lab, "tank/db") == {}
    assert scenario.points(lab, "db") == []
    assert zvmsnap(lab, "prune", "--dry-run").returncode == 0


PAIR = ("ping", "pong")


def tokens(lab: Lab, name: str, since: int = 0) -> list[int]:
    return [int(line, 16) for line in guests.serial(lab, name, since).split() if len(line) == 8]


def wait_tokens(lab: Lab, name: str, more_than: int, since: int = 0) -> None:
    scenario.wait_until(f"{name} passes the token on",
                        lambda: len(tokens(lab, name, since)) > more_than, timeout_s=180)


def complaints(lab: Lab, name: str, since: int = 0) -> list[str]:
    text = guests.serial(lab, name, since)
    return [line for line in text.splitlines() if line.startswith(("!", "E"))]


def put_back(lab: Lab, names: dict[str, str]) -> dict[str, int]:
    """The disks of both to the first of these snapshots, RAM of each of its own; by hand."""
    since = {}
    for name in PAIR:
        lab.run(f"virsh -q destroy {name}")
        since[name] = guests.serial_size_bytes(lab, name)
    for dataset in ("tank/pair", "tank/pair/shared"):
        lab.run(f"zfs rollback -r {dataset}@{names['ping']}")
    lab.run("udevadm settle && blockdev --flushbufs /dev/zvol/tank/pair/shared")
    images = {name: f"/root/{name}.{names[name]}" for name in PAIR}
    for name in PAIR:
        lab.run(f"virsh -q restore --running {images[name]}")
    return since


def test_a_pair_that_passes_a_token(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    lab.run("zfs create tank/pair && zfs create -V 1M tank/pair/shared && udevadm settle")
    for role, name in enumerate(PAIR):
        lab.run(f"cat > /tank/pair/{name}.raw && truncate -s 1M /tank/pair/{name}.raw",
                stdin=bootsector.token_code(role))
        drives = [Disk(f"/tank/pair/{name}.raw"),
                  Disk("/dev/zvol/tank/pair/shared", extra="<shareable/>")]
        guests.define(lab, guests.domain_xml(name, drives))
        lab.run(f"virsh -q start {name}")
    wait_tokens(lab, "pong", 10)
    for moment in ("first", "second"):
        zvmsnap(lab, "take", *PAIR, "--name", moment)
        for point in scenario.points(lab):
            assert point.manifest["level"] == "paused"
            if moment in point.names:
                # The second moment goes with a rollback to the first.
                domain = point.manifest["domain"]
                image = scenario.loadable(lab, domain, point.image)
                lab.run(f"mv {image} /root/{domain}.{moment}")
        wait_tokens(lab, "ping", len(tokens(lab, "ping")) + 4)
    assert complaints(lab, "ping") == complaints(lab, "pong") == []

    since = put_back(lab, dict.fromkeys(PAIR, "first"))
    for name in PAIR:
        wait_tokens(lab, name, 10, since[name])
        assert complaints(lab, name, since[name]) == []
        assert "B" not in guests.serial(lab, name, since[name]).split()
    # That they would tell is seen of RAM of two moments.
    since = put_back(lab, {"ping": "first", "pong": "second"})
    scenario.wait_until("one complains", lambda: bool(
        complaints(lab, "pong", since["pong"]) + complaints(lab, "ping", since["ping"])), 60)
    # Neither loses its disks because the other's point goes.
    alone = zvmsnap(lab, "drop", "--yes", "ping@first", status=1)
    assert "pong@first needs it, too" in alone.stderr
    assert scenario.snapshots(lab, "tank/pair").keys() == {"first"}
    zvmsnap(lab, "drop", "--yes", "ping@first", "pong@first")
    assert scenario.snapshots(lab, "tank/pair") == {}
    assert [point for point in scenario.points(lab) if "first" in point.names] == []


@pytest.mark.whole
def test_one_guest_fails_and_none_has_a_part(lab: Lab) -> None:
    scenario.configure(lab, "[limits]\nlock_timeout_s = 2")
    uuid = lab.run("virsh domuuid db").stdout.strip()
    lab.run("mkdir -p -m 700 /run/zvmsnap")
    hold = f"import fcntl, time; f = open('/run/zvmsnap/{uuid}.lock', 'w'); fcntl.flock(f, 2)"
    held = lab.start(f'exec python3 -c "{hold}; time.sleep(600)"')
    lab.run(f"while flock -n /run/zvmsnap/{uuid}.lock true; do sleep 0.1; done")
    failed = zvmsnap(lab, "take", "web", "db", "--name", NAME, status=1)
    assert "was not taken" in failed.stderr
    lab.run("pkill -f '[f]cntl.flock'")
    held.wait(scenario.ROUND_LIMIT_S)
    assert txgs(lab) == set() and scenario.points(lab) == []
    for guest in (WEB, DB):
        scenario.assert_at_rest(lab, guest)
        scenario.assert_counted_through(lab, guest.name)
    zvmsnap(lab, "take", "web", "db", "--name", NAME)
    assert len(txgs(lab)) == 1


@pytest.mark.whole
def test_killed_in_the_middle(lab: Lab) -> None:
    lab.start("ZVMSNAP_TEST_STOP_BEFORE=frozen exec zvmsnap take web db")
    stopped = "ps -C zvmsnap,python3 -o stat=,args= | grep -q '^T.*zvmsnap'"
    lab.run(f"until {stopped}; do sleep 0.1; done", timeout_s=scenario.ROUND_LIMIT_S)
    lab.run("pkill -9 -f '[z]vmsnap take'")
    # The guard does it.
    scenario.wait_until(
        "both are back",
        lambda: scenario.leftovers(lab) == [],
        timeout_s=180,
    )
    for guest in (WEB, DB):
        scenario.assert_at_rest(lab, guest)
        scenario.assert_counted_through(lab, guest.name)
    assert scenario.points(lab) == []
