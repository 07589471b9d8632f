"""One TOML file, one struct; everything has a default, an unknown key is refused by its name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from zvmsnap.common import snapshot_name
from zvmsnap.common.errors import ConfigInvalid, DestinationInvalid, ModeInvalid
from zvmsnap.config import destination
from zvmsnap.config.destination import MemoryWanted
from zvmsnap.config.level import ConsistencyLevel
from zvmsnap.config.mode import parse_mode

DEFAULT_PATH = Path("/etc/zvmsnap/config.toml")


class Image(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How RAM images are kept in the vault."""

    compression: Literal["auto", "none", "zstd"] = "auto"
    zstd_level: Annotated[int, msgspec.Meta(ge=1, le=22)] = 3


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Deadlines and sizes that bound a capture, for each guest."""

    # The pause that QEMU may take for the last part of RAM: low first, raised when it does not do.
    pause_first_ms: int = 30
    pause_max_ms: int = 1000
    # Seconds since the dump began at which a guest that dirties RAM faster than it is written
    # (1) may be paused longer, doubling up to pause_max_ms, (2) is paused until the rest is
    # written, (3) gets no memory in this point: the dump is aborted and undone.
    dump_raise_pause_after_s: float = 20
    dump_pause_after_s: float = 60
    dump_abort_after_s: float = 300
    # A dump may grow to this many times the guest's RAM before the guest is paused to end it.
    dump_max_ram_ratio: float = 1.5
    # Room that must be free in staging beside the RAM image: for what the guest writes meanwhile.
    overlay_room_mib: int = 1024
    # When less than this is left in staging, the moments that are open there are given up.
    staging_reserve_mib: int = 256
    # How long another job on the guest (migration, backup, save) is waited for.
    busy_timeout_s: float = 60
    # A guest that is frozen or paused until ZFS has taken its snapshot is let go after this long,
    # whatever hangs or died; its point is of level crash then.
    max_freeze_s: float = 60
    # How long its agent may take to freeze file systems, with the hooks that it runs for that.
    freeze_timeout_s: int = 30
    # How long guest.d/GUEST/pre-freeze and post-thaw may take.
    script_timeout_s: float = 30
    commit_timeout_s: float = 3600
    lock_timeout_s: float = 30


class DestinationTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where `zvmsnap send` sends to when it is told nothing; no `guests` means all with points."""

    target: str
    guests: tuple[str, ...] = ()
    memory: MemoryWanted = MemoryWanted.LATEST
    raw: bool = False
    bwlimit: str = ""
    create_bookmark: bool = False
    use_hold: bool = False


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole configuration; see config.toml.example for what each key is for."""

    uri: str = "qemu:///system"
    staging: str = "/var/lib/zvmsnap/staging"
    vault: str = "/var/lib/zvmsnap/vault"
    journal: str = "/var/lib/zvmsnap/journal"
    locks: str = "/run/zvmsnap"
    # Empty: what the sanoid that called us was told, else /etc/sanoid.
    sanoid_configdir: str = ""
    # What a point must be where no property zvmsnap:mode says so; see levels.
    mode: str = str(ConsistencyLevel.MEMORY)
    modes: dict[str, str] = {}
    # Freeze for milliseconds, and take the snapshot of disks under overlays, as for `memory`.
    quiesce_overlay: bool = False
    guest_scripts: str = "/etc/zvmsnap/guest.d"
    image: Image = Image()
    limits: Limits = Limits()
    destination: tuple[DestinationTable, ...] = ()

    @property
    def default_modes(self) -> dict[str, str]:
        """The order of levels for each type of snapshot, "" for all others."""
        return {"": self.mode, **self.modes}

    @property
    def staging_dir(self) -> Path:
        """Where overlays and fresh RAM images lie."""
        return Path(self.staging)

    @property
    def vault_dir(self) -> Path:
        """Where points live."""
        return Path(self.vault)

    @property
    def journal_dir(self) -> Path:
        """Where we write down what we are about to do."""
        return Path(self.journal)

    @property
    def locks_dir(self) -> Path:
        """Where lock files lie; on a file system that a boot empties."""
        return Path(self.locks)


def load_settings(path: Path | None = None, environment: Mapping[str, str] = os.environ) -> Config:
    """Read the configuration from `path`, $ZVMSNAP_CONFIG or /etc/zvmsnap/config.toml.

    A missing file means defaults, unless it was named. Raises ConfigInvalid with file and key.
    """
    named = path or (
        Path(environment["ZVMSNAP_CONFIG"]) if environment.get("ZVMSNAP_CONFIG") else None
    )
    source = named or DEFAULT_PATH
    try:
        text = source.read_bytes()
    except FileNotFoundError:
        if named:
            raise ConfigInvalid(f"{source}: there is no such configuration file") from None
        return Config()
    except OSError as error:
        raise ConfigInvalid(f"{source}: cannot be read: {error.strerror}") from error
    try:
        config = msgspec.toml.decode(text, type=Config)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{source}: {error}") from error
    _check(source, config)
    return config


def _check(source: Path, config: Config) -> None:
    for key in ("staging", "vault", "journal", "locks", "guest_scripts"):
        if not Path(getattr(config, key)).is_absolute():
            raise ConfigInvalid(f"{source}: {key} must be an absolute path")
    for struct in (config.image, config.limits):
        for key in struct.__struct_fields__:
            value = getattr(struct, key)
            if not isinstance(value, str) and not value > 0:  # nor NaN
                raise ConfigInvalid(f"{source}: {key} must be more than 0, not {value}")
    for each in config.modes:
        if each not in snapshot_name.TYPES:
            raise ConfigInvalid(
                f"{source}: modes: {each!r} is none of {', '.join(snapshot_name.TYPES)}"
            )
    for each, mode in config.default_modes.items():
        try:
            parse_mode(mode)
        except ModeInvalid as error:
            raise ConfigInvalid(f"{source}: mode{each and f's.{each}'} {error}") from error
    for table in config.destination:
        try:
            destination.parse(table.target)
            destination.check_rate(table.bwlimit)
        except DestinationInvalid as error:
            raise ConfigInvalid(f"{source}: [[destination]]: {error}") from error
    if config.limits.pause_first_ms > config.limits.pause_max_ms:
        raise ConfigInvalid(f"{source}: pause_first_ms is more than pause_max_ms")
