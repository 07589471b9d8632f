"""The files of a point as they lie at a destination that may not read them.

| file                | what                                                                  |
|---------------------|-----------------------------------------------------------------------|
| `manifest.json`     | what `list --remote` and pruning need: see `readable`                 |
| `point.tar.zst.age` | the whole manifest, definitions, firmware variables, state of the TPM |
| `NAME.zst.age`      | each file of its RAM; its digest is in the manifest that is encrypted |

The encrypted files of RAM are kept in this vault, in `.encrypted/DESTINATION/CAPTURE.RECIPIENTS`,
until they have arrived: no two encryptions are the same, so only so an interrupted send can go on.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Container, Iterable
from itertools import chain
from pathlib import Path

import msgspec

from zvmsnap.common import json_file
from zvmsnap.common.errors import EncryptionFailed
from zvmsnap.common.safe_files import private_dir, write_atomic
from zvmsnap.config.settings import Config
from zvmsnap.encryption import age
from zvmsnap.encryption.age import SUFFIX, Recipients
from zvmsnap.points import memory_image
from zvmsnap.points.manifest import (
    MANIFEST,
    SCHEMA,
    SMALL,
    Disk,
    HostDescription,
    Manifest,
    Timing,
)
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import folder_of

BUNDLE = f"point.tar{SUFFIX}"

_BUNDLE_MAX_BYTES = 256 << 20  # more than all of SMALL may have
_FOLDER = ".encrypted"
_NO_HOST = HostDescription("", "", "", "", "", "", "", "")


def ram_files(manifest: Manifest) -> tuple[str, ...]:
    """The names of the files that its RAM is stored in, at its place."""
    names = manifest.memory.files if manifest.memory else ()
    return tuple(f"{name}{SUFFIX}" for name in names) if manifest.encrypted else names


def readable(manifest: Manifest) -> Manifest:
    """The manifest without what nobody needs who may not read the point.

    Left are guest, datasets, snapshots, times, level, and how large its RAM is.
    """
    memory = manifest.memory
    if memory:
        memory = msgspec.structs.replace(memory, sha256="", rest_sha256="", why_plain="")
    datasets = sorted(manifest.datasets)
    return msgspec.structs.replace(
        manifest,
        reason=None,
        disks=tuple(Disk("", "", "", "", dataset, "") for dataset in datasets),
        memory=memory,
        host=_NO_HOST,
        timing=Timing(),
        tpm_warning=None,
        other_state=(),
        seal="",
        absent_memory="",
        encrypted=True,
    )


class EncryptedCopies:
    """Those of one destination that are kept here."""

    def __init__(self, config: Config, destination: str) -> None:
        self._directory = config.vault_dir / _FOLDER / folder_of(destination)

    def ram(self, point: RestorePoint, manifest: Manifest, recipients: Recipients) -> list[Path]:
        """The files of its RAM, encrypted; what an interrupted run has encrypted is used.

        Raises EncryptionFailed, ImageUnloadable and OSError.
        """
        memory = manifest.memory
        assert memory
        own = private_dir(self._directory / f"{manifest.capture}.{recipients.digest()}")
        files = [own / f"{name}{SUFFIX}" for name in memory.files]
        if not all(path.exists() for path in files):
            # What is damaged here is not sent: nobody could see it there.
            memory_image.check(point.directory / memory.file, memory)
        for name, path in zip(memory.files, files, strict=True):
            if not path.exists():
                with (point.directory / name).open("rb") as source:
                    age.encrypt(source, path, recipients)
        return files

    def drop(self, capture: str) -> None:
        """Remove those of a point: they have arrived, or nobody wants them. Raises OSError."""
        for path in self._directory.glob(f"{capture}.*"):
            shutil.rmtree(path, ignore_errors=True)

    def drop_others(self, uuids: Iterable[str], captures: Container[str]) -> None:
        """Remove those of these guests but for these captures. Raises OSError."""
        for path in chain.from_iterable(self._directory.glob(f"{uuid}.*") for uuid in uuids):
            if path.name.rpartition(".")[0] not in captures:
                shutil.rmtree(path, ignore_errors=True)

    def drop_all(self) -> None:
        """Remove all."""
        shutil.rmtree(self._directory, ignore_errors=True)


def bundle(
    point: RestorePoint, manifest: Manifest, directory: Path, recipients: Recipients
) -> Path:
    """The small files of a point and its manifest as one, encrypted, in `directory`.

    Raises EncryptionFailed and OSError.
    """
    age.encrypt(io.BytesIO(_bundled(point, manifest)), directory / BUNDLE, recipients)
    return directory / BUNDLE


def _bundled(point: RestorePoint, manifest: Manifest) -> bytes:
    paths = (point.directory / name for name in SMALL)
    files = {path.name: path.read_bytes() for path in paths if path.exists()}
    files[MANIFEST] = json_file.encoded(manifest)
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o600
            archive.addfile(member, io.BytesIO(data))
    return output.getvalue()


def unbundle(point: RestorePoint, source: Path, directory: Path, identity: str) -> Manifest:
    """Decrypt the small files of a point into `directory`; returns its whole manifest.

    That says where its snapshots are as the readable one does, and still that it is encrypted.
    Raises EncryptionFailed, also if it is missing or of another point, and OSError.
    """
    name = f"{point.name}: {BUNDLE}"
    try:
        data = age.decrypted(source, identity, _BUNDLE_MAX_BYTES)
    except FileNotFoundError as error:
        raise EncryptionFailed(f"{name}: is missing") from error
    files = _unbundled(data, name)
    try:
        manifest: Manifest = json_file.decode(files.pop(MANIFEST, b""), Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EncryptionFailed(f"{name}: its manifest cannot be read") from error
    if manifest.schema != SCHEMA or _identity(manifest) != _identity(point.manifest):
        raise EncryptionFailed(f"{name}: is of another point, or of another version")
    for each, data in files.items():
        write_atomic(directory / each, data)
    return msgspec.structs.replace(manifest, snapshots=point.manifest.snapshots, encrypted=True)


def _unbundled(data: bytes, name: str) -> dict[str, bytes]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            members = [each for each in archive if each.name in (MANIFEST, *SMALL)]
            read = {each.name: archive.extractfile(each) for each in members if each.isfile()}
            return {each: file.read() for each, file in read.items() if file}
    except tarfile.TarError as error:
        raise EncryptionFailed(f"{name}: is damaged ({error})") from error


def _identity(manifest: Manifest) -> object:
    """What must be the same in both manifests of a point."""
    refs = {(ref.dataset, ref.name, ref.guid) for ref in manifest.snapshots}
    ram = manifest.memory.files if manifest.memory else ()
    return manifest.uuid, manifest.capture, manifest.domain, manifest.run, refs, ram


def decrypt_ram(manifest: Manifest, directory: Path, identity: str) -> None:
    """Decrypt the files of RAM in `directory`, and remove the encrypted ones.

    What an interrupted run has decrypted is kept. Raises EncryptionFailed; a file that cannot be
    decrypted is removed, so that the next run fetches it anew. Raises OSError.
    """
    for name in manifest.memory.files if manifest.memory else ():
        encrypted = directory / f"{name}{SUFFIX}"
        try:
            if not (directory / name).exists():
                decrypt_file(directory, name, directory, identity)
        finally:
            encrypted.unlink(missing_ok=True)


def decrypt_file(source: Path, name: str, directory: Path, identity: str) -> None:
    """Decrypt the file `name` of a point into `directory`. Raises EncryptionFailed and OSError."""
    encrypted = source / f"{name}{SUFFIX}"
    try:
        age.decrypt(encrypted, directory / name, identity)
    except FileNotFoundError as error:
        raise EncryptionFailed(f"{encrypted}: is missing") from error
