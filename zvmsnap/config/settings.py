"""Reads config.toml and conf.d: every key has a default, and an unknown key is refused by name.

config.toml.example and docs/reference/configuration.md describe every key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import date, datetime
from datetime import time as clock_time
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from zvmsnap.common import snapshot_name
from zvmsnap.common.errors import (
    AgeInvalid,
    ConfigInvalid,
    DestinationInvalid,
    KeepInvalid,
    ModeInvalid,
)
from zvmsnap.config import destination
from zvmsnap.config.age import parse_age
from zvmsnap.config.destination import MemoryWanted
from zvmsnap.config.keep import ALL, Keep, parse_keep
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.mode import parse_mode

DEFAULT_PATH = Path("/etc/zvmsnap/config.toml")
CONF_D = "conf.d"
_ADDED_UP = "destination"  # each file may have some


class Image(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How RAM images are stored in the vault."""

    # As page images, which share what has not changed since the last one.
    pages: bool = True
    # How those are stored of which no page image can be made.
    compression: Literal["auto", "none", "zstd"] = "auto"
    zstd_level: Annotated[int, msgspec.Meta(ge=1, le=22)] = 3


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Times and sizes that bound the work for each guest."""

    # How long QEMU may pause the guest for the last of its RAM: at first, and at most, if its RAM
    # changes so fast that the dump would not end. If that is not enough the guest is paused, for
    # max_freeze_s at most, or the dump is aborted and undone, and the point has no RAM.
    pause_first_ms: int = 30
    pause_max_ms: int = 1000
    # A dump that goes on more slowly than that for a minute is aborted.
    dump_min_mib_per_s: float = 1
    # So many times its RAM is reserved in staging for the image: RAM that changes during the dump
    # is written again. A dump that would need more is aborted.
    dump_max_ram_ratio: float = 1.5
    # A guest that is expected to be paused for longer than that at level memory, as its disks are
    # many, gets the next level of its mode.
    memory_max_pause_s: float = 10
    # How many guests may have their RAM dumped at once; 0: as many as CPUs and staging allow.
    parallel_dumps: Annotated[int, msgspec.Meta(ge=0)] = 0
    # How many guests are backed up at once.
    parallel_backups: Annotated[int, msgspec.Meta(ge=1)] = 2
    # What must be free in staging beside the RAM image, for the writes of the guest until post.
    overlay_room_mib: int = 1024
    # If staging has less than this left, the overlays are merged at once, and no point is made.
    staging_reserve_mib: int = 256
    # How long to wait for another job on the guest (migration, backup, save).
    busy_timeout_s: float = 60
    # After this long a guest that is paused or frozen for a snapshot is resumed or thawed,
    # whatever hangs or died, and its point is of level crash. No longer is it paused to end a dump.
    max_freeze_s: float = 60
    # How long the agent may take to freeze the file systems, with the hooks that it runs for that.
    freeze_timeout_s: int = 30
    # How long guest.d/GUEST/pre-freeze and post-thaw may take.
    script_timeout_s: float = 30
    commit_timeout_s: float = 3600
    lock_timeout_s: float = 30

    @property
    def reserve_bytes(self) -> int:
        """What staging must have left; never more than was made sure of before an overlay is made.

        Else every guest would be taken off its overlays at once.
        """
        return min(self.staging_reserve_mib, self.overlay_room_mib) << 20


class Monitor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From when on `zvmsnap monitor` warns, and calls it critical: ages as in config/age."""

    # Of a guest's newest point, where the properties zvmsnap:warn-age and crit-age do not say so.
    warn_age: str = "26h"
    crit_age: str = "50h"
    # Of a run that is open: its guest may be on overlays.
    warn_overlay: str = "15m"
    crit_overlay: str = "2h"
    # Of the last verification of any point of a guest.
    warn_verify: str = "off"
    crit_verify: str = "off"
    # Of a guest's newest point at a destination that it is sent to.
    warn_offsite: str = "8d"
    crit_offsite: str = "off"
    # What is free of the file systems of vault and staging.
    warn_room_percent: float = 10
    crit_room_percent: float = 5


# age(1): its own keys, also of plugins, and those of ssh.
_RECIPIENT = re.compile(r"age1[0-9a-z]{8,4096}|ssh-(?:ed25519|rsa) [A-Za-z0-9+/=]{16,4096}(?: .*)?")


class DestinationTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where `zvmsnap send` sends to without arguments; no `guests` means all that have points."""

    target: str
    guests: tuple[str, ...] = ()
    memory: MemoryWanted = MemoryWanted.LATEST
    raw: bool = False
    bwlimit: str = ""
    create_bookmark: bool = False
    use_hold: bool = False
    keep_memory: str | int = ALL
    # Public keys of age: RAM and definitions are encrypted for these before they are sent.
    encrypt_to: tuple[str, ...] = ()
    recipients_file: str = ""
    identity_file: str = ""

    @property
    def keep(self) -> Keep:
        """How long RAM is kept there."""
        return parse_keep(str(self.keep_memory))


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole configuration."""

    uri: str = "qemu:///system"
    staging: str = "/var/lib/zvmsnap/staging"
    vault: str = "/var/lib/zvmsnap/vault"
    journal: str = "/var/lib/zvmsnap/journal"
    locks: str = "/run/zvmsnap"
    # Empty: the --configdir of the sanoid that called the hook, else /etc/sanoid.
    sanoid_configdir: str = ""
    # The mode of datasets without the property zvmsnap:mode; see mode.py.
    mode: str = str(ConsistencyLevel.MEMORY)
    modes: dict[str, str] = {}
    # How long RAM images are kept, where the property zvmsnap:keep-memory does not say so.
    keep_memory: str | int = ALL
    # Freeze for milliseconds only, and let ZFS snapshot the disks under overlays.
    quiesce_overlay: bool = False
    # Back up running guests with disks off ZFS on overlays, not by libvirt's backup job.
    backup_overlay: bool = False
    guest_scripts: str = "/etc/zvmsnap/guest.d"
    # Programs that are told of failures.
    notify: str = "/etc/zvmsnap/notify.d"
    image: Image = Image()
    limits: Limits = Limits()
    monitor: Monitor = Monitor()
    destination: tuple[DestinationTable, ...] = ()

    @property
    def default_modes(self) -> dict[str, str]:
        """The mode for each type of snapshot; "" for all other types."""
        return {"": self.mode, **self.modes}

    @property
    def default_keep(self) -> Keep:
        """How long RAM images are kept, where no property says so."""
        return parse_keep(str(self.keep_memory))

    @property
    def staging_dir(self) -> Path:
        """The directory of overlays and fresh RAM images."""
        return Path(self.staging)

    @property
    def vault_dir(self) -> Path:
        """The directory of restore points."""
        return Path(self.vault)

    @property
    def journal_dir(self) -> Path:
        """The directory of unfinished work."""
        return Path(self.journal)

    @property
    def locks_dir(self) -> Path:
        """The directory of lock files, on a file system that is emptied at boot."""
        return Path(self.locks)


def files(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """The files that are read, in that order: config.toml, and those of conf.d beside it.

    Where $ZVMSNAP_CONFIG names a file, that one alone. Raises ConfigInvalid.
    """
    if named := environment.get("ZVMSNAP_CONFIG"):
        return [Path(named)]
    own = [DEFAULT_PATH] if os.path.lexists(DEFAULT_PATH) else []
    folder = DEFAULT_PATH.parent / CONF_D
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".toml"))
    except (FileNotFoundError, NotADirectoryError):
        return own
    except OSError as error:
        raise ConfigInvalid(f"{folder}: cannot be read: {error.strerror}") from error
    return [*own, *(folder / name for name in names)]


def load_settings(path: Path | None = None, environment: Mapping[str, str] = os.environ) -> Config:
    """Read the configuration from `path`, $ZVMSNAP_CONFIG, or /etc/zvmsnap/config.toml and conf.d.

    | a key of conf.d     | what becomes of it                                     |
    |---------------------|--------------------------------------------------------|
    | a value             | replaces that of the files before                      |
    | a table             | is merged into that of the files before, key by key    |
    | `[[destination]]`   | is added to those of the files before                  |

    A missing file means the defaults, unless it was named. Raises ConfigInvalid, which says file
    and key.
    """
    sources = [path] if path else files(environment)
    merged: dict[str, Any] = {}
    for source in sources:
        _merge(merged, _read(source))
    config = _config(sources[-1], merged) if sources else Config()
    if len(sources) > 1:
        _check(sources[-1], config)
    return config


def _read(source: Path) -> dict[str, Any]:
    """What one file says, which is well by itself."""
    try:
        text = source.read_bytes()
    except FileNotFoundError:
        raise ConfigInvalid(f"{source}: no such configuration file") from None
    except OSError as error:
        raise ConfigInvalid(f"{source}: cannot be read: {error.strerror}") from error
    try:
        values = msgspec.toml.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{source}: {error}") from error
    _check(source, _config(source, values))
    return values


def _config(source: Path, values: dict[str, Any]) -> Config:
    try:
        # As msgspec.toml.decode does: a file has no other types than TOML.
        return msgspec.convert(values, Config, builtin_types=(datetime, date, clock_time))
    except msgspec.ValidationError as error:
        raise ConfigInvalid(f"{source}: {error}") from error


def _merge(merged: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        known = merged.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            _merge(known, value)
        elif key == _ADDED_UP and isinstance(value, list) and isinstance(known, list):
            known += value
        else:
            merged[key] = value


def _check(source: Path, config: Config) -> None:
    _check_paths(source, config)
    _check_numbers(source, config)
    _check_modes(source, config)
    try:
        parse_keep(str(config.keep_memory))
    except KeepInvalid as error:
        raise ConfigInvalid(f"{source}: keep_memory: {error}") from error
    for key in config.monitor.__struct_fields__:
        value = getattr(config.monitor, key)
        try:
            if isinstance(value, str):
                parse_age(value)
        except AgeInvalid as error:
            raise ConfigInvalid(f"{source}: monitor: {key}: {error}") from error
    for table in config.destination:
        try:
            destination.parse(table.target)
            destination.check_rate(table.bwlimit)
            parse_keep(str(table.keep_memory))
            _check_encryption(table)
        except (DestinationInvalid, KeepInvalid) as error:
            raise ConfigInvalid(f"{source}: [[destination]]: {error}") from error


def _check_encryption(table: DestinationTable) -> None:
    """Raises DestinationInvalid."""
    for key in table.encrypt_to:
        if not _RECIPIENT.fullmatch(key):
            # Not all of it: it may be the secret key.
            raise DestinationInvalid(f"encrypt_to: {key[:4]!r}... is no public key, as age1...")
    for path in (table.recipients_file, table.identity_file):
        if path and not Path(path).is_absolute():
            raise DestinationInvalid(f"{path}: must be an absolute path")


def _check_paths(source: Path, config: Config) -> None:
    for key in ("staging", "vault", "journal", "locks", "guest_scripts", "notify"):
        if not Path(getattr(config, key)).is_absolute():
            raise ConfigInvalid(f"{source}: {key} must be an absolute path")


def _check_numbers(source: Path, config: Config) -> None:
    for struct in (config.image, config.limits, config.monitor):
        for key in struct.__struct_fields__:
            value = getattr(struct, key)
            allows_zero = key == "parallel_dumps"
            if not isinstance(value, str | bool) and not (value > 0 or allows_zero):  # nor NaN
                raise ConfigInvalid(f"{source}: {key} must be more than 0, not {value}")
    if config.limits.pause_first_ms > config.limits.pause_max_ms:
        raise ConfigInvalid(f"{source}: pause_first_ms is more than pause_max_ms")


def _check_modes(source: Path, config: Config) -> None:
    for kind in config.modes:
        if kind not in snapshot_name.TYPES:
            raise ConfigInvalid(
                f"{source}: modes: {kind!r} is none of {', '.join(snapshot_name.TYPES)}"
            )
    for kind, mode in config.default_modes.items():
        try:
            parse_mode(mode)
        except ModeInvalid as error:
            raise ConfigInvalid(f"{source}: mode{kind and f's.{kind}'} {error}") from error
