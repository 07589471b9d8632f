"""What the scenarios of restore, clone and verify share: asking for a point, and proving it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from shlex import quote
from typing import Any

import scenario
from scenario import PROOF_COUNTS, WEB, Guest

from labkit import guests
from labkit.api import Completed, Lab

SNAPSHOT_FILE = "/tank/vm/web/.zfs/snapshot/{name}/disk0.raw"


def zvmsnap(lab: Lab, *words: str, status: int = 0) -> Completed:
    """Run a command of ours; it ends with that status, and with no traceback."""
    command = " ".join(["zvmsnap", *map(quote, words)])
    done = lab.run(command, check=False, timeout_s=scenario.ROUND_LIMIT_S)
    assert "Traceback" not in done.stderr, done
    assert done.returncode == status, done
    return done


def restore(lab: Lab, point: str, *options: str, status: int = 0) -> Completed:
    """Restore without being asked."""
    return zvmsnap(lab, "restore", "--yes", *options, point, status=status)


def hourly(lab: Lab, number: int = 0) -> str:
    """The name of an hourly snapshot of `web`: 0 the oldest."""
    return hourly_of(lab, WEB.top, number)


def hourly_of(lab: Lab, dataset: str, number: int = 0) -> str:
    """The name of an hourly snapshot of a dataset: 0 the oldest."""
    names = [name for name in scenario.snapshots(lab, dataset) if name.endswith("_hourly")]
    return names[number]


def stored_count(lab: Lab, name: str) -> int:
    """The last count on the file disk of `web` in that snapshot."""
    return guests.disk_count(lab, SNAPSHOT_FILE.format(name=name))


def listed(lab: Lab) -> list[dict[str, Any]]:
    """The points, as `zvmsnap list` tells them."""
    found: list[dict[str, Any]] = json.loads(zvmsnap(lab, "list", "--json").stdout)["points"]
    return found


def safety_point(lab: Lab) -> str:
    """The name of the youngest safety point."""
    names = [point["name"] for point in listed(lab) if point["name"].endswith("_safety")]
    return str(sorted(names)[-1])


def assert_goes_on(lab: Lab, domain: str, stored: int, since_byte: int = 0) -> None:
    """It went on from the stored count, with RAM and disks of one instant, without a boot."""
    guests.wait_counts(lab, domain, stored + PROOF_COUNTS, since_byte=since_byte)
    counts = guests.counts(lab, domain, since_byte)
    # Frozen after it wrote a count and before it printed it, a guest prints it first of all.
    assert counts[0] - stored in (0, 1), (counts[0], stored)
    assert counts == list(range(counts[0], counts[-1] + 1))
    assert guests.boots(lab, domain, since_byte) == 0
    assert guests.mismatches(lab, domain, since_byte) == []


def jumps(lab: Lab, domain: str = "web") -> list[tuple[int, int]]:
    """Where a guest's counts do not follow upon each other: as it went to another time."""
    counts = guests.counts(lab, domain)
    return [(a, b) for a, b in itertools.pairwise(counts) if b != a + 1]


def assert_jumped_to(lab: Lab, stored: int, *, domain: str = "web", times: int = 1) -> int:
    """It went to the stored count and on; returns the last count before that."""
    scenario.wait_until(
        f"jump {times} to {stored}, and some counts more",
        lambda: len(jumps(lab, domain)) >= times
        and guests.counts(lab, domain)[-1] > jumps(lab, domain)[-1][1] + PROOF_COUNTS,
        timeout_s=180,
    )
    made = jumps(lab, domain)
    assert len(made) == times, made
    assert made[-1][1] - stored in (0, 1), (made, stored)
    assert guests.boots(lab, domain) == 1
    assert guests.mismatches(lab, domain) == []
    return made[-1][0]


def assert_boots(lab: Lab, disks: Iterable[str], stored: int, domain: str, log: str) -> None:
    """It stands still before its boot, with disks that hold the stored count; then it boots."""
    assert scenario.state(lab, domain) == "paused"
    held = [guests.disk_count(lab, path) for path in disks]
    assert max(held) - stored in (0, 1), (held, stored)
    booted = guests.boots(lab, log)
    lab.run(f"virsh resume {domain}")
    # The counter begins anew whenever it boots.
    scenario.wait_until("boot", lambda: guests.boots(lab, log) == booted + 1, timeout_s=180)
    guests.wait_counts(lab, log, 1)
    assert guests.mismatches(lab, log) == []


def assert_nothing_left(lab: Lab, guest: Guest = WEB) -> None:
    """No task, nothing in staging, no dataset of ours in the making."""
    scenario.assert_on_base(lab, guest.name, guest.disks)
    assert lab.run(
        f"find {scenario.STAGING} {scenario.JOURNAL}/operations {scenario.JOURNAL} -mindepth 1 "
        f"{scenario.LASTING} {scenario.NOT_UNDER_WAY} 2>/dev/null; "
        "find /cheap/vault -name '.[il]*'"
    ).stdout.split() == []
    assert ".zvmsnap-" not in lab.run("zfs list -H -o name").stdout


def clones(lab: Lab) -> list[str]:
    """The clones through which a point's disks are read, while they are."""
    return [name for name in zfs_names(lab) if "/zvmsnap-temporary-" in name]


def zfs_names(lab: Lab, kind: str = "filesystem,volume") -> list[str]:
    """What the pool holds."""
    return lab.run(f"zfs list -H -o name -t {kind}").stdout.splitlines()
