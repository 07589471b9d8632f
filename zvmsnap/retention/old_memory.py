"""Removes RAM that is kept no longer, as retention/keep_memory decides.

First the manifest says that the point has none, by one rename; after that the files go. If
everything dies in between, they are left over, and `zvmsnap prune` removes them.

    results    what verify has said of the RAM
    manifest   the point is of level crash
    files      of the RAM

Who calls this has the lock of the vault. The guest's lock is held meanwhile, so no restore of it
begins, and where somebody has it the RAM stays until the next time. What is being read goes on:
the kernel keeps a file that is open.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from zvmsnap.common import log
from zvmsnap.common.errors import LockTimeout, VaultDamaged
from zvmsnap.common.lockfile import lock
from zvmsnap.common.snapshot_name import TYPES, type_or_manual
from zvmsnap.common.waiting import Call
from zvmsnap.config.keep import Keep
from zvmsnap.config.properties import KEEP_MEMORY, KEEP_MEMORY_OF
from zvmsnap.config.settings import Config
from zvmsnap.journal import other_versions
from zvmsnap.journal.fetches import Fetches
from zvmsnap.journal.operation import Operations
from zvmsnap.points import vault, verify_result
from zvmsnap.points.manifest import SnapshotRef
from zvmsnap.points.point import RestorePoint, read_point
from zvmsnap.retention import keep_memory
from zvmsnap.retention.forget import LOCK
from zvmsnap.retention.keep_memory import REMOVED, Rule, RulesOf, Standing
from zvmsnap.zfs import zfs

_GUID = "guid"
_ASKED = (_GUID, KEEP_MEMORY, *KEEP_MEMORY_OF.values())


@dataclass
class Asked:
    """What datasets ask for; `values` of those that exist, by name, and names by guid."""

    default: Keep
    values: dict[str, dict[str, str]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)

    @classmethod
    def of_all(cls, config: Config) -> Asked:
        """What all datasets ask for, in one listing. Raises ZfsFailed."""
        asked = cls(config.default_keep)
        asked._take(zfs.properties_of(_ASKED, ()))
        return asked

    def ask(self, datasets: Iterable[str]) -> None:
        """Ask those of these datasets that were not asked yet. Raises ZfsFailed."""
        if new := sorted(set(datasets) - self._known):
            self._known.update(new)
            self._take(zfs.properties_of(_ASKED, new))

    def _take(self, values: Mapping[str, dict[str, str]]) -> None:
        self.values.update(values)
        self.names.update({int(own[_GUID]): name for name, own in values.items() if _GUID in own})

    def has_end(self, datasets: Iterable[str]) -> bool:
        """May RAM of points with these datasets go at all?"""
        return any(
            rule.keep.has_end
            for name in datasets
            if name in self.values
            for rule in keep_memory.rules(self.values[name], TYPES, self.default)
        )

    def rules_of(self, point: RestorePoint, more_types: Collection[str] = ()) -> frozenset[Rule]:
        """The rules for a point; none if a dataset of it is not known."""
        refs = point.manifest.snapshots
        types = {type_or_manual(ref.name) for ref in refs}.union(more_types)
        rules: set[Rule] = set()
        for datasets in map(self.datasets_of, refs):
            if not datasets:
                return frozenset()
            for name in datasets:
                rules.update(keep_memory.rules(self.values[name], types, self.default))
        return frozenset(rules)

    def datasets_of(self, ref: SnapshotRef) -> set[str]:
        """What has the snapshot, and what has the name now that was snapshotted.

        After a restore, properties are on the name, and snapshots may be on what was set aside.
        """
        named = {ref.dataset, ref.current_dataset, self.names.get(ref.dataset_guid, "")}
        return named & self.values.keys()


def find(config: Config, points: Iterable[RestorePoint], asked: Asked) -> list[RestorePoint]:
    """Those of these points whose RAM goes, guest by guest. Raises ZfsFailed and Unreadable."""
    now = datetime.now(UTC)
    untouched = _untouched_guests(config)
    going = []
    for uuid, own in _by_guest(points).items():
        if uuid not in untouched:
            going += _going(own, asked, now)
    in_use = _in_use(config) if going else frozenset()
    return [point for point in going if str(point.directory) not in in_use]


def _going(own: list[RestorePoint], asked: Asked, now: datetime) -> list[RestorePoint]:
    first = keep_memory.going(own, asked.rules_of, now)
    rules_of = _by_names_of_now(first, asked)
    again = {point.directory for point in keep_memory.going(own, rules_of, now)}
    return [point for point in first if point.directory in again]


def _by_names_of_now(points: Iterable[RestorePoint], asked: Asked) -> RulesOf:
    """The rules, for these points also by types that their snapshots have got by a new name.

    Such a type may be kept longer.
    """
    unsure = [each for each in points if asked.rules_of(each) != asked.rules_of(each, TYPES)]
    renamed = _renamed_types(unsure, asked) if unsure else {}

    def rules_of(point: RestorePoint) -> frozenset[Rule]:
        return asked.rules_of(point, renamed.get(point.directory, ()))

    return rules_of


def _renamed_types(points: Iterable[RestorePoint], asked: Asked) -> dict[Path, set[str]]:
    """The types that the snapshots of these points are of now, by the point's directory."""
    refs = {point.directory: point.manifest.snapshots for point in points}
    datasets = {name for own in refs.values() for ref in own for name in asked.datasets_of(ref)}
    names = {
        each.snapshot.guid: each.snapshot.name for each in zfs.snapshot_usage(sorted(datasets))
    }
    return {
        directory: {type_or_manual(names[ref.guid]) for ref in own if ref.guid in names}
        for directory, own in refs.items()
    }


def standing(config: Config, point: RestorePoint) -> Standing | None:
    """Where the RAM of a point stands among those of its name; None if it has none.

    Raises ZfsFailed.
    """
    if not point.manifest.memory:
        return None
    domain, uuid = point.manifest.domain, point.manifest.uuid
    own = list(_read(vault.having_memory(config.vault_dir, domain), uuid))
    asked = Asked(config.default_keep)
    asked.ask(_datasets_of(own))
    rules_of = _by_names_of_now([point], asked)
    standings = keep_memory.standings(own, rules_of, datetime.now(UTC))
    return next((each for each in standings if each.point.directory == point.directory), None)


def remove(config: Config, points: Iterable[RestorePoint]) -> list[RestorePoint]:
    """Remove the RAM of these points; returns those of which it was. Has the lock of the vault."""
    removed = []
    for uuid, own in _by_guest(points).items():
        try:
            with lock(config.locks_dir, uuid, f"remove RAM of {own[0].name}", 0):
                in_use = _in_use(config)
                removed += [
                    each for each in own if str(each.directory) not in in_use and _remove(each)
                ]
        except LockTimeout as error:
            log.plain().info("%s: its RAM stays for now: %s", own[0].manifest.domain, error)
    return removed


def _remove(point: RestorePoint) -> bool:
    """Remove it, if it is still as it was. False, with the cause in the log, if that failed."""
    about = log.about(point.manifest.domain, ",".join(sorted(point.manifest.datasets)))
    try:
        # A restore may have moved its snapshots since it was read.
        now = read_point(point.directory)
        memory = now.manifest.memory
        if memory is None or memory != point.manifest.memory:
            return False
        vault.remove_files(now.directory, verify_result.of_memory(now))
        vault.rewrite(now, now.manifest.without_memory(REMOVED))
        vault.remove_files(now.directory, memory.files)
    except (OSError, VaultDamaged) as error:
        if not point.directory.exists():
            return False  # somebody else has removed the point
        log.failure(about, error, f"the RAM of point {point.name} is not removed")
        return False
    size_mib = memory.stored_bytes >> 20
    about.info("point %s: its %d MiB of RAM are removed (keep-memory)", point.name, size_mib)
    return True


def tidy(config: Config, guests: Mapping[str, tuple[str, Collection[str]]]) -> None:
    """Remove RAM of guests that have new points: by uuid their names and datasets.

    Of each only the points under its present name, and of these only those that have RAM are read,
    if there are several, and if any may go. What is in the way is logged: the next time, or
    `zvmsnap prune`, removes what is left.
    """
    try:
        Call(partial(_tidy, config, guests)).answer()
    except LockTimeout as error:
        log.plain().info("older RAM stays for now: %s", error)
    except Exception as error:
        log.failure(log.plain(), error, "older RAM stays for now")


def _tidy(config: Config, guests: Mapping[str, tuple[str, Collection[str]]]) -> None:
    directories = {
        uuid: vault.having_memory(config.vault_dir, domain) for uuid, (domain, _) in guests.items()
    }
    several = {uuid: datasets for uuid, (_, datasets) in guests.items() if directories[uuid][1:]}
    if not several:
        return
    asked = Asked(config.default_keep)
    asked.ask(name for datasets in several.values() for name in datasets)
    points: list[RestorePoint] = []
    for uuid, datasets in several.items():
        if asked.has_end(datasets):
            points += _read(directories[uuid], uuid)
    if not points:
        return
    asked.ask(_datasets_of(points))
    with lock(config.locks_dir, LOCK, "remove RAM", 0):
        remove(config, find(config, points, asked))


def _read(directories: Iterable[Path], uuid: str) -> Iterator[RestorePoint]:
    for each in map(vault.entry_in, directories):
        if isinstance(each, RestorePoint) and each.manifest.uuid == uuid:
            yield each


def _datasets_of(points: Iterable[RestorePoint]) -> set[str]:
    """By the names that their manifests say."""
    refs = (ref for point in points for ref in point.manifest.snapshots)
    return {name for ref in refs for name in (ref.dataset, ref.current_dataset) if name}


def _by_guest(points: Iterable[RestorePoint]) -> dict[str, list[RestorePoint]]:
    by_guest: dict[str, list[RestorePoint]] = {}
    for point in points:
        by_guest.setdefault(point.manifest.uuid, []).append(point)
    return by_guest


def _untouched_guests(config: Config) -> frozenset[str]:
    """Of these something is fetched, or another version is at work. Raises Unreadable."""
    return other_versions.guests(config.journal_dir) | Fetches(config.journal_dir).guests()


def _in_use(config: Config) -> frozenset[str]:
    """The directories of the points that a restore or a clone works on. Raises Unreadable."""
    return frozenset(each.directory for each in Operations(config.journal_dir).all())
