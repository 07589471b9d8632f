"""The state of an emulated TPM (swtpm): captured as a small tar, and put back. Files only.

A RAM image contains the state, as in a migration. The tar is for starts without RAM, from disks
whose keys the TPM may hold.
"""

from __future__ import annotations

import errno
import io
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zvmsnap.common import safe_files
from zvmsnap.common.errors import TpmUncapturable, VaultDamaged

if TYPE_CHECKING:
    import tarfile

SWTPM = Path("/var/lib/libvirt/swtpm")
MAX_BYTES = 16 << 20

# Not .lock, which is of swtpm's process; nor files that swtpm has not yet renamed (TMP...).
_NAME = re.compile(r"(?!TMP)[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

# The name in the archive of a state that is a single file, whatever that is called.
_SINGLE = "state"
_PASSABLE_DIR = 0o711  # as libvirt makes them
_PRIVATE_DIR = 0o700
_MODE = 0o666


@dataclass(frozen=True)
class State:
    """Where the state is: in a directory, or in a single file."""

    path: Path
    is_file: bool = False

    @property
    def directory(self) -> Path:
        """The directory that it is in, or is."""
        return self.path.parent if self.is_file else self.path


@dataclass(frozen=True)
class _File:
    data: bytes
    mode: int
    uid: int
    gid: int


def state_of(xml: str, uuid: str) -> State | None:
    """Where the TPM in this definition keeps its state; None without a TPM.

    | backend           | its source  | state                                            |
    |-------------------|-------------|--------------------------------------------------|
    | emulator          | none        | /var/lib/libvirt/swtpm/UUID/tpm1.2 or .../tpm2   |
    | emulator          | type='dir'  | that directory                                   |
    | emulator          | type='file' | that file                                        |
    | passthrough, external, any other| raises TpmUncapturable                           |
    """
    device = ET.fromstring(xml).find("devices/tpm")
    if device is None:
        return None
    backend = device.find("backend")
    kind = backend.get("type", "") if backend is not None else ""
    if backend is None or kind != "emulator":
        raise TpmUncapturable(f"the state of a TPM of type {kind!r} cannot be captured")
    source = backend.find("source")
    if source is None:
        return State(SWTPM / uuid / ("tpm1.2" if backend.get("version") == "1.2" else "tpm2"))
    kind, path = source.get("type", ""), source.get("path", "")
    if kind not in ("dir", "file") or not path.startswith("/"):
        raise TpmUncapturable(
            f"the state of a TPM with source {kind!r} {path!r} is not ours to read"
        )
    return State(Path(path), is_file=kind == "file")


def archive(xml: str, uuid: str) -> bytes | None:
    """The state as a tar, the same bytes for the same state; None without a TPM, or before
    it has one.

    Raises TpmUncapturable.
    """
    state = state_of(xml, uuid)
    if state is None:
        return None
    try:
        files = _read(state)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TpmUncapturable(f"TPM state {state.path}: {error.strerror}") from error
    return _packed(files) if files else None


def why_stale(xml: str, uuid: str, stored: Path) -> str | None:
    """Why the archive in `stored`, if any, is not the current state; None if it is."""
    try:
        current = archive(xml, uuid)
    except TpmUncapturable as error:
        return str(error)
    captured = stored.read_bytes() if stored.exists() else None
    return None if current == captured else "the TPM's state changed while RAM was written"


def put_back(packed: bytes, xml: str, uuid: str, roots: Sequence[Path] | None = None) -> None:
    """Replace the state of the TPM in this definition by an archive; the guest must be off.

    Nothing is replaced before all is written. The state must be below one of `roots`, if given.
    Raises VaultDamaged if the archive was not made by `archive`, TpmUncapturable if the definition
    has no TPM that could take it, and OSError.
    """
    state = state_of(xml, uuid)
    if state is None:
        raise TpmUncapturable("the guest has no TPM that could take the stored state")
    files = _unpacked(packed)
    if state.is_file is not (set(files) == {_SINGLE}):
        # swtpm keeps the two in different formats.
        raise TpmUncapturable(f"is not of the kind that the TPM keeps in {state.path}")
    if state.is_file:
        with safe_files.opened_within(state.path.parent, roots) as directory:
            _replace(directory, {state.path.name: files[_SINGLE]})
            os.fsync(directory)
        return
    with _made(state.path, next(iter(files.values())), roots) as directory:
        _replace(directory, files)
        for name in set(_names(directory)) - set(files):
            os.unlink(name, dir_fd=directory)
        os.fsync(directory)


def _read(state: State) -> dict[str, _File]:
    files = {}
    left_bytes = MAX_BYTES
    with safe_files.opened_within(state.directory, None) as directory:
        for name in [state.path.name] if state.is_file else sorted(_names(directory)):
            with suppress(FileNotFoundError):
                file = _read_file(directory, name, left_bytes + 1)
                left_bytes -= len(file.data)
                files[_SINGLE if state.is_file else name] = file
            if left_bytes < 0:
                raise OSError(errno.EFBIG, f"is larger than {MAX_BYTES >> 20} MiB")
    return files


def _names(directory: int) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                yield entry.name


def _read_file(directory: int, name: str, max_bytes: int) -> _File:
    descriptor = safe_files.open_file(name, directory)
    status = os.fstat(descriptor)
    with os.fdopen(descriptor, "rb") as file:
        return _File(file.read(max_bytes), status.st_mode & _MODE, status.st_uid, status.st_gid)


def _packed(files: Mapping[str, _File]) -> bytes:
    import tarfile  # few guests have a TPM, and it loads much

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, file in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(file.data)
            member.mode, member.uid, member.gid = file.mode, file.uid, file.gid
            tar.addfile(member, io.BytesIO(file.data))
    return packed.getvalue()


def _unpacked(packed: bytes) -> dict[str, _File]:
    import tarfile

    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
            files = {}
            left_bytes = MAX_BYTES
            while member := tar.next():
                left_bytes -= member.size
                is_file = member.type == tarfile.REGTYPE and _is_ours(member)
                if not is_file or member.name in files or left_bytes < 0:
                    raise VaultDamaged(f"{member.name!r} was not put there by zvmsnap")
                content = tar.extractfile(member)
                data = content.read() if content else b""
                files[member.name] = _File(data, member.mode & _MODE, member.uid, member.gid)
    except (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise VaultDamaged(f"is no archive of a TPM's state: {error}") from error
    if not files:
        raise VaultDamaged("holds nothing")
    return files


def _is_ours(member: tarfile.TarInfo) -> bool:
    return (
        not member.issparse()
        and bool(_NAME.fullmatch(member.name))
        and member.size >= 0
        and 0 <= member.uid < 2**31
        and 0 <= member.gid < 2**31
    )


@contextmanager
def _made(path: Path, like: _File, roots: Sequence[Path] | None) -> Iterator[int]:
    """The state directory; if it is made, of the owner of its files, as libvirt sets at starts."""
    # libvirt makes one for each guest, and one for the version in it.
    with safe_files.opened_within(path.parent, roots, make=_PASSABLE_DIR) as parent:
        with suppress(FileExistsError):
            os.mkdir(path.name, _PRIVATE_DIR, dir_fd=parent)
            os.chown(path.name, like.uid, like.gid, dir_fd=parent, follow_symlinks=False)
        with safe_files.opened(path.name, parent) as directory:
            yield directory


def _replace(directory: int, files: Mapping[str, _File]) -> None:
    # The directory is not root's: no symlink in it is followed.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    temporary_names = {name: f".{name}.{os.urandom(4).hex()}.tmp" for name in files}
    try:
        for name, file in files.items():
            descriptor = os.open(temporary_names[name], flags, 0o600, dir_fd=directory)
            with os.fdopen(descriptor, "wb") as target:
                target.write(file.data)
                target.flush()
                os.fchown(descriptor, file.uid, file.gid)
                os.fchmod(descriptor, file.mode)
                os.fsync(descriptor)
        for name, temporary in temporary_names.items():
            os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        for temporary in temporary_names.values():
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)
        raise
