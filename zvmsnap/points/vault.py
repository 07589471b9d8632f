"""The vault: `<vault>/<domain>/<run>/`. A point appears, and disappears, by one rename.

Directories that begin with a dot may be cleaned up: `.incoming-*` is a point that is being
published, `.loading-*` a RAM image that libvirt loads, `.removing-*` a point that is being removed.
In `.arriving-*` another host puts together what it sends; it cleans up itself. No symlink is
followed; they are reported.

Files of RAM come into a point's directory before its manifest names them, and leave it after that.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

from zvmsnap.common import json_file, safe_files
from zvmsnap.common.errors import VaultDamaged, VaultMissing
from zvmsnap.common.lockfile import lock
from zvmsnap.common.safe_files import (
    private_dir,
    rename_to_free,
    sync_dir,
    write_atomic,
    write_in,
)
from zvmsnap.config.settings import Config
from zvmsnap.points.manifest import (
    DOMAIN_XML,
    MANIFEST,
    MEMORY,
    MEMORY_FILES,
    Alike,
    Decode,
    Manifest,
)
from zvmsnap.points.point import RestorePoint, in_order, read_listed, vault_of

MARK = ".zvmsnap-vault"
_KNOWN_VAULT = "vault.id"
INCOMING = ".incoming-"
REMOVING = ".removing-"
LOADING = ".loading-"
# Not .incoming-: a `zvmsnap prune` at a destination must not remove it.
ARRIVING = ".arriving-"


@dataclass(frozen=True)
class DamagedPoint:
    """A point that cannot be used, and why: it is damaged, or of another version."""

    directory: Path
    why: str


def folder_of(name: str) -> str:
    """The directory name for a domain or run: its name, with what a path must not have quoted."""
    quoted = "".join(
        f"%{ord(char):02X}" if char in "/%" or ord(char) < 32 else char for char in name
    )
    return "%2E" + quoted[1:] if quoted.startswith(".") else quoted


def check(config: Config) -> None:
    """Raises VaultMissing if this is not the vault that was used so far.

    If the file system of the vault is not mounted, its mountpoint is an empty directory: all
    points seem gone, and what is written there is hidden by the next mount.
    """
    known = config.journal_dir / _KNOWN_VAULT
    if known.exists() and _read_mark(config.vault_dir / MARK) != _read_mark(known):
        raise VaultMissing(
            f"{config.vault_dir} is not the vault that was used so far: is its file system "
            f"mounted? If it was moved or emptied on purpose, remove {known}"
        )


def claim(config: Config) -> None:
    """Use this vault from now on: the first one, or the one used so far. Raises VaultMissing."""
    check(config)
    known = private_dir(config.journal_dir) / _KNOWN_VAULT
    mark = private_dir(config.vault_dir) / MARK
    if mark.exists() and known.exists():
        return
    with lock(config.locks_dir, "vault-mark", "mark the vault", config.limits.lock_timeout_s):
        check(config)
        if not mark.exists():
            write_atomic(mark, os.urandom(16).hex().encode())
        if not known.exists():
            write_atomic(known, mark.read_bytes())


def _read_mark(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def entries(vault: Path, run: str | None = None) -> Iterator[RestorePoint | DamagedPoint]:
    """All points, or those of one run; what cannot be read comes as DamagedPoint."""
    decode = Alike().decode if run is None else None
    for folder in _scanned(vault):
        if not folder.is_dir(follow_symlinks=False):
            # Not of one run: `zvmsnap list` and `prune` tell of it, not the hook of each run.
            if run is None:
                why = f"{folder.path}: is no directory of the vault's own; not followed"
                yield DamagedPoint(Path(folder.path), why)
            continue
        own = Path(folder.path)
        for each in _scanned(own):
            if run is None or is_of_run(each.name, run):
                found = _entry_in(own / each.name, each.is_symlink(), decode)
                if found:
                    yield found


def entry_in(directory: Path) -> RestorePoint | DamagedPoint | None:
    """What is in the directory of a point; None if somebody has removed it since it was listed."""
    return _entry_in(directory, directory.is_symlink())


def _entry_in(
    directory: Path, is_link: bool, decode: Decode | None = None
) -> RestorePoint | DamagedPoint | None:
    try:
        return read_listed(directory, is_link, decode)
    except VaultDamaged as error:
        return DamagedPoint(directory, str(error)) if os.path.lexists(directory) else None


def read(config: Config) -> tuple[list[RestorePoint], list[DamagedPoint]]:
    """All points, by guest, the oldest first, and what cannot be read. Raises VaultMissing."""
    check(config)
    return all_in(config.vault_dir)


def all_in(vault: Path) -> tuple[list[RestorePoint], list[DamagedPoint]]:
    """The same, of any directory that is laid out as a vault."""
    points, damaged = [], []
    for entry in entries(vault):
        if isinstance(entry, DamagedPoint):
            damaged.append(entry)
        else:
            points.append(entry)
    points.sort(key=_domain)
    ordered = (in_order(own) for _, own in groupby(points, key=_domain))
    return list(chain.from_iterable(ordered)), damaged


def _domain(point: RestorePoint) -> str:
    return point.manifest.domain


def newest(vault: Path, domain: str, among: int) -> list[Manifest]:
    """The manifests of the newest points of the guests of that name, the newest first."""
    return [point.manifest for point in newest_points(vault, domain, among)]


def newest_points(vault: Path, domain: str | None, among: int) -> list[RestorePoint]:
    """The newest points of the guests of that name, or of all guests, the newest first.

    `among` those that were published last, as by their definitions, which nobody changes later; so
    not all are read. ZFS has the order of these.
    """
    folders = _listed(vault) if domain is None else [vault / folder_of(domain)]
    own = (folder for folder in folders if folder.is_dir() and not folder.is_symlink())
    directories = sorted(chain.from_iterable(map(_listed, own)), key=_published_s, reverse=True)
    read = map(entry_in, directories[:among])
    return in_order(point for point in read if isinstance(point, RestorePoint))[::-1]


def _published_s(directory: Path) -> float:
    try:
        return (directory / DOMAIN_XML).lstat().st_mtime
    except OSError:
        return 0.0


@dataclass(frozen=True)
class UnfinishedPoint:
    """The directory of a point that is being published, loaded or removed, or was when it died."""

    directory: Path

    @property
    def capture(self) -> str | None:
        """The capture that is published or loaded; None for a removal."""
        name = self.directory.name
        for prefix in (INCOMING, LOADING):
            if name.startswith(prefix):
                return name.removeprefix(prefix)
        return None


def unfinished(vault: Path) -> list[UnfinishedPoint]:
    """All points that are not complete yet, or not removed yet."""
    return [
        UnfinishedPoint(directory)
        for folder in _listed(vault)
        if folder.is_dir() and not folder.is_symlink()
        for directory in _listed(folder, hidden=True)
        if directory.name.startswith((INCOMING, REMOVING, LOADING))
        and directory.is_dir()
        and not directory.is_symlink()
    ]


def remove(point: RestorePoint) -> None:
    """Remove a point: it disappears by one rename; its files are deleted after that."""
    removing = point.directory.with_name(REMOVING + point.directory.name)
    _delete(removing)
    try:
        os.rename(point.directory, removing)
        sync_dir(removing.parent)
    except FileNotFoundError:
        return  # somebody else has removed it since it was read
    _delete(removing)
    _remove_if_empty(removing.parent)


def _delete(removing: Path) -> None:
    """Delete the files of a point that has been removed; somebody else may be at it, too."""
    while removing.exists():
        with suppress(FileNotFoundError):
            shutil.rmtree(removing)


def having_memory(vault: Path, domain: str) -> list[Path]:
    """The directories of the points of that name that have files of RAM; no point is read."""
    folder = vault / folder_of(domain)
    return [] if folder.is_symlink() else [each for each in _listed(folder) if _memory_in(each)]


def _memory_in(directory: Path) -> list[str]:
    return [name for name in MEMORY_FILES if os.path.lexists(f"{directory}/{name}")]


def stray_memory(point: RestorePoint) -> list[Path]:
    """Files of RAM that no manifest names, and that nobody is sending to this vault.

    Whoever sends RAM to a point makes `.arriving-*` first, and removes it last: so the manifest is
    read after that was looked for.
    """
    if not (stray := _stray_in(point)):
        return []
    arriving = point.directory.with_name(ARRIVING + point.manifest.capture)
    if os.path.lexists(arriving) or not isinstance(now := entry_in(point.directory), RestorePoint):
        return []
    return [point.directory / name for name in stray if name in _stray_in(now)]


def _stray_in(point: RestorePoint) -> list[str]:
    memory = point.manifest.memory
    own = memory.files if memory else ()
    return [name for name in _memory_in(point.directory) if name not in own]


def remove_files(directory: Path, names: Iterable[str]) -> None:
    """Remove files of a point; of RAM after its manifest names it no more. Raises OSError."""
    with safe_files.opened_within(directory, [vault_of(directory)]) as own:
        for name in names:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=own)


def incoming(vault: Path, domain: str, capture: str) -> Path:
    """Make the directory in which a point is assembled, if needed. Raises VaultDamaged."""
    folder = private_dir(vault) / folder_of(domain)
    if folder.is_symlink():
        raise VaultDamaged(f"{folder}: is a symlink; not followed out of the vault")
    directory = private_dir(folder) / f"{INCOMING}{capture}"
    if directory.is_symlink():
        raise VaultDamaged(f"{directory}: is a symlink; not followed out of the vault")
    return private_dir(directory)


def loading(directory: Path, capture: str) -> Path:
    """The path for a copy of a point's RAM image that libvirt loads, beside the point."""
    return private_dir(_loading(directory, capture)) / MEMORY


def drop_loading(directory: Path, capture: str) -> None:
    """Remove that copy; the point may be gone."""
    shutil.rmtree(_loading(directory, capture), ignore_errors=True)


def _loading(directory: Path, capture: str) -> Path:
    return directory.with_name(LOADING + capture)


def drop_incoming(directory: Path) -> None:
    """Remove an incoming directory, as the point is not to be made, or was made already."""
    shutil.rmtree(directory, ignore_errors=True)


def publish(directory: Path, manifest: Manifest) -> RestorePoint:
    """Write the manifest into an incoming directory, and let the point appear by one rename.

    A second point of the same run (clocks set back; datasets snapshotted one by one) gets a number
    after its name.
    """
    put(directory, MANIFEST, json_file.encoded(manifest))
    target = rename_to_free(directory, directory.with_name(folder_of(manifest.run)))
    sync_dir(target.parent)
    return RestorePoint(target, manifest)


def rewrite(point: RestorePoint, manifest: Manifest) -> None:
    """Replace the manifest of a point. Raises OSError."""
    put(point.directory, MANIFEST, json_file.encoded(manifest))


def put(directory: Path, name: str, data: bytes) -> None:
    """Write a file of a point. Raises OSError.

    The vault may be the user's as whom points are sent to it: no symlink in it is followed.
    """
    with safe_files.opened_within(directory, [vault_of(directory)]) as own:
        write_in(own, name, data)


def published(vault: Path, domain: str, run: str | None, capture: str) -> RestorePoint | None:
    """The point of that capture, if it has been published already.

    `run` is its run, if that is known: else all points of the guest are read.
    """
    for directory in _listed(vault / folder_of(domain)):
        may_be = run is None or is_of_run(directory.name, run)
        point = entry_in(directory) if may_be else None
        if isinstance(point, RestorePoint) and point.manifest.capture == capture:
            return point
    return None


def _listed(directory: Path, *, hidden: bool = False) -> list[Path]:
    try:
        names = sorted(name for name in os.listdir(directory) if name.startswith(".") == hidden)
    except FileNotFoundError:
        return []
    return [directory / name for name in names]


def _scanned(directory: Path) -> list[os.DirEntry[str]]:
    """What is in a directory, with what listing it tells of each, but for hidden names."""
    try:
        with os.scandir(directory) as listed:
            found = [each for each in listed if not each.name.startswith(".")]
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda each: each.name)


def is_of_run(name: str, run: str) -> bool:
    """May a directory of that name have a point of the run? Further ones get a number."""
    folder = folder_of(run)
    base, _, number = name.rpartition(".")
    return name == folder or (base == folder and number.isdigit())


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return
