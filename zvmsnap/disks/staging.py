"""Staging: one directory for each capture, with its overlays and the files of its point.

    <staging>/<uuid>.<8 hex digits>/vda.zvmsnap.qcow2      overlay, QEMU can reach it
    <staging>/<uuid>.<8 hex digits>/point/memory.img ...   for root alone
    <staging>/kept/<the directory>.vda.zvmsnap.qcow2       moved aside: see unused_overlay

The names say whose an overlay is, even if the journal is lost. They end in .qcow2 because
AppArmor's helper reads image headers in unusual directories only of files named so.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zvmsnap.common.errors import CommitFailed, NoSpace, StagingUnusable
from zvmsnap.common.safe_files import passable_dir, private_dir, rename_to_free
from zvmsnap.config import capture_name
from zvmsnap.points.manifest import MEMORY
from zvmsnap.zfs import mounts

_OVERLAY_SUFFIX = ".zvmsnap.qcow2"
_KEPT = "kept"
# libvirtd has 20 threads for all that anybody asks of it.
PARALLEL_DUMPS_MAX = 8
_OTHERS_OR_GROUP_MAY_PASS = 0o011
_IN_RAM = ("tmpfs", "ramfs")


@dataclass(frozen=True)
class StagingDir:
    """The directory of one capture."""

    path: Path

    @classmethod
    def fresh(cls, staging: Path, uuid: str) -> StagingDir:
        """A name that no capture had before: libvirt silently overwrites an existing RAM image."""
        return cls(staging / capture_name.fresh(uuid))

    @property
    def point(self) -> Path:
        """The directory of the files that the point is made of."""
        return self.path / "point"

    @property
    def memory(self) -> Path:
        """The RAM image."""
        return self.point / MEMORY

    def overlay(self, target: str) -> Path:
        """The overlay of a disk."""
        return self.path / f"{target}{_OVERLAY_SUFFIX}"

    def overlays(self) -> list[Path]:
        """The overlays in it."""
        return sorted(self.path.glob(f"*{_OVERLAY_SUFFIX}"))

    def check(self) -> None:
        """Raises StagingUnusable if it leads out of staging."""
        for path in (self.path, self.point):
            if path.is_symlink():
                raise StagingUnusable(f"{path}: is a symlink; not followed out of staging")

    def make(self) -> None:
        """Make the directory. Raises OSError."""
        passable_dir(self.path.parent)
        passable_dir(self.path)
        private_dir(self.point)

    def remove(self) -> None:
        """Remove it with all its files. Raises CommitFailed, with nothing done, if it has overlays:

        whoever has brought a guest back from them removes them first.
        """
        overlays = ", ".join(str(overlay) for overlay in self.overlays())
        if overlays:
            raise CommitFailed(f"kept, as a guest may write to it: {overlays}")
        if self.path.exists():
            shutil.rmtree(self.path)


def staging_dirs(staging: Path) -> list[StagingDir]:
    """The captures in staging; a directory with another kind of name is somebody else's."""
    if not staging.is_dir():
        return []
    return [
        StagingDir(path)
        for path in sorted(staging.iterdir())
        if capture_name.is_capture(path.name) and path.is_dir() and not path.is_symlink()
    ]


def move_aside(overlay: Path) -> Path:
    """Move an overlay that no guest uses out of its capture; returns where it is now."""
    kept = private_dir(overlay.parent.parent / _KEPT)
    return rename_to_free(overlay, kept / f"{overlay.parent.name}.{overlay.name}")


def moved_aside(staging: Path) -> list[Path]:
    """All that was moved aside, and that nobody has seen to since."""
    kept = staging / _KEPT
    return sorted(kept.iterdir()) if kept.is_dir() and not kept.is_symlink() else []


def is_overlay(path: str) -> bool:
    """Is that the path of an overlay of zvmsnap? The file's and the directory's name tell."""
    overlay = Path(path)
    return overlay.name.endswith(_OVERLAY_SUFFIX) and capture_name.is_capture(overlay.parent.name)


def was_overlay(path: str) -> bool:
    """Is that an overlay, wherever it was moved to, or an overlay that was removed?"""
    return _OVERLAY_SUFFIX in Path(path).name


def check_usable(staging: Path, snapshotted: frozenset[str], table: list[mounts.Mount]) -> None:
    """Raises StagingUnusable for staging in RAM, on a dataset of the snapshot, or out of reach.

    The message says what to do.
    """
    check_place(staging, snapshotted, table)
    check_passable(passable_dir(staging))


def check_place(staging: Path, snapshotted: frozenset[str], table: list[mounts.Mount]) -> None:
    """Raises StagingUnusable for staging in RAM, or on a dataset of the snapshot.

    In RAM, a power cut would take what guests have written to their overlays, and was told that it
    is on disk; and RAM images need twice their RAM.
    """
    real = Path(os.path.realpath(staging))
    kind = mounts.kind_of_path(str(real), table)
    if kind in _IN_RAM:
        raise StagingUnusable(
            f"staging {staging} is on {kind}, which is RAM: a power cut would take the writes of "
            "guests that are on their overlays: set `staging` in config.toml to a disk"
        )
    dataset_and_path = mounts.dataset_of_path(str(real), table)
    if dataset_and_path and dataset_and_path[0] in snapshotted:
        raise StagingUnusable(
            f"staging {staging} is on {dataset_and_path[0]}, which is one of the snapshot: "
            "set `staging` in config.toml to another file system"
        )


def check_passable(staging: Path) -> None:
    """Raises StagingUnusable if QEMU's user cannot reach what is in that directory."""
    real = Path(os.path.realpath(staging))
    for directory in (real, *real.parents):
        if not directory.stat().st_mode & _OTHERS_OR_GROUP_MAY_PASS:
            raise StagingUnusable(
                f"{directory} lets only its owner pass, so QEMU cannot reach overlays in "
                f"{staging}: chmod o+x {directory}"
            )


def free_bytes(staging: Path) -> int:
    """The free bytes of its file system. Raises OSError."""
    stat = os.statvfs(staging)
    return stat.f_bavail * stat.f_frsize


def free_bytes_for(staging: Path) -> int:
    """The free bytes of the file system that it is, or will be, in. Raises OSError."""
    while not staging.exists():
        staging = staging.parent
    return free_bytes(staging)


def parallel_dumps(staging: Path) -> int:
    """How many RAM images may be written there at once, if the configuration does not say.

    libvirt and QEMU need about two CPUs for each; a disk that turns is quickest with one. Of ZFS it
    is not known what is below.
    """
    device = os.stat(staging).st_dev
    queue = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for folder in (queue, queue.resolve().parent):  # a partition has no queue of its own
        with suppress(OSError):
            if (folder / "queue/rotational").read_text().strip() == "1":
                return 1
    return min(max((os.cpu_count() or 1) // 2, 1), PARALLEL_DUMPS_MAX)


class StagingSpace:
    """The free bytes of staging, reserved guest by guest before anything is changed."""

    def __init__(self, staging: Path, overlay_room_bytes: int) -> None:
        self._staging = staging
        self._free_bytes = free_bytes(staging)
        self._overlay_room_bytes = overlay_room_bytes
        self._reserved_bytes: dict[str, int] = {}

    def reserve(self, uuid: str, image_bytes: int) -> None:
        """Reserve space for a guest's RAM image and overlays. Raises NoSpace.

        It replaces what the guest had reserved before, for a level that could not be reached.
        """
        self._free_bytes += self._reserved_bytes.pop(uuid, 0)
        needed_bytes = image_bytes + self._overlay_room_bytes
        if needed_bytes > self._free_bytes:
            raise NoSpace(
                f"staging {self._staging} has {self._free_bytes >> 20} MiB free, but its RAM image "
                f"and overlay may need {needed_bytes >> 20} MiB: free space there, set `staging` "
                "to another file system, or lower limits.dump_max_ram_ratio or overlay_room_mib"
            )
        self._free_bytes -= needed_bytes
        self._reserved_bytes[uuid] = needed_bytes
