"""All that the checks look at, asked for once: libvirt, ZFS, sanoid's and our own configuration.

Whatever does not answer, or cannot be read, becomes one finding, and the checks that need it have
nothing to look at: no hung libvirt, no QEMU that is stopped, and no suspended pool makes more of
them, nor is waited for longer than a few seconds.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from zvmsnap.capture.eligibility import mode_property, modes_for
from zvmsnap.check.finding import Finding, red
from zvmsnap.common import foreign, log, snapshot_name
from zvmsnap.common.errors import (
    ConfigInvalid,
    GivenUp,
    ModeInvalid,
    SanoidConfInvalid,
)
from zvmsnap.common.process import run_program
from zvmsnap.common.waiting import Call
from zvmsnap.config import sanoid_conf
from zvmsnap.config.mode import OFF, ModeSet
from zvmsnap.config.properties import KEEP_MEMORY
from zvmsnap.config.sanoid_conf import Ini, Policy
from zvmsnap.config.settings import Config, load_settings
from zvmsnap.disks.location import GuestDisks, locate_disks
from zvmsnap.virt.guest import Guest
from zvmsnap.virt.host import Host
from zvmsnap.zfs import mounts, zfs
from zvmsnap.zfs.mounts import Mount
from zvmsnap.zfs.types import Dataset, Pool

ANSWER_S = 20.0
_GUEST_S = 10.0
_ALL_GUESTS_S = 60.0
_PROGRAM_S = 20.0
_PROGRAM_DIRS = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
_VERSION = re.compile(r"\$::VERSION\s*=\s*'([0-9.]+)'")
_READ_MAX = 1 << 20
_POOL_STATES = "/proc/spl/kstat/zfs"
_AWAY = "SUSPENDED"

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class SeenGuest:
    """A guest that answers, and where its disks are."""

    guest: Guest
    disks: GuestDisks

    @property
    def name(self) -> str:
        """As libvirt calls it."""
        return self.guest.name

    @property
    def datasets(self) -> list[str]:
        """The datasets of the disks that it writes to."""
        writable = {disk.target for disk in self.disks.domain.disks if disk.writable}
        found = {place.dataset for name, place in self.disks.locations.items() if name in writable}
        return sorted(found)


@dataclass(frozen=True)
class Sanoid:
    """sanoid as it is installed here, and its configuration as it resolves that."""

    program: Path
    version: tuple[int, ...]
    conf: Path
    ini: Ini | None = None
    known_keys: frozenset[str] = frozenset()
    policies: dict[str, Policy] = field(default_factory=dict)

    @property
    def spelt(self) -> str:
        """The version, as people write it."""
        return ".".join(map(str, self.version)) or "of an unknown version"

    def top_of(self, dataset: str) -> Policy | None:
        """The section's dataset by whose snapshot that dataset is snapshotted; None if by none."""
        policy = self.policies.get(dataset)
        if policy is None or policy.path != policy.dataset:
            return self._by_path.get(dataset)
        if policy.takes:
            return policy
        if policy.is_below:
            above = self.policies.get(policy.parent)
            return above if above and above.is_recursive else None
        return None

    @cached_property
    def _by_path(self) -> dict[str, Policy]:
        """What sections say of a dataset that is not called as they are."""
        return {each.path: each for each in self.policies.values() if each.path != each.dataset}


@dataclass
class Facts:
    """What is known of this host; `findings` are those of what could not be asked."""

    root: Path
    config: Config = field(default_factory=Config)
    findings: list[Finding] = field(default_factory=list)
    pools: dict[str, Pool] | None = None
    datasets: dict[str, Dataset] | None = None
    table: list[Mount] = field(default_factory=list)
    host: Host | None = None
    guests: list[SeenGuest] | None = None
    sanoid: Sanoid | None = None

    def path(self, absolute: str) -> Path:
        """A file of this host."""
        return self.root / absolute.lstrip("/")

    def program(self, name: str) -> Path | None:
        """Where a program is, None if it is not installed."""
        paths = (self.root / folder / name for folder in _PROGRAM_DIRS)
        return next((path for path in paths if os.access(path, os.X_OK)), None)

    def ask(self, *words: str) -> str | None:
        """What a program prints; None if it is not there, fails, or does not end in time."""
        program = self.program(words[0])
        if program is None:
            return None
        try:
            done = run_program([str(program), *words[1:]], limit_s=_PROGRAM_S)
        except (OSError, GivenUp):
            return None
        return done.stdout.decode(errors="replace") if done.returncode == 0 else None

    @property
    def on_zfs(self) -> list[SeenGuest]:
        """The guests with a disk on ZFS, but those that are left out by zvmsnap:mode=off."""
        datasets = self.datasets or {}
        return [
            each
            for each in self.guests or ()
            if any(
                name in datasets and mode_property(datasets[name], "") != OFF
                for name in each.datasets
            )
        ]

    @cached_property
    def snapshotted(self) -> dict[str, Policy]:
        """Each dataset that sanoid snapshots, and the section's dataset by which it does."""
        if not self.sanoid:
            return {}
        tops = {name: self.sanoid.top_of(name) for name in self.datasets or ()}
        return {name: top for name, top in tops.items() if top}

    def tops_of(self, guest: SeenGuest) -> set[str]:
        """The datasets by whose snapshots sanoid snapshots a guest: one, if all is well."""
        found = map(self.snapshotted.get, guest.datasets)
        return {policy.path for policy in found if policy}

    @cached_property
    def keeps(self) -> dict[str, str]:
        """zvmsnap:keep-memory of the guests' datasets, where it is set. Raises ZfsFailed."""
        names = sorted({name for guest in self.on_zfs for name in guest.datasets})
        having = zfs.properties_of((KEEP_MEMORY,), names) if names else {}
        return {name: own[KEEP_MEMORY] for name, own in having.items() if KEEP_MEMORY in own}

    def levels(self, guest: SeenGuest) -> ModeSet | None:
        """What is wanted of a guest, in all runs; None if that cannot be read, or is nothing."""
        datasets = self.datasets or {}
        covered = [name for name in guest.datasets if name in datasets]
        types = ("", *snapshot_name.TYPES)
        try:
            modes = modes_for(covered, datasets, types, self.config.default_modes)
        except ModeInvalid:
            return None
        return modes if modes.modes else None

    def dataset_of(self, path: Path) -> str:
        """The dataset that holds a path, "" if that is not on ZFS, or unknown."""
        found = mounts.dataset_of_path(os.path.realpath(path), self.table)
        return found[0] if found else ""


def gather(root: Path = Path("/")) -> Facts:
    """Ask for all; whatever does not answer becomes a finding."""
    facts = Facts(root)
    with _told(facts, "config.invalid", "configuration", "correct it: config.toml.example"):
        facts.config = load_settings()
    facts.table = mounts.read_table()
    with _told(facts, "zfs.unanswered", "ZFS", "zpool status; systemctl status zfs.target"):
        facts.pools = _pools(facts)
        usable = [name for name, pool in facts.pools.items() if not pool.is_away]
        facts.datasets = answer_of(lambda: zfs.datasets(usable)) if usable else {}
    with _told(facts, "libvirt.unanswered", "libvirt", "systemctl status libvirtd virtqemud"):
        facts.host = answer_of(lambda: Host.connect(facts.config.uri))
        facts.guests = _guests(facts, facts.host)
    facts.sanoid = _sanoid(facts)
    return facts


def _pools(facts: Facts) -> dict[str, Pool]:
    """All pools; those that the kernel has suspended are not asked for. Raises ZfsFailed."""
    states = {}
    for path in sorted(facts.path(_POOL_STATES).glob("*/state")):
        with suppress(OSError):  # it was exported meanwhile
            states[path.parent.name] = path.read_text().strip()
    away = {name: Pool(name, state, 0, 0, 0) for name, state in states.items() if state == _AWAY}
    names = [name for name in states if name not in away] if away else []
    return away | (answer_of(lambda: zfs.pools(names)) if names or not away else {})


def answer_of(ask: Callable[[], Answer], limit_s: float = ANSWER_S) -> Answer:
    """The answer of what may hang. Raises GivenUp."""
    return Call(ask).answer(limit_s)


@contextmanager
def _told(facts: Facts, check: str, subject: str, mend: str) -> Iterator[None]:
    try:
        yield
    except ConfigInvalid as error:
        facts.findings.append(red(check, "", str(error), mend))
    except Exception as error:
        facts.findings.append(red(check, subject, foreign.line(log.one_line(error)), mend))


def _guests(facts: Facts, host: Host) -> list[SeenGuest]:
    seen: list[SeenGuest] = []
    ends_s = time.monotonic() + _ALL_GUESTS_S
    silent: list[str] = []
    for guest in answer_of(host.guests):
        left_s = ends_s - time.monotonic()
        if left_s <= 0:
            silent.append(guest.name)
            continue
        mend = f"look at its QEMU: virsh domstate {guest.name} --reason; zpool status -x"
        with _told(facts, "guest.unanswered", guest.name, mend):
            disks = answer_of(lambda: _located(host, guest, facts.table), min(left_s, _GUEST_S))  # noqa: B023
            seen.append(SeenGuest(guest, disks))
    if silent:
        text = f"not looked at, as others did not answer in time: {', '.join(silent)}"
        facts.findings.append(red("guest.unanswered", "", text, "see to these first"))
    return seen


def _located(host: Host, guest: Guest, table: Sequence[Mount]) -> GuestDisks:
    guest.check_answers()
    return locate_disks(host, guest, list(table))


def _sanoid(facts: Facts) -> Sanoid | None:
    program = facts.program("sanoid")
    if program is None:
        return None
    conf = Path(facts.config.sanoid_configdir or facts.path("/etc/sanoid")) / "sanoid.conf"
    found = _VERSION.search(_text(program) or "")
    version = tuple(map(int, found[1].split("."))) if found else ()
    sanoid = Sanoid(program, version, conf)
    mend = "correct that line: until then sanoid takes no snapshot"
    with _told(facts, "sanoid.conf", str(conf), mend):
        text = _text(conf)
        if text is None:
            raise SanoidConfInvalid("is not there, or cannot be read: zvmsnap init proposes one")
        ini = sanoid_conf.parse(text)
        own = next(filter(None, map(_text, _defaults_files(facts, conf))), None)
        defaults = sanoid_conf.defaults_of(own) if own else dict(sanoid_conf.DEFAULTS)
        names = sorted(facts.datasets or ())
        policies = sanoid_conf.resolve(
            ini,
            defaults,
            lambda top: [name for name in names if name.startswith(f"{top}/")],
            version or (2, 2),
        )
        return Sanoid(program, version, conf, ini, frozenset(defaults if own else ()), policies)
    return sanoid


def _defaults_files(facts: Facts, conf: Path) -> tuple[Path, ...]:
    # Debian and Ubuntu have moved it.
    return (
        facts.path("/usr/share/sanoid/sanoid.defaults.conf"),
        conf.parent / "sanoid.defaults.conf",
    )


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(_READ_MAX).decode(errors="surrogateescape")
    except OSError:
        return None
