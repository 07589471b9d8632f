"""Where a file is read that an image of a point names.

Whoever owns a dataset may have written any name into the header of an image in it, or have put any
symlink there. So what is named counts as it was in the snapshots, and of this host nothing is read
that the guest could not have had:

| an image names              | it is                                     | what is read         |
|-----------------------------|-------------------------------------------|----------------------|
| a file or volume            | of a dataset of the point                 | that of the snapshot |
| a backing file or volume    | elsewhere; in the guest's definition, too | that, as it is now   |
| a backing file or volume    | elsewhere; the guest was off              | that, as it is now   |
| any of these two            | of a point that came from elsewhere       | nothing              |
| a data file                 | elsewhere                                 | nothing              |
| a backing file, no format   | anywhere                                  | nothing              |
| json:, nbd: or the like     | anywhere                                  | nothing              |
| a symlink out of a snapshot | anywhere                                  | nothing              |

The definition of a guest that runs has all images that its QEMU has open. That of one that is off
has the topmost of each disk alone: libvirt would take the others from the headers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

from zvmsnap.clone.own_places import OwnPlaces
from zvmsnap.common.errors import DiskUnreadable, RestoreImpossible
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.points import definition
from zvmsnap.points.next_start import mountpoints_of
from zvmsnap.points.point import RestorePoint
from zvmsnap.virt import domain_xml
from zvmsnap.zfs import mounts, volume
from zvmsnap.zfs.mounts import Mount
from zvmsnap.zfs.types import Snapshot


@dataclass(frozen=True)
class Seen:
    """The snapshots of the disks' datasets, and where their content is seen.

    All are by the names that the datasets have in the point: `folders` those of filesystems,
    `volumes` the clones of volumes; `unseen` says why some are seen nowhere.
    """

    snapshots: Mapping[str, Snapshot]
    folders: Mapping[str, Path]
    volumes: Mapping[str, str]
    unseen: Mapping[str, str]


class Places:
    """Where what the images of a point name is read."""

    def __init__(
        self, config: Config, point: RestorePoint, seen: Seen, table: Sequence[Mount]
    ) -> None:
        self._config = config
        self._point = point
        self._seen = seen
        self._mountpoints = list(_mountpoints(point, seen, table))
        folders = {
            PurePath(path): PurePath(seen.folders[dataset])
            for dataset, path in self._mountpoints
            if dataset in seen.folders
        }
        volumes = {
            volume.device_of(name): volume.device_of(clone)
            for dataset, clone in seen.volumes.items()
            for name in (dataset, seen.snapshots[dataset].dataset)
        }
        self._own = OwnPlaces(folders, volumes, None, table)

    def file(self, dataset: str, path: str) -> str:
        """A file of a dataset, by its path in there, at the end of its links.

        Raises DiskUnreadable.
        """
        folder = self._seen.folders[dataset]
        real = os.path.realpath(folder / path)
        if not PurePath(real).is_relative_to(os.path.realpath(folder)):
            raise DiskUnreadable(f"{folder / path}: is a symlink that leads out of its snapshot")
        if not os.path.isfile(real):
            raise DiskUnreadable(f"{folder / path}: is not in the snapshot, or is no file")
        return real

    def backing(self, named: str) -> str:
        """A backing file that the header of an image names. Raises DiskUnreadable."""
        named = self._as_of_the_image(named)
        if own := self._of_point(named):
            return own
        real = os.path.realpath(named)
        if not self._is_made_here:
            raise DiskUnreadable(
                f"{named}: an image names it, it is in no dataset of the point, and this host has "
                "not made the point: not read"
            )
        is_off = self._point.manifest.level is ConsistencyLevel.OFFLINE
        if not is_off and real not in self._in_definition:
            raise DiskUnreadable(
                f"{named}: an image names it, but the guest's definition does not, and it is in no "
                "dataset of the point: not read"
            )
        if not _is_image(real):
            raise DiskUnreadable(f"{named}: an image names it, and it is no file, and no device")
        return real

    def data_file(self, named: str) -> str:
        """A data file that the header of an image names. Raises DiskUnreadable."""
        named = self._as_of_the_image(named)
        if own := self._of_point(named):
            return own
        raise DiskUnreadable(
            f"{named}: has the data of an image, and is in no dataset of the point: not read"
        )

    def _as_of_the_image(self, named: str) -> str:
        """The name, as it was meant where the image was. Raises DiskUnreadable.

        A relative one, as ../golden/base.raw, comes here as one beside that of its snapshot.
        """
        if not named.startswith("/"):
            raise DiskUnreadable(f"{named}: an image names that, which is no path: not read")
        for dataset, folder in self._seen.folders.items():
            inside = os.path.relpath(named, folder)
            if PurePath(named).is_relative_to(folder) and inside.split("/")[0] == "..":
                return os.path.normpath(os.path.join(self._mountpoint(dataset), inside))
        return named

    def _of_point(self, named: str) -> str | None:
        """Where that is seen; None if it is in no dataset of the point. Raises DiskUnreadable."""
        for dataset, path in self._mountpoints:
            if dataset in self._seen.unseen and PurePath(named).is_relative_to(path):
                raise DiskUnreadable(f"{named}: {self._seen.unseen[dataset]}")
        folders = self._seen.folders.items()
        own: str | None = named
        if not any(PurePath(named).is_relative_to(folder) for _, folder in folders):
            own = self._own.of(named)
        for dataset, folder in folders:
            if own and PurePath(own).is_relative_to(folder):
                return self.file(dataset, os.path.relpath(own, folder))
        return own  # the device of a clone

    def _mountpoint(self, dataset: str) -> str:
        return next((path for name, path in self._mountpoints if name == dataset), "/")

    @cached_property
    def _is_made_here(self) -> bool:
        return definition.is_made_here(self._config, self._point.directory, self._point.manifest)

    @cached_property
    def _in_definition(self) -> frozenset[str]:
        """The images that the definitions of the point name below its disks."""
        try:
            return frozenset(
                os.path.realpath(path)
                for live in (True, False)
                for disk in domain_xml.parse(definition.definition_of(self._point, live=live)).disks
                for path in disk.chain
                if path.startswith("/")
            )
        except RestoreImpossible as error:
            raise DiskUnreadable(str(error)) from error


def _mountpoints(
    point: RestorePoint, seen: Seen, table: Sequence[Mount]
) -> Iterator[tuple[str, str]]:
    """Where the datasets were mounted when the point was made, and where they are now."""
    for dataset, path in mountpoints_of(point.manifest):
        if dataset in seen.snapshots:
            yield dataset, path
    for dataset, snapshot in seen.snapshots.items():
        if now := mounts.mountpoint_of(snapshot.dataset, table):
            yield dataset, now


def _is_image(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)
