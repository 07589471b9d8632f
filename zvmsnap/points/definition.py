"""A guest's definition, firmware variables (NVRAM) and TPM state: stored, read and put back.

They are stored in the point, and in each mounted dataset (`.zvmsnap/<domain>/`) just before its
snapshot: whoever receives the dataset alone can define the guest.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath

from zvmsnap.common import log, safe_files
from zvmsnap.common.errors import RestoreImpossible, TpmUncapturable, VaultDamaged
from zvmsnap.common.lockfile import lock
from zvmsnap.common.safe_files import private_dir, write_atomic
from zvmsnap.config.settings import Config
from zvmsnap.points.manifest import DOMAIN_XML, NVRAM, PERSISTENT_XML, SMALL, TPM, Manifest
from zvmsnap.points.point import RestorePoint, vault_of
from zvmsnap.points.vault import folder_of
from zvmsnap.virt import domain_xml, tpm_state
from zvmsnap.virt.domain_xml import Nvram
from zvmsnap.virt.guest import Guest
from zvmsnap.zfs import mounts
from zvmsnap.zfs.mounts import DiskLocation

FOLDER = ".zvmsnap"
NVRAM_DIR = Path("/var/lib/libvirt/qemu/nvram")
NVRAM_MAX_BYTES = 64 << 20  # of firmware for ARM, which is the largest
_XML_MAX_BYTES = 16 << 20
_SEAL_KEY = "seal.key"
_SEAL_KEY_BYTES = 32
_MAX_BYTES = {
    DOMAIN_XML: _XML_MAX_BYTES,
    PERSISTENT_XML: _XML_MAX_BYTES,
    NVRAM: NVRAM_MAX_BYTES,
    TPM: 2 * tpm_state.MAX_BYTES,
}


def firmware_dirs() -> tuple[Path, ...]:
    """Where libvirt keeps firmware variables, and the state of TPMs."""
    return NVRAM_DIR, tpm_state.SWTPM


def own_firmware(domain: str, uuid: str) -> Callable[[str], bool]:
    """Says of a path whether it is where libvirt keeps the firmware of this guest, by itself."""
    tpm = tpm_state.SWTPM / uuid

    def is_own(path: str) -> bool:
        own = PurePath(path)
        is_nvram = own.parent == NVRAM_DIR and own.name.startswith(f"{domain}_VARS.")
        return (is_nvram or own.is_relative_to(tpm)) and ".." not in own.parts

    return is_own


def firmware_dirs_of(xml: str, uuid: str) -> Iterator[Path]:
    """The directories in which this definition has its firmware."""
    if nvram := domain_xml.parse(xml).nvram:
        yield Path(nvram.path).parent
    with suppress(TpmUncapturable):
        if state := tpm_state.state_of(xml, uuid):
            yield state.path.parent


def store(
    guest: Guest, directory: Path, disks: Iterable[DiskLocation], table: list[mounts.Mount]
) -> str | None:
    """Write the files into `directory` and into each mounted dataset of `disks`.

    With secrets (passwords in the XML), as a restored guest needs them; for root alone.
    Returns why its firmware variables or the state of its TPM are not among them; None if they
    are, or the guest has none. Raises OSError and LibvirtFailed.
    """
    files, missing = _files_of(guest)
    with safe_files.opened("", private_dir(directory)) as own:
        _write(own, files)
    mountpoints = {mounts.mountpoint_of(disk.dataset, table) for disk in disks}
    for mountpoint in filter(None, mountpoints):
        try:
            _write_into_dataset(mountpoint, guest.name, files)
        except OSError as error:
            # Full, read-only, or somebody else's: the point itself has all files.
            where = Path(mountpoint) / FOLDER / folder_of(guest.name)
            log.about(guest.name, str(where)).warning("no definition in the dataset: %s", error)
    return "; ".join(missing) or None


def _write_into_dataset(mountpoint: str, domain: str, files: Mapping[str, bytes]) -> None:
    """The dataset may be its guest's owner's, who may put links there, at any time."""
    with (
        safe_files.opened_within(mountpoint, [Path("/")]) as top,
        safe_files.own_directory(top, FOLDER) as folder,
        safe_files.own_directory(folder, folder_of(domain)) as own,
    ):
        _write(own, files)


def _files_of(guest: Guest) -> tuple[dict[str, bytes], list[str]]:
    """The files by name, and why firmware variables and TPM state are not among them."""
    live = guest.xml(secure=True)
    files = {DOMAIN_XML: live.encode()}
    if guest.is_persistent():
        files[PERSISTENT_XML] = guest.xml(persistent=True, secure=True).encode()
    missing = []  # a point without them is better than none
    nvram = domain_xml.parse(live).nvram
    try:
        if nvram and (variables := _read_nvram(nvram)):
            files[NVRAM] = variables
    except OSError as error:
        missing.append(f"firmware variables {nvram and nvram.path}: {error.strerror}")
    try:
        if state := tpm_state.archive(live, guest.uuid):
            files[TPM] = state
    except TpmUncapturable as error:
        missing.append(str(error))
    return files, missing


def _read_nvram(nvram: Nvram) -> bytes | None:
    """None before the guest was started for the first time. Raises OSError."""
    if nvram.type == "block":
        # Links below /dev are root's; what is not below it has no device at its end.
        return safe_files.read(os.path.realpath(nvram.path), None, NVRAM_MAX_BYTES, block=True)
    if nvram.type != "file":
        raise OSError(errno.EOPNOTSUPP, f"of type {nvram.type} cannot be captured")
    try:
        with safe_files.opened_by_own_links(os.path.dirname(nvram.path)) as directory:
            return safe_files.read(os.path.basename(nvram.path), directory, NVRAM_MAX_BYTES)
    except FileNotFoundError:
        return None


def _write(directory: int, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        safe_files.write(name, directory, data)
    for name in {PERSISTENT_XML, NVRAM, TPM} - set(files):
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)


def stored(directory: Path, name: str) -> bytes | None:
    """A small file of a point, None if the point does not have it. Raises OSError.

    The vault may be the user's as whom points are sent to it.
    """
    try:
        with safe_files.opened_within(directory, [vault_of(directory)]) as own:
            return safe_files.read(name, own, _MAX_BYTES[name])
    except FileNotFoundError:
        return None


def put_nvram(variables: bytes, nvram: Nvram, roots: Sequence[Path] | None = None) -> None:
    """Replace a guest's firmware variables by stored ones; the file's owner stays the same.

    It must be below one of `roots`, if given. Raises OSError.
    """
    if nvram.type == "block":
        _put_on_device(variables, nvram.path, roots)
        return
    folder, name = os.path.split(nvram.path)
    with (
        safe_files.opened_by_own_links(folder)
        if roots is None
        else safe_files.opened_within(folder, roots)
    ) as directory:
        owner = None
        with suppress(FileNotFoundError):
            replaced = os.stat(name, dir_fd=directory, follow_symlinks=False)
            owner = (replaced.st_uid, replaced.st_gid)
        safe_files.write(name, directory, variables, owner)


def _put_on_device(variables: bytes, path: str, roots: Sequence[Path] | None) -> None:
    # Elsewhere than below /dev somebody may have sent a device.
    if roots is not None and not (path.startswith("/dev/") and Path(path).parent in roots):
        raise OSError(errno.EACCES, f"{path} is a device, outside of what it may be in")
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(os.path.realpath(path), flags)
    with os.fdopen(descriptor, "wb") as device:
        if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOTBLK, f"{path} is no block device")
        device.write(variables)
        device.flush()
        os.fsync(descriptor)


def put_firmware(directory: Path, xml: str, uuid: str, roots: Sequence[Path] | None = None) -> None:
    """Put NVRAM and TPM state, if `directory` has them, back to the paths of this definition.

    These must be below one of `roots`, if given. Raises OSError, VaultDamaged and TpmUncapturable.
    """
    nvram = domain_xml.parse(xml).nvram
    if nvram and (variables := stored(directory, NVRAM)):
        put_nvram(variables, nvram, roots)
    put_tpm(directory, xml, uuid, roots)


def put_tpm(directory: Path, xml: str, uuid: str, roots: Sequence[Path] | None = None) -> bool:
    """Put the TPM state back as above; returns False if `directory` has none."""
    state = stored(directory, TPM)
    if not state:
        return False
    try:
        tpm_state.put_back(state, xml, uuid, roots)
    except (VaultDamaged, TpmUncapturable) as error:
        raise type(error)(f"{directory / TPM}: {error}") from error
    return True


def refuse_other_guest(point: RestorePoint, xml: str) -> None:
    """Raises ValueError if a definition is not that of the point's guest, and ParseError."""
    domain = domain_xml.parse(xml)
    if (domain.name, domain.uuid) != (point.manifest.domain, point.manifest.uuid):
        raise ValueError("is of another guest than its manifest says")


def digest(xml: str) -> str:
    """By which a definition is known again."""
    return hashlib.sha256(xml.encode()).hexdigest()


def refuse_other(point: RestorePoint, xml: str, judged: Collection[str]) -> None:
    """Raises RestoreImpossible if a definition is none of those that were looked at.

    The vault may be the user's as whom points are sent to it.
    """
    if judged and digest(xml) not in judged:
        raise RestoreImpossible(f"{point.name}: its definition was changed meanwhile: look again")


def definition_of(point: RestorePoint, *, live: bool = False) -> str:
    """The point's persistent definition; or `live`, the one that its RAM belongs to.

    Raises RestoreImpossible.
    """
    for name in (DOMAIN_XML, PERSISTENT_XML) if live else (PERSISTENT_XML, DOMAIN_XML):
        try:
            data = stored(point.directory, name)
            if data is None:
                continue
            xml = data.decode()
            refuse_other_guest(point, xml)
            return xml
        except (OSError, ValueError, domain_xml.ParseError) as error:
            raise RestoreImpossible(f"{point.directory / name}: cannot be read: {error}") from error
    if point.manifest.encrypted:
        raise RestoreImpossible(
            f"{point.name}: is encrypted: zvmsnap restore --identity FILE, or zvmsnap fetch it"
        )
    raise RestoreImpossible(f"{point.name}: its definition is gone from {point.directory}")


# -- the seal of a point: only this host can have made it
#
# Who can write into the vault, or has filled it by `zfs receive`, can write any definition. So the
# manifest has a code (HMAC) over the files that say what the guest is. Its key is in the journal
# directory, and never sent. The seal still fits when the point comes back from another host.
# Without the key, as on a new host, none fits.


def seal_of(config: Config, directory: Path, manifest: Manifest) -> str:
    """The seal of a point that is being made in `directory`. Raises OSError and LockTimeout."""
    return _seal_code(_made_seal_key(config), directory, manifest)


def seal_of_data(config: Config, data: bytes) -> str:
    """The seal of what is no point. Raises OSError and LockTimeout."""
    return hmac.new(_made_seal_key(config), data, hashlib.sha256).hexdigest()


def is_sealed_here(config: Config, data: bytes, seal: str) -> bool:
    """Has this host made that seal, of this data? Raises OSError."""
    key = _seal_key(config.journal_dir)
    if key is None or not seal:
        return False
    own = hmac.new(key, data, hashlib.sha256).hexdigest()
    return hmac.compare_digest(own.encode(), seal.encode())


def _made_seal_key(config: Config) -> bytes:
    key = _seal_key(config.journal_dir)
    if key is None:
        with lock(config.locks_dir, "seal", "make its key", config.limits.lock_timeout_s):
            key = _seal_key(config.journal_dir)
            if key is None:
                key = os.urandom(_SEAL_KEY_BYTES)
                write_atomic(private_dir(config.journal_dir) / _SEAL_KEY, key)
    return key


def is_made_here(config: Config, directory: Path, manifest: Manifest) -> bool:
    """Was the point made here, and are its files still the same? Raises OSError."""
    key = _seal_key(config.journal_dir)
    if key is None or not manifest.seal:
        return False
    return hmac.compare_digest(
        _seal_code(key, directory, manifest).encode(), manifest.seal.encode()
    )


def _seal_key(journal: Path) -> bytes | None:
    try:
        key = safe_files.read(str(journal / _SEAL_KEY), None, _SEAL_KEY_BYTES)
    except FileNotFoundError:
        return None
    return key if len(key) == _SEAL_KEY_BYTES else None


def _seal_code(key: bytes, directory: Path, manifest: Manifest) -> str:
    """Over what never changes in a point; its RAM image is known by its checksum.

    The manifest says that of a point without its RAM, too, so the seal fits it all the same.
    """
    parts = [manifest.uuid.encode(), manifest.capture.encode(), manifest.memory_sha256.encode()]
    for name in SMALL:
        data = stored(directory, name)
        parts.append(b"" if data is None else hashlib.sha256(data).digest())
    sealed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return hmac.new(key, sealed, hashlib.sha256).hexdigest()
