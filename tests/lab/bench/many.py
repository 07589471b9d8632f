"""Commands on a host with many points and snapshots, all of which really exist in the lab's ZFS."""

from __future__ import annotations

import scenario

from bench import scene
from bench.cells import Cell, number
from bench.hooks import PYTHON, UNKNOWN
from bench.scene import INSIDE, Measured
from labkit.api import Lab

OWN = "cheap/offsite"
_ROOT = "tank/many"
_KNOWN = "autosnap_2024-01-01_00:00:00_hourly"
_MAKING_LIMIT_S = 3600.0


def measure(lab: Lab, cell: Cell, repeats: int, *, warm: bool) -> Measured:
    """What each command takes where it has so many points to go through."""
    scene.prepare(lab)
    scenario.configure(lab)
    scene.make_guest(lab, "web", 0, 1)
    lab.run("zvmsnap take web --mode crash", timeout_s=scenario.ROUND_LIMIT_S)
    model = scenario.the_point(lab, "web").directory
    lab.run(
        f"zfs create -o mountpoint=none {_ROOT} && zfs create {OWN} && "
        f"python3 {INSIDE}/many_points.py {model} {scenario.VAULT} {_ROOT} {number(cell.words[0])}",
        timeout_s=_MAKING_LIMIT_S,
    )
    commands = {
        PYTHON: scene.command("python3", "-c", "pass"),
        "zvmsnap list": scene.command("zvmsnap", "list"),
        "zvmsnap list g0": scene.command("zvmsnap", "list", "g0"),
        "zvmsnap prune --dry-run": scene.command("zvmsnap", "prune", "--dry-run"),
        "zvmsnap report --html": scene.command("zvmsnap", "report", "--html", "/root/report.html"),
        "zvmsnap monitor": scene.command("zvmsnap", "monitor", statuses=(0, 1, 2, 3)),
        # The guests of these points do not exist: verify says so of some.
        "zvmsnap verify": scene.command("zvmsnap", "verify", statuses=(0, 1)),
        "zvmsnap send --all --dry-run": scene.command(
            "zvmsnap", "send", "--all", "--dry-run", "--memory", "none", OWN, statuses=(0, 1)
        ),
        "pruning, unknown snapshot": scene.hook("pruning", "tank/vm/web", UNKNOWN),
        "pruning, snapshot of a point": scene.hook("pruning", f"{_ROOT}/g0", _KNOWN),
    }
    return scene.measured(lab, commands, repeats, warm=warm)
