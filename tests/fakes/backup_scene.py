"""A host whose guest has disks on a dataset with snapshots: real files, and images by qemu-img."""

import shutil
import subprocess
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from tests.fakes.guest import UUID, FakeGuest
from tests.fakes.host import FakeHost
from tests.fakes.images import libvirt_image
from zvmsnap.archive import directory
from zvmsnap.archive.directory import BackupDirectory, StoredBackup
from zvmsnap.backup.of_point import back_up_point
from zvmsnap.backup.work import Works
from zvmsnap.backup.writing import BackupOptions
from zvmsnap.common import log
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.finalize.store import RamStore
from zvmsnap.points import compatibility, definition, vault
from zvmsnap.points.manifest import DOMAIN_XML, NVRAM, PERSISTENT_XML, Disk, Manifest, SnapshotRef
from zvmsnap.points.point import RestorePoint
from zvmsnap.zfs import branches, marks, mounts, types, zfs
from zvmsnap.zfs.types import Room

DATASET = "tank/web"
DISK_BYTES = 4 << 20


def manifests_read(patch: pytest.MonkeyPatch) -> list[str]:
    """The backups whose manifests are read from now on, one after the other."""
    names: list[str] = []
    do = directory.read_backup

    def noting(path: Path) -> StoredBackup:
        names.append(path.name)
        return do(path)

    patch.setattr(directory, "read_backup", noting)
    return names


class Scene:
    """The guest `web`, its dataset, points of it, and a directory of backups."""

    def __init__(
        self,
        root: Path,
        config: Config,
        manifest: Callable[..., Manifest],
        patch: pytest.MonkeyPatch,
    ) -> None:
        self.root = root
        self.config = config
        self.mountpoint = root / "tank" / "web"
        self.mountpoint.mkdir(parents=True)
        self.disk = self.mountpoint / "vda.raw"
        self.guest = FakeGuest(vda=self.disk)
        self.host = FakeHost(self.guest)
        self.host.install(patch)
        target = root / "backup dir"
        target.mkdir()
        self.directory = BackupDirectory(target)
        self.snapshots: list[types.Snapshot] = []
        self.marks: dict[str, str] = {}
        self._taken = 0
        self._manifest = manifest
        self.table = [
            mounts.Mount(1, 0, "/", "/", ""),
            mounts.Mount(2, 1, "/", str(self.mountpoint), DATASET),
        ]
        patch.setattr(mounts, "read_table", lambda: self.table)
        patch.setattr(zfs, "all_snapshots", self._all_snapshots)
        patch.setattr(zfs, "datasets", self._datasets)
        patch.setattr(zfs, "marked", lambda _property: self.marks)
        patch.setattr(zfs, "command", self._command)
        self.bookmarks: dict[str, types.Snapshot] = {}
        patch.setattr(zfs, "snapshot_usage", self._usage)
        patch.setattr(zfs, "bookmarks", self._bookmarks)
        patch.setattr(marks, "bookmark", self._bookmark)
        patch.setattr(marks, "destroy_bookmarks", self._forget)
        patch.setattr(zfs, "destroy", self._destroy)
        patch.setattr(branches, "rooms", lambda names: {n: Room(available=1 << 40) for n in names})
        patch.setattr(compatibility, "available_memory_bytes", lambda: 1 << 30)
        patch.setattr(definition, "NVRAM_DIR", root / "nvram")
        (root / "nvram").mkdir()
        self.add_dataset("tank/vm")
        with self.disk.open("wb") as file:
            file.truncate(DISK_BYTES)

    def add_dataset(self, name: str) -> None:
        """A filesystem that is mounted, and empty."""
        path = self.root / name
        path.mkdir(parents=True)
        above = [each for each in self.table if path.is_relative_to(each.mountpoint)]
        parent = max(above, key=lambda each: len(each.mountpoint)).number
        number = self.table[-1].number + 1
        self.table.append(mounts.Mount(number, parent, "/", str(path), name))

    def write(self, at: int, data: bytes) -> None:
        """As the guest does."""
        with self.disk.open("r+b") as file:
            file.seek(at)
            file.write(data)

    def point(
        self,
        name: str,
        *,
        memory: bool = False,
        disks: Sequence[tuple[str, str, str]] = (("vda", "raw", "vda.raw"),),
        **changes: object,
    ) -> RestorePoint:
        """A point of now, with a snapshot of what the dataset holds."""
        number = self._taken = self._taken + 1
        seen = self.mountpoint / ".zfs" / "snapshot" / name
        seen.mkdir(parents=True)
        for path in self.mountpoint.iterdir():
            if path.name != ".zfs":
                subprocess.run(["cp", "-a", "--sparse=always", path, seen], check=True)
        self.snapshots.append(types.Snapshot(DATASET, name, number, number))
        capture = f"{UUID}.{number:08x}"
        directory = vault.incoming(self.config.vault_dir, "web", capture)
        xml = self.guest.xml()
        (directory / DOMAIN_XML).write_text(xml)
        (directory / PERSISTENT_XML).write_text(xml)
        (directory / NVRAM).write_bytes(b"variables")
        stored = None
        if memory:
            dump = directory / "dump"
            dump.write_bytes(libvirt_image(xml, b"RAM of " + name.encode()))
            ram = RamStore(directory, "web", UUID, True, None, log.about("web", ""))
            stored = ram.store(dump, "raw")
            dump.unlink()
        known = {
            "run": name,
            "capture": capture,
            "created": f"2026-11-20T03:00:{number:02}.000+00:00",
            "level": ConsistencyLevel.MEMORY if memory else ConsistencyLevel.CRASH,
            "snapshots": (SnapshotRef(DATASET, name, number, number, dataset_guid=7),),
            "disks": tuple(
                Disk(target, "file", kind, str(self.mountpoint / path), DATASET, path, None, 7)
                for target, kind, path in disks
            ),
            "memory": stored,
        }
        built = self._manifest(**{**known, **changes})
        built = msgspec.structs.replace(
            built, seal=definition.seal_of(self.config, directory, built)
        )
        return vault.publish(directory, built)

    def back_up(self, point: RestorePoint, **options: object) -> StoredBackup:
        """A backup of a point."""
        return back_up_point(
            self.config,
            point,
            self.directory,
            BackupOptions(**options),  # type: ignore[arg-type]
        )

    def content(self, backup: StoredBackup, target: str = "vda") -> bytes:
        """What its image holds, as qemu-img reads it, which follows the names in the headers."""
        out = self.root / "out.raw"
        image = backup.directory / f"{target}.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", "raw", image, out], check=True)
        return out.read_bytes()

    def snapshot_of(self, point: RestorePoint, path: str = "vda.raw") -> bytes:
        """What a file holds in the snapshot of a point."""
        name = point.manifest.snapshots[0].name
        return (self.mountpoint / ".zfs" / "snapshot" / name / path).read_bytes()

    def nothing_left(self) -> bool:
        """Is nothing of any work under way left?"""
        hidden = [path for path in self.directory.path.iterdir() if path.name.startswith(".")]
        return Works(self.config).all() == ([], []) and not hidden

    def _all_snapshots(self, guids: Container[int] | None = None) -> types.SnapshotListing:
        wanted = [each for each in self.snapshots if guids is None or each.guid in guids]
        return types.SnapshotListing(wanted, {"tank": 0}, {DATASET: 7})

    def _datasets(self, _tops: Sequence[str] = ()) -> Mapping[str, types.Dataset]:
        names = [each.dataset for each in self.table if each.dataset]
        return {name: types.Dataset(name, "filesystem", compressed=False, guid=7) for name in names}

    def _usage(self, datasets: Sequence[str]) -> list[types.SnapshotUsage]:
        own = (each for each in self.snapshots if each.dataset in datasets)
        return [types.SnapshotUsage(each, (), 0) for each in own]

    def _bookmarks(self, datasets: Sequence[str]) -> list[types.Bookmark]:
        return [
            types.Bookmark(each.dataset, name.partition("#")[2], each.guid, each.createtxg)
            for name, each in self.bookmarks.items()
        ]

    def _bookmark(self, names: Mapping[str, str]) -> None:
        by_name = {each.full_name: each for each in self.snapshots}
        self.bookmarks |= {mark: by_name[name] for mark, name in names.items()}

    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            self.bookmarks.pop(name, None)

    def _command(self, verb: str, *words: str) -> str:
        name = words[-1]
        if verb == "create":
            self.add_dataset(name)
            self.marks[name] = next(w.partition("=")[2] for w in words if "zvmsnap:temporary=" in w)
        else:
            assert verb == "inherit"
            del self.marks[name]
        return ""

    def _destroy(self, name: str, *, with_snapshots: bool = False) -> None:
        shutil.rmtree(self.root / name)
        self.table = [each for each in self.table if each.dataset != name]
        self.marks.pop(name, None)


def skip_without_qemu_img() -> None:
    if not shutil.which("qemu-img"):
        pytest.skip("no qemu-img here: qemu-utils is not installed")


@pytest.fixture
def scene(
    tmp_path: Path,
    config: Config,
    manifest: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    skip_without_qemu_img()
    return Scene(tmp_path, config, manifest, monkeypatch)
