"""libvirt's checkpoints: by them it knows what has changed in a disk since its last backup.

Each backup of a guest that runs makes one at its own instant, called
`zvmsnap-DESTINATION-TIME-ID`: so several directories of backups do not disturb each other. Of a
disk it is a bitmap within its image. What a backup pushes of a disk that the one below it has:

| the disk                                                | is pushed                       |
|---------------------------------------------------------|---------------------------------|
| is qcow2, and is in the checkpoint of the backup below  | as far as it has changed since  |
| is raw, or qcow2 of a version that has no bitmaps       | whole, and compared             |
| is new in the checkpoint, or is of another length now   | whole, and compared             |
| any, if libvirt has that checkpoint no more             | whole, and compared             |
| any, if libvirt refuses an increment: a bitmap is       | whole, and compared             |
| missing, or was in use when its QEMU died               |                                 |

A checkpoint is trusted only if the backup below names it, this directory and that very backup are
in its name, and libvirt has it for the guest of that UUID: the disks of a clone have the bitmaps of
its original, too.

The checkpoints that stay are those of the backups on which the next one may be. Any other one of
the same directory is forgotten after a backup was published, also one whose backup never was.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from zvmsnap.archive.directory import BackupDirectory, StoredBackup, newest
from zvmsnap.archive.manifest import TIME_FORMAT, BackupDisk, Level
from zvmsnap.backup.writing import Base
from zvmsnap.common.errors import BackupFailed, LibvirtFailed, QemuImgFailed
from zvmsnap.common.log import Logger
from zvmsnap.disks import qemu_img
from zvmsnap.disks.backup_job import NO_REFUSALS
from zvmsnap.virt.domain_xml import Disk, Domain, Metadata
from zvmsnap.virt.guest import Guest

_QCOW2 = "qcow2"
# The first version of its layout is called 0.10, and QEMU keeps no bitmaps in it.
_WITH_BITMAPS = "1.1"
_ID_CHARACTERS = 8


@dataclass(frozen=True)
class Source:
    """A disk to be pushed, and where its image is; "" if that is unknown."""

    disk: Disk
    path: str


@dataclass(frozen=True)
class Pushing:
    """What is pushed, and which checkpoint is made; as planned, or as libvirt has allowed.

    `name` and `marked` are of the new checkpoint: "" is none, and `reason` says why. `increments`
    are pushed as far as they have changed since the checkpoint `since`; `whole` says of the others
    that the backup below has, too, why they are not.
    """

    name: str = ""
    marked: frozenset[str] = frozenset()
    reason: str = ""
    since: str = ""
    increments: frozenset[str] = frozenset()
    whole: Mapping[str, str] = field(default_factory=dict)

    def with_less(self, refusal: LibvirtFailed) -> Pushing | None:
        """What can be tried after libvirt has refused this; None if nothing is left."""
        if self.increments:
            why = f"libvirt refuses an increment: {refusal}"
            whole = {**self.whole, **dict.fromkeys(self.increments, why)}
            return replace(self, since="", increments=frozenset(), whole=whole)
        if self.name:
            why = f"no checkpoint was made: {refusal}"
            return replace(self, name="", marked=frozenset(), reason=why)
        return None

    def checkpoint_xml(self, domain: Domain) -> str | None:
        """The new checkpoint, for libvirt; None if none is made.

        Every disk is named: libvirt would refuse all for one that it takes on by itself.
        """
        if not self.name:
            return None
        root = ET.Element("domaincheckpoint")
        ET.SubElement(root, "name").text = self.name
        listed = ET.SubElement(root, "disks")
        for disk in domain.disks:
            kind = "bitmap" if disk.target in self.marked else "no"
            ET.SubElement(listed, "disk", name=disk.target, checkpoint=kind)
        return ET.tostring(root, encoding="unicode")


def name_of(destination: str, created: datetime, backup_id: str) -> str:
    """The name of the checkpoint of a backup."""
    return f"zvmsnap-{destination}-{created.strftime(TIME_FORMAT)}-{backup_id[:_ID_CHARACTERS]}"


def plan(
    guest: Guest, sources: Iterable[Source], base: Base, destination: str, name: str
) -> Pushing:
    """What to push of a guest's disks, by the table above. Raises LibvirtFailed.

    `name` is that of the new checkpoint.
    """
    sources = list(sources)
    if base.level is Level.COPY:
        return Pushing(whole={})  # no later backup is on it
    if not guest.is_persistent():
        why = f"{guest.name} is transient: libvirt forgets its checkpoints when it ends"
        return Pushing(reason=f"no checkpoint was made: {why}", whole=_all(sources, base, why))
    images = {source.disk.target: _image(source) for source in sources}
    marked = frozenset(t for t, image in images.items() if isinstance(image, qemu_img.Qcow2))
    planned = Pushing(name if marked else "", marked)
    if base.parent is None:
        return planned
    known = _known(guest, base.parent, destination)
    if isinstance(known, str):
        without = {t: image for t, image in images.items() if isinstance(image, str)}
        return replace(planned, whole={**_all(sources, base, known), **without})
    whole = {}
    for target, image in images.items():
        if before := base.parent.manifest.disk(target):
            whole[target] = image if isinstance(image, str) else _why_whole(before, image, known)
    return replace(
        planned,
        since=known.name,
        increments=frozenset(target for target, why in whole.items() if not why),
        whole={target: why for target, why in whole.items() if why},
    )


def _all(sources: Iterable[Source], base: Base, why: str) -> dict[str, str]:
    if base.parent is None:
        return {}
    targets = (source.disk.target for source in sources)
    return {target: why for target in targets if base.parent.manifest.disk(target)}


def _image(source: Source) -> qemu_img.Qcow2 | str:
    """The image of a disk, if it can have bitmaps; else why not."""
    if source.disk.format != _QCOW2:
        return f"it is {source.disk.format or 'of an unknown format'}, which has no bitmaps"
    if not source.path:
        return f"its image, of type {source.disk.type}, cannot be looked at"
    try:
        image = qemu_img.qcow2(source.path)
    except QemuImgFailed as error:
        return f"its image cannot be looked at: {error}"
    if image.version != _WITH_BITMAPS:
        return f"it is qcow2 of version {image.version}, which has no bitmaps"
    return image


def _known(guest: Guest, parent: StoredBackup, destination: str) -> Metadata | str:
    """What libvirt keeps of the checkpoint of a backup; or why that is of no use."""
    name = parent.manifest.checkpoint
    if not name:
        return f"{parent.name} has no checkpoint"
    is_own = name.startswith(_prefix(destination)) and name.endswith(
        f"-{parent.manifest.id[:_ID_CHARACTERS]}"
    )
    if parent.manifest.uuid != guest.uuid or not is_own:
        return f"checkpoint {name} is not of {parent.name} in this directory"
    known = {each.name: each for each in guest.checkpoint_metadata()}
    return known.get(name, f"libvirt has checkpoint {name} no more")


def _why_whole(before: BackupDisk, image: qemu_img.Qcow2, known: Metadata) -> str:
    if before.target not in known.bitmaps:
        return f"it is not in checkpoint {known.name}"
    if image.disk_bytes != before.disk_bytes:
        return f"it was {before.disk_bytes} bytes long, and is {image.disk_bytes}"
    return ""


def taken_over(
    pushed: Path,
    since: str,
    parent: StoredBackup,
    before: BackupDisk,
    disk_bytes: int,
    target: Path,
) -> str:
    """Let what libvirt has pushed since a checkpoint be the image of an increment; returns how.

    Its header names the guest's own image, on which libvirt has made it. Raises BackupFailed if
    the disk is of another length now, QemuImgFailed and OSError.
    """
    if disk_bytes != before.disk_bytes:
        raise BackupFailed(
            f"{parent.manifest.domain}: {before.target} was made {disk_bytes} bytes long as its "
            "backup began: back it up once more"
        )
    qemu_img.set_backing(str(pushed), _QCOW2, f"../{parent.name}/{before.file}", _QCOW2)
    changed_bytes = pushed.stat().st_blocks * 512
    pushed.rename(target)
    return f"{changed_bytes >> 10} KiB, as libvirt says, since checkpoint {since}"


def forget_old(guest: Guest, directory: BackupDirectory, destination: str, about: Logger) -> None:
    """Let libvirt forget those on which no next backup is. Without that nothing is wrong."""
    own = directory.of_guest(guest.uuid)
    needed = {each.manifest.checkpoint for each in (newest(own), newest(own, full=True)) if each}
    named = {each.manifest.checkpoint for each in own}
    try:
        for each in guest.checkpoint_metadata():
            is_own = each.name.startswith(_prefix(destination)) or each.name in named
            if is_own and each.name not in needed:
                forget_if_allowed(guest, each.name, about)
    except LibvirtFailed as error:
        about.info("the next backup lets libvirt forget old checkpoints: %s", error)


def forget_if_allowed(guest: Guest, name: str, about: Logger) -> None:
    """As `forget`; a refusal is told: libvirt has it still, so the next backup tries it again.

    Raises NO_REFUSALS.
    """
    try:
        forget(guest, name)
    except NO_REFUSALS:
        raise
    except LibvirtFailed as error:
        about.warning("the next backup lets libvirt forget checkpoint %s: %s", name, error)


def forget(guest: Guest, name: str) -> None:
    """Let libvirt forget one, with its bitmaps, if it has it.

    It forgets none of which a disk has no bitmap, as after a restore. Nobody else knows of the
    bitmaps of the other disks: so QEMU is told to remove these before. Raises LibvirtFailed; then
    libvirt has it still.
    """
    known = {each.name: each for each in guest.checkpoint_metadata()}
    if name not in known:
        return
    try:
        guest.checkpoint_delete(name, metadata_only=False)
    except NO_REFUSALS:
        raise
    except LibvirtFailed:  # it has one error for all causes
        _remove_bitmaps(guest, known[name])
        guest.checkpoint_delete(name, metadata_only=True)


def _remove_bitmaps(guest: Guest, checkpoint: Metadata) -> None:
    """Those that QEMU has. Raises LibvirtFailed, also if it is off, or uses one for a job."""
    names = frozenset(checkpoint.bitmaps.values())
    for node in guest.ask_qemu("query-named-block-nodes", {}):
        for bitmap in node.get("dirty-bitmaps", ()):
            if bitmap.get("name") in names:
                which = {"node": node["node-name"], "name": bitmap["name"]}
                guest.ask_qemu("block-dirty-bitmap-remove", which)


def _prefix(destination: str) -> str:
    return f"zvmsnap-{destination}-"
