"""`zvmsnap send`: another host has the datasets and the points, and can bring them to life."""

from __future__ import annotations

import json
from shlex import quote

import back
import far
import pytest
import readme
import scenario
from back import zvmsnap
from far import DESTINATION, ROOT
from scenario import WEB

from labkit import guests
from labkit.api import Lab
from labkit.domains import SERIAL_DIR

# What the guest's definition names of the host, beside what every guest has.
SERIAL = f"serial 0: file {SERIAL_DIR}/web.log"


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    far.built(lab_session)
    return lab_session


def take_another(lab: Lab) -> None:
    scenario.pass_hours(lab, 1)
    scenario.take(lab)


def assert_sent(lab: Lab, *, booted: bool = False) -> None:
    """What is there is what is here, not mounted (but by a boot), and of the user alone."""
    for dataset in WEB.datasets:
        assert far.guids(lab, f"{ROOT}/{dataset}") == far.guids(lab, dataset)
    assert booted or "yes" not in lab.run(f"zfs list -Hr -o mounted {ROOT}/tank").stdout
    modes = lab.run(f"find {far.VAULT}/web -printf '%y %m %u\\n' | sort -u").stdout.splitlines()
    assert modes == [f"d 700 {far.USER}", f"f 600 {far.USER}"]
    assert ".arriving" not in lab.run(f"find {far.VAULT}").stdout


def holds(lab: Lab) -> str:
    return lab.run("zfs list -H -t snapshot -o userrefs -r tank | sort -u").stdout.strip()


def test_full_then_incremental_then_pruned(lab: Lab) -> None:
    (first,) = scenario.points(lab)
    planned = far.send(lab, "--dry-run", "web", DESTINATION)
    assert len(planned["points"]) == 1
    assert lab.run(f"zfs list -Hr -o name {ROOT}").stdout.split() == [ROOT]

    full = far.send(lab, "web", DESTINATION)
    assert_sent(lab)
    image_bytes = first.manifest["memory"]["stored_bytes"]
    assert full["points_bytes"] > image_bytes
    assert [point["memory_bytes"] for point in full["points"]] == [image_bytes]
    assert sum(stream["stream_bytes"] for stream in full["datasets"]) > 0

    # Nothing is sent again.
    again = far.send(lab, "web", DESTINATION)
    assert again["points"] == [] and again["points_bytes"] == 0
    assert [stream["seconds"] for stream in again["datasets"]] == [0, 0]

    take_another(lab)
    second = scenario.points(lab)[-1]
    more = far.send(lab, "web", DESTINATION)
    assert_sent(lab)
    assert [point["name"] for point in more["points"]] == [f"web@{second.manifest['run']}"]
    assert 0 < more["points_bytes"] < second.manifest["memory"]["stored_bytes"] + 200_000
    full_bytes, more_bytes = (
        sum(stream["stream_bytes"] for stream in unit["datasets"]) for unit in (full, more)
    )
    assert 0 < more_bytes < full_bytes
    print(f"SEND full {full} incremental {more}")
    listed = zvmsnap(lab, "list", "--remote", DESTINATION).stdout
    assert len(listed.splitlines()) == 3 and "memory" in listed
    status = json.loads(zvmsnap(lab, "status", "--json").stdout)
    (receipt,) = status["destinations"]
    assert receipt["newest_created"] == second.manifest["created"] and receipt["newest_has_memory"]
    assert holds(lab) == "0"
    scenario.counts_on(lab)
    scenario.assert_at_rest(lab)

    # The destination keeps what it likes, and points follow.
    for name in first.names:
        lab.run(f"zfs destroy -r {ROOT}/tank/vm/web@{name}")
    far.send(lab, "web", DESTINATION)
    assert [point["run"] for point in far.points(lab)] == [second.manifest["run"]]
    assert len(scenario.points(lab)) == 2


@pytest.mark.whole
def test_clone_and_restore_on_the_other_host(lab: Lab) -> None:
    name = back.hourly(lab)
    stored = back.stored_count(lab, name)
    far.send(lab, "web", DESTINATION)
    far.there(lab, "clone", "web@latest", "beside")
    back.assert_goes_on(lab, "beside-web", stored)
    assert scenario.disks(lab, "beside") == {
        "vda": f"/{ROOT}/tank/vm/beside/disk0.raw",
        "vdb": f"/dev/zvol/{ROOT}/tank/vm/beside/data",
    }
    scenario.counts_on(lab)
    far.there(lab, "clone", "--destroy", "beside")
    # What was received was not written to: the next stream fits.
    take_another(lab)
    more = far.send(lab, "web", DESTINATION)
    assert not more["error"] and more["points"]
    assert_sent(lab)

    # That host burns; its zvmsnap is told where the disks are.
    lab.run("virsh destroy web && virsh undefine web")
    refused = far.there(lab, "restore", "--yes", f"web@{name}", status=1)
    assert f"zfs mount {ROOT}/tank/vm/web" in refused.stderr
    lab.run("zfs mount -a")
    # A file of this host is beyond what a point that was made elsewhere may write to.
    refused = far.there(lab, "restore", "--yes", f"web@{name}", status=1)
    assert SERIAL in refused.stderr and "--trust" in refused.stderr
    since = guests.serial_size_bytes(lab, "web")
    far.there(lab, "restore", "--yes", "--trust", f"web@{name}")
    back.assert_goes_on(lab, "web", stored, since)
    assert scenario.disks(lab, "web") == {
        "vda": f"/{ROOT}/tank/vm/web/disk0.raw", "vdb": f"/dev/zvol/{ROOT}/tank/vm/web/data"
    }
    scenario.counts_on(lab)


@pytest.mark.whole
def test_fetch_home(lab: Lab) -> None:
    take_another(lab)
    name = back.hourly(lab, 1)
    stored = back.stored_count(lab, name)
    far.send(lab, "--memory", "all", "web", DESTINATION)
    assert "runs here" in zvmsnap(lab, "fetch", "--yes", "web@latest", DESTINATION, status=1).stderr
    far.burn(lab)
    since = guests.serial_size_bytes(lab, "web")
    refused = zvmsnap(lab, "fetch", "--yes", "web@latest", DESTINATION, status=1)
    assert SERIAL in refused.stderr and "--trust" in refused.stderr
    planned = zvmsnap(lab, "fetch", "--dry-run", "--trust", "web@latest", DESTINATION)
    assert f"TRUSTED, as it was not made on this host: {SERIAL}" in planned.stdout
    assert lab.run("zfs list -Hr -o name tank").stdout.split() == ["tank"]
    zvmsnap(lab, "fetch", "--yes", "--trust", "web@latest", DESTINATION)
    back.assert_goes_on(lab, "web", stored, since)
    scenario.assert_on_base(lab, "web", WEB.disks)
    for dataset in WEB.datasets:
        assert far.guids(lab, dataset) == far.guids(lab, f"{ROOT}/{dataset}")
    # And everything goes on as before.
    take_another(lab)
    more = far.send(lab, "web", DESTINATION)
    assert not more["error"] and len(more["points"]) == 1
    scenario.counts_on(lab)
    back.assert_nothing_left(lab)


@pytest.mark.whole
def test_fetch_while_others_clean_up_and_after_it_was_killed(lab: Lab) -> None:
    grown(lab)
    stored = back.stored_count(lab, back.hourly(lab, 1))
    far.send(lab, "web", DESTINATION)
    far.burn(lab)
    since = guests.serial_size_bytes(lab, "web")
    fetching = lab.start(" ".join(["exec", "zvmsnap", "fetch", "--yes", *SLOW_FETCH]))
    receiving(lab)
    for command in ("prune", "recover"):
        zvmsnap(lab, command)
        assert ".incoming-" in lab.run(f"ls -A {scenario.VAULT}/web").stdout
    assert "interrupted" not in zvmsnap(lab, "list").stdout
    lab.run("pkill -9 -f '[z]vmsnap fetch'; pkill -9 'syncoid|rsync|mbuffer'; true")
    fetching.communicate(timeout=scenario.ROUND_LIMIT_S)
    lab.run("until ! pgrep -f '[z]fs receive' > /dev/null; do sleep 0.2; done")
    zvmsnap(lab, "prune")
    said = zvmsnap(lab, "recover", status=1)
    assert "was interrupted: the same zvmsnap fetch goes on" in said.stdout + said.stderr
    assert "was interrupted" in zvmsnap(lab, "list").stdout
    zvmsnap(lab, "fetch", "--yes", "--trust", "web@latest", DESTINATION)
    back.assert_goes_on(lab, "web", stored, since)
    scenario.assert_on_base(lab, "web", WEB.disks)
    scenario.counts_on(lab)
    back.assert_nothing_left(lab)


@pytest.mark.whole
def test_after_a_restore_here_what_is_newer_there_stays(lab: Lab) -> None:
    name = back.hourly(lab)
    take_another(lab)
    far.send(lab, "web", DESTINATION)
    newer = far.guids(lab, f"{ROOT}/{WEB.top}")
    back.restore(lab, f"web@{name}")
    take_another(lab)
    unit = far.send(lab, "web", DESTINATION)
    assert not unit["error"]
    assert_sent(lab)
    (former,) = [
        each for each in back.zfs_names(lab) if each.startswith(f"{ROOT}/tank/vm/web.before-")
        and not each.endswith("/data")
    ]
    assert set(far.guids(lab, former)) == set(newer) - set(far.guids(lab, WEB.top))
    # All points there find their snapshots, wherever these are now.
    assert len(far.points(lab)) == 3
    assert all(point["complete_names"] for point in far.points(lab))
    again = far.send(lab, "web", DESTINATION)
    assert again["points"] == [] and not again["error"]
    # It goes as the page says, by the name that it has here.
    (remove,) = readme.commands("When the other machine has newer snapshots")
    lab.run(remove.replace(remove.split()[-1], former))
    no_fork(lab)
    again = far.send(lab, "web", DESTINATION)
    assert again["points"] == [] and not again["error"]


def no_fork(lab: Lab) -> None:
    assert ".before-" not in lab.run(f"zfs list -Hr -o name {ROOT}").stdout


def bookmarks(lab: Lab) -> list[str]:
    return lab.run("zfs list -H -t bookmark -o name -r tank").stdout.split()


@pytest.mark.whole
def test_what_was_sent_last_is_pruned_here(lab: Lab) -> None:
    """The next stream begins at its bookmark, though both sides have an older snapshot, too."""
    lab.run(f"zfs set zvmsnap:mode=crash {WEB.top}")
    take_another(lab)
    far.send(lab, "web", DESTINATION)
    last = list(scenario.snapshots(lab, WEB.top))[-1]
    lab.run(f"zfs destroy -r {WEB.top}@{last}")
    take_another(lab)
    unit = far.send(lab, "web", DESTINATION)
    assert not unit["error"] and unit["datasets"][0]["since"] == last
    no_fork(lab)
    assert last in scenario.snapshots(lab, f"{ROOT}/{WEB.top}")
    assert far.guids(lab, f"{ROOT}/{WEB.top}")[-1] == far.guids(lab, WEB.top)[-1]
    assert holds(lab) == "0"
    # A restore to a moment after it would lose that bookmark, if promote did not take it along.
    moved = lab.run(
        "zfs create tank/x && zfs snapshot tank/x@a && zfs bookmark tank/x@a tank/x#a && "
        "zfs snapshot tank/x@b && zfs clone tank/x@b tank/y && zfs promote tank/y && "
        "zfs list -H -t bookmark -o name -r tank/x tank/y; zfs destroy -R tank/y"
    )
    assert moved.stdout.split() == ["tank/y#a"]


@pytest.mark.whole
def test_cut_while_it_is_sent_from_a_bookmark(lab: Lab) -> None:
    """What is under way there is held, whatever sanoid prunes, and goes on."""
    lab.run(f"zfs set zvmsnap:mode=crash {WEB.top}")
    scenario.write_sanoid_conf(lab, hourly="1", daily="2", monthly="1")
    take_another(lab)
    far.send(lab, "web", DESTINATION)
    last = list(scenario.snapshots(lab, WEB.top))[-1]
    lab.run(f"zfs destroy -r {WEB.top}@{last}")
    grown(lab)
    sending = lab.start(" ".join(["exec", "zvmsnap", "send", *SLOW]))
    lab.run(
        "until pgrep -f '[z]vmsnap send' > /dev/null; do sleep 0.2; done; "
        "until pgrep -af '[z]fs send' | grep -q '#zvmsnap-' || ! pgrep -f '[z]vmsnap send'; "
        "do sleep 0.2; done; sleep 8",
        timeout_s=scenario.ROUND_LIMIT_S,
    )
    far.stop_sshd(lab)
    said = sending.communicate(timeout=scenario.ROUND_LIMIT_S)
    print("cut:", said)
    far.start_sshd(lab)
    lab.run("until ! pgrep -f '[z]fs receive' > /dev/null; do sleep 0.2; done")
    assert holds(lab) != "0", said
    status = json.loads(zvmsnap(lab, "status", "--json", status=1).stdout)
    assert list(status["held"]) == [DESTINATION]
    token = f"zfs get -Ho value receive_resume_token {ROOT}/{WEB.top}"
    assert lab.run(token).stdout.strip() != "-"
    for hours in (30, 1):
        scenario.pass_hours(lab, hours)
        scenario.take(lab)
        scenario.prune(lab)
    unit = far.send(lab, "web", DESTINATION)
    assert not unit["error"]
    assert far.guids(lab, f"{ROOT}/{WEB.top}")[-1] == far.guids(lab, WEB.top)[-1]
    assert holds(lab) == "0"
    no_fork(lab)


@pytest.mark.whole
def test_days_of_sends_while_sanoid_prunes(lab: Lab) -> None:
    """Three nights, a gap of three days, use_hold; and at last the destination is forgotten."""
    lab.run(f"zfs set zvmsnap:mode=crash {WEB.top}")
    scenario.write_sanoid_conf(lab, hourly="1", daily="2", monthly="1")

    def day() -> str:
        """A day passes, and the hour after; returns what the destination had last."""
        last = list(scenario.snapshots(lab, f"{ROOT}/{WEB.top}"))[-1]
        for hours in (24, 1):
            scenario.pass_hours(lab, hours)
            scenario.take(lab)
            said = scenario.prune(lab)
            assert "could not remove" not in said.stderr, said
        assert last not in scenario.snapshots(lab, WEB.top)
        return last

    def sent(last: str) -> None:
        unit = far.send(lab, "web", DESTINATION)
        assert not unit["error"]
        assert {each["since"] for each in unit["datasets"]} == {last}
        for dataset in WEB.datasets:
            assert far.guids(lab, f"{ROOT}/{dataset}")[-1] == far.guids(lab, dataset)[-1]
        assert holds(lab) == "0"
        no_fork(lab)

    far.send(lab, "web", DESTINATION)
    scenario.pass_hours(lab, 1)
    scenario.take(lab)
    far.send(lab, "web", DESTINATION)
    for _ in range(3):
        sent(day())
    far.stop_sshd(lab)
    for _ in range(3):
        last = day()
        zvmsnap(lab, "send", "web", DESTINATION, status=1)
    far.start_sshd(lab)
    sent(last)

    # What the recipe allows the user there is enough for use_hold.
    scenario.configure(lab, f'[[destination]]\ntarget = "{DESTINATION}"\nuse_hold = true')
    for _ in range(2):
        take_another(lab)
        said = zvmsnap(lab, "send")
        assert "WARNING" not in said.stderr + said.stdout, said
    refs = f"zfs list -Hp -t snapshot -o userrefs -r {ROOT}/tank"
    assert sorted(map(int, lab.run(refs).stdout.split()))[-3:] == [0, 1, 1]
    assert bookmarks(lab)
    (forget,) = readme.commands("What is kept for a destination")
    lab.run(forget)
    assert bookmarks(lab) == []
    assert "never sent" in zvmsnap(lab, "status").stdout


@pytest.mark.whole
def test_one_clear_line_each(lab: Lab) -> None:
    before = lab.run("zfs list -Hp -t all -o name,guid -r tank; virsh list --all").stdout

    def refused(*words: str) -> str:
        done = zvmsnap(lab, "send", "web", *words, status=1)
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, done
        return lines[0]

    assert "dataset does not exist" in refused(f"{far.USER}@{far.HOST}:backup/none")
    assert "Permission denied" in refused(f"nobody@{far.HOST}:{ROOT}")
    assert "resolve" in refused("no-such-host:backup/x")
    lab.run("zfs set readonly=on backup/vault")
    line = refused(DESTINATION)
    assert far.VAULT in line and "zfs set zvmsnap:vault" in line
    lab.run("zfs set readonly=off backup/vault")
    far.stop_sshd(lab)
    assert "Connection refused" in refused(DESTINATION)
    lab.run("rm /srv/far/host_key && ssh-keygen -q -t ed25519 -N '' -f /srv/far/host_key")
    far.start_sshd(lab)
    assert "Host key verification failed" in refused(DESTINATION)
    assert lab.run("zfs list -Hp -t all -o name,guid -r tank; virsh list --all").stdout == before
    assert lab.run(f"zfs list -Hr -o name {ROOT}").stdout.split() == [ROOT]
    scenario.counts_on(lab)


@pytest.mark.whole
def test_a_guest_on_its_overlay_is_waited_for_and_then_refused(lab: Lab) -> None:
    scenario.configure(lab, "[limits]\nbusy_timeout_s = 3")
    name = "autosnap_2099-01-01_00:00:00_hourly"
    assert scenario.hook(lab, "pre-snapshot", WEB.top, [name]).returncode == 0
    unit = far.send(lab, "web", DESTINATION, status=1)
    assert "is on an overlay" in unit["error"] or "is under way" in unit["error"]
    assert far.points(lab) == []
    scenario.hook(lab, "post-snapshot", WEB.top, [name])
    assert not far.send(lab, "web", DESTINATION)["error"]
    assert_sent(lab)


SLOW = ("--bwlimit", "150k", "web", DESTINATION)
SLOW_FETCH = ("--trust", "--bwlimit", "150k", "web@latest", DESTINATION)


def grown(lab: Lab) -> None:
    """The guest's dataset has some MiB more to send, and another moment."""
    lab.run("head -c 4M /dev/urandom > /tank/vm/web/blob")
    take_another(lab)


def receiving(lab: Lab) -> None:
    lab.run("until pgrep -f '[z]fs receive' > /dev/null; do sleep 0.2; done; sleep 3")


def copying(lab: Lab) -> None:
    lab.run(
        f"until find {far.VAULT} -path '*.arriving*' -name 'memory*' -size +100k | grep -q .; "
        "do sleep 0.2; done",
        timeout_s=scenario.ROUND_LIMIT_S,
    )


STAGES = {"datasets": receiving, "memory": copying}


@pytest.mark.whole
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("fault", ["kill", "ssh cut", "power cut"])
def test_interrupted(lab: Lab, stage: str, fault: str) -> None:
    grown(lab)
    sending = lab.start(" ".join(["exec", "zvmsnap", "send", *SLOW]))
    STAGES[stage](lab)
    if fault == "kill":
        lab.run("pkill -9 -f '[z]vmsnap send'; pkill -9 'syncoid|rsync|mbuffer'; true")
    elif fault == "ssh cut":
        far.stop_sshd(lab)
        _, said = sending.communicate(timeout=scenario.ROUND_LIMIT_S)
        assert "error: " in said and "Traceback" not in said
        far.start_sshd(lab)
    else:
        lab.powercut()
        far.connect(lab)
    # Half a point is no point (the first one, without RAM, went before); nothing here is held.
    there = [point["memory"] for point in far.points(lab)]
    assert there == ([] if stage == "datasets" else [None])
    assert holds(lab) == "0"
    lab.run("until ! pgrep -f '[z]fs receive' > /dev/null; do sleep 0.2; done")
    unit = far.send(lab, "--memory", "all", "web", DESTINATION)
    assert not unit["error"]
    assert_sent(lab, booted=fault == "power cut")
    assert len(far.points(lab)) == 2
    verified = far.there(lab, "verify", "--json")
    assert [each["why"] for each in json.loads(verified.stdout)["points"].values()] == ["", ""]


@pytest.mark.whole
@pytest.mark.parametrize("full", [f"{ROOT}", "backup/vault"])
def test_destination_full(lab: Lab, full: str) -> None:
    grown(lab)
    lab.run(f"zfs set quota={'1M' if full == ROOT else '300K'} {full}")
    unit = far.send(lab, "web", DESTINATION, status=1)
    assert "space" in unit["error"] or "quota" in unit["error"].lower()
    # Points without RAM may have found room.
    assert not any(point["memory"] for point in far.points(lab))
    assert holds(lab) == "0"
    lab.run(f"zfs set quota=none {full}")
    assert not far.send(lab, "web", DESTINATION)["error"]
    assert_sent(lab)
    assert len(far.points(lab)) == 2


@pytest.mark.whole
def test_bandwidth_is_kept(lab: Lab) -> None:
    grown(lab)
    unit = far.send(lab, "--bwlimit", "150k", "web", DESTINATION)
    (web,) = [each for each in unit["datasets"] if each["dataset"] == WEB.top]
    assert web["stream_bytes"] > 4 << 20
    # A little of it may go at once.
    assert web["seconds"] > 0.9 * (4 << 20) / (150 << 10)
    assert_sent(lab)


@pytest.mark.whole
def test_another_pool_encrypted_and_with_names_for_a_shell(lab: Lab) -> None:
    """Without ssh; and over it, into a vault whose path a shell would read as something else."""
    lab.run(
        "zpool create usb $(truncate -s 1G /srv/usb && echo /srv/usb) && zfs create usb/off && "
        "head -c 32 /dev/urandom > /root/key && zfs create -o encryption=on -o keyformat=raw "
        "-o keylocation=file:///root/key 'tank/my secrets: 1' && "
        "echo secret > '/tank/my secrets: 1/file' && zfs snapshot 'tank/my secrets: 1@a b'"
    )
    far.send(lab, "web", "usb/off")
    assert far.guids(lab, "usb/off/tank/vm/web") == far.guids(lab, WEB.top)
    assert "memory" in zvmsnap(lab, "list", "--remote", "usb/off").stdout
    assert lab.run("ls /usb/off/zvmsnap-vault/web").stdout

    vault = "/backup/$(touch pwned)' \"v;a & b"
    lab.run(
        f"install -d -o {far.USER} {quote(vault)} && zfs set zvmsnap:vault={quote(vault)} {ROOT}"
    )
    unit = far.send(lab, "tank/my secrets: 1", DESTINATION)
    assert unit["datasets"][0]["raw"]
    there = f"{ROOT}/tank/my secrets: 1"
    assert far.guids(lab, there) == far.guids(lab, "tank/my secrets: 1")
    assert lab.run(f"zfs get -Ho value keystatus {quote(there)}").stdout.strip() == "unavailable"
    far.send(lab, "web", DESTINATION)
    assert lab.run(f"find {quote(vault)} -name manifest.json").stdout.count("\n") == 1
    assert "memory" in zvmsnap(lab, "list", "--remote", DESTINATION).stdout
    assert lab.run(f"find / -xdev -name pwned; find /home/{far.USER} -name pwned").stdout == ""
