"""sanoid takes moments of a running guest, and the guest can go back to each of them."""

import hashlib
import json
from collections.abc import Mapping
from shlex import quote

import scenario
from scenario import WEB, Guest

from labkit import guests
from labkit.api import Lab

TYPES = ("monthly", "daily", "hourly")
# The lab is emulated and its host is busy: shorter silences say nothing of the hooks.
STALL_MARGIN_S = 12.0
# Who hears of a pause, from libvirt's events, may hear of it late.
CLOCKS_DIFFER_S = 3.0
PARTS_DIFFER_S = 0.01


def test_first_round_on_a_running_guest(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    with scenario.watched(lab, "web") as watch:
        said = scenario.take(lab)
        scenario.counts_on(lab)

    assert "error" not in said.stderr and "warning" not in said.stderr, said

    point = scenario.the_point(lab, "web")
    assert {f"{point.manifest['run']}_{each}" for each in TYPES} == point.names
    existing = {
        f"{dataset}@{name}": guid
        for dataset in WEB.datasets
        for name, guid in scenario.snapshots(lab, dataset).items()
    }
    assert len(existing) == len(TYPES) * len(WEB.datasets)
    assert point.ties == existing
    assert point.manifest["level"] == "memory"
    assert point.manifest["reason"] is None

    scenario.assert_at_rest(lab)
    assert scenario.vault_files(lab) == [
        f"{scenario.VAULT}/web",
        point.directory,
        *(
            f"{point.directory}/{name}"
            for name in (
                "domain.xml", "manifest.json", "memory.pages", "memory.rest", "persistent.xml"
            )
        ),
    ]

    scenario.assert_counted_through(lab, "web")
    (pause_s,) = watch.pauses_s
    assert abs(pause_s - point.timing["pause_s"]) < CLOCKS_DIFFER_S
    assert watch.longest_silence_s < pause_s + STALL_MARGIN_S
    parts = point.pause_parts
    assert all(parts[part] > 0 for part in ("ram_s", "overlays_s", "resume_s")), parts
    assert parts["flush_s"] >= 0 and parts["snapshot_s"] == parts["freeze_s"] == 0
    assert abs(sum(parts.values()) - point.timing["pause_s"]) < PARTS_DIFFER_S
    # AppArmor is on, as Debian ships it.
    assert parts["overlays_s"] > point.timing["pause_s"] / 2
    shown = lab.run("zvmsnap show web@latest").stdout
    assert f"labelling and overlays {parts['overlays_s']:.2f} s" in shown
    print(
        f"paused {pause_s:.2f} s; {watch.longest_silence_s:.2f} s at most between two counts; "
        f"{dict(point.timing)}"
    )

    for name in point.names:
        inside = lab.get(f"/tank/vm/web/.zfs/snapshot/{name}/.zvmsnap/web/domain.xml").decode()
        assert "<name>web</name>" in inside
        assert ".zvmsnap." not in inside


def test_guest_goes_back_to_its_first_moment(lab_session: Lab) -> None:
    scenario.taken(lab_session)
    point = scenario.the_point(lab_session, "web")
    oldest = f"{point.manifest['run']}_monthly"
    scenario.assert_coherent(lab_session, WEB, oldest, point.image)


def test_guest_goes_back_to_a_later_moment_with_a_compressed_image(lab_session: Lab) -> None:
    lab = lab_session
    scenario.taken(lab)
    (first,) = scenario.points(lab, "web")
    scenario.configure(lab, '[image]\npages = false\ncompression = "zstd"')
    lab.run(f"zfs set zvmsnap:keep-memory=1 {WEB.top}")
    scenario.pass_hours(lab, 1)
    scenario.take(lab)
    before, later = scenario.points(lab, "web")
    # The RAM of the first one went when post had published the second; all else of it stays.
    gone = {
        "memory": None,
        "level": "crash",
        "reason": "RAM removed by keep-memory",
        "absent_memory": _identity(first.manifest["memory"]),
    }
    assert before == scenario.Point(first.directory, {**first.manifest, **gone})
    assert [path for path in scenario.vault_files(lab) if "/memory." in path] == [later.image]
    assert json.loads(lab.run("zvmsnap prune -n --json").stdout)["removed_memory"] == []
    assert later.names == {f"{later.manifest['run']}_hourly"}

    memory = later.manifest["memory"]
    assert memory["compression"] == "zstd"
    stored = lab.get(later.image)
    assert hashlib.sha256(stored).hexdigest() == memory["sha256"]
    assert len(stored) == memory["stored_bytes"] < memory["image_bytes"]
    lab.run(f"zstd -q -d {later.image} -o /root/memory.img")
    assert int(lab.run("stat -c %s /root/memory.img").stdout) == memory["image_bytes"]

    (name,) = later.names
    scenario.assert_coherent(lab, WEB, name, "/root/memory.img")


def _identity(memory: Mapping[str, str]) -> str:
    """Of a page image: both its digests as one."""
    both = f"{memory['sha256']} {memory['rest_sha256']}"
    return hashlib.sha256(both.encode()).hexdigest()


def test_guest_on_a_volume_of_an_odd_name_and_another_that_is_left_alone(lab_session: Lab) -> None:
    lab = lab_session
    scenario.configured(lab)
    top = "tank/vm/my guest:1.x"
    # udev writes a blank in a volume's name as a plus sign.
    volume = "/dev/zvol/tank/vm/my+guest:1.x/data+disk"
    lab.run(
        f"zfs create {quote(top)} && zfs create -s -V 16M {quote(f'{top}/data disk')} &&"
        f"udevadm settle -E {volume}"
    )
    odd = Guest("my guest: 1.x", (top, f"{top}/data disk"), {"vda": volume})
    guests.define(lab, guests.domain_xml(odd.name, [guests.Disk(volume)]))
    lab.run(f"virsh start {quote(odd.name)}")
    scenario.write_sanoid_conf(lab, scenario.section(top))
    before = scenario.dumpxml(lab, "web")
    with scenario.watched(lab, "web") as watch:
        done = scenario.take(lab)
    assert "failed" not in done.stderr, done

    point = scenario.the_point(lab, odd.name)
    assert point.manifest["level"] == "memory"
    assert point.ties == {
        f"{odd.datasets[1]}@{name}": guid
        for name, guid in scenario.snapshots(lab, odd.datasets[1]).items()
    }
    scenario.assert_at_rest(lab, odd)

    assert scenario.points(lab) == [point]
    assert watch.pauses_s == []
    assert "web (" not in done.stderr
    assert scenario.dumpxml(lab, "web") == before
    assert scenario.snapshots(lab, WEB.top) == {}
    scenario.assert_counted_through(lab, "web")
