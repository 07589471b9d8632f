"""An encrypted point in the vault of this host, as at the destination itself, is decrypted there.

    decrypt   everything, into an incoming directory; the checksum of the RAM must be right
    move      the files into the point, and after that its whole manifest
    remove    the encrypted files

If it dies, the point is still encrypted, or its encrypted files are left over; the same command
goes on.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from zvmsnap.common import safe_files
from zvmsnap.common.lockfile import lock
from zvmsnap.config.settings import Config
from zvmsnap.encryption import copies
from zvmsnap.encryption.copies import BUNDLE
from zvmsnap.points import memory_image, vault
from zvmsnap.points.manifest import Manifest
from zvmsnap.points.point import RestorePoint, vault_of


def decrypt(config: Config, point: RestorePoint, identity: str) -> RestorePoint:
    """Decrypt a point for good.

    Raises EncryptionFailed, ImageUnloadable, LockTimeout and OSError.
    """
    manifest = point.manifest
    intent = f"decrypt {point.name}"
    with lock(config.locks_dir, manifest.uuid, intent, config.limits.lock_timeout_s):
        incoming = vault.incoming(config.vault_dir, manifest.domain, manifest.capture)
        try:
            whole = _decrypt(point, incoming, identity)
            return _replace(point, whole, incoming)
        finally:
            vault.drop_incoming(incoming)


def _decrypt(point: RestorePoint, incoming: Path, identity: str) -> Manifest:
    whole = copies.unbundle(point, point.directory / BUNDLE, incoming, identity)
    for name in whole.memory.files if whole.memory else ():
        copies.decrypt_file(point.directory, name, incoming, identity)
    if whole.memory:
        memory_image.check(incoming / whole.memory.file, whole.memory)
    return msgspec.structs.replace(whole, encrypted=False)


def _replace(point: RestorePoint, whole: Manifest, incoming: Path) -> RestorePoint:
    """The vault may be the user's as whom points are sent to it: no symlink in it is followed."""
    with safe_files.opened_within(point.directory, [vault_of(point.directory)]) as own:
        for path in incoming.iterdir():
            os.rename(path, path.name, dst_dir_fd=own)
        os.fsync(own)
        vault.rewrite(point, whole)
        for name in (*copies.ram_files(msgspec.structs.replace(whole, encrypted=True)), BUNDLE):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=own)
    return RestorePoint(point.directory, whole)
