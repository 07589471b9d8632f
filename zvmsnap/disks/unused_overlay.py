"""What becomes of an overlay file that no definition names: removed, moved aside, or left alone.

What it holds. A crash, of libvirt or of the machine, may leave a file of any length and content:

| the file                                              | holds                           |
|-------------------------------------------------------|---------------------------------|
| of less than a cluster, or of zeros alone             | nothing                         |
| sound qcow2, without a cluster of its own             | nothing                         |
| sound qcow2, with clusters                            | writes                          |
| qcow2 whose tables are torn, another kind of file     | unknown: maybe a guest's writes |
| a directory, a symlink, ...                           | unknown: zvmsnap makes no such  |

qemu-img reads tables that are cut off as if they were empty. So a map without a cluster proves
nothing, unless the tables account for all that is in the file, too.

What becomes of it:

| merged before | a process writes to it, not to its base | holds           | it is              |
|---------------|-----------------------------------------|-----------------|--------------------|
| yes           | any                                     | any             | removed            |
| no            | yes                                     | any             | left: CommitFailed |
| no            | no, but one has it open for writing     | any             | moved aside        |
| no            | no                                      | nothing         | removed            |
| no            | no                                      | writes, unknown | moved aside        |

Moved aside is to `kept` in staging: nothing there is in the way of a later run. `zvmsnap recover`
names it until somebody has seen to it.

QEMU may have an overlay open that no disk uses. For a snapshot libvirt has it open one overlay
after the other, and switches to all of them after that; if libvirtd is killed in between, nobody
remembers them. At each later dump QEMU gives up writing to all that it has open, and for that opens
it again, by the path of then. If nothing is there any more, or AppArmor does not allow it any more,
the dump fails ("Bad address"), as any migration does. So QEMU is told to close such overlays
(`close_in_qemu`) before anything is done to their files, and before each dump.
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path

from zvmsnap.common.errors import (
    CommitFailed,
    LibvirtFailed,
    OverlayHeld,
    QemuImgFailed,
)
from zvmsnap.common.process import writers_of
from zvmsnap.common.waiting import wait_until
from zvmsnap.disks import qemu_img, staging
from zvmsnap.virt import domain_xml
from zvmsnap.virt.guest import Guest

# qcow2 knows no smaller one; the first cluster has the header.
_SMALLEST_CLUSTER_BYTES = 512
# A longer file of zeros is unknown: nobody waits until terabytes are read.
_ZEROS_AT_MOST_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_CLOSES_WITHIN_S = 2.0
_LOOK_EVERY_S = 0.2


class Content(Enum):
    """What an overlay file holds, by the first table."""

    NOTHING = "nothing"
    WRITES = "writes"
    UNKNOWN = "unknown"


def content_of(overlay: Path) -> Content:
    """Look at an overlay that is not in use. Raises OSError."""
    if overlay.is_symlink() or not overlay.is_file():
        return Content.UNKNOWN
    if is_blank(overlay):
        return Content.NOTHING
    try:
        is_empty = qemu_img.holds_nothing(str(overlay))
        soundness = qemu_img.check(str(overlay))
    except QemuImgFailed:
        return Content.UNKNOWN
    if is_empty:
        return Content.NOTHING if soundness is qemu_img.Soundness.SOUND else Content.UNKNOWN
    return Content.UNKNOWN if soundness is qemu_img.Soundness.CORRUPT else Content.WRITES


def is_blank(overlay: Path) -> bool:
    """Was it made, but never came to the disk, or not even its header? Raises OSError."""
    size_bytes = overlay.stat().st_size
    if size_bytes < _SMALLEST_CLUSTER_BYTES:
        return True
    if size_bytes > _ZEROS_AT_MOST_BYTES:
        return False
    with overlay.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            if chunk.count(0) != len(chunk):
                return False
    return True


def clear(overlay: Path, base: str, *, merged: bool) -> Path | None:
    """Clear away an overlay that no definition names, by the second table.

    `base` is the image below it, "" if unknown; `merged`: its data is in the base. Returns where it
    is now if it was moved aside, None if it was removed. Raises CommitFailed and OSError.
    """
    writers = set() if merged or overlay.is_symlink() else writers_of(overlay)
    if writers and not writers & (writers_of(Path(base)) if base else set()):
        pids = ", ".join(map(str, sorted(writers)))
        raise CommitFailed(
            f"process {pids} writes to {overlay}, though no definition of the guest names it: "
            "kept. Shut the guest down from inside; after that zvmsnap recover tells what it has"
        )
    if merged or (not writers and content_of(overlay) is Content.NOTHING):
        overlay.unlink()
        return None
    return staging.move_aside(overlay)


def why_kept(overlay: Path) -> str:
    """What a person should know of an overlay that no guest uses, and do. Raises OSError."""
    if not overlay.is_symlink() and (writers := writers_of(overlay)):
        return (
            f"{overlay}: kept; process {min(writers)} has it open. If that is its guest's QEMU, "
            "the next point with RAM has it closed"
        )
    if content_of(overlay) is Content.UNKNOWN:
        return (
            f"{overlay}: kept; no guest uses it, and it is damaged or no overlay, but it may hold "
            "writes of its guest. If its guest has all that it should, remove it"
        )
    base = _base_of(overlay)
    return (
        f"{overlay}: kept; no guest uses it, but it holds writes that {base} may lack. If "
        f"that disk was not used since: qemu-img commit {overlay}. Then remove it"
    )


def _base_of(overlay: Path) -> str:
    layers = qemu_img.chain(str(overlay))
    return layers[1].path if len(layers) > 1 else "its disk"


# -- overlays that QEMU has open, and no disk uses


def close_in_qemu(guest: Guest) -> list[str]:
    """Have QEMU close the overlays that no disk of a guest uses; returns which.

    The kernel tells whether there are any: QEMU's monitor is hardly ever asked. Whatever libvirt
    says, QEMU refuses to close what a disk, a job or another image uses. Raises OverlayHeld, with
    what to do, and LibvirtFailed.
    """
    # After a merge libvirt closes them itself, an instant after its definition names the base.
    wait_until(lambda: not _held(guest), _CLOSES_WITHIN_S, _LOOK_EVERY_S)
    held = _held(guest)
    refusals = _close_unused_nodes(guest) if held else []
    if still_held := _held(guest):
        raise OverlayHeld(
            f"{guest.name}: its QEMU has {', '.join(still_held)} open, which its definition does "
            f"not name, and keeps it open ({'; '.join(refusals) or 'it knows no such image'}): its "
            "RAM cannot be dumped until the guest was shut down and started again"
        )
    return held


def _held(guest: Guest) -> list[str]:
    """The overlays that its QEMU has open, though its live definition does not name them."""
    process = guest.process()
    if not process or not any(map(staging.was_overlay, process.open_paths)):
        return []
    # A path may begin otherwise where QEMU sees other mounts. No two overlays end in the same.
    used = {Path(path).parts[-2:] for path in _used(guest)}
    return sorted(
        path
        for path in set(process.open_paths)
        if staging.was_overlay(path) and Path(path).parts[-2:] not in used
    )


def _used(guest: Guest) -> set[str]:
    disks = domain_xml.parse(guest.xml()).disks
    return {path for disk in disks for path in (disk.source, *disk.chain)}


def _close_unused_nodes(guest: Guest) -> list[str]:
    """Tell QEMU to close the overlays that no disk uses; returns why some stay open."""
    used, refusals = _used(guest), []
    try:
        nodes = guest.ask_qemu("query-named-block-nodes", {})
    except LibvirtFailed as error:
        return [str(error)]
    # An image before the file that it is in.
    for node in sorted(nodes, key=lambda node: node.get("drv") == "file"):
        path = _path_of(node.get("file", ""))
        if staging.is_overlay(path) and path not in used:
            try:
                guest.ask_qemu("blockdev-del", {"node-name": node["node-name"]})
            except LibvirtFailed as error:
                refusals.append(str(error))
    return refusals


def _path_of(name: str) -> str:
    """The file that a node is in, not that of what is below it, from QEMU's name for the node.

    "" if the name was too long for QEMU, which cuts it off.
    """
    if not name.startswith("json:"):
        return name
    try:
        options = json.loads(name.removeprefix("json:"))
    except ValueError:
        return ""
    while isinstance(options.get("file"), dict):
        options = options["file"]
    return str(options.get("filename", ""))
