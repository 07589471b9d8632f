"""Each guest: can it have what is wanted of it, is it well, and what became of its last point?"""

from __future__ import annotations

from collections.abc import Iterator

from zvmsnap.capture import eligibility, expected_pause
from zvmsnap.check.facts import Facts, SeenGuest, answer_of
from zvmsnap.check.finding import Finding, green, red, yellow
from zvmsnap.common.errors import LibvirtFailed, ModeInvalid, ZvmsnapError
from zvmsnap.config.level import RANK, ConsistencyLevel
from zvmsnap.config.mode import ModeSet
from zvmsnap.disks import jobs, overlay_chain
from zvmsnap.journal import describe
from zvmsnap.journal.journal import Journal
from zvmsnap.points import vault
from zvmsnap.virt.guest import Pause
from zvmsnap.zfs import volume

_GUEST_S = 10.0


def levels(facts: Facts) -> Iterator[Finding]:
    """For each guest: is what is wanted of it a mode, and can it be reached?"""
    for guest in facts.on_zfs:
        yield from _invalid(facts, guest)
        modes = facts.levels(guest)
        if modes is None:
            continue
        seen = eligibility.assess(guest.disks, _covered(facts, guest))
        if seen is None or seen.is_off:
            if seen and (why := seen.obstacles.get(ConsistencyLevel.OFFLINE)):
                text = f"is off, and gets no point: {why}"
                yield red("guest.level", guest.name, text, "name each disk as /dev/zvol/...")
            continue
        yield from _reached(facts, guest, modes, seen)


def _invalid(facts: Facts, guest: SeenGuest) -> Iterator[Finding]:
    datasets = facts.datasets or {}
    covered = [name for name in guest.datasets if name in datasets]
    try:
        eligibility.modes_for(covered, datasets, ("",), facts.config.default_modes)
        for name in covered:
            for kind in datasets[name].modes:
                eligibility.modes_for([name], datasets, (kind,), facts.config.default_modes)
    except ModeInvalid as error:
        text = f"gets no point: {error}"
        yield red("guest.mode", guest.name, text, "correct the property: zfs set zvmsnap:mode=...")


def _covered(facts: Facts, guest: SeenGuest) -> frozenset[str]:
    """What is snapshotted with it, by one section of sanoid; its own datasets if none is."""
    tops = facts.tops_of(guest)
    if len(tops) != 1:
        return frozenset(guest.datasets)
    return frozenset(name for name, top in facts.snapshotted.items() if top.path in tops)


def _reached(
    facts: Facts, guest: SeenGuest, modes: ModeSet, seen: eligibility.Eligibility
) -> Iterator[Finding]:
    first = modes.levels[0]
    reached = next((each for each in modes.levels if each not in seen.obstacles), None)
    if reached is first:
        yield from _pause(facts, guest, first, _others(seen, first))
        return
    level = reached or ConsistencyLevel.CRASH
    why = seen.obstacles[first]
    if modes.forbids(level):
        text = f"gets no point: {modes.minimum} is required, and {why}"
        yield red("guest.level", guest.name, text, "see docs: levels-and-databases")
        return
    mend = _mend(guest, first, level)
    yield yellow("guest.level", guest.name, f"level {first} is out of reach: {why}", mend)


def _mend(guest: SeenGuest, wanted: ConsistencyLevel, level: ConsistencyLevel) -> str:
    if wanted is ConsistencyLevel.QUIESCED:
        return "install and start qemu-guest-agent in the guest, with its channel in the definition"
    top = guest.datasets[0] if guest.datasets else "DATASET"
    return f"mend that, or say that it is meant so: zfs set zvmsnap:mode={level} {top}"


def _others(seen: eligibility.Eligibility, wanted: ConsistencyLevel) -> str:
    """Of each other level: can the guest have it, and if not, why?"""
    levels = [each for each in RANK if each not in (wanted, ConsistencyLevel.OFFLINE)]
    can = [str(each) for each in levels if each not in seen.obstacles]
    cannot = [f"not {each}: {seen.obstacles[each]}" for each in levels if each in seen.obstacles]
    return "; ".join([f"also {', '.join(can)}", *cannot])


def _pause(
    facts: Facts, guest: SeenGuest, level: ConsistencyLevel, others: str
) -> Iterator[Finding]:
    disks = sum(disk.writable for disk in guest.disks.domain.disks)
    why = ""
    if level is ConsistencyLevel.MEMORY:
        limit_s = facts.config.limits.memory_max_pause_s
        uuid = guest.guest.uuid
        why = expected_pause.why_too_long(limit_s, facts.config.vault_dir, guest.name, uuid, disks)
    if why:
        mend = f"zfs set zvmsnap:mode=paused,memory,crash {guest.datasets[0]}"
        yield yellow("guest.pause", guest.name, why, mend)
    else:
        yield green("guest.level", guest.name, f"can have level {level}; {others}")


def wellbeing(facts: Facts) -> Iterator[Finding]:
    """Is it paused, does somebody else work on it, and what does libvirt keep of it?"""
    for guest in facts.on_zfs:
        try:
            yield from answer_of(lambda: list(_wellbeing(guest)), _GUEST_S)  # noqa: B023
        except (ZvmsnapError, OSError) as error:
            mend = f"virsh domstate {guest.name} --reason"
            yield red("guest.unanswered", guest.name, str(error), mend)


def _wellbeing(guest: SeenGuest) -> Iterator[Finding]:
    name = guest.name
    if guest.guest.is_active():
        reason = guest.guest.pause_reason()
        if reason is Pause.IO_ERROR:
            text = "is paused by an I/O error: its storage is full, or failed"
            yield red("guest.io-error", name, text, f"free room, then virsh resume {name}")
        if work := jobs.work_of_others(guest.guest):
            text = f"{work} is under way: runs wait for it, and then take no RAM"
            yield yellow("guest.busy", name, text, f"virsh domjobinfo {name}; let it end")
    yield from _snapshots(guest)
    yield from _held(guest)
    for disk in guest.disks.domain.disks:
        if (why := guest.disks.no_overlays.get(disk.target)) and disk.writable:
            mend = f"virsh edit {name}: the path below /dev/zvol"
            yield yellow("guest.disk-by-content", name, f"{disk.target}: {why}", mend)
        if disk.writable and (doubt := guest.disks.doubts.get(disk.target)):
            text = f"{disk.target}: {doubt}: its points have no RAM"
            yield red("guest.doubt", name, text, f"start {name} anew, by /dev/zvol/...")


def _held(guest: SeenGuest) -> Iterator[Finding]:
    for target, place in sorted(guest.disks.locations.items()):
        if not place.path and (held := volume.held_by(place.dataset)):
            text = (
                f"{target}: this host has it open itself, as {_some(held)}: writes of both destroy "
                "what is on it, and its clones cannot be removed"
            )
            mend = (
                "deactivate that (vgchange -an GROUP), and keep LVM away from volumes, in "
                'lvm.conf: global_filter = [ "r|^/dev/zd|", "r|^/dev/zvol/|" ]'
            )
            yield red("guest.held", guest.name, text, mend)


def _snapshots(guest: SeenGuest) -> Iterator[Finding]:
    name = guest.name
    try:
        snapshots = guest.guest.snapshot_names()
        checkpoints = [each.name for each in guest.guest.checkpoint_metadata()]
    except LibvirtFailed:
        return  # this libvirt, or its driver, does not know them
    if snapshots:
        text = (
            f"libvirt keeps snapshots of it ({_some(snapshots)}); after a restore they are of "
            "other disks than they say"
        )
        mend = f"virsh snapshot-delete {name} SNAPSHOT, with --metadata if it is not needed"
        yield yellow("guest.snapshots", name, text, mend)
    if checkpoints:
        text = (
            f"has checkpoints ({_some(checkpoints)}): after a restore to before one, its next "
            "incremental backup fails"
        )
        mend = "take a full backup after each restore"
        yield green("guest.checkpoints", name, f"{text}: {mend}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def overlays(facts: Facts) -> Iterator[Finding]:
    """Is a guest on an overlay of zvmsnap that no run works on?"""
    journal = Journal(facts.config.journal_dir)
    known = {entry.uuid: entry for entry in journal.entries()}
    for guest in facts.on_zfs:
        chains = overlay_chain.of(guest.disks.domain)
        entry = known.get(guest.guest.uuid)
        if entry and entry.owner.is_alive():
            continue  # a run is under way
        if chains:
            problem = next((each.problem for each in chains.values() if each.problem), "")
            text = f"writes to an overlay that no run works on{problem and f': {problem}'}"
            mend = f"zvmsnap recover {guest.name}"
            yield red("guest.overlay", guest.name, text, mend)
        elif entry:
            text = f"{describe.work(entry)} was interrupted"
            yield yellow("guest.unfinished", guest.name, text, f"zvmsnap recover {guest.name}")


def last_points(facts: Facts) -> Iterator[Finding]:
    """What became of the newest point of each guest?"""
    for guest in facts.on_zfs:
        newest = next(iter(vault.newest(facts.config.vault_dir, guest.name, 1)), None)
        if newest is None:
            yield green("guest.last-point", guest.name, "has no point yet")
            continue
        modes = facts.levels(guest)
        if modes and newest.level is not ConsistencyLevel.OFFLINE:
            wanted = modes.levels[0]
            if not newest.level.reaches(wanted):
                text = f"its newest point is of level {newest.level}, not {wanted}"
                why = newest.reason or "of a mode of its own"
                mend = f"zvmsnap show {guest.name}@latest"
                yield yellow("guest.last-point", guest.name, f"{text}: {why}", mend)
                continue
        pause_s = newest.timing.pause_s
        held = f", for which it stood still for {pause_s:.2f} s" if pause_s else ""
        parts = _parts(newest.timing.pause_parts) if pause_s else ""
        text = f"its newest point is of level {newest.level}{held}{parts}"
        yield green("guest.last-point", guest.name, text)


def _parts(parts: object) -> str:
    named = {
        "ram_s": "the last of RAM",
        "flush_s": "flush",
        "overlays_s": "overlays",
        "freeze_s": "freeze",
        "snapshot_s": "snapshot",
    }
    known = {word: getattr(parts, name, 0.0) for name, word in named.items()}
    shown = [f"{word} {value:.2f} s" for word, value in known.items() if value >= 0.01]
    return f" ({', '.join(shown)})" if shown else ""


CHECKS = (levels, wellbeing, overlays, last_points)
