"""What a cell's story must say, and what it says in one letter."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

from faults.matrix import BOOT, OVERLAY_MADE, OVERLAY_OPENED, POWER_CUT, UNDER_WAY, Cell

Story = dict[str, Any]

BASES = {"vda": "/tank/vm/web/disk0.raw", "vdb": "/dev/zvol/tank/vm/web/data"}
DATASETS = ("tank/vm/web", "tank/vm/web/data")
ALLOWED_PAUSE_MS = 300
# What lies there and is none of ours.
STAGING_KEEPS = ["lost+found", "notes.txt"]

LETTERS = {
    "M": "a point with RAM, which was loaded",
    "C": "a point without RAM, of a guest that ran",
    "O": "a point of a guest that was off",
    "-": "no point",
}


def violations(cell: Cell, story: Story) -> list[str]:
    """All that is not as it must be."""
    if "broken" in story:
        return [f"the cell came to no end: {story['broken']}"]
    found = [
        *_begun(cell, story["before"]),
        *_route(cell, story),
        *(f"after recovery: {text}" for text in _at_rest(story["rest"])),
        *_guest(cell, story),
        *_others(story),
        *_next(story),
        *(f"after the next run: {text}" for text in _at_rest(story["end"])),
        *_points(story),
    ]
    if story.get("below_mountpoint"):
        found.append(f"written below the vault's mountpoint: {story['below_mountpoint']}")
    return found


def after_a_kill(story: Story) -> list[str]:
    """All that is not as it must be after a kill at any time of a round."""
    if "broken" in story:
        return [f"it came to no end: {story['broken']}"]
    found = [*_at_rest(story["rest"])]
    told = story["died"] if story["was_off"] else story["serial"]
    found += _counted("", told)
    if told["boots"]:
        found.append(f"the guest booted {told['boots']} times")
    if not story["counts_on"]:
        found.append(f"the guest does not count on: {story['serial']}; {story.get('start', '')}")
    if story["was_off"] and told["last"] is not None and min(story["disk_counts"]) < told["last"]:
        found.append(f"disks have {story['disk_counts']}, but the guest had written {told['last']}")
    return found


def after_all_kills(story: Story) -> list[str]:
    """The next round is as any other, and each RAM image loads."""
    if "broken" in story:
        return [f"it came to no end: {story['broken']}"]
    said = story["next"]
    found = [f"the next run: {said}"] if said["returncode"] != 0 else []
    if not story["end_points"] or story["end_points"][-1]["level"] != "memory":
        found.append(f"the last point: {story['end_points'][-1:]}")
    return [*found, *_at_rest(story["end"]), *_loads(story["loads"])]


def letter(story: Story) -> str:
    """What became of the moment."""
    moments = story.get("before", {}).get("moments", [])
    for point in story.get("points", []):
        if point["run"] in moments:
            return {"memory": "M", "crash": "C", "offline": "O"}[point["level"]]
    return "-"


def _begun(cell: Cell, before: Story) -> Iterator[str]:
    expected = "dump" if cell.row in (UNDER_WAY, OVERLAY_MADE, OVERLAY_OPENED) else cell.row
    if before["step"] != [expected]:
        yield f"the journal said {before['step']}, not {expected}"
    if cell.row == OVERLAY_OPENED and len(before["qemu_has"]) != 1:
        yield f"QEMU had open {before['qemu_has']}, not one overlay"


def _route(cell: Cell, story: Story) -> Iterator[str]:
    if "recover" in story and story["recover"]["returncode"] != 0:
        yield f"zvmsnap recover failed: {story['recover']}"
    if cell.route == BOOT and story["boot"]["Result"] != "success":
        yield f"zvmsnap-recover.service failed: {story['boot']}"


def _at_rest(seen: Story) -> Iterator[str]:
    """Nothing of any moment is left, and no guest is on an overlay."""
    for which in ("live", "persistent"):
        yield from (f"{which} definition: {text}" for text in _not_on_base(seen[which]))
    if seen["state"] not in ("running", "shut off"):
        yield f"the guest is {seen['state']}"
    if seen["job"]:
        yield "a job of the guest is under way"
    if seen["allowed_pause_ms"] not in (ALLOWED_PAUSE_MS, None):
        yield f"the guest's allowed pause is {seen['allowed_pause_ms']} ms"
    if seen["staging"] != STAGING_KEEPS:
        yield f"in staging: {seen['staging']}"
    for what in ("metadata", "journal", "held", "guards", "processes"):
        if seen[what]:
            yield f"{what}: {seen[what]}"
    hidden = [path for path in seen["vault"] if "/." in path]
    if hidden:
        yield f"in the vault: {hidden}"


def _not_on_base(xml: str) -> Iterator[str]:
    if not xml:
        yield "cannot be read"
        return
    if ".zvmsnap." in xml:
        yield "names one of our overlays"
    disks = ET.fromstring(xml).findall("devices/disk")
    sources = {}
    for disk in disks:
        source, target = disk.find("source"), disk.find("target")
        if source is not None and target is not None:
            sources[target.get("dev")] = source.get("file") or source.get("dev")
        if disk.find("mirror") is not None:
            yield "a block job is under way"
    if sources != BASES:
        yield f"disks are {sources}"


def _guest(cell: Cell, story: Story) -> Iterator[str]:
    told = story["died"] if story["was_off"] else story["serial"]
    power_cut = cell.fault == POWER_CUT
    yield from _counted("", told, power_cut=power_cut)
    if told["boots"] != 1 and not power_cut:
        yield f"the guest booted {told['boots']} times"
    if not story["counts_on"]:
        yield f"the guest does not count on: {story['serial']}; {story.get('start', '')}"
    if story["was_off"]:
        # What was printed was on the disks before; before a power cut we had looked.
        last = (story["before"]["serial"] if power_cut else told)["last"]
        for disk, count in zip(BASES, story["disk_counts"], strict=True):
            if count < last:
                yield f"{disk} has count {count}, but the guest had written and printed {last}"
            if count > told["last"] + 1 and not power_cut:
                yield f"{disk} has count {count}, but the guest came to {told['last']} only"


def _counted(where: str, told: Story, *, power_cut: bool = False) -> Iterator[str]:
    if told["mismatches"]:
        yield f"{where}the guest found RAM and disks of different instants: {told['mismatches']}"
    if told["gaps"] and not power_cut:
        yield f"{where}the guest's counts have gaps: {told['gaps']}"


def _others(story: Story) -> Iterator[str]:
    before, after = story["before"]["zfs"], story["end"]["zfs"]
    for name, guid in before.items():
        if after.get(name) != guid:
            yield f"{name} was {guid} and is {after.get(name)}"
    new = {name for name in set(after) - set(before) if "@autosnap_" not in name}
    if new:
        yield f"new datasets or snapshots: {new}"
    there = {point["directory"] for point in story["points"]}
    gone = [directory for directory in story["before"]["points"] if directory not in there]
    if gone:
        yield f"points that are gone: {gone}"


def _next(story: Story) -> Iterator[str]:
    """The run after all that is as if nothing had been."""
    said = story["next"]
    bad = [line for line in said["said"].splitlines() if "WARN" in line or "CRITICAL" in line]
    if said["returncode"] != 0 or bad:
        yield f"the next run: {bad or said}"
    moments = {
        name.partition("@")[2].rpartition("_")[0]
        for name in set(story["end"]["zfs"]) - set(story["before"]["zfs"])
        if "@autosnap_" in name
    } - {*story["before"]["moments"]}
    if not moments:
        yield "the next run took no snapshot"
        return
    new = [point for point in story["end_points"] if point["run"] == max(moments)]
    if [point["level"] for point in new] != ["memory"]:
        yield f"the next run's point: {[(point['level'], point['reason']) for point in new]}"


def _points(story: Story) -> Iterator[str]:
    there = story["end"]["zfs"]
    for point in story["end_points"]:
        names = {tie["name"] for tie in point["snapshots"]}
        ties = {f"{tie['dataset']}@{tie['name']}": str(tie["guid"]) for tie in point["snapshots"]}
        real = {
            f"{dataset}@{name}": there.get(f"{dataset}@{name}")
            for dataset in DATASETS for name in names
        }
        if ties != real:
            yield f"{point['directory']} names {ties}, but there is {real}"
    yield from _loads(story["loads"])


def _loads(loads: list[Story]) -> Iterator[str]:
    for told in loads:
        where = f"{told['directory']}: "
        if "same" in told:
            if not told["same"]:
                yield f"{where}its RAM image is another than it was"
            continue
        if "error" in told:
            yield f"{where}{told['error']}"
            continue
        seen, counts = told["serial"], told["disk_counts"]
        yield from _counted(where, seen)
        if max(counts) - min(counts) > 1:
            yield f"{where}disks of different instants: {counts}"
        if seen["first"] is None or seen["first"] - max(counts) not in (0, 1):
            yield f"{where}RAM goes on with {seen['first']}, disks with {counts}"
        elif seen["last"] <= seen["first"]:
            yield f"{where}the guest does not count on"
        if seen["boots"]:
            yield f"{where}the guest booted"
