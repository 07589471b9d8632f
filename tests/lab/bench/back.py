"""Back again: restore and clone, beside virDomainRestore alone and what is done by hand."""

from __future__ import annotations

import json
from shlex import quote

import scenario

from bench import scene
from bench.cells import Cell, number
from bench.scene import INSIDE, Measured
from labkit import guests
from labkit.api import Lab

CALL = "virDomainRestore alone"
BY_HAND = "by hand: destroy, rollback, virsh restore"
CLONE = "zvmsnap clone"
NO_SAFETY = "zvmsnap restore --no-safety"
RESTORE = "zvmsnap restore, with safety point"
SAVE = "virsh save alone"
GUEST, POINT, COPY = "web", "bench", "look"
_DISKS = 2


def measure(lab: Lab, cell: Cell, repeats: int, *, warm: bool) -> Measured:
    """Each way back to the same point, in turn: seconds until the guest counts again."""
    scene.prepare(lab)
    scenario.configure(lab)
    dataset = scene.make_guest(lab, GUEST, number(cell.words[0]), _DISKS)
    lab.run(f"zvmsnap take {GUEST} --name {POINT}", timeout_s=scenario.ROUND_LIMIT_S)
    image = scenario.loadable(lab, GUEST, scenario.the_point(lab, GUEST).image)
    rollback = "; ".join(
        f"zfs rollback -r {each}@{POINT}" for each in (dataset, f"{dataset}/data1")
    )
    destroy = f"virsh -q destroy {GUEST}; {rollback}"
    by_hand = f"{destroy}; virsh -q restore {quote(image)}"
    point = f"{GUEST}@{POINT}"
    measured = Measured()
    for repeat in range(-1 if warm else 0, repeats):
        into = measured if repeat >= 0 else Measured()
        lab.run(destroy)
        into.add(CALL, **_next_count(lab, GUEST, "call", image))
        into.add(BY_HAND, **_next_count(lab, GUEST, "bash", "-ec", by_hand))
        into.add(CLONE, **_next_count(lab, f"{COPY}-{GUEST}", "zvmsnap", "clone", point, COPY))
        lab.run(f"zvmsnap clone --destroy {COPY}; rm -f {guests.SERIAL_DIR}/{COPY}-{GUEST}.log")
        restore = ("zvmsnap", "restore", "--yes", point)
        into.add(NO_SAFETY, **_next_count(lab, GUEST, *restore, "--no-safety"))
        into.add(RESTORE, **_next_count(lab, GUEST, *restore))
        saved = f"{scene.USUAL_DIR}/saved"
        into.add(SAVE, took_s=scene.timed(lab, f"virsh -q save {GUEST} {saved}"))
        lab.run(f"virsh -q restore {saved} && rm {saved}")
        counted = guests.counts(lab, GUEST)[-1]
        guests.wait_counts(lab, GUEST, counted)
    return measured


def _next_count(lab: Lab, log: str, *words: str) -> dict[str, float]:
    argv = ["python3", f"{INSIDE}/next_count.py", f"{guests.SERIAL_DIR}/{log}.log", *words]
    said = lab.run(" ".join(map(quote, argv)), timeout_s=scenario.ROUND_LIMIT_S).stdout
    seconds: dict[str, float] = json.loads(said.splitlines()[-1])
    return seconds
