"""Staging that will not do is refused before anything is touched: nobody pays for it by a pause."""

import pytest
import scenario
from scenario import WEB

from labkit.api import Completed, Lab

SMALL_MIB = 48  # less than the 64 MiB of RAM of `web`


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    scenario.configured(lab_session)
    return lab_session


def on_the_snapshotted_dataset(lab: Lab) -> str:
    """Behind a symlink, inside a child of the dataset that sanoid's section names."""
    lab.run(f"zfs create {WEB.top}/scratch && ln -s /{WEB.top}/scratch /srv/staging")
    return "/srv/staging"


def behind_a_private_directory(lab: Lab) -> str:
    lab.run("install -d -m 700 /srv/private")
    return "/srv/private/staging"


def take_with_staging(lab: Lab, staging: str) -> Completed:
    scenario.configure(lab, f'staging = "{staging}"\n[limits]\noverlay_room_mib = 1')
    with scenario.watched(lab, "web") as watch:
        done = scenario.take(lab)
        scenario.counts_on(lab)
    assert watch.pauses_s == []
    scenario.assert_on_base(lab, "web", WEB.disks)
    scenario.assert_counted_through(lab, "web")
    assert "WARN: pre_snapshot_script failed, 256" in done.stderr, done
    assert "Traceback" not in done.stderr
    assert set(scenario.snapshots(lab, WEB.top)) == set(scenario.snapshots(lab, WEB.datasets[1]))
    return done


def test_too_small_for_the_ram(lab: Lab) -> None:
    done = take_with_staging(lab, f"{scenario.mount_small(lab, SMALL_MIB)}/staging")
    assert "may need 161 MiB: free space there" in done.stderr, done
    left = f"find /srv/small/staging /var/lib/zvmsnap/journal -mindepth 1 {scenario.LASTING}"
    assert lab.run(left).stdout == ""

    point = scenario.the_point(lab, "web")
    assert point.manifest["level"] == "crash"
    assert "/srv/small/staging" in point.manifest["reason"]
    assert point.manifest["memory"] is None
    assert point.names == set(scenario.snapshots(lab, WEB.top))


UNUSABLE = {
    on_the_snapshotted_dataset: "set `staging` in config.toml to another file system",
    behind_a_private_directory: "chmod o+x /srv/private",
}


def test_unusable_is_refused_with_the_reason(lab: Lab) -> None:
    for unusable, what_to_do in UNUSABLE.items():
        done = take_with_staging(lab, unusable(lab))
        (line,) = [line for line in done.stderr.splitlines() if "zvmsnap" in line]
        assert what_to_do in line
        assert scenario.points(lab) == []
        assert lab.run("find /srv /var/lib/zvmsnap -type f", check=False).stdout == ""
        scenario.pass_hours(lab, 1)
