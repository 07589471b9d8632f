"""Rounds on one guest: the usual hooks and ours, in turn, and a listener that says what it felt."""

from __future__ import annotations

import time
from collections.abc import Mapping

import scenario

from bench import heard, scene
from bench.cells import FREEZE, QUIESCED, TAKE, USUAL, Cell, number, warm_up, ways
from bench.scene import INSIDE, Measured
from labkit import guests, linux
from labkit.api import Lab

GUEST = "web"
# What the listener hears last may come after the command has ended.
_SETTLE_S = 1.0


def measure(lab: Lab, cell: Cell, repeats: int, *, warm: bool) -> Measured:
    """Rounds of each way."""
    scene.prepare(lab)
    if cell.words[2] == "AppArmor off":
        scene.without_apparmor(lab)
    filled_mib, disks = number(cell.words[0]), number(cell.words[1])
    dataset = scene.make_guest(lab, GUEST, filled_mib, disks)
    all_of_it = Measured()
    with scene.listener(lab):
        for repeat in range(-1 if warm else 0, repeats):
            for way in ways(cell) if repeat >= 0 else warm_up(cell):
                one_round(lab, dataset, way, all_of_it if repeat >= 0 else Measured())
                if on_overlays(lab):
                    all_of_it.note(f"{way}: left the guest on an overlay; it was made anew")
                    scene.remove_guest(lab, GUEST, dataset)
                    scene.make_guest(lab, GUEST, filled_mib, disks)
    return all_of_it


def one_round(lab: Lab, dataset: str, way: str, measured: Measured) -> None:
    """One snapshot of the guest, and what it felt of that."""
    scene.use(lab, way, scenario.section(dataset))
    scene.clean(lab, dataset)
    since = len(scene.events(lab))
    command = f"zvmsnap take {GUEST}" if way == TAKE else "sanoid --take-snapshots --verbose"
    took_s = scene.timed(lab, command)
    time.sleep(_SETTLE_S)
    events = scene.events(lab, since)
    log = lab.get(f"{INSIDE}/hooks.log").decode()
    for role in heard.failed(log):
        measured.note(f"{way}: the {role} hook failed")
    pauses_s = heard.pauses_s(events, GUEST)
    if not pauses_s:
        measured.note(f"{way}: the guest never stood still, so its RAM was not taken")
    figures = {"took_s": took_s, "pause_s": sum(pauses_s), **heard.hooks_s(log)}
    overlays_s = heard.overlays_s(events, GUEST)
    if way == USUAL and on_overlays(lab):
        measured.note(f"{way}: {_last_said(lab)}")
    elif overlays_s is not None:
        figures["overlays_s"] = overlays_s
    if way != USUAL:
        figures |= _told_by_points(lab)
    measured.add(way, **figures)
    expected = {TAKE: "memory"}.get(way) or scene.MODE.get(way)
    if expected:
        _check_level(lab, way, expected, measured)
    guests.wait_counts(lab, GUEST, guests.counts(lab, GUEST)[-1] + 1)


def _told_by_points(lab: Lab) -> dict[str, float]:
    """What the point itself says of its guest's pause, and of the parts of that."""
    figures = {}
    for point in scenario.points(lab):
        figures["told_pause_s"] = point.timing["pause_s"]
        parts: Mapping[str, float] = point.manifest["timing"].get("pause_parts", {})
        figures |= {f"part_{name}": seconds for name, seconds in parts.items() if seconds}
    return figures


def on_overlays(lab: Lab) -> bool:
    """Is the guest on an overlay?"""
    return any(path.endswith(".qcow2") for path in scenario.disks(lab, GUEST).values())


def _check_level(lab: Lab, way: str, expected: str, measured: Measured) -> None:
    """A figure of a point that is less than wanted is none."""
    levels = {point.manifest["level"] for point in scenario.points(lab)}
    if way == TAKE:
        levels = {"memory" if level == "paused" else level for level in levels}
    if levels != {expected}:
        measured.note(f"{way}: points of level {', '.join(sorted(levels)) or 'none'}")


def _last_said(lab: Lab) -> str:
    errors = lab.run(f"grep -a '^error' {INSIDE}/said | tail -1", check=False).stdout
    return " ".join(errors.split()) or "overlays were not merged"


def measure_quiesced(lab: Lab, repeats: int, *, warm: bool) -> Measured:
    """Rounds on a Linux guest with its agent; its own writer says how long it waited.

    libvirt tells no listener of frozen file systems.
    """
    scene.prepare(lab, "linux")
    dataset = f"tank/vm/{linux.NAME}"
    all_of_it = Measured()
    for repeat in range(-1 if warm else 0, repeats):
        for way in (FREEZE, QUIESCED):
            scene.use(lab, way, scenario.section(dataset))
            scene.clean(lab, dataset)
            since_byte = guests.serial_size_bytes(lab, linux.NAME)
            linux.wait_writes(lab, linux.NAME, 0, since_byte=since_byte)
            took_s = scene.timed(lab, "sanoid --take-snapshots --verbose")
            last = linux.writes(lab, since_byte=since_byte)[-1].count
            linux.wait_writes(lab, linux.NAME, last + 1, since_byte=since_byte)
            if repeat < 0:
                continue
            stood_s = linux.longest_wait_s(linux.writes(lab, since_byte=since_byte))
            log = lab.get(f"{INSIDE}/hooks.log").decode()
            all_of_it.add(way, took_s=took_s, writes_wait_s=stood_s, **heard.hooks_s(log))
            if way == QUIESCED:
                _check_level(lab, way, QUIESCED, all_of_it)
    return all_of_it
