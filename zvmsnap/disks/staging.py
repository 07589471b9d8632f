"""Staging: one directory for each capture, with its overlays and its point in the making.

    <staging>/<uuid>.<8 hex digits>/vda.zvmsnap.qcow2      overlay, reachable for QEMU
    <staging>/<uuid>.<8 hex digits>/point/memory.img ...   for root alone

The names tell whose an overlay is, even when the journal is lost. They end in .qcow2 because
AppArmor's helper reads image headers in unusual directories only of files named so.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from zvmsnap.common import capture_name
from zvmsnap.common.atomic_file import passable_dir, private_dir
from zvmsnap.common.errors import CommitFailed, NoSpace, StagingUnusable
from zvmsnap.points.manifest import MEMORY
from zvmsnap.zfs import mounts

_OVERLAY_SUFFIX = ".zvmsnap.qcow2"
_OTHERS_OR_GROUP_MAY_PASS = 0o011


@dataclass(frozen=True)
class StagingDir:
    """The directory of one capture."""

    path: Path

    @classmethod
    def fresh(cls, staging: Path, uuid: str) -> StagingDir:
        """A name that no capture had before: libvirt overwrites an existing RAM image silently."""
        return cls(staging / capture_name.fresh(uuid))

    @property
    def point(self) -> Path:
        """Where the point is put together."""
        return self.path / "point"

    @property
    def memory(self) -> Path:
        """The RAM image."""
        return self.point / MEMORY

    def overlay(self, target: str) -> Path:
        """The overlay of a disk."""
        return self.path / f"{target}{_OVERLAY_SUFFIX}"

    def overlays(self) -> list[Path]:
        """The overlays that lie here."""
        return sorted(self.path.glob(f"*{_OVERLAY_SUFFIX}"))

    def check(self) -> None:
        """Raises StagingUnusable if it would lead out of staging."""
        for path in (self.path, self.point):
            if path.is_symlink():
                raise StagingUnusable(f"{path}: is a symlink; not followed out of staging")

    def make(self) -> None:
        """Make the directory. Raises OSError."""
        passable_dir(self.path.parent)
        passable_dir(self.path)
        private_dir(self.point)

    def remove(self) -> None:
        """Remove it and all that is in it. Raises CommitFailed, with nothing done, for overlays:

        who has brought a guest back from them removes them first.
        """
        overlays = ", ".join(str(overlay) for overlay in self.overlays())
        if overlays:
            raise CommitFailed(f"kept, as a guest may write to it: {overlays}")
        if self.path.exists():
            shutil.rmtree(self.path)


def staging_dirs(staging: Path) -> list[StagingDir]:
    """The captures that lie in staging; what is not named as one is somebody else's."""
    if not staging.is_dir():
        return []
    return [
        StagingDir(path)
        for path in sorted(staging.iterdir())
        if capture_name.is_capture(path.name) and path.is_dir() and not path.is_symlink()
    ]


def is_overlay(path: str) -> bool:
    """Is that the path of an overlay of ours? Its own name and its directory's must be."""
    where = Path(path)
    return where.name.endswith(_OVERLAY_SUFFIX) and capture_name.is_capture(where.parent.name)


def check_usable(staging: Path, snapshotted: frozenset[str], table: list[mounts.Mount]) -> None:
    """Refuse a staging that the snapshot itself would hold, or that QEMU could not reach.

    Raises StagingUnusable with what to do.
    """
    real = Path(os.path.realpath(staging))
    found = mounts.dataset_of_path(str(real), table)
    if found and found[0] in snapshotted:
        raise StagingUnusable(
            f"staging {staging} lies on {found[0]}, which this very snapshot holds: "
            "set `staging` in config.toml to another file system"
        )
    passable_dir(staging)
    for directory in (real, *real.parents):
        if not directory.stat().st_mode & _OTHERS_OR_GROUP_MAY_PASS:
            raise StagingUnusable(
                f"{directory} lets only its owner pass, so QEMU cannot reach overlays in "
                f"{staging}: chmod o+x {directory}"
            )


def free_bytes(staging: Path) -> int:
    """What is free there. Raises OSError."""
    free = os.statvfs(staging)
    return free.f_bavail * free.f_frsize


class StagingSpace:
    """The free bytes of staging, handed out guest by guest before anything is touched."""

    def __init__(self, staging: Path, overlay_room_bytes: int) -> None:
        self._staging = staging
        self._free_bytes = free_bytes(staging)
        self._overlay_room_bytes = overlay_room_bytes
        self._taken_bytes: dict[str, int] = {}

    def take(self, uuid: str, ram_bytes: int) -> None:
        """Reserve room for a guest's RAM image and overlays. Raises NoSpace.

        In place of what it had: its last level could not be reached.
        """
        self._free_bytes += self._taken_bytes.pop(uuid, 0)
        needed = ram_bytes + self._overlay_room_bytes
        if needed > self._free_bytes:
            raise NoSpace(
                f"staging {self._staging} has {self._free_bytes >> 20} MiB free, but its RAM image "
                f"and overlay need {needed >> 20} MiB: free space there, set `staging` to another "
                "file system, or lower limits.overlay_room_mib"
            )
        self._free_bytes -= needed
        self._taken_bytes[uuid] = needed
