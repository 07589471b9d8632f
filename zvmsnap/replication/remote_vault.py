"""The vault of a destination: the same layout as ours, worked on with rsync and coreutils there.

A point is put together in `.arriving-CAPTURE`, compared by checksum, and appears by one rename, as
in a vault of our own; so whoever has the received datasets and this directory can restore from it.
What is there is known by a mirror of its manifests, in our state directory.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from zvmsnap.common.atomic_file import private_dir, write_atomic
from zvmsnap.common.errors import RemoteFailed, VaultMissing
from zvmsnap.common.ssh import RemoteHost
from zvmsnap.config.destination import Destination
from zvmsnap.config.settings import Config
from zvmsnap.points import vault, verify_result
from zvmsnap.points.manifest import DOMAIN_XML, MANIFEST, NVRAM, PERSISTENT_XML, TPM
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import REMOVING, DamagedPoint, folder_of
from zvmsnap.replication.transfer import PointTransfer
from zvmsnap.zfs import zfs

WHERE = "zvmsnap:vault"
_BESIDE = "zvmsnap-vault"

# Not as in our own: a `zvmsnap prune` there must leave it alone.
_ARRIVING = ".arriving-"
_MIRRORED = (MANIFEST, verify_result.READ, verify_result.BOOTED)

# What of a point goes with it, beside manifest and RAM image.
_SMALL = (DOMAIN_XML, PERSISTENT_XML, NVRAM, TPM)
_CANNOT_WRITE = "no vault can be made there: zfs set {where}=/DIRECTORY {root}, owned by the user"


def place_of(destination: Destination, far: RemoteHost) -> str:
    """The directory of the vault there. Raises VaultMissing and ZfsFailed."""
    said = zfs.properties(destination.root, (WHERE, "mountpoint", "mounted"), far)
    place = said[WHERE]
    if not place:
        if said["mounted"] != "yes":
            raise VaultMissing(
                f"{destination.name}: where its vault lies is not known: zfs set "
                f"{WHERE}=/DIRECTORY {destination.root} there, or mount it"
            )
        return f"{said['mountpoint'].rstrip('/')}/{_BESIDE}"
    if not place.startswith("/") or not place.isprintable():
        raise VaultMissing(f"{destination.name}: {WHERE} is {place!r}, and no absolute path")
    return place


class RemoteVault:
    """The vault at `place` of a destination."""

    def __init__(
        self, config: Config, destination: Destination, far: RemoteHost, place: str
    ) -> None:
        self._far = far
        self.place = PurePosixPath(place)
        self._mirror = config.journal_dir / "mirrors" / folder_of(destination.name)
        self._known = self._mirror.with_name(f"{self._mirror.name}.id")
        self._own = config.vault_dir / vault.MARK
        self._destination = destination

    def read(self) -> tuple[list[RestorePoint], list[DamagedPoint]]:
        """All points there, as their manifests say; none where there is no vault yet.

        Raises VaultMissing if it is not the one of before.
        """
        self._check()
        if self._far.process(["test", "-d", str(self.place)]).returncode:
            return [], []
        private_dir(self._mirror)
        filters = ["--exclude=.*", "--include=*/", *(f"--include={name}" for name in _MIRRORED)]
        self._rsync(
            "-rt", "--delete", "--delete-excluded", "--prune-empty-dirs", *filters, "--exclude=*",
            self._at(self.place) + "/", f"{self._mirror}/",
        )  # fmt: skip
        return vault.all_in(self._mirror)

    def claim(self) -> None:
        """Make the vault, if it is the first time. Raises VaultMissing and RemoteFailed."""
        self._check()
        mark = self.place / vault.MARK
        try:
            self._far.run("mkdir", "-p", "-m", "700", "--", str(self.place))
            if not self._mark():
                self._far.run("tee", "--", str(mark), given=secrets.token_hex(16).encode())
        except RemoteFailed as error:
            hint = _CANNOT_WRITE.format(where=WHERE, root=self._destination.root)
            raise RemoteFailed(f"{error}; {hint}") from error
        private_dir(self._known.parent)
        write_atomic(self._known, self._mark().encode())

    def put(self, parcel: PointTransfer, *, bwlimit: str) -> int:
        """Bring a point there; RAM goes on where an interrupted run has left it.

        Returns bytes sent. Raises RemoteFailed and DestinationUnreachable.
        """
        point, manifest = parcel.point, parcel.manifest
        folder = self.place / folder_of(manifest.domain)
        incoming = folder / f"{_ARRIVING}{manifest.capture}"
        for directory in (folder, incoming):
            self._far.run("mkdir", "-p", "-m", "700", "--", str(directory))
        sums: dict[str, str] = {}
        sent_bytes = 0
        if parcel.with_memory and manifest.memory:
            image = point.directory / manifest.memory.file
            sums[manifest.memory.file] = manifest.memory.sha256
            sent_bytes += self._send([image], incoming, bwlimit, "--append-verify")
        with tempfile.TemporaryDirectory() as staged:
            own = Path(staged) / MANIFEST
            write_atomic(own, vault.encoded(manifest))
            small = [own, *(path for n in _SMALL if (path := point.directory / n).exists())]
            sums |= {path.name: _sha256(path) for path in small}
            # By content: a definition of an interrupted run may be older, and as long.
            sent_bytes += self._send(small, incoming, bwlimit, "--checksum")
        self._verify(incoming, sums)
        self._publish(incoming, folder / parcel.name, list(sums))
        return sent_bytes

    def remove(self, point: RestorePoint) -> None:
        """Remove a point there: gone with one rename, its bytes follow. Raises RemoteFailed."""
        place = self._of(point)
        grave = place.with_name(f"{REMOVING}{place.name}")
        self._far.run("rm", "-rf", "--", str(grave))
        self._far.run("mv", "-T", "--", str(place), str(grave))
        self._far.run("rm", "-rf", "--", str(grave))
        self._far.run("rmdir", "--ignore-fail-on-non-empty", "--", str(place.parent))

    def clear(self, uuids: Iterable[str], captures: Iterable[str]) -> None:
        """Remove half-removed points, and half-copied ones of these guests that are gone here.

        Raises RemoteFailed.
        """
        said = self._far.run(
            "find", str(self.place), "-mindepth", "2", "-maxdepth", "2", "-type", "d",
            "-name", ".*", "-print0",
        )  # fmt: skip
        own = tuple(f"{_ARRIVING}{uuid}." for uuid in uuids)
        wanted = {f"{_ARRIVING}{capture}" for capture in captures}
        names = {path: PurePosixPath(path).name for path in said.split("\0") if path}
        paths = [
            path
            for path, name in names.items()
            if name.startswith(REMOVING) or (name.startswith(own) and name not in wanted)
        ]
        if paths:
            self._far.run("rm", "-rf", "--", *paths)

    def get_small(self, point: RestorePoint, directory: Path) -> None:
        """Bring definition, NVRAM and TPM of a point there into a directory here.

        Raises RemoteFailed and DestinationUnreachable.
        """
        filters = [f"--include={name}" for name in _SMALL]
        there = f"{self._at(self._of(point))}/"
        self._rsync("-r", "--checksum", *filters, "--exclude=*", there, f"{directory}/")

    def get_memory(self, point: RestorePoint, directory: Path) -> None:
        """Bring its RAM image, if it has one, going on where an interrupted run has left it.

        Raises RemoteFailed and DestinationUnreachable.
        """
        if memory := point.manifest.memory:
            there = self._at(self._of(point) / memory.file)
            self._rsync("--append-verify", there, f"{directory}/")

    def _of(self, point: RestorePoint) -> PurePosixPath:
        return self.place / point.directory.parent.name / point.directory.name

    def _check(self) -> None:
        known = self._known.read_text() if self._known.exists() else ""
        mark = self._mark()
        if mark and self._own.exists() and mark == self._own.read_text():
            raise VaultMissing(
                f"{self._destination.name}: {self.place} is the vault that points are sent from: "
                f"zfs set {WHERE}=/ANOTHER {self._destination.root}"
            )
        if known and mark != known:
            raise VaultMissing(
                f"{self._destination.name}: {self.place} is not the vault that was used so far: is "
                "its file system mounted? If it was moved or emptied on purpose, remove "
                f"{self._known}"
            )

    def _mark(self) -> str:
        done = self._far.process(["cat", "--", str(self.place / vault.MARK)])
        return done.stdout.decode(errors="replace").strip()

    def _send(
        self, files: list[Path], directory: PurePosixPath, bwlimit: str, *options: str
    ) -> int:
        limit = [f"--bwlimit={bwlimit}"] if bwlimit else []
        said = self._rsync(
            "--out-format=%b", *options, *limit, *map(str, files), f"{self._at(directory)}/"
        )
        return sum(int(line) for line in said.split() if line.isdigit())

    def _verify(self, directory: PurePosixPath, sums: dict[str, str]) -> None:
        """Compare checksums; what differs is removed, so that the next run sends it anew."""
        paths = {str(directory / name): digest for name, digest in sums.items()}
        # -z: file names are not escaped.
        said = self._far.run("sha256sum", "-z", "--", *paths)
        there = {line[66:]: line[:64] for line in said.split("\0") if line}
        wrong = [path for path, digest in paths.items() if there.get(path) != digest]
        if wrong:
            self._far.run("rm", "-f", "--", *wrong)
            raise RemoteFailed(
                f"{self._far.where}{wrong[0]}: arrived with another checksum, and was removed "
                "there: send again; zvmsnap verify tells whether it is good here"
            )

    def _publish(self, incoming: PurePosixPath, place: PurePosixPath, names: list[str]) -> None:
        """One rename; into a point that is there already, its manifest last."""
        run = self._far.run
        run("sync", "--", *(str(incoming / name) for name in names), str(incoming))
        if self._far.process(["test", "-d", str(place)]).returncode:
            run("mv", "-T", "--", str(incoming), str(place))
        else:
            names = sorted(names, key=lambda name: name == MANIFEST)
            for name in names:
                run("mv", "-T", "--", str(incoming / name), str(place / name))
            run("rm", "-rf", "--", str(incoming))
        run("sync", "--", str(place), str(place.parent))

    def _at(self, path: PurePosixPath) -> str:
        return f"{self._far.host}:{path}" if self._far.host else str(path)

    def _rsync(self, *words: str) -> str:
        return self._far.rsync("-p", "--chmod=D700,F600", *words)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
