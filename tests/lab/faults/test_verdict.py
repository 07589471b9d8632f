"""The verdict finds what it is there to find: a good story, spoilt in one place at a time."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from faults import verdict
from faults.matrix import Cell
from faults.verdict import BASES, DATASETS, Story

CELL = Cell("frozen", "hook KILL", "recover")
OVERLAY = "/var/lib/zvmsnap/staging/u.1/vda.zvmsnap.qcow2"


def definition(vda: str = BASES["vda"], inside: str = "") -> str:
    return (
        f"<domain><devices><disk><source file='{vda}'/><target dev='vda'/>{inside}</disk>"
        f"<disk><source dev='{BASES['vdb']}'/><target dev='vdb'/></disk></devices></domain>"
    )


def seen(**changes: object) -> Story:
    return {
        "state": "running", "live": definition(), "persistent": definition(), "job": False,
        "allowed_pause_ms": 300, "metadata": [], "staging": ["lost+found", "notes.txt"],
        "journal": [], "vault": ["web", "web/1"], "held": [], "guards": [], "processes": [],
        "zfs": snapshots("0"), **changes,
    }


def snapshots(*moments: str) -> dict[str, str]:
    return {f"{ds}@autosnap_{moment}_hourly": f"7{moment}{number}"
            for moment in moments for number, ds in enumerate(DATASETS, 1)}


def point(moment: str) -> Story:
    ties = [{"dataset": name.partition("@")[0], "name": name.partition("@")[2], "guid": int(guid)}
            for name, guid in snapshots(moment).items()]
    return {"directory": f"/vault/{moment}", "run": f"autosnap_{moment}", "level": "memory",
            "reason": None, "snapshots": ties}


def counted(first: int = 1, last: int = 9, **changes: object) -> Story:
    return {"first": first, "last": last, "gaps": [], "boots": 0, "mismatches": [], **changes}


def good() -> Story:
    after = snapshots("0", "1", "2")
    story = {
        "before": {"step": ["frozen"], "moments": ["autosnap_1"], "zfs": snapshots("0", "1"),
                   "points": ["/vault/0"], "serial": counted()},
        "recover": {"returncode": 0, "said": ""},
        "rest": seen(zfs=snapshots("0", "1")),
        "points": [point("0"), point("1")],
        "was_off": False, "counts_on": True, "serial": counted(boots=1),
        "next": {"returncode": 0, "said": "fine"},
        "end": seen(zfs=after),
        "end_points": [point("0"), point("1"), point("2")],
        "loads": [
            {"directory": "/vault/2", "disk_counts": [8, 8], "serial": counted(8, 12)},
            {"directory": "/vault/1", "disk_counts": [5, 4], "serial": counted(6, 12)},
            {"directory": "/vault/0", "same": True},
        ],
    }
    return dict(json.loads(json.dumps(story)))


def killed() -> Story:
    return good() | {"was_off": True, "died": counted(boots=1), "disk_counts": [9, 10],
                     "serial": counted(boots=1)}


def test_good_stories_are_good() -> None:
    assert verdict.violations(CELL, good()) == []
    assert verdict.violations(CELL, killed()) == []
    assert verdict.letter(good()) == "M"


def put(*path: str | int, to: object) -> Callable[[Story], None]:
    def spoil(story: Story) -> None:
        where = story
        for key in path[:-1]:
            where = where[key]  # type: ignore[index]
        where[path[-1]] = to  # type: ignore[index]

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        put("broken", to="Traceback"),
        put("before", "step", to=["read header"]),
        put("recover", "returncode", to=1),
        put("rest", "live", to=definition(OVERLAY)),
        put("rest", "persistent", to=definition(OVERLAY)),
        put("rest", "live", to=definition("/elsewhere.raw")),
        put("rest", "live", to=definition(inside="<mirror/>")),
        put("rest", "live", to=""),
        put("rest", "state", to="paused"),
        put("rest", "job", to=True),
        put("rest", "allowed_pause_ms", to=30),
        put("rest", "staging", to=["lost+found", "notes.txt", "u.1"]),
        put("rest", "staging", to=["lost+found"]),
        put("rest", "journal", to=["u.json"]),
        put("rest", "metadata", to=["s"]),
        put("rest", "held", to=["u.lock"]),
        put("rest", "guards", to=["zvmsnap-watchdog-1.service"]),
        put("rest", "processes", to=["post-snapshot"]),
        put("rest", "vault", to=["web", "web/.incoming-1"]),
        put("end", "live", to=definition(OVERLAY)),
        put("counts_on", to=False),
        put("serial", "gaps", to=[[3, 5]]),
        put("serial", "boots", to=2),
        put("serial", "mismatches", to=["!80"]),
        put("end", "zfs", to=snapshots("1", "2")),
        put("end", "zfs", to=snapshots("0", "1")),
        put("end", "zfs", to=snapshots("0", "1", "2") | {"tank/new": "7"}),
        put("points", to=[point("1")]),
        put("next", "returncode", to=1),
        put("next", "said", to="WARN: pre_snapshot_script failed"),
        put("end_points", 2, "level", to="crash"),
        put("end_points", to=[point("0"), point("1")]),
        put("end_points", 1, "snapshots", 0, "guid", to=99),
        put("loads", 0, "error", to="Traceback"),
        put("loads", 0, "disk_counts", to=[8, 6]),
        put("loads", 0, "disk_counts", to=[9, 9]),
        put("loads", 0, "serial", to=counted(8, 8)),
        put("loads", 0, "serial", "first", to=None),
        put("loads", 0, "serial", "boots", to=1),
        put("loads", 0, "serial", "gaps", to=[[8, 1]]),
        put("loads", 0, "serial", "mismatches", to=["!80"]),
        put("loads", 2, "same", to=False),
        put("below_mountpoint", to=["web"]),
    ],
)
def test_a_spoilt_story_is_found_out(spoil: Callable[[Story], None]) -> None:
    story = good()
    spoil(story)
    assert verdict.violations(CELL, story)


@pytest.mark.parametrize("counts", [[8, 9], [9, 8], [9, 11]])
def test_lost_or_foreign_writes_of_a_killed_guest_are_found_out(counts: list[int]) -> None:
    assert verdict.violations(CELL, killed() | {"disk_counts": counts})


def struck(**changes: object) -> Story:
    return {"rest": seen(), "was_off": False, "counts_on": True, "serial": counted(), **changes}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, ""),
        ({"was_off": True, "died": counted(), "disk_counts": [9, 10]}, ""),
        ({"was_off": True, "died": counted(), "disk_counts": [9, 8]}, "disks have"),
        ({"rest": seen(live=definition(OVERLAY))}, "overlays"),
        ({"rest": seen(staging=["x"])}, "in staging"),
        ({"serial": counted(gaps=[(3, 5)])}, "gaps"),
        ({"serial": counted(boots=1)}, "booted"),
        ({"counts_on": False}, "count on"),
        ({"broken": "why"}, "no end"),
    ],
)
def test_after_a_kill(changes: Story, found: str) -> None:
    told = verdict.after_a_kill(struck(**changes))
    assert bool(told) is bool(found)
    assert found in "\n".join(told)
