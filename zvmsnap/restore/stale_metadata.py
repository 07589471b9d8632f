"""Checkpoints and snapshots that libvirt keeps of a guest, and that its restored disks do not have.

libvirt keeps what it knows of them with the guest, not with its disks:

| libvirt knows   | made             | its bitmaps                         | after a restore |
|-----------------|------------------|-------------------------------------|-----------------|
| of a checkpoint | after the point  | any: one of that name is another's  | forgotten       |
| of a checkpoint | before the point | are all on the disks, and whole     | stays           |
| of a checkpoint | before the point | one is missing, or was "in use"     | forgotten       |
| of a snapshot   | after the point  |                                     | forgotten       |
| of a snapshot   | before the point |                                     | stays           |

From a checkpoint without its bitmap every incremental backup fails, and libvirt deletes it in no
other way. To revert to a newer snapshot would load its RAM over disks of another time. Bitmaps are
whole in a point with RAM: QEMU writes them to the disks with the last of RAM.

A bitmap that is on the disks all the same, and tells nothing, is removed with its checkpoint: else
nobody could make another one of that name. That needs a QEMU.

Nothing is forgotten before the restored guest runs: a replaced guest that is brought back has all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from zvmsnap.common.errors import LibvirtFailed, QemuImgFailed
from zvmsnap.common.log import Logger
from zvmsnap.disks import qemu_img
from zvmsnap.points.point import RestorePoint
from zvmsnap.virt.domain_xml import Disk, Metadata
from zvmsnap.virt.guest import Guest


def foretell(
    point: RestorePoint, of_checkpoints: Iterable[Metadata], of_snapshots: Iterable[Metadata]
) -> Iterator[str]:
    """What the plan says of them, before the disks can be looked at. Pure."""
    lost, maybe = _by_time(point, of_checkpoints)
    if lost:
        yield f"libvirt forgets its checkpoints {_names(lost)}, which are newer"
    if maybe:
        yield (
            f"libvirt forgets those of its checkpoints {_names(maybe)} whose bitmaps the restored "
            "disks do not have"
        )
    lost, _ = _by_time(point, of_snapshots)
    if lost:
        yield f"libvirt forgets its snapshots {_names(lost)}, which are newer"


def checkpoints(
    guest: Guest,
    point: RestorePoint,
    disks: Iterable[Disk],
    path_of: Callable[[Disk], str],
) -> tuple[str, ...]:
    """Their names, by the table above. `disks` are the restored ones. Raises LibvirtFailed."""
    lost, maybe = _by_time(point, guest.checkpoint_metadata())
    if maybe:
        bitmaps = {disk.target: _bitmaps(disk, path_of(disk)) for disk in disks}
        lost += [each for each in maybe if not _has_all(each, bitmaps)]
    return tuple(each.name for each in lost)


def snapshots(guest: Guest, point: RestorePoint) -> tuple[str, ...]:
    """Their names, by the table above. Raises LibvirtFailed."""
    return tuple(each.name for each in _by_time(point, guest.snapshot_metadata())[0])


def forget(
    guest: Guest, stale_checkpoints: Iterable[str], stale_snapshots: Iterable[str], log: Logger
) -> None:
    """Let libvirt forget these; may be repeated. Raises LibvirtFailed."""
    known = {each.name for each in guest.checkpoint_metadata()}
    if names := [name for name in stale_checkpoints if name in known]:
        log.warning(
            "libvirt forgets its checkpoints %s, whose bitmaps the restored disks do not have: the "
            "next backup must be a full one, or from an older checkpoint",
            ", ".join(names),
        )
    for name in names:
        _forget_checkpoint(guest, name)
    known = set(guest.snapshot_names())
    if names := [name for name in stale_snapshots if name in known]:
        log.warning(
            "libvirt forgets its snapshots %s, which are newer than the restored disks",
            ", ".join(names),
        )
    for name in names:
        guest.snapshot_delete_metadata(name)


def _forget_checkpoint(guest: Guest, name: str) -> None:
    try:
        guest.checkpoint_delete(name, metadata_only=False)
    except LibvirtFailed:  # a bitmap is missing, or the guest is off
        guest.checkpoint_delete(name, metadata_only=True)


def _by_time(
    point: RestorePoint, kept: Iterable[Metadata]
) -> tuple[list[Metadata], list[Metadata]]:
    """Those that were made after the point, and the others."""
    point_s = point.created.timestamp()
    newer: list[Metadata] = []
    others: list[Metadata] = []
    for each in kept:
        (newer if each.created_s > point_s else others).append(each)
    return newer, others


def _has_all(checkpoint: Metadata, bitmaps: Mapping[str, frozenset[str]]) -> bool:
    """Has each of its disks its bitmap? A disk that the guest has no more is not asked for."""
    own = {target: name for target, name in checkpoint.bitmaps.items() if target in bitmaps}
    return bool(own) and all(name in bitmaps[target] for target, name in own.items())


def _bitmaps(disk: Disk, path: str) -> frozenset[str]:
    if disk.format != "qcow2" or not path:
        return frozenset()  # only qcow2 can have persistent ones
    try:
        return qemu_img.bitmaps(path)
    except QemuImgFailed:
        return frozenset()


def _names(kept: Iterable[Metadata]) -> str:
    return ", ".join(each.name for each in kept)
