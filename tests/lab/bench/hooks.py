"""What a hook costs where nothing is to be done, beside Python alone; rounds of such datasets."""

from __future__ import annotations

import scenario

from bench import heard, scene
from bench.cells import MEMORY, USUAL, Cell, number
from bench.scene import INSIDE, Measured
from labkit.api import Lab

UNKNOWN = "autosnap_2001-01-01_00:00:00_daily"
PYTHON = "python3 -c pass"
PRE, POST = "pre, dataset without guests", "post, dataset without guests"
PRUNING = "pruning, unknown snapshot"
NO_HOOKS = "without hooks"
_EMPTY = "tank/empty"
_GUESTS = 3
_REPEATS = 3


def measure(lab: Lab, repeats: int, *, warm: bool) -> Measured:
    """Hooks that find nothing to do, on a host with one guest."""
    scene.prepare(lab)
    scenario.configure(lab)
    scene.make_guest(lab, "web", 0, 1)
    lab.run(f"zfs create {_EMPTY}")
    commands = {
        PYTHON: scene.command("python3", "-c", "pass"),
        PRE: scene.hook("pre-snapshot", _EMPTY, UNKNOWN),
        POST: scene.hook("post-snapshot", _EMPTY, UNKNOWN),
        PRUNING: scene.hook("pruning", "tank/vm/web", UNKNOWN),
    }
    # They take little: the median of more of them is cheap.
    return scene.measured(lab, commands, repeats * _REPEATS, warm=warm)


def measure_datasets(lab: Lab, cell: Cell, repeats: int) -> Measured:
    """A round over many datasets, three of which hold guests; the first of each way counts."""
    scene.prepare(lab)
    names = [f"g{each}" for each in range(_GUESTS)]
    for name in names:
        scene.make_guest(lab, name, 0, 1, parent="tank/many")
    count = number(cell.kind)
    lab.run(
        f"for each in $(seq {_GUESTS + 1} {count}); do zfs create tank/many/d$each; done",
        timeout_s=900,
    )
    section = "\n".join(
        [
            "[tank/many]",
            "use_template = vm",
            "recursive = yes",
            "process_children_only = yes",
            "",
            "",
        ]
    )
    measured = Measured()
    for _ in range(repeats):
        for way in ("", USUAL, MEMORY):
            scene.use(lab, way, section)
            scene.clean(lab, "tank/many")
            took_s = scene.timed(lab, "sanoid --take-snapshots --verbose")
            log = lab.get(f"{INSIDE}/hooks.log").decode()
            measured.add(way or NO_HOOKS, took_s=took_s)
            for role in heard.failed(log):
                measured.note(f"{way}: a {role} hook failed")
    return measured
