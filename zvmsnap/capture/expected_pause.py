"""How long a guest would be paused for its RAM, told before it is.

At level `paused` it waits for the dumps of others, if not all are dumped at once: see
quiesce/together. How fast they are its points tell. At level `memory` it waits for its overlays.

After the last of RAM libvirt labels the overlays of all disks, one after the other, while the guest
is paused: it has AppArmor compile the guest's profile anew for each of them (0.1 to 0.3 s on a bare
machine, more than a second in a virtual one), and QEMU open the overlay. So a guest with many disks
is paused for long, however little its RAM changes.

| the guest has            | estimate                                                      |
|--------------------------|---------------------------------------------------------------|
| points of level `memory` | of the newest 5: the median pause for RAM, its flush, and     |
|                          | going on, and the median for the overlay of each disk, times  |
|                          | the disks of now. What cannot be told apart counts as         |
|                          | overlays, as it does in points of older versions              |
| none                     | 0.3 s, and for each disk 0.5 s with AppArmor, 0.15 s without  |
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.disks import apparmor
from zvmsnap.points import vault
from zvmsnap.points.manifest import Manifest, Timing

_POINTS = 5
# Most points of a guest may be of other levels.
_READ_AT_MOST = 50
_RAM_S = 0.3
_DISK_S = 0.15
_CONFINED_DISK_S = 0.5
# A slow disk: without points nobody knows.
_DUMP_BYTES_PER_S = float(100 << 20)


def why_too_long(limit_s: float, vault_dir: Path, domain: str, uuid: str, disks: int) -> str:
    """Why the guest, with so many disks, is not to be dumped; "" if its pause will be short."""
    if history := _history(vault_dir, domain, uuid):
        expected_s, by = _by_history(disks, history), "by its last points"
    else:
        expected_s, by = _by_number(disks, is_confined=apparmor.confines(uuid)), "by their number"
    if expected_s <= limit_s:
        return ""
    return (
        f"to put its {disks} disks on overlays it would be paused for about {expected_s:.1f} s, "
        f"{by} (limits.memory_max_pause_s is {limit_s:g})"
    )


def dump_bytes_per_s(vault_dir: Path, domain: str, uuid: str) -> float:
    """How fast its RAM is written: as the fastest of its newest dumps was; some wait for others."""
    speeds = (
        manifest.memory.image_bytes / manifest.timing.dump_s
        for manifest in vault.newest(vault_dir, domain, _READ_AT_MOST)
        if manifest.uuid == uuid and manifest.memory and manifest.timing.dump_s
    )
    return max(islice(speeds, _POINTS), default=_DUMP_BYTES_PER_S) or _DUMP_BYTES_PER_S


def _history(vault_dir: Path, domain: str, uuid: str) -> list[Manifest]:
    """The newest manifests of level `memory` of that guest."""
    measured = (
        manifest
        for manifest in vault.newest(vault_dir, domain, _READ_AT_MOST)
        if manifest.uuid == uuid
        and manifest.level is ConsistencyLevel.MEMORY
        and manifest.disks
        and manifest.timing.pause_s
    )
    return list(islice(measured, _POINTS))


def _by_history(disks: int, history: list[Manifest]) -> float:
    once_s = [_once_s(each.timing) for each in history]
    for_disk_s = _median(
        max(0.0, each.timing.pause_s - once) / len(each.disks)
        for each, once in zip(history, once_s, strict=True)
    )
    return _median(once_s) + for_disk_s * disks


def _once_s(timing: Timing) -> float:
    """What of the pause does not grow with the number of disks."""
    parts = timing.pause_parts
    return (parts.ram_s or timing.last_ram_s) + parts.flush_s + parts.resume_s


def _median(values: Iterable[float]) -> float:
    # The module `statistics` takes as long to load as Python itself.
    ordered = sorted(values)
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[~middle]) / 2


def _by_number(disks: int, *, is_confined: bool) -> float:
    return _RAM_S + disks * (_CONFINED_DISK_S if is_confined else _DISK_S)
