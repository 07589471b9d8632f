"""A guest's definition, firmware variables (NVRAM) and TPM state: stored, read and put back.

They are stored in the point, and in each mounted dataset (`.zvmsnap/<domain>/`) just before its
snapshot: whoever receives the dataset alone can define the guest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from zvmsnap.common import log
from zvmsnap.common.atomic_file import private_dir, write_atomic
from zvmsnap.common.errors import RestoreImpossible, TpmUncapturable
from zvmsnap.points.manifest import DOMAIN_XML, NVRAM, PERSISTENT_XML, TPM
from zvmsnap.points.point import RestorePoint
from zvmsnap.points.vault import folder_of
from zvmsnap.virt import domain_xml, tpm_state
from zvmsnap.virt.guest import Guest
from zvmsnap.zfs import mounts
from zvmsnap.zfs.mounts import DiskLocation

FOLDER = ".zvmsnap"


def store(
    guest: Guest, directory: Path, disks: Iterable[DiskLocation], table: list[mounts.Mount]
) -> str | None:
    """Write the files into `directory` and into each mounted dataset of `disks`.

    With secrets (passwords in the XML), as a restored guest needs them; for root alone.
    Returns why the state of its TPM is not among them; None if it is, or the guest has no TPM.
    Raises OSError and LibvirtFailed.
    """
    files, why_no_tpm = _files_of(guest)
    _write(private_dir(directory), files)
    mountpoints = {mounts.mountpoint_of(disk.dataset, table) for disk in disks}
    for mountpoint in filter(None, mountpoints):
        target = Path(mountpoint) / FOLDER / folder_of(guest.name)
        try:
            private_dir(target.parent)
            _write(private_dir(target), files)
        except OSError as error:
            # A full or read-only dataset: the point itself has all files.
            log.about(guest.name, str(target)).warning("no definition in the dataset: %s", error)
    return why_no_tpm


def _files_of(guest: Guest) -> tuple[dict[str, bytes], str | None]:
    """The files by name, and why the state of its TPM is not among them."""
    live = guest.xml(secure=True)
    files = {DOMAIN_XML: live.encode()}
    if guest.is_persistent():
        files[PERSISTENT_XML] = guest.xml(persistent=True, secure=True).encode()
    nvram = domain_xml.parse(live).nvram
    if nvram and os.path.exists(nvram):
        files[NVRAM] = Path(nvram).read_bytes()
    try:
        if state := tpm_state.archive(live, guest.uuid):
            files[TPM] = state
    except TpmUncapturable as error:
        return files, str(error)  # a point without it is better than none
    return files, None


def _write(directory: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        write_atomic(directory / name, data)
    for name in {PERSISTENT_XML, NVRAM, TPM} - set(files):
        (directory / name).unlink(missing_ok=True)


def put_nvram(stored: Path, path: Path) -> None:
    """Replace a guest's firmware variables by stored ones; the file's owner stays the same.

    Raises OSError.
    """
    replaced = path.stat() if path.exists() else None
    write_atomic(path, stored.read_bytes())
    if replaced:
        os.chown(path, replaced.st_uid, replaced.st_gid)


def put_firmware(directory: Path, xml: str, uuid: str) -> None:
    """Put NVRAM and TPM state, if `directory` has them, back to the paths of this definition.

    Raises OSError, VaultDamaged and TpmUncapturable.
    """
    nvram = domain_xml.parse(xml).nvram
    if nvram and (directory / NVRAM).exists():
        put_nvram(directory / NVRAM, Path(nvram))
    if (directory / TPM).exists():
        tpm_state.put_back(directory / TPM, xml, uuid)


def definition_of(point: RestorePoint, *, live: bool = False) -> str:
    """The point's persistent definition; or `live`, the one that its RAM belongs to.

    Raises RestoreImpossible.
    """
    for name in (DOMAIN_XML, PERSISTENT_XML) if live else (PERSISTENT_XML, DOMAIN_XML):
        try:
            xml = (point.directory / name).read_text()
            domain_xml.parse(xml)
            return xml
        except FileNotFoundError:
            continue
        except (OSError, ValueError, domain_xml.ParseError) as error:
            raise RestoreImpossible(f"{point.directory / name}: cannot be read: {error}") from error
    raise RestoreImpossible(f"{point.name}: its definition is gone from {point.directory}")
