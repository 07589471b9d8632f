"""The vault: `<vault>/<domain>/<moment>/`. Points appear and vanish by one rename each.

Names that begin with a dot are ours to clean up: `.incoming-*` is a point being published,
`.removing-*` one being removed. Nothing is followed out of the vault: symlinks are reported.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zvmsnap.common.atomic_file import private_dir, sync_dir, write_atomic
from zvmsnap.common.errors import VaultDamaged, VaultMissing
from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config
from zvmsnap.points.manifest import MANIFEST, MEMORY, Manifest
from zvmsnap.points.point import RestorePoint, read_point

MARK = ".zvmsnap-vault"
_KNOWN_VAULT = "vault.id"
INCOMING = ".incoming-"
REMOVING = ".removing-"
LOADING = ".loading-"


@dataclass(frozen=True)
class DamagedPoint:
    """An entry of the vault that cannot be used, and why."""

    directory: Path
    why: str


def folder_of(name: str) -> str:
    """The directory name for a domain or moment: its name, but for what a path must not hold."""
    quoted = "".join(
        f"%{ord(char):02X}" if char in "/%" or ord(char) < 32 else char for char in name
    )
    return "%2E" + quoted[1:] if quoted.startswith(".") else quoted


def check(config: Config) -> None:
    """Is that the vault that was used so far? Raises VaultMissing if not.

    Where the file system of the vault is not mounted, its mountpoint is an empty directory: what
    is written there is lost from sight with the next mount, and all points would seem gone.
    """
    known = config.journal_dir / _KNOWN_VAULT
    if known.exists() and _read(config.vault_dir / MARK) != _read(known):
        raise VaultMissing(
            f"{config.vault_dir} is not the vault that was used so far: is its file system "
            f"mounted? If it was moved or emptied on purpose, remove {known}"
        )


def claim(config: Config) -> None:
    """Use this vault from now on, if it is the first or was used so far. Raises VaultMissing."""
    check(config)
    known = private_dir(config.journal_dir) / _KNOWN_VAULT
    mark = private_dir(config.vault_dir) / MARK
    if mark.exists() and known.exists():
        return
    with lock(config.locks_dir, "vault-mark", "mark the vault", config.limits.lock_timeout_s):
        check(config)
        if not mark.exists():
            write_atomic(mark, secrets.token_hex(16).encode())
        if not known.exists():
            write_atomic(known, mark.read_bytes())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def entries(vault: Path, moment: str | None = None) -> Iterator[RestorePoint | DamagedPoint]:
    """All points, or those of one moment of any domain; what cannot be read comes as Damaged."""
    for folder in _listed(vault):
        if folder.is_symlink() or not folder.is_dir():
            if moment is not None:
                # Nothing of that moment: `zvmsnap list` and `prune` tell of it, no hook must.
                continue
            yield DamagedPoint(
                folder, f"{folder}: is no directory of the vault's own; not followed"
            )
            continue
        for directory in _listed(folder):
            if moment is not None and not _is_moment(directory.name, moment):
                continue
            try:
                yield read_point(directory)
            except VaultDamaged as error:
                yield DamagedPoint(directory, str(error))


def read(config: Config) -> tuple[list[RestorePoint], list[DamagedPoint]]:
    """All points, by guest and age, and what cannot be read. Raises VaultMissing."""
    check(config)
    return all_in(config.vault_dir)


def all_in(vault: Path) -> tuple[list[RestorePoint], list[DamagedPoint]]:
    """The same of a directory that is laid out as a vault."""
    points, damaged = [], []
    for entry in entries(vault):
        if isinstance(entry, DamagedPoint):
            damaged.append(entry)
        else:
            points.append(entry)
    points.sort(key=lambda found: (found.manifest.domain, found.manifest.created))
    return points, damaged


@dataclass(frozen=True)
class UnfinishedPoint:
    """A directory of a point that was being published, loaded or removed."""

    directory: Path

    @property
    def capture(self) -> str | None:
        """The capture that was being published or loaded; None for a removal."""
        name = self.directory.name
        for prefix in (INCOMING, LOADING):
            if name.startswith(prefix):
                return name.removeprefix(prefix)
        return None


def unfinished(vault: Path) -> list[UnfinishedPoint]:
    """All that is neither a point yet nor gone yet."""
    return [
        UnfinishedPoint(directory)
        for folder in _listed(vault)
        if folder.is_dir() and not folder.is_symlink()
        for directory in _listed(folder, hidden=True)
        if directory.name.startswith((INCOMING, REMOVING, LOADING))
        and directory.is_dir()
        and not directory.is_symlink()
    ]


def remove(found: RestorePoint) -> None:
    """Remove a point: it is gone with one rename, its bytes follow."""
    grave = found.directory.with_name(REMOVING + found.directory.name)
    if grave.exists():
        shutil.rmtree(grave)
    try:
        os.rename(found.directory, grave)
    except FileNotFoundError:
        # Somebody else has removed it since it was read.
        return
    sync_dir(grave.parent)
    shutil.rmtree(grave)
    _remove_if_empty(grave.parent)


def incoming(vault: Path, domain: str, capture: str) -> Path:
    """The directory in which a point is put together, made if needed. Raises VaultDamaged."""
    folder = private_dir(vault) / folder_of(domain)
    if folder.is_symlink():
        raise VaultDamaged(f"{folder}: is a symlink; not followed out of the vault")
    directory = private_dir(folder) / f"{INCOMING}{capture}"
    if directory.is_symlink():
        raise VaultDamaged(f"{directory}: is a symlink; not followed out of the vault")
    return private_dir(directory)


def loading(found: RestorePoint, capture: str) -> Path:
    """Where a copy of its RAM image may lie while libvirt loads it: beside the point."""
    return private_dir(_loading(found, capture)) / MEMORY


def drop_loading(found: RestorePoint, capture: str) -> None:
    """Remove that copy."""
    shutil.rmtree(_loading(found, capture), ignore_errors=True)


def _loading(found: RestorePoint, capture: str) -> Path:
    return found.directory.with_name(LOADING + capture)


def drop_incoming(directory: Path) -> None:
    """Remove what was put together there, as the point is there already."""
    shutil.rmtree(directory, ignore_errors=True)


def publish(directory: Path, manifest: Manifest) -> RestorePoint:
    """Write the manifest into an incoming directory and let the point appear, once.

    A second point of the same moment (clocks set back; datasets snapshotted one by one) gets a
    number behind its name.
    """
    write_atomic(directory / MANIFEST, encoded(manifest))
    number = 1
    while True:
        name = folder_of(manifest.run)
        place = directory.with_name(name if number == 1 else f"{name}.{number}")
        if not os.path.lexists(place):
            os.rename(directory, place)
            sync_dir(place.parent)
            return RestorePoint(place, manifest)
        number += 1


def rewrite(found: RestorePoint, manifest: Manifest) -> None:
    """Replace the manifest of a point. Raises OSError."""
    write_atomic(found.directory / MANIFEST, encoded(manifest))


def published(vault: Path, domain: str, capture: str) -> RestorePoint | None:
    """The point of that capture, if it has been published already."""
    for found in _points_of(vault / folder_of(domain)):
        if found.manifest.capture == capture:
            return found
    return None


def encoded(manifest: Manifest) -> bytes:
    """A manifest as it stands in its file."""
    return msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"


def _points_of(folder: Path) -> Iterator[RestorePoint]:
    for directory in _listed(folder):
        try:
            yield read_point(directory)
        except VaultDamaged:
            continue


def _listed(directory: Path, *, hidden: bool = False) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.name.startswith(".") == hidden)
    except FileNotFoundError:
        return []


def _is_moment(name: str, moment: str) -> bool:
    folder = folder_of(moment)
    base, _, number = name.rpartition(".")
    return name == folder or (base == folder and number.isdigit())


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return
