"""Staging that will not do is refused before anything is touched: nobody pays for it by a pause."""

from dataclasses import dataclass

import pytest
import scenario
from scenario import WEB

from labkit.api import Completed, Lab

SMALL_MIB = 48  # less than the 64 MiB of RAM of `web`


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    scenario.configured(lab_session)
    return lab_session


@dataclass(frozen=True)
class Place:
    """A directory of ours that will not do: the key of it, what makes it, and what is said."""

    key: str
    path: str
    make: str
    said: str


UNUSABLE = (
    # Behind a symlink, inside a child of the dataset that sanoid's section names.
    Place("staging", "/srv/staging",
          f"zfs create {WEB.top}/scratch && ln -s /{WEB.top}/scratch /srv/staging",
          "set `staging` in config.toml to another file system"),
    Place("staging", "/srv/private/staging", "install -d -m 700 /srv/private",
          "chmod o+x /srv/private"),
    Place("staging", "/run/staging", "true", "is on tmpfs, which is RAM"),
    Place("journal", f"/{WEB.top}/journal", "true",
          f"journal /{WEB.top}/journal is on {WEB.top}, which holds disks of the guest"),
    Place("vault", f"/{WEB.top}/vault", "true",
          f"vault /{WEB.top}/vault is on {WEB.top}, which holds disks of the guest"),
)


def take_with(lab: Lab, key: str, path: str) -> Completed:
    own = "" if key == "vault" else f'{key} = "{path}"\n'
    vault = path if key == "vault" else scenario.VAULT
    scenario.configure(lab, f"{own}[limits]\noverlay_room_mib = 1", vault)
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
    done = take_with(lab, "staging", f"{scenario.mount_small(lab, SMALL_MIB)}/staging")
    assert "may need 161 MiB: free space there" in done.stderr, done
    left = f"find /srv/small/staging /var/lib/zvmsnap/journal -mindepth 1 {scenario.LASTING}"
    assert lab.run(left).stdout == ""

    point = scenario.the_point(lab, "web")
    assert point.manifest["level"] == "crash"
    assert "/srv/small/staging" in point.manifest["reason"]
    assert point.manifest["memory"] is None
    assert point.names == set(scenario.snapshots(lab, WEB.top))


@pytest.mark.whole
def test_unusable_is_refused_with_the_reason(lab: Lab) -> None:
    for place in UNUSABLE:
        lab.run(place.make)
        done = take_with(lab, place.key, place.path)
        (line,) = [line for line in done.stderr.splitlines() if "zvmsnap" in line]
        assert place.said in line
        assert scenario.points(lab) == []
        ours = f"/srv /run/staging /{WEB.top} /var/lib/zvmsnap"
        made = lab.run(f"find {ours} -type f ! -name '*.raw'", check=False).stdout
        assert made == ""
        scenario.pass_hours(lab, 1)
