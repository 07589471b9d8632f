"""Many guests in one round, against some of them alone, while the others run."""

from __future__ import annotations

import time

import scenario

from bench import heard, scene
from bench.cells import MEMORY, PAUSED, TAKE
from bench.scene import Measured
from labkit.api import Lab

ALONE, TOGETHER = "alone", "all in one round"
PARENT = "tank/crowd"
_FILLED_MIB = 16
_SETTLE_S = 1.0
# So many of them, or a few more, also in a round of their own: each is like the others.
_ALONE = 3


def measure(lab: Lab, count: int, repeats: int) -> Measured:
    """How long guests stand still, some in rounds of their own, and all of them in one."""
    scene.prepare(lab)
    names = [f"g{number}" for number in range(count)]
    for name in names:
        scene.make_guest(lab, name, _FILLED_MIB, 1, parent=PARENT)
    measured = Measured()
    with scene.listener(lab):
        for way in (MEMORY, PAUSED, TAKE):
            # What is slow once is not counted.
            _round(lab, way, f"{PARENT}/{names[0]}", names[:1], Measured(), "")
            for name in names[:: max(1, count // _ALONE)]:
                _round(lab, way, f"{PARENT}/{name}", [name], measured, f"{way}, {ALONE}")
            for _ in range(repeats):
                _round(lab, way, PARENT, names, measured, f"{way}, {TOGETHER}")
    return measured


def _round(lab: Lab, way: str, top: str, names: list[str], measured: Measured, label: str) -> None:
    scene.use(lab, way, scenario.section(top))
    scene.clean(lab, PARENT)
    since = len(scene.events(lab))
    take = f"zvmsnap take {' '.join(names)}"
    took_s = scene.timed(lab, take if way == TAKE else "sanoid --take-snapshots --verbose")
    time.sleep(_SETTLE_S)
    events = scene.events(lab, since)
    measured.add(label, took_s=took_s)
    for name in names:
        measured.add(label, pause_s=sum(heard.pauses_s(events, name)))
    found = scenario.points(lab)
    levels = {point.manifest["level"] for point in found} - {way}
    # `take` chooses: both have RAM.
    if len(found) != len(names) or levels - ({MEMORY, PAUSED} if way == TAKE else set()):
        measured.note(f"{label}: {len(found)} points, some of level {', '.join(levels) or way}")
