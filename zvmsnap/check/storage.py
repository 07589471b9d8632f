"""Staging, vault, journal and locks: on the right storage, reachable, and large enough."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from zvmsnap.check.facts import Facts, SeenGuest
from zvmsnap.check.finding import Finding, green, red, yellow
from zvmsnap.common.errors import KeepInvalid, StagingUnusable, VaultMissing, ZfsFailed
from zvmsnap.common.snapshot_name import is_within
from zvmsnap.config.keep import Keep, parse_keep
from zvmsnap.config.properties import KEEP_MEMORY
from zvmsnap.disks import staging
from zvmsnap.points import own_directories, vault
from zvmsnap.terminal.render import size
from zvmsnap.zfs import mounts, zfs

_IN_RAM = ("tmpfs", "ramfs")
_RECORD_BYTES = 16 << 10  # of a page image
# A page image shares what has not changed, and zeros take no room: so much of RAM is left, roughly.
_SHARE_KEPT = 0.25
_LEAST_FREE = 0.05
_CLONING = "/sys/module/zfs/parameters/zfs_bclone_enabled"


def staging_place(facts: Facts) -> Iterator[Finding]:
    """Is staging on a disk, on no snapshotted dataset, and can QEMU's user reach it?"""
    own = facts.config.staging_dir
    with_guests = frozenset(
        name
        for name, top in facts.snapshotted.items()
        if any(top is facts.snapshotted.get(each) for g in facts.on_zfs for each in g.datasets)
    )
    try:
        staging.check_place(own, with_guests, facts.table)
        present = _existing(own)
        staging.check_passable(present)
    except StagingUnusable as error:
        text, _, mend = str(error).rpartition(": ")
        directory = Path(mend.removeprefix("chmod o+x "))
        is_ours = mend.startswith("chmod") and directory == own
        fix = partial(_let_pass, own) if is_ours else None
        yield red("storage.staging", "", text, mend, fix)
        return
    dataset = facts.dataset_of(own)
    if dataset in facts.snapshotted:
        text = f"{own} is on {dataset}, which sanoid snapshots: old RAM images keep their room"
        mend = "put it on a dataset of its own, without a section in sanoid.conf"
        yield yellow("storage.staging-snapshotted", "staging", text, mend)
    else:
        yield green("storage.staging", "staging", f"{own} can be used")


def _let_pass(directory: Path) -> str:
    directory.chmod(directory.stat().st_mode | 0o011)
    return f"others may pass through {directory} now"


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def staging_room(facts: Facts) -> Iterator[Finding]:
    """Has staging room for the RAM of each guest, and of all guests of a run?"""
    own = facts.config.staging_dir
    free_bytes = staging.free_bytes_for(own)
    needs = {
        each.name: _needed_bytes(facts, each) for each in facts.on_zfs if _has_ram(facts, each)
    }
    if not needs:
        return
    largest = max(needs, key=lambda name: needs[name])
    mend = "give it more room, set `staging` in config.toml, or lower limits.dump_max_ram_ratio"
    if needs[largest] > free_bytes:
        text = f"{own} has {size(free_bytes)} free, and {largest} may need {size(needs[largest])}"
        yield red("storage.staging-room", "staging", f"{text}: its points have no RAM", mend)
        return
    runs: dict[str, int] = {}
    for each in facts.on_zfs:
        for top in facts.tops_of(each):
            runs[top] = runs.get(top, 0) + needs.get(each.name, 0)
    for top, needed_bytes in sorted(runs.items()):
        if needed_bytes > free_bytes:
            text = (
                f"{own} has {size(free_bytes)} free, and the guests of {top} may need "
                f"{size(needed_bytes)} at once: some points have no RAM"
            )
            yield yellow("storage.staging-room", "staging", text, mend)
            return
    yield green("storage.staging-room", "staging", f"{size(free_bytes)} free are enough")


def _has_ram(facts: Facts, guest: SeenGuest) -> bool:
    modes = facts.levels(guest)
    return (
        modes is not None
        and any(level.has_memory for level in modes.levels)
        and not guest.disks.is_off
        and not guest.disks.domain.unmigratable
    )


def _needed_bytes(facts: Facts, guest: SeenGuest) -> int:
    limits = facts.config.limits
    ram_bytes = guest.disks.domain.memory_kib << 10
    return int(ram_bytes * limits.dump_max_ram_ratio) + (limits.overlay_room_mib << 20)


def places(facts: Facts) -> Iterator[Finding]:
    """Are vault and journal on a disk, and on no dataset that a restore would move?"""
    own = own_directories.of(facts.config)
    for name in ("vault", "journal"):
        kind = mounts.kind_of_path(os.path.realpath(own[name]), facts.table)
        if kind in _IN_RAM:
            text = f"{own[name]} is on {kind}: a reboot removes it"
            yield red(f"storage.{name}", name, text, f"set `{name}` in config.toml to a disk")
    of_guests = {name: g.name for g in facts.on_zfs for name in g.datasets}
    for name, dataset in own_directories.datasets_of(own, facts.table).items():
        mend = f"set `{name}` in config.toml to another file system"
        if dataset in of_guests and name != "staging":
            text = f"{own[name]} is on {dataset}, which holds disks of {of_guests[dataset]}"
            yield red(f"storage.{name}", name, f"{text}: no restore could work", mend)
        elif dataset in facts.snapshotted and name == "vault":
            text = (
                f"{own[name]} is on {dataset}, which sanoid snapshots: RAM that goes keeps its room"
            )
            yield yellow("storage.vault-snapshotted", name, text, mend)
    yield from _unmounted(facts)


def _unmounted(facts: Facts) -> Iterator[Finding]:
    for name, path in own_directories.of(facts.config).items():
        for dataset in (facts.datasets or {}).values():
            is_above = dataset.mountpoint.startswith("/") and (
                f"{path}/".startswith(f"{dataset.mountpoint.rstrip('/')}/")
            )
            if is_above and not dataset.mounted and dataset.canmount == "on":
                key = "zfs load-key -a; " if dataset.locked else ""
                text = f"{path} belongs to {dataset.name}, which is not mounted"
                mend = f"{key}zfs mount {dataset.name}"
                yield red(f"storage.{name}-unmounted", name, text, mend)


def vault_place(facts: Facts) -> Iterator[Finding]:
    """Is it the vault that was used so far, and on a dataset that suits?"""
    own = facts.config.vault_dir
    try:
        vault.check(facts.config)
    except VaultMissing as error:
        yield red("storage.vault", "", str(error), "zfs mount -a")
        return
    dataset = facts.dataset_of(own)
    if not dataset:
        yield from _elsewhere(facts, own)
        return
    names = ("recordsize", "compression", "encryption", "mountpoint")
    try:
        has = zfs.properties_of(names, [dataset]).get(dataset, {})
    except ZfsFailed:
        return
    if facts.config.image.pages and has.get("recordsize") not in (str(_RECORD_BYTES), None):
        text = f"{dataset} has recordsize={size(int(has['recordsize']))}: page images share less"
        is_own = has.get("mountpoint") == str(own)
        fix = partial(_set, dataset, "recordsize", "16K") if is_own else None
        mend = f"zfs set recordsize=16K {dataset}"
        yield yellow("storage.recordsize", "vault", text, mend, fix)
    if has.get("compression") == "off":
        text = f"{dataset} does not compress: RAM images take all their room"
        yield yellow("storage.compression", "vault", text, f"zfs set compression=zstd {dataset}")
    if has.get("encryption") == "off" and (encrypted := _encrypted(facts)):
        text = f"{dataset} is not encrypted, and {encrypted} is: RAM holds what is in it"
        mend = "put the vault on an encrypted dataset"
        yield yellow("storage.vault-encryption", "vault", text, mend)
    yield from _block_cloning(facts, dataset)


def _set(dataset: str, name: str, value: str) -> str:
    zfs.set_property(dataset, name, value)
    return f"{dataset} has {name}={value} now, for what is written from now on"


def _elsewhere(facts: Facts, own: Path) -> Iterator[Finding]:
    kind = mounts.kind_of_path(os.path.realpath(own), facts.table)
    if facts.config.image.pages and kind in ("ext2", "ext3", "ext4"):
        text = f"{own} is on {kind}, where RAM images cannot share what they have in common"
        mend = "put the vault on ZFS, XFS or btrfs"
        yield yellow("storage.sharing", "vault", text, mend)


def _block_cloning(facts: Facts, dataset: str) -> Iterator[Finding]:
    if not facts.config.image.pages:
        return
    try:
        is_on = facts.path(_CLONING).read_text().strip() not in ("0", "N")
    except OSError:
        return  # an older module, or another kernel's
    if not is_on:
        text = "block cloning is off: RAM images cannot share what they have in common"
        mend = f"echo 1 > {_CLONING}; in /etc/modprobe.d: options zfs zfs_bclone_enabled=1"
        yield yellow("storage.block-cloning", dataset, text, mend)
    pool = dataset.partition("/")[0]
    said = facts.ask("zpool", "get", "-Hpo", "value", "feature@block_cloning", pool)
    if said is not None and said.strip() == "disabled":
        text = "has no block cloning yet: RAM images cannot share what they have in common"
        mend = f"zpool set feature@block_cloning=enabled {pool}"
        yield yellow("storage.block-cloning", pool, text, mend)


def _encrypted(facts: Facts) -> str:
    datasets = facts.datasets or {}
    names = [name for g in facts.on_zfs for name in g.datasets if datasets[name].encrypted]
    return names[0] if names else ""


def vault_room(facts: Facts) -> Iterator[Finding]:
    """Has the vault room for the RAM that is to be kept?"""
    own = _existing(facts.config.vault_dir)
    status = os.statvfs(own)
    total_bytes, free_bytes = (n * status.f_frsize for n in (status.f_blocks, status.f_bavail))
    wanted_bytes = 0
    for guest in facts.on_zfs:
        if not _has_ram(facts, guest):
            continue
        images, keep = _kept_images(facts, guest)
        if not keep.has_end and images:
            text = f"its RAM is kept as long as its points: {images} images"
            parent = facts.snapshotted[guest.datasets[0]].path
            mend = f"zfs set {KEEP_MEMORY}=24 {parent}, or keep_memory in config.toml"
            yield yellow("storage.keep-memory", guest.name, text, mend)
        wanted_bytes += int(images * (guest.disks.domain.memory_kib << 10) * _SHARE_KEPT)
    if free_bytes < total_bytes * _LEAST_FREE:
        text = f"{facts.config.vault_dir} has only {size(free_bytes)} free"
        yield red("storage.vault-room", "vault", text, "free room, or keep less RAM (keep-memory)")
    elif wanted_bytes > total_bytes:
        text = (
            f"{facts.config.vault_dir} has {size(total_bytes)}, and the RAM that is to be kept may "
            f"need {size(wanted_bytes)}"
        )
        mend = f"keep less RAM: zfs set {KEEP_MEMORY}=24 on the datasets of large guests"
        yield yellow("storage.vault-room", "vault", text, mend)
    else:
        text = f"{facts.config.vault_dir} has {size(free_bytes)} free"
        yield green("storage.vault-room", "vault", text)


def _kept_images(facts: Facts, guest: SeenGuest) -> tuple[int, Keep]:
    """How many RAM images a guest will have, and the rule by which."""
    policy = next(filter(None, map(facts.snapshotted.get, guest.datasets)), None)
    points = sum(policy.counts.values()) if policy else 0
    keep = facts.keeps.get(guest.datasets[0] if guest.datasets else "", "")
    try:
        rule = parse_keep(keep) if keep else facts.config.default_keep
    except KeepInvalid:
        rule = Keep()
    if rule.points:
        return min(points, rule.points), rule
    if rule.age and policy:
        a_day = 24 if policy.counts["hourly"] else 1
        return min(points, max(1, int(rule.age.total_seconds() / 86400 * a_day))), rule
    return points, rule


def left_over(facts: Facts) -> Iterator[Finding]:
    """Overlays that recover has moved aside: they may hold a guest's writes."""
    if not facts.config.staging_dir.is_dir():
        return
    for path in staging.moved_aside(facts.config.staging_dir):
        text = "an overlay that no guest uses; it may hold writes of a guest"
        yield yellow("storage.overlay", str(path), text, "look at it, and remove it")


def one_guest_each(facts: Facts) -> Iterator[Finding]:
    """Has each guest its datasets for itself? A restore brings a whole dataset back."""
    owners: dict[str, set[str]] = {}
    for guest in facts.on_zfs:
        for name in guest.datasets:
            owners.setdefault(name, set()).add(guest.name)
    for name, guests in sorted(owners.items()):
        if len(guests) > 1:
            text = f"holds disks of {', '.join(sorted(guests))}: they are restored together alone"
            yield yellow("storage.shared", name, text, "give each guest a dataset of its own")
    for guest in facts.on_zfs:
        for name in guest.datasets:
            inner = [each for each in owners if each != name and is_within(each, name)]
            others = {who for each in inner for who in owners[each]} - {guest.name}
            if others:
                text = (
                    f"has disks of {guest.name}, and those of {', '.join(sorted(others))} below it"
                )
                yield yellow("storage.shared", name, text, "give each guest a parent of its own")


CHECKS = (
    staging_place,
    staging_room,
    places,
    vault_place,
    vault_room,
    left_over,
    one_guest_each,
)
