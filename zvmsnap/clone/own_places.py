"""Where a clone has what the point holds: at the same path in its own datasets.

Not only its disks: of whatever the definition names in a dataset of the point, such as a backing
file, the state of a TPM, a kernel or an ISO, the clone has a copy, as of the snapshot.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from zvmsnap.common.errors import CloneImpossible
from zvmsnap.disks import location, qemu_img
from zvmsnap.inventory import reader
from zvmsnap.journal.operation import Source
from zvmsnap.points.manifest import Manifest
from zvmsnap.points.next_start import mountpoints_of
from zvmsnap.zfs import mounts, volume
from zvmsnap.zfs.mounts import Mount

# Where they are mounted, if not where ZFS mounts them by itself; and what stands for all until
# they exist.
CLONES = Path("/var/lib/zvmsnap/clones")

# Images of these formats name no other files.
_ALONE = ("raw", "")


@dataclass(frozen=True)
class OwnPlaces:
    """What becomes of paths in the datasets of the original.

    `folders` are the clone's mountpoints, by those of the original, and `volumes` likewise by their
    devices. `datasets` are those of the clone, once they exist: only what is in them counts.
    """

    folders: Mapping[PurePath, PurePath] = field(default_factory=dict)
    volumes: Mapping[str, str] = field(default_factory=dict)
    datasets: frozenset[str] | None = None
    table: Sequence[Mount] = ()

    def of(self, path: str) -> str | None:
        """The path of the clone's own copy; None if it has none."""
        for name in dict.fromkeys((os.path.normpath(path), os.path.realpath(path))):
            if own := self._volume(name) or self._file(PurePath(name)):
                return own
        return None

    def has(self, path: str) -> bool:
        """Is that in the datasets of the clone?"""
        if volume.whole_of(path, self.volumes.values()):
            return True
        return not {*_upwards(PurePath(path))}.isdisjoint(self.folders.values())

    def give(self, root: ET.Element) -> None:
        """Let a definition name the copies in place of the original's. Raises ParseError."""
        for resource in reader.resources_of(ET.tostring(root, encoding="unicode")):
            own = self.of(resource.place) if resource.place.startswith("/") else None
            tag, _, attribute = resource.element.partition("@")
            for element in root.findall(tag) if own and ":" not in tag else ():
                if attribute and element.get(attribute) == resource.place:
                    element.set(attribute, own or "")
                elif not attribute and (element.text or "").strip() == resource.place:
                    element.text = own

    def _volume(self, path: str) -> str | None:
        device = volume.whole_of(path, self.volumes)
        return self.volumes[device] + path.removeprefix(device) if device else None

    def _file(self, path: PurePath) -> str | None:
        folder = next((each for each in _upwards(path) if each in self.folders), None)
        if folder is None or self._is_of_another(path, folder):
            return None
        own = str(self.folders[folder] / path.relative_to(folder))
        return own if self._is_real(own) else None

    def _is_of_another(self, path: PurePath, folder: PurePath) -> bool:
        """Is another dataset mounted between? The snapshot has nothing of it."""
        place = mounts.dataset_of_path(str(path), self.table)
        inside = path.relative_to(folder)
        return place is not None and len(PurePath(place[1]).parts) < len(inside.parts)

    def _is_real(self, own: str) -> bool:
        if self.datasets is None:
            return True
        # A symlink may lead to a file of the original.
        place = location.locate_path(own, list(self.table))
        return os.path.exists(own) and place is not None and place.dataset in self.datasets


def planned(manifest: Manifest, datasets: Mapping[str, tuple[str, str]]) -> OwnPlaces:
    """The places of a clone that does not exist yet; its files are as if below CLONES.

    `datasets` are its own and those that these are clones of, by the datasets of the point.
    """
    mountpoints = {own: CLONES / own for own, _ in datasets.values()}
    return _places(manifest, datasets, mountpoints, mounts.read_table())


def made(manifest: Manifest, datasets: Mapping[str, tuple[str, str]]) -> OwnPlaces:
    """The places of a clone whose datasets exist, as `planned`."""
    table = mounts.read_table()
    mountpoints = {own: mounts.mountpoint_of(own, table) for own, _ in datasets.values()}
    mounted = {own: PurePath(path) for own, path in mountpoints.items() if path}
    places = _places(manifest, datasets, mounted, table)
    return replace(places, datasets=frozenset(own for own, _ in datasets.values()))


def _places(
    manifest: Manifest,
    datasets: Mapping[str, tuple[str, str]],
    mountpoints: Mapping[str, PurePath],
    table: Sequence[Mount],
) -> OwnPlaces:
    folders: dict[PurePath, PurePath] = {}
    # Where they are mounted now, and where they were when the point was made.
    now = ((name, mounts.mountpoint_of(origin, table)) for name, (_, origin) in datasets.items())
    for dataset, path in (*now, *mountpoints_of(manifest)):
        own = mountpoints.get(datasets[dataset][0])
        if path and own:
            folders[PurePath(path)] = own
    volumes = {
        volume.device_of(name): volume.device_of(own)
        for dataset, (own, origin) in datasets.items()
        for name in (dataset, origin)
    }
    return OwnPlaces(folders, volumes, None, table)


def _upwards(path: PurePath) -> tuple[PurePath, ...]:
    return (path, *path.parents)


def take_over(sources: Iterable[Source], places: OwnPlaces) -> None:
    """Let the headers of these images, and of those below them, name the clone's own files.

    The definition does not suffice: qemu-img, which merges the overlays of guests that are off,
    knows the headers alone. Raises CloneImpossible, QemuImgFailed and OSError.
    """
    # a header names                 the clone has it   what becomes of it
    # a data file                    yes                the clone's own is named
    # a data file                    no                 CloneImpossible: both would write to it
    # a backing file                 yes                the clone's own is named
    # a backing file                 no                 stays: both read it
    # json:, nbd: or the like        cannot be told     CloneImpossible, if the original's is in it
    done: set[str] = set()
    waiting = [(path, image_format) for _, path, image_format in sources]
    while waiting:
        path, image_format = waiting.pop()
        if path in done or image_format in _ALONE:
            continue
        done.add(path)
        waiting += _take_over(path, image_format, places)


def _take_over(path: str, image_format: str, places: OwnPlaces) -> list[tuple[str, str]]:
    """One image; returns the clone's own image below it, and its format."""
    header = qemu_img.header(path, image_format)
    if header.data_file:
        _own_data_file(path, header.data_file, places)
    if not header.backing:
        return []
    if not header.backing.startswith("/"):
        for folder in places.folders:
            if f"{folder}/" in header.backing:
                raise CloneImpossible(f"{path}: names its backing file as {header.backing}")
        return []
    own = _own(header.backing, places)
    if own is None:
        return []
    _release(own, places)
    if own != header.backing:
        qemu_img.set_backing(path, image_format, own, header.backing_format)
    return [(own, header.backing_format)]


def _own_data_file(path: str, data_file: str, places: OwnPlaces) -> None:
    named = os.path.join(os.path.dirname(path), data_file)
    own = _own(named, places)
    if own is None:
        raise CloneImpossible(
            f"the data of {path} is in {named}, which is in no dataset of the point"
        )
    _release(own, places)
    if own != data_file:
        qemu_img.set_data_file(path, own)


def _own(named: str, places: OwnPlaces) -> str | None:
    """The clone's own file: a symlink in its datasets may lead to one of the original."""
    real = os.path.realpath(named)
    return real if places.has(real) else places.of(real)


def _release(path: str, places: OwnPlaces) -> None:
    table = list(places.table)
    place = location.locate_path(path, table)
    if place and place.path:
        location.give_back(place, table)
