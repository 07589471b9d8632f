"""Is what a guest writes in the snapshots of its point? Pure.

The disks themselves are judged in capture/eligibility, by what QEMU has open. All other resources,
by the first row that fits; `RAM`: may RAM be stored, which fits only to the state of its instant?

| the resource                                  | is         | RAM | told in the point         |
|-----------------------------------------------|------------|-----|---------------------------|
| holds no state: a log, a socket, a port ...   | harmless   | yes | no                        |
| is only read: a backing file                  | harmless   | yes | no                        |
| is the copy that a block job makes of a disk  | harmless   | yes | no: a dump waits for jobs |
| firmware variables, a TPM                     | covered    | yes | no: a copy is stored, or  |
|                                               |            |     | the point says why not    |
| is on a dataset that is snapshotted           | covered    | yes | yes: it is restored with  |
|                                               |            |     | that dataset              |
| the same, an image of an argument for QEMU    | covered    | (*) | yes                       |
| a device of the host, a network disk, what is | an         | no  | yes                       |
| not known, a path elsewhere                   | obstacle   |     |                           |

(*) If the guest is paused until the snapshot is taken: see `is_frozen`.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from enum import Enum

from zvmsnap.inventory import command_line
from zvmsnap.inventory.resource import Kind, Resource
from zvmsnap.zfs.mounts import DiskLocation


class Fate(Enum):
    """What a point has of a resource."""

    COVERED = "covered"
    HARMLESS = "harmless"
    OBSTACLE = "obstacle"


@dataclass(frozen=True)
class Judged:
    """A resource, where it is (None: not on ZFS), and why it is not covered, "" if it is.

    `is_told`: the point says so.
    """

    resource: Resource
    location: DiskLocation | None
    fate: Fate
    why: str = ""
    is_told: bool = False

    def __str__(self) -> str:
        where = f" on {self.location.dataset}" if self.location else ""
        return f"{self.resource.called} ({self.resource.place}{where}) {self.why}"


_ELSEWHERE = {
    Kind.HOST_DEVICE: "is a device of the host",
    Kind.SOCKET: "is a process of the host",
    Kind.REMOTE: "is on another machine",
    Kind.UNKNOWN: "is not known to zvmsnap",
}
_COPY = "/mirror"
_STORED = ("os/nvram", "os/varstore", "devices/tpm/")


def is_stored(resource: Resource) -> bool:
    """Does a point have a copy of it (points/definition), whatever is snapshotted?"""
    return resource.element.startswith(_STORED)


def is_frozen(resource: Resource) -> bool:
    """Does it stay as it is when a running guest is put on overlays, or does RAM hold it, too?

    libvirt does not know of an image that an argument for QEMU names.
    """
    return not resource.element.startswith(command_line.ELEMENT)


def judge(resource: Resource, location: DiskLocation | None, snapshotted: Container[str]) -> Judged:
    """By the table above."""

    def judged(fate: Fate, why: str = "", *, is_told: bool = False) -> Judged:
        return Judged(resource, location, fate, why, is_told)

    if not resource.is_state:
        return judged(Fate.HARMLESS, "holds no state")
    if not resource.writable:
        return judged(Fate.HARMLESS, "is only read")
    if _COPY in resource.element:
        return judged(Fate.HARMLESS, "is not used before its job has ended")
    if is_stored(resource):
        return judged(Fate.COVERED)
    if location and location.dataset in snapshotted:
        return judged(Fate.COVERED, is_told=True)
    why = _ELSEWHERE.get(resource.kind, "is not on a dataset of this snapshot")
    return judged(Fate.OBSTACLE, why, is_told=True)
