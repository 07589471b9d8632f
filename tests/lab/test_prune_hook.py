"""A RAM image goes with the last of its snapshots, and only then."""

import json

import pytest
import scenario
from scenario import VAULT, WEB

from labkit.api import Completed, Lab

UNKNOWN_NAME = "autosnap_2001-01-01_00:00:00_daily"
# What an attacker, or a careless copy, might leave in the vault.
OUTSIDE = "/root/outside"


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    scenario.taken(lab_session)
    return lab_session


def names_of(lab: Lab, moment: str) -> list[str]:
    """The types of which the moment still has a snapshot; the same ones on each dataset."""
    by_dataset = [
        sorted(
            name.removeprefix(f"{moment}_")
            for name in scenario.snapshots(lab, dataset)
            if name.startswith(moment)
        )
        for dataset in WEB.datasets
    ]
    assert by_dataset[0] == by_dataset[1]
    return by_dataset[0]


def destroy_snapshots(lab: Lab) -> None:
    for name in scenario.snapshots(lab, WEB.top):
        lab.run(f"zfs destroy -r {WEB.top}@{name}")


def prune_command(lab: Lab, *options: str) -> Completed:
    return lab.run(f"zvmsnap prune {' '.join(options)}", check=False)


def test_sanoid_prunes_one_by_one_until_the_last(lab: Lab) -> None:
    (first,) = scenario.points(lab)
    moment = first.manifest["run"]
    scenario.pass_hours(lab, 2)
    scenario.take(lab)
    _, second = scenario.points(lab)

    scenario.write_sanoid_conf(lab, hourly="1")
    scenario.prune(lab)
    assert names_of(lab, moment) == ["daily", "monthly"]
    assert scenario.points(lab) == [first, second]

    scenario.write_sanoid_conf(lab, hourly="1", daily="0")
    scenario.prune(lab)
    assert names_of(lab, moment) == ["monthly"]
    assert scenario.points(lab) == [first, second]
    assert first.image in scenario.vault_files(lab)

    scenario.write_sanoid_conf(lab, hourly="1", daily="0", monthly="0")
    said = scenario.prune(lab)
    assert names_of(lab, moment) == []
    assert scenario.points(lab) == [second]
    assert not [path for path in scenario.vault_files(lab) if moment in path]
    assert "failed" not in said.stderr, said

    scenario.write_sanoid_conf(lab, hourly="0", daily="0", monthly="0")
    scenario.prune(lab)
    assert scenario.vault_files(lab) == []


def test_hook_spares_points_that_still_have_a_snapshot(lab: Lab) -> None:
    point = scenario.the_point(lab, "web")
    everything = scenario.vault_files(lab)
    for name in (UNKNOWN_NAME, "by-hand", *point.names):
        done = scenario.hook(lab, "pruning", WEB.top, [name])
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert scenario.vault_files(lab) == everything


def test_snapshot_of_the_same_name_is_another_snapshot(lab: Lab) -> None:
    point = scenario.the_point(lab, "web")
    destroy_snapshots(lab)
    for name in point.names:
        lab.run(f"zfs snapshot -r {WEB.top}@{name}")
    assert set(scenario.snapshots(lab, WEB.top)) == point.names
    done = scenario.hook(lab, "pruning", WEB.top, sorted(point.names)[:1])
    assert done.returncode == 0, done
    assert scenario.vault_files(lab) == []


def test_points_of_an_exported_pool_are_kept(lab: Lab) -> None:
    point = scenario.the_point(lab, "web")
    everything = scenario.vault_files(lab)
    lab.run("virsh destroy web; zpool export tank")
    for name in point.names:
        scenario.hook(lab, "pruning", WEB.top, [name])
    assert scenario.vault_files(lab) == everything
    said = prune_command(lab, "--json")
    assert json.loads(said.stdout)["kept_unknown"] == [f"web@{point.manifest['run']}"]
    assert scenario.vault_files(lab) == everything

    lab.run("zpool import tank")
    assert prune_command(lab).returncode == 0
    assert scenario.vault_files(lab) == everything


@pytest.mark.parametrize("by_hook", [
    pytest.param(True, id="hook"),
    pytest.param(False, id="command", marks=pytest.mark.whole),
])
def test_damaged_entries_and_symlinks_are_reported_and_spared(lab: Lab, by_hook: bool) -> None:
    point = scenario.the_point(lab, "web")
    folder = f"{VAULT}/web"
    lab.run(
        f"cp -a {point.directory} {OUTSIDE}; ln -s {OUTSIDE} {point.directory}.2;"
        f"mkdir {point.directory}.3; head -c 100 {point.directory}/manifest.json"
        f"  > {point.directory}.3/manifest.json;"
        f"mkdir {point.directory}.4; ln -s {OUTSIDE}/manifest.json {point.directory}.4/;"
        f"mkdir {point.directory}.5;"
        f"mkdir /root/elsewhere && cp -a {OUTSIDE} /root/elsewhere/ && ln -s /root/elsewhere"
        f"  {VAULT}/mallory; echo stray > {VAULT}/stray;"
        f'sed \'s,"memory.pages","../../../root/precious",\' {OUTSIDE}/manifest.json'
        f"  | install -D /dev/stdin {point.directory}.6/manifest.json; echo > /root/precious"
    )
    suspicious = [f"{point.directory}.{number}" for number in range(2, 7)]
    others = [
        path for path in scenario.vault_files(lab) if not path.startswith(f"{point.directory}/")
    ]
    others.remove(point.directory)
    outside = lab.run(f"find {OUTSIDE} /root/elsewhere /root/precious | sort").stdout
    destroy_snapshots(lab)

    if by_hook:
        done = scenario.hook(lab, "pruning", WEB.top, sorted(point.names)[:1])
    else:
        done = prune_command(lab)

    assert done.returncode == 1
    said = done.stdout + done.stderr
    # What lies beside the guests' directories is nothing that a hook was called for.
    beside = [] if by_hook else [f"{VAULT}/mallory", f"{VAULT}/stray"]
    for path in (*suspicious, *beside):
        assert f"{path}:" in said or f"{path}/manifest.json:" in said, done
    assert "Traceback" not in said
    assert scenario.vault_files(lab) == others
    assert folder in others
    assert lab.run(f"find {OUTSIDE} /root/elsewhere /root/precious | sort").stdout == outside


def test_command_removes_what_no_hook_was_called_for(lab: Lab) -> None:
    point = scenario.the_point(lab, "web")
    lab.run(
        f"cp -a {point.directory} {VAULT}/web/.removing-earlier;"
        f"cp -a {point.directory} {VAULT}/web/.incoming-earlier"
    )
    everything = scenario.vault_files(lab)
    destroy_snapshots(lab)
    assert prune_command(lab, "--dry-run").returncode == 0
    assert scenario.vault_files(lab) == everything
    assert prune_command(lab).returncode == 0
    assert scenario.vault_files(lab) in ([], [f"{VAULT}/web"])
