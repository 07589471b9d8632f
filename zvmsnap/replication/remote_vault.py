"""The vault of a destination: laid out as ours, and changed with rsync and coreutils there.

A point is put together in `.arriving-CAPTURE`, compared by checksum, and appears by one rename, as
in our own vault. So whoever has the received datasets and this directory can restore from it. Its
manifests are mirrored in our journal directory, to know which points it has.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

from zvmsnap.common import json_file
from zvmsnap.common.errors import PointGone, RemoteFailed, VaultMissing
from zvmsnap.common.safe_files import private_dir, write_atomic
from zvmsnap.common.ssh import HERE, RemoteHost
from zvmsnap.config.destination import PROPERTY, SAYS_VAULT, Destination
from zvmsnap.config.settings import Config
from zvmsnap.encryption import copies
from zvmsnap.encryption.age import NOBODY, SUFFIX, Recipients
from zvmsnap.encryption.copies import EncryptedCopies
from zvmsnap.points import memory_image, vault, verify_result
from zvmsnap.points.manifest import MANIFEST, MEMORY_FILES, SMALL, Manifest
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import ARRIVING, REMOVING, DamagedPoint, folder_of
from zvmsnap.ram.page_image import PAGES
from zvmsnap.replication import ram_copy
from zvmsnap.replication.transfer import PointTransfer
from zvmsnap.retention.keep_memory import REMOVED
from zvmsnap.zfs import zfs

_MIRRORED = (MANIFEST, verify_result.READ, verify_result.BOOTED)
_PLAIN = (*SMALL, *MEMORY_FILES)
_ENCRYPTED = (copies.BUNDLE, *(f"{name}{SUFFIX}" for name in MEMORY_FILES))
_RAM = (*MEMORY_FILES, *_ENCRYPTED[1:])
_NUMBER = re.compile(r"[0-9]{1,20}")
_CANNOT_WRITE = (
    "no vault can be made there: zfs set {property}=/DIRECTORY {root}, owned by the user"
)


def path_of(destination: Destination, remote: RemoteHost) -> str:
    """The directory of the vault at a destination. Raises VaultMissing and ZfsFailed."""
    return destination.vault(zfs.properties(destination.root, SAYS_VAULT, remote))


def forget(settings: Config, destination: str) -> None:
    """Remove what this host knows of the vault of a destination. Raises OSError."""
    EncryptedCopies(settings, destination).drop_all()
    mirror = mirror_of(settings, destination)
    shutil.rmtree(mirror, ignore_errors=True)
    _id(mirror).unlink(missing_ok=True)


def mirror_of(settings: Config, destination: str) -> Path:
    """Where the manifests of a destination are mirrored, laid out as a vault."""
    return settings.journal_dir / "mirrors" / folder_of(destination)


def _id(mirror: Path) -> Path:
    return mirror.with_name(f"{mirror.name}.id")


class RemoteVault:
    """The vault in the directory `path` of a destination."""

    def __init__(
        self,
        settings: Config,
        destination: Destination,
        remote: RemoteHost,
        path: str,
        recipients: Recipients = NOBODY,
    ) -> None:
        self._remote = remote
        self.path = PurePosixPath(path)
        self._mirror = mirror_of(settings, destination.name)
        self._known = _id(self._mirror)
        self._own = settings.vault_dir / vault.MARK
        self._destination = destination
        self._recipients = recipients
        self._copies = EncryptedCopies(settings, destination.name)

    @classmethod
    def of(
        cls,
        settings: Config,
        destination: Destination,
        remote: RemoteHost,
        recipients: Recipients = NOBODY,
    ) -> RemoteVault:
        """The vault of a destination, wherever that has it; what is put there is for `recipients`.

        Raises VaultMissing and ZfsFailed.
        """
        return cls(settings, destination, remote, path_of(destination, remote), recipients)

    def read(self) -> tuple[list[RestorePoint], list[DamagedPoint]]:
        """All points, as their manifests say, and damaged ones; none if it has no vault yet.

        Raises VaultMissing if it is not the vault that was used so far.
        """
        self._check()
        if self._remote.process(["test", "-d", str(self.path)]).returncode:
            return [], []
        private_dir(self._mirror)
        filters = ["--exclude=.*", "--include=*/", *(f"--include={name}" for name in _MIRRORED)]
        self._rsync(
            "-rt", "--delete", "--delete-excluded", "--prune-empty-dirs", *filters, "--exclude=*",
            self._at(self.path) + "/", f"{self._mirror}/",
        )  # fmt: skip
        return vault.all_in(self._mirror)

    def claim(self) -> None:
        """Make the vault, if there is none yet. Raises VaultMissing and RemoteFailed."""
        self._check()
        mark = self.path / vault.MARK
        try:
            self._remote.run("mkdir", "-p", "-m", "700", "--", str(self.path))
            if not self._mark():
                self._remote.run("tee", "--", str(mark), given=secrets.token_hex(16).encode())
        except RemoteFailed as error:
            hint = _CANNOT_WRITE.format(property=PROPERTY, root=self._destination.root)
            raise RemoteFailed(f"{error}; {hint}") from error
        private_dir(self._known.parent)
        write_atomic(self._known, self._mark().encode())

    def put(
        self, transfer: PointTransfer, *, bwlimit: str, base: RestorePoint | None = None
    ) -> int:
        """Send a point; its RAM goes on where an interrupted run has stopped.

        `base` is the newest point with a page image of the guest that this vault has: of another
        page image only what differs is sent. Returns the bytes that went over for it, in both
        directions. Raises RemoteFailed, DestinationUnreachable, PointGone and ImageUnloadable.
        """
        manifest = transfer.manifest
        folder = self.path / folder_of(manifest.domain)
        incoming = folder / f"{ARRIVING}{manifest.capture}"
        for directory in (folder, incoming):
            self._remote.run("mkdir", "-p", "-m", "700", "--", str(directory))
        # First, as what is damaged here is not sent.
        ram, sums = self._ram(transfer)
        older = str(self._path_of(base) / PAGES) if base else None
        sent_bytes = 0
        for image in ram:
            length_bytes = image.stat().st_size
            ram_copy.begin(str(incoming / image.name), length_bytes, self._remote, older)
            words = ram_copy.options(image.name, length_bytes)
            sent_bytes += self._send([image], incoming, bwlimit, *words)
        with tempfile.TemporaryDirectory() as temporary:
            small = self._small(transfer, Path(temporary))
            sums |= {path.name: _sha256(path) for path in small}
            # By content: a definition of an interrupted run may be older, and of the same length.
            sent_bytes += self._send(small, incoming, bwlimit, "--checksum")
        if not transfer.point.directory.exists():
            # Without its definition it would be of no use there.
            raise PointGone(f"{transfer.point.name}: was removed meanwhile")
        self._verify(incoming, sums)
        self._publish(incoming, folder / transfer.name, list(sums))
        self._copies.drop(manifest.capture)
        return sent_bytes

    def _ram(self, transfer: PointTransfer) -> tuple[list[Path], dict[str, str]]:
        """The files of its RAM as they are sent, and what sha256sum(1) says of them by name."""
        point, memory = transfer.point, transfer.manifest.memory
        if not (transfer.with_memory and memory):
            return [], {}
        if self._recipients:
            files = self._copies.ram(point, transfer.manifest, self._recipients)
            return files, {path.name: _sha256(path) for path in files}
        sums = memory_image.checksums(point.directory / memory.file, memory)
        return [point.directory / name for name in sums], sums

    def _small(self, transfer: PointTransfer, temporary: Path) -> list[Path]:
        """The other files as they are sent: encrypted, if this vault may not read them.

        The manifest alone, if the rest is there as it is: encrypted, or from before that.
        """
        point, manifest = transfer.point, transfer.manifest
        written = temporary / MANIFEST
        write_atomic(written, json_file.encoded(manifest))
        is_there = self._recipients and manifest.memory and not transfer.with_memory
        if manifest.encrypted or is_there:
            return [written]
        if self._recipients:
            write_atomic(written, json_file.encoded(copies.readable(manifest)))
            return [written, copies.bundle(point, manifest, temporary, self._recipients)]
        files = (point.directory / name for name in SMALL)
        return [written, *(path for path in files if path.exists())]

    def remove(self, point: RestorePoint) -> None:
        """Remove a point: rename it first, and delete its files after that. Raises RemoteFailed."""
        path = self._path_of(point)
        removing = path.with_name(f"{REMOVING}{path.name}")
        self._remote.run("rm", "-rf", "--", str(removing))
        self._remote.run("mv", "-T", "--", str(path), str(removing))
        self._remote.run("rm", "-rf", "--", str(removing))
        self._remote.run("rmdir", "--ignore-fail-on-non-empty", "--", str(path.parent))

    def remove_memory(self, point: RestorePoint) -> None:
        """Remove the RAM of a point that was read here: first its manifest says so.

        What is left over if that is interrupted, `clear_memory` removes. Raises RemoteFailed.
        """
        path = self._path_of(point)
        self._remove_files(path / name for name in verify_result.of_memory(point))
        transfer = PointTransfer(point, path.name, point.manifest, with_memory=True)
        self.put(transfer.without_memory(REMOVED), bwlimit="")
        self._remove_files(path / name for name in copies.ram_files(point.manifest))

    def clear_memory(self, points: Iterable[RestorePoint]) -> None:
        """Remove files of RAM that the manifests of these points do not name. Raises RemoteFailed.

        Nobody else sends these guests to this vault.
        """
        without = {str(self._path_of(each)) for each in points if not each.manifest.memory}
        named = [word for name in _RAM for word in ("-o", "-name", name)][1:]
        output = self._remote.run(
            "find", str(self.path), "-mindepth", "3", "-maxdepth", "3", "-type", "f",
            "(", *named, ")", "-print0",
        )  # fmt: skip
        files = [PurePosixPath(path) for path in output.split("\0") if path]
        self._remove_files(path for path in files if str(path.parent) in without)

    def _remove_files(self, paths: Iterable[PurePosixPath]) -> None:
        if words := list(map(str, paths)):
            self._remote.run("rm", "-f", "--", *words)

    def clear(self, uuids: Collection[str], captures: Collection[str]) -> None:
        """Remove half-removed points, and half-sent ones of these guests but for these captures.

        Raises RemoteFailed.
        """
        output = self._remote.run(
            "find", str(self.path), "-mindepth", "2", "-maxdepth", "2", "-type", "d",
            "-name", ".*", "-print0",
        )  # fmt: skip
        half_sent = tuple(f"{ARRIVING}{uuid}." for uuid in uuids)
        kept = {f"{ARRIVING}{capture}" for capture in captures}
        names = {path: PurePosixPath(path).name for path in output.split("\0") if path}
        paths = [
            path
            for path, name in names.items()
            if name.startswith(REMOVING) or (name.startswith(half_sent) and name not in kept)
        ]
        if paths:
            self._remote.run("rm", "-rf", "--", *paths)
        self._copies.drop_others(uuids, captures)

    def get_small(self, point: RestorePoint, directory: Path, identity: str = "") -> Manifest:
        """Copy definition, NVRAM and TPM state of a point into a directory of this host.

        If they are encrypted, `identity` names the file of the key. Returns the whole manifest of
        the point. Raises RemoteFailed, DestinationUnreachable and EncryptionFailed.
        """
        names = (copies.BUNDLE,) if point.manifest.encrypted else SMALL
        filters = [f"--include={name}" for name in names]
        source = f"{self.where(point)}/"
        self._rsync("-r", "--checksum", *filters, "--exclude=*", source, f"{directory}/")
        if not point.manifest.encrypted:
            return point.manifest
        bundle = directory / copies.BUNDLE
        try:
            return copies.unbundle(point, bundle, directory, identity)
        finally:
            bundle.unlink(missing_ok=True)

    def get_memory(
        self,
        point: RestorePoint,
        directory: Path,
        base: RestorePoint | None = None,
        identity: str = "",
    ) -> None:
        """Copy its RAM, if it has any, going on where an interrupted run has stopped.

        `base` is the newest point with a page image of the guest on this host. Raises RemoteFailed,
        DestinationUnreachable and EncryptionFailed.
        """
        older = str(base.directory / PAGES) if base else None
        for name in copies.ram_files(point.manifest):
            if (directory / name.removesuffix(SUFFIX)).exists() and point.manifest.encrypted:
                continue
            source = self._path_of(point) / name
            length_bytes = ram_copy.length_bytes(str(source), self._remote)
            ram_copy.begin(str(directory / name), length_bytes, HERE, older)
            words = ram_copy.options(name, length_bytes)
            self._rsync(*words, self._at(source), f"{directory}/")
        if point.manifest.encrypted:
            copies.decrypt_ram(point.manifest, directory, identity)

    def where(self, point: RestorePoint) -> str:
        """Where the files of a point are, in the words of rsync."""
        return self._at(self._path_of(point))

    def _path_of(self, point: RestorePoint) -> PurePosixPath:
        return self.path / point.directory.parent.name / point.directory.name

    def _check(self) -> None:
        known, own = _text(self._known), _text(self._own)
        mark = self._mark()
        if mark and mark == own:
            raise VaultMissing(
                f"{self._destination.name}: {self.path} is the vault that points are sent from: "
                f"zfs set {PROPERTY}=/ANOTHER {self._destination.root}"
            )
        if known and mark != known:
            raise VaultMissing(
                f"{self._destination.name}: {self.path} is not the vault that was used so far: is "
                "its file system mounted? If it was moved or emptied on purpose, remove "
                f"{self._known}"
            )

    def _mark(self) -> str:
        done = self._remote.process(["cat", "--", str(self.path / vault.MARK)])
        return done.stdout.decode(errors="replace").strip()

    def _send(
        self, files: list[Path], directory: PurePosixPath, bwlimit: str, *options: str
    ) -> int:
        """Copy them, and return the bytes that went over: of files there, and of checksums here."""
        limit = [f"--bwlimit={bwlimit}"] if bwlimit else []
        output = self._rsync(
            "--out-format=%b %c", *options, *limit, *map(str, files), f"{self._at(directory)}/"
        )
        return sum(int(line) for line in output.split() if _NUMBER.fullmatch(line))

    def _verify(self, directory: PurePosixPath, sums: dict[str, str]) -> None:
        """Compare checksums. Remove files that differ, so that the next run sends them anew."""
        paths = {str(directory / name): digest for name, digest in sums.items()}
        # -z: file names are not escaped.
        output = self._remote.run("sha256sum", "-z", "--", *paths)
        arrived = {line[66:]: line[:64] for line in output.split("\0") if line}
        wrong = [path for path, digest in paths.items() if arrived.get(path) != digest]
        if wrong:
            self._remote.run("rm", "-f", "--", *wrong)
            raise RemoteFailed(
                f"{self._remote.where}{wrong[0]}: arrived with another checksum, and was removed "
                "there: send again; zvmsnap verify tells whether it is good on this host"
            )

    def _publish(self, incoming: PurePosixPath, path: PurePosixPath, names: list[str]) -> None:
        """Rename it to `path`; if that exists already, move the files into it, manifest last."""
        run = self._remote.run
        # An interrupted run may have sent RAM that is not wanted any more.
        others = [word for name in names for word in ("!", "-name", name)]
        run("find", str(incoming), "-mindepth", "1", *others, "-delete")
        run("sync", "--", *(str(incoming / name) for name in names), str(incoming))
        if self._remote.process(["test", "-d", str(path)]).returncode:
            run("mv", "-T", "--", str(incoming), str(path))
        else:
            names = sorted(names, key=lambda name: name == MANIFEST)
            for name in names:
                run("mv", "-T", "--", str(incoming / name), str(path / name))
            run("rm", "-rf", "--", str(incoming))
            if len(names) > 1:
                # Of a point that was sent before what is sent was encrypted, or since it is not.
                stale = _PLAIN if copies.BUNDLE in names else _ENCRYPTED
                run("rm", "-f", "--", *(str(path / name) for name in stale))
        run("sync", "--", str(path), str(path.parent))

    def _at(self, path: PurePosixPath) -> str:
        return f"{self._remote.host}:{path}" if self._remote.host else str(path)

    def _rsync(self, *words: str) -> str:
        return self._remote.rsync("-p", "--chmod=D700,F600", *words)


def _text(path: Path) -> str:
    """A small file; "" if there is none. It may hold any bytes."""
    try:
        return path.read_bytes().decode(errors="replace").strip()
    except FileNotFoundError:
        return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
