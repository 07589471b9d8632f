"""A backup in the making: its directory, its images, what else belongs to it, and its publication.

Whatever way the content of the disks comes. A failure, or a signal, leaves nothing of it; what a
crash leaves is in the journal.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from zvmsnap.archive.directory import (
    MAKING,
    BackupDirectory,
    StoredBackup,
    described,
    discard,
    newest,
)
from zvmsnap.archive.images import Image
from zvmsnap.archive.manifest import (
    MANIFEST,
    MEMORY,
    Backup,
    BackupDisk,
    Level,
    Origin,
    StoredFile,
    Way,
    image_name,
)
from zvmsnap.backup.work import BackupWork, WorkWriter
from zvmsnap.bulk import progress
from zvmsnap.common import log, safe_files
from zvmsnap.common.errors import BackupDamaged, BackupFailed, BackupImpossible
from zvmsnap.common.log import Logger
from zvmsnap.common.process import Process
from zvmsnap.common.waiting import in_background, wait
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.settings import Config
from zvmsnap.disks import qemu_img
from zvmsnap.points import definition
from zvmsnap.points.manifest import HostDescription, Memory

_LOOK_EVERY_S = 0.5
_BLOCK_BYTES = 512
# Beside what the images need: tables, and what a file system takes for itself.
_RESERVE_BYTES = 16 << 20


@dataclass(frozen=True)
class BackupOptions:
    """What the operator asked for. `level` None: incremental, where there is a full one."""

    level: Level | None = None
    exclude: frozenset[str] = frozenset()
    compress: bool = False


@dataclass(frozen=True)
class Subject:
    """Of which guest a backup is, at which instant, and how that was reached."""

    domain: str
    uuid: str
    created: datetime
    way: Way
    consistency: ConsistencyLevel
    host: HostDescription
    point: str = ""
    reasons: tuple[str, ...] = ()
    checkpoint: str = ""


@dataclass(frozen=True)
class Content:
    """The content of a disk now, and how it differs from what its last backup has.

    `differences` writes an image of what is other than in the parent, if there is a way that is
    quicker than to compare, and says how; it returns "" if there is none after all. `because` says
    why there is none, if there might have been. `whole` makes an image of all of it, if there is a
    way that is quicker than to copy; was there one?
    """

    image: Image
    origin: Origin | None = None
    changed: str = ""
    differences: Callable[[StoredBackup, BackupDisk, int, Path], str] = field(
        default=lambda _parent, _disk, _disk_bytes, _target: ""
    )
    because: str = ""
    whole: Callable[[Path], bool] = field(default=lambda _target: False)


@dataclass(frozen=True)
class Base:
    """On which backup a new one will be, and of which level it is then; and why."""

    level: Level
    parent: StoredBackup | None = None
    reason: str = ""


def base_for(directory: BackupDirectory, uuid: str, wanted: Level | None) -> Base:
    """The backup that the next one of a guest is on. Raises OSError."""
    if wanted in (Level.FULL, Level.COPY):
        return Base(wanted)
    own = directory.of_guest(uuid)
    parent = newest(own, full=wanted is Level.DIFF)
    if parent is None:
        return Base(Level.FULL, reason="it is the first" if wanted else "")
    try:
        chain = directory.chain(parent)
        missing = [
            f"{each.directory / file.name} is not there"
            for each in chain
            for file in each.manifest.files
            if not (each.directory / file.name).is_file()
        ]
        if missing:
            raise BackupDamaged(missing[0])
    except BackupDamaged as error:
        return Base(Level.FULL, reason=f"the last backup cannot be used: {error}")
    return Base(wanted or Level.INC, parent)


class Writing:
    """One backup that is being made in a directory."""

    def __init__(
        self,
        config: Config,
        directory: BackupDirectory,
        writer: WorkWriter,
        base: Base,
        about: Logger,
        *,
        compress: bool,
    ) -> None:
        assert isinstance(writer.work, BackupWork)
        self._config = config
        self._directory = directory
        self._id = writer.work.id
        self._domain = writer.work.domain
        self.path = Path(writer.work.making)
        self._base = base
        self._log = about
        self._compress = compress
        self._disks: list[BackupDisk] = []
        self._files: list[StoredFile] = []
        # These are read once more for their checksums when no guest waits for that.
        self._images: list[Path] = []
        self._memory_format = ""

    def check_room(self, contents: Mapping[str, Content], memory_bytes: int) -> None:
        """Raises BackupImpossible if the file system has too little room. Raises QemuImgFailed.

        `contents` by target.
        """
        images = [each.image for target, each in contents.items() if self.copies(target)]
        needed_bytes = sum(qemu_img.needed_bytes(image.name) for image in images)
        self.check_free(needed_bytes + memory_bytes)

    def copies(self, target: str) -> bool:
        """Is all of that disk copied, so that it is known what that needs?

        Nobody knows how large an increment will be, nor what is compressed.
        """
        parent = self._base.parent
        return not self._compress and not (parent and parent.manifest.disk(target))

    def check_free(self, needed_bytes: int) -> None:
        """Raises BackupImpossible if the file system has less than that, and a little more."""
        needed_bytes += _RESERVE_BYTES
        free_bytes = shutil.disk_usage(self._directory.path).free
        if needed_bytes > free_bytes:
            raise BackupImpossible(
                f"{self._directory.path} has {free_bytes >> 20} MiB free, and the backup may need "
                f"{needed_bytes >> 20} MiB: free space there, or say --compress"
            )

    def add_disk(self, target: str, content: Content) -> None:
        """Write the image of a disk. Raises QemuImgFailed and OSError."""
        path = self.path / image_name(target)
        parent = self._base.parent
        before = parent.manifest.disk(target) if parent else None
        size_bytes = qemu_img.disk_bytes(content.image.top)
        if parent and before:
            compared = self._write_difference(content, parent, before, size_bytes, path)
        else:
            compared = f"{target} is not in {parent.name}" if parent else ""
            if self._compress or not content.whole(path):
                with self._shown(target, path, content.image):
                    qemu_img.convert(content.image.name, str(path), compress=self._compress)
        self._disks.append(
            BackupDisk(
                target=target,
                file=path.name,
                disk_bytes=size_bytes,
                depends=bool(parent and before),
                compared=compared,
                origin=content.origin,
                changed=content.changed,
            )
        )
        self._images.append(path)

    def _write_difference(
        self,
        content: Content,
        parent: StoredBackup,
        before: BackupDisk,
        disk_bytes: int,
        path: Path,
    ) -> str:
        below = f"../{parent.name}/{before.file}"
        image = content.image
        with self._shown(before.target, path, image):
            how = content.differences(parent, before, disk_bytes, path)
            if not how:
                qemu_img.make_difference(image.name, image.driver, below, str(path))
                how = "all of it was compared"
                how += f", as {content.because}" if content.because else ""
            if self._compress:
                plain = path.with_suffix(".plain")
                os.rename(path, plain)
                qemu_img.convert(str(plain), str(path), compress=True, on_top_of=below)
                plain.unlink()
        return how

    @contextmanager
    def _shown(self, target: str, path: Path, image: Image) -> Iterator[None]:
        """Show how much of an image is written, as far as the file tells."""
        total_bytes = qemu_img.needed_bytes(image.name) if progress.is_wanted() else 0

        def follow(ended: threading.Event) -> None:
            while not wait(ended, _LOOK_EVERY_S):
                if path.exists():
                    shown.done_bytes = path.stat().st_blocks * _BLOCK_BYTES

        with (
            progress.shown("written", total_bytes, f"{self._domain}: disk {target}") as shown,
            in_background("written", follow),
        ):
            yield

    def add_small(self, files: dict[str, bytes]) -> None:
        """Write definition, firmware and the like. Raises OSError."""
        for name, data in files.items():
            with safe_files.opened("", self.path) as directory:
                safe_files.write(name, directory, data)
            self._files.append(self._described(self.path / name))

    def add_written(self, names: Iterable[str]) -> None:
        """Those of these files that were written there already. Raises OSError."""
        there = [self.path / name for name in names]
        self._files += [self._described(path) for path in there if path.exists()]

    def is_like_parent(self) -> bool:
        """Is nothing other than in the parent: neither a disk, nor another file?

        Raises QemuImgFailed.
        """
        parent = self._base.parent
        if parent is None or self._base.level is not Level.INC or self._memory_format:
            return False
        images = {disk.file for disk in self._disks}
        before = {file for file in parent.manifest.files if file.name not in images}
        own = {file for file in self._files if file.name not in images}
        sizes = {disk.target: disk.disk_bytes for disk in parent.manifest.disks}
        return (
            own == before
            and sizes == {disk.target: disk.disk_bytes for disk in self._disks}
            and all(disk.depends for disk in self._disks)
            and all(qemu_img.holds_nothing(str(self.path / disk.file)) for disk in self._disks)
        )

    def add_memory(self, write: Callable[[Path], None], image_format: str) -> None:
        """Let the RAM image be written, as libvirt loads it. Raises what that raises."""
        write(self.path / MEMORY)
        self._memory_format = image_format

    def _described_memory(self) -> Memory | None:
        if not self._memory_format:
            return None
        stored = self._described(self.path / MEMORY)
        self._files.append(stored)
        length_bytes = stored.length_bytes
        return Memory(
            MEMORY, self._memory_format, "none", length_bytes, length_bytes, stored.sha256
        )

    def _described(self, path: Path) -> StoredFile:
        path.chmod(safe_files.PRIVATE_FILE)
        return described(path)

    def publish(self, subject: Subject, left_out: Sequence[str]) -> StoredBackup:
        """Let it appear. Raises OSError, and BackupFailed if what it is on is there no more."""
        parent = self._base.parent
        memory = self._described_memory()
        images = tuple(map(self._described, self._images))
        own = self._directory.of_guest(subject.uuid)
        if parent and not any(_is_same(parent, each) for each in own):
            raise BackupFailed(
                f"{subject.domain}: {parent.name}, on which it would be, was removed meanwhile, "
                "maybe by another host: nothing of it is kept: back it up once more"
            )
        backup = Backup(
            id=self._id,
            number=max((each.manifest.number for each in own), default=0) + 1,
            domain=subject.domain,
            uuid=subject.uuid,
            created=subject.created.isoformat(timespec="seconds"),
            level=self._base.level,
            parent=parent.name if parent else "",
            parent_id=parent.manifest.id if parent else "",
            way=subject.way,
            reason="; ".join(filter(None, (*subject.reasons, self._base.reason))),
            consistency=subject.consistency,
            point=subject.point,
            checkpoint=subject.checkpoint,
            disks=tuple(self._disks),
            left_out=tuple(left_out),
            files=(*images, *self._files),
            memory=memory,
            host=subject.host,
        )
        return self._directory.publish(self.path, sealed(self._config, backup))


def _is_same(one: StoredBackup, other: StoredBackup) -> bool:
    return (one.name, one.manifest.id) == (other.name, other.manifest.id)


def sealed(config: Config, backup: Backup) -> Backup:
    """The manifest with the seal of this host. Raises OSError and LockTimeout."""
    return msgspec.structs.replace(backup, seal=definition.seal_of_data(config, _to_seal(backup)))


def is_made_here(config: Config, backup: Backup) -> bool:
    """Has this host made it, as the manifest is? Raises OSError."""
    return definition.is_sealed_here(config, _to_seal(backup), backup.seal)


def _to_seal(backup: Backup) -> bytes:
    """What never changes in a backup: who it is of, and what is in it beside its images."""
    images = {disk.file for disk in backup.disks}
    small = [(file.name, file.sha256) for file in backup.files if file.name not in images]
    return msgspec.json.encode((MANIFEST, backup.id, backup.uuid, backup.domain, sorted(small)))


def discard_made(work: BackupWork) -> None:
    """Remove what an interrupted backup has left in its directory. Raises OSError."""
    made = Path(work.making)
    if made.name.startswith(MAKING):
        if not made.parent.is_dir():
            log.plain().warning("%s: is not there now; remove it if it comes back", made)
        discard(made)


@contextmanager
def making(
    config: Config, directory: BackupDirectory, domain: str, uuid: str
) -> Iterator[WorkWriter]:
    """A new directory in the making, noted in the journal; nothing of it is left at the end.

    What was published has another name by then. What libvirt may still have of it stays noted, for
    `zvmsnap recover`. Raises OSError.
    """
    key = os.urandom(16).hex()
    work = BackupWork(
        id=key,
        domain=domain,
        uuid=uuid,
        owner=Process.of(os.getpid()),
        making=str(directory.path / f".making-{key}"),
    )
    writer = WorkWriter(config, work)
    writer.note()
    try:
        directory.make(key)
        yield writer
    finally:
        discard(Path(work.making))
        assert isinstance(writer.work, BackupWork)
        if not (writer.work.pushes or writer.work.checkpoint):
            writer.close()


def now() -> datetime:
    """The instant of now, to the second."""
    return datetime.now(UTC).replace(microsecond=0)
