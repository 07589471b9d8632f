"""All calls of OpenZFS.

libzfs_core cannot list, so listings come from `zfs list -Hp`, one process for many names. That a
failed process does not list a name never means that it does not exist: see `snapshots`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import partial

from zvmsnap.common import snapshot_name
from zvmsnap.common.errors import GivenUp, ZfsFailed
from zvmsnap.common.ssh import HERE, RemoteHost
from zvmsnap.common.waiting import Call
from zvmsnap.zfs import marks, programs
from zvmsnap.zfs.types import (
    Bookmark,
    Dataset,
    Lineage,
    NamedSnapshots,
    Pool,
    Snapshot,
    SnapshotListing,
    SnapshotUsage,
    Subtree,
)

_KINDS = "filesystem,volume"
_ALL_KINDS = f"{_KINDS},snapshot"
_ARGUMENTS_MAX = 500  # names in one command line; far below any ARG_MAX
_MODE = "zvmsnap:mode"
_RECURSIVE = "zvmsnap:recursive"
_MODES = {each: f"{_MODE}:{each}" for each in snapshot_name.TYPES}


def datasets(tops: Sequence[str] = ()) -> dict[str, Dataset]:
    """All filesystems and volumes, or those `tops` that exist, with all below. Raises ZfsFailed."""
    columns = "name,type,compression,guid,origin,mounted,canmount,encryption,keystatus"
    below = ["-r"] if tops else []
    listed = _list(*below, "-t", _KINDS, "-o", columns, *tops, partial=bool(tops))
    foreign: dict[str, dict[str, str]] = {line[0]: {} for line in listed}
    asked = ("mountpoint", _MODE, _RECURSIVE, *_MODES.values())
    tops = [top for top in tops if top in foreign]
    for each in programs.properties(asked, tops, below=bool(tops)) if listed else ():
        if each.dataset in foreign:  # it was not made since
            foreign[each.dataset][each.name] = _value(each.value)
    existing = {}
    for name, kind, compression, guid, origin, mounted, canmount, encryption, keystatus in listed:
        own = foreign[name]
        existing[name] = Dataset(
            name=name,
            type=kind,
            compressed=compression != "off",
            mode=own.get(_MODE, ""),
            recursive=own.get(_RECURSIVE, ""),
            guid=int(guid),
            origin=_value(origin),
            mounted=mounted == "yes",
            mountpoint=own.get("mountpoint", ""),
            canmount=_value(canmount),
            encrypted=encryption not in ("off", "-"),
            locked=keystatus == "unavailable",
            modes={kind: own[mode] for kind, mode in _MODES.items() if own.get(mode)},
        )
    return existing


def snapshots(names: Iterable[str]) -> NamedSnapshots:
    """Which of the snapshots `dataset@name` exist, in one process. Raises ZfsFailed.

    `zfs list` also fails when only some names are missing. So the pools are asked for in the
    same call: only in a pool that is listed may a snapshot be missing. Each missing one is asked
    for once more through libzfs_core, whose errors have numbers, so that no other failure is ever
    taken for "no such snapshot"; unless `zfs list` says plainly that it does not exist. Hooks ask
    for missing ones as a rule, and libzfs_core takes longer to load than all else that they load.
    """
    asked = sorted(set(names))
    pools: set[str] = set()
    present: dict[str, Snapshot] = {}
    said: set[str] = set()
    options = ("-Hp", "-t", "filesystem,snapshot", "-o", _SNAPSHOT_COLUMNS)
    for begin in range(0, len(asked), _ARGUMENTS_MAX):
        batch = asked[begin : begin + _ARGUMENTS_MAX]
        names = [*sorted({_pool(name) for name in batch}), *batch]
        printed, missing = programs.output_of_existing("zfs", "list", *options, *names)
        said |= missing
        for line in programs.lines(programs.text(printed), 1 + _SNAPSHOT_COLUMNS.count(",")):
            if "@" in line[0]:
                snapshot = _snapshot(line)
                present[snapshot.full_name] = snapshot
            else:
                pools.add(line[0])
    unsure = [
        name for name in asked if name not in present and name not in said and _pool(name) in pools
    ]
    for name in marks.existing(unsure) if unsure else ():
        raise ZfsFailed(f"{name}: exists, but `zfs list` does not show it; nothing is known of it")
    return NamedSnapshots(present, frozenset(pools))


def all_snapshots(guids: Container[int] | None = None) -> SnapshotListing:
    """All snapshots of all imported pools, or those of them that have these guids.

    A host may have 100 000 of them: one line after the other is read. Raises ZfsFailed.
    """
    existing: list[Snapshot] = []
    datasets: dict[str, int] = {}
    for line in programs.each_line("zfs", "list", "-Hp", "-t", _ALL_KINDS, "-o", _SNAPSHOT_COLUMNS):
        printed, guid, createtxg = line.split(b"\t")
        if b"@" not in printed:
            datasets[programs.text(printed)] = int(guid)
        elif guids is None or int(guid) in guids:
            dataset, _, snapshot = programs.text(printed).partition("@")
            # One string for all snapshots of a dataset, and of a run.
            names = sys.intern(dataset), sys.intern(snapshot)
            existing.append(Snapshot(*names, int(guid), int(createtxg)))
    # Afterwards: of a pool that was exported meanwhile, not all may have been listed.
    pools = {name: guid for name, guid in pool_guids().items() if name in datasets}
    return SnapshotListing(existing, pools, datasets)


def pool_guids() -> dict[str, int]:
    """The guids of all imported pools, by the names that they have here. Raises ZfsFailed."""
    output = programs.text(programs.output("zpool", "list", "-Hp", "-o", "name,guid"))
    return {name: int(guid) for name, guid in programs.lines(output, columns=2)}


def pools(names: Sequence[str] = ()) -> dict[str, Pool]:
    """All imported pools, or these, by name. Raises ZfsFailed."""
    columns = "name,health,size,free,capacity"
    output = programs.text(programs.output("zpool", "list", "-Hp", "-o", columns, *names))
    return {
        name: Pool(name, health, *(int(_value(each) or 0) for each in numbers))
        for name, health, *numbers in programs.lines(output, 1 + columns.count(","))
    }


def lineages() -> dict[str, Lineage]:
    """All datasets, and what each is a clone of; cheaper than `datasets`. Raises ZfsFailed."""
    lines = _list("-t", _KINDS, "-o", "name,guid,origin")
    return {
        name: Lineage(int(guid), _names(_value(origin), "@")[0]) for name, guid, origin in lines
    }


def subtree(root: str, remote: RemoteHost = HERE) -> Subtree:
    """`root` and all below it, here or at a destination. Raises ZfsFailed."""
    columns = f"{_SNAPSHOT_COLUMNS},type,receive_resume_token"
    lines = _list("-r", "-t", _ALL_KINDS, "-o", columns, root, remote=remote)
    listed = [_snapshot(line) for line in lines if "@" in line[0]]
    return Subtree(
        frozenset(line[0] for line in lines if "@" not in line[0]),
        {snapshot.full_name: snapshot for snapshot in listed},
        frozenset(line[0] for line in lines if line[3] == "filesystem"),
        frozenset(line[0] for line in lines if _value(line[4])),
    )


def properties(name: str, names: Sequence[str], remote: RemoteHost = HERE) -> dict[str, str]:
    """Properties of a dataset here or at a destination, "" if unset. Raises ZfsFailed."""
    return {each.name: _value(each.value) for each in programs.properties(names, [name], remote)}


def properties_of(
    names: Sequence[str], datasets: Sequence[str], remote: RemoteHost = HERE
) -> dict[str, dict[str, str]]:
    """Those of these properties that each dataset has; of all datasets, if none is named.

    Datasets that do not exist are left out. Raises ZfsFailed.
    """
    having: dict[str, dict[str, str]] = {}
    for begin in range(0, max(1, len(datasets)), _ARGUMENTS_MAX):
        batch = datasets[begin : begin + _ARGUMENTS_MAX]
        for each in programs.properties(names, batch, remote, partial=bool(batch)):
            own = having.setdefault(each.dataset, {})
            if each.value != _UNSET:
                own[each.name] = each.value
    return having


def create(name: str) -> None:
    """Make a filesystem. Raises ZfsFailed."""
    _zfs("create", name)


def create_folder(name: str, remote: RemoteHost = HERE) -> None:
    """Make a filesystem that only holds others, and is never mounted. Raises ZfsFailed."""
    _zfs("create", "-u", "-o", "canmount=off", name, remote=remote)


def stream_bytes(newest: str, since: str = "", *, raw: bool = False) -> int:
    """How large ZFS estimates a stream: of one snapshot, or of all from `since` to it.

    Of the snapshot alone if `since` is a bookmark. Raises ZfsFailed.
    """
    each = "-i" if "#" in since else "-I"
    options = ["-nPw" if raw else "-nP", *([each, since] if since else [])]
    output = _zfs("send", *options, newest)
    split = [line.split("\t") for line in output.split("\n")]
    return sum(int(line[1]) for line in split if line[0] == "size")


def snapshot_usage(datasets: Sequence[str]) -> list[SnapshotUsage]:
    """The own snapshots of these datasets, oldest first. Raises ZfsFailed."""
    if not datasets:
        return []  # without names, zfs lists all
    columns = f"{_SNAPSHOT_COLUMNS},clones,userrefs"
    lines = _list("-d", "1", "-t", "snapshot", "-s", "createtxg", "-o", columns, *datasets)
    return [
        SnapshotUsage(
            _snapshot(line),
            tuple(clone for clone in _value(line[3]).split(",") if clone),
            int(_value(line[4]) or 0),
        )
        for line in lines
    ]


def bookmarks(datasets: Sequence[str] = ()) -> list[Bookmark]:
    """The bookmarks of these datasets, or of all, oldest first. Raises ZfsFailed."""
    below = ["-d", "1", *datasets] if datasets else []
    lines = _list("-t", "bookmark", "-s", "createtxg", "-o", _SNAPSHOT_COLUMNS, *below)
    return [Bookmark(*_names(line[0], "#"), int(line[1]), int(line[2])) for line in lines]


def held_snapshots() -> list[str]:
    """All snapshots that somebody holds, as `dataset@name`. Raises ZfsFailed."""
    lines = _list("-t", "snapshot", "-o", "name,userrefs")
    return [line[0] for line in lines if int(_value(line[1]) or 0)]


def marked(user_property: str, *, inherited: bool = False) -> dict[str, str]:
    """The datasets on which this user property itself was set, and its values.

    With `inherited` also those below them. Raises ZfsFailed.
    """
    return {
        each.dataset: each.value
        for each in programs.properties([user_property])
        if each.source == "local" or (inherited and each.source != _UNSET)
    }


def user_properties(datasets: Sequence[str], prefix: str) -> list[tuple[str, str, str]]:
    """The user properties with that prefix which count for these datasets, inherited ones too.

    Each with the dataset that it was set on: (dataset, name, value). To list what properties a
    dataset has takes 10 ms for each: not for all of a host. Raises ZfsFailed.
    """
    if not datasets:
        return []  # without names, zfs lists all
    options = ["-Hp", "-t", _KINDS, "-s", "local,inherited,received"]
    output = _zfs("get", *options, "-o", "name,property", "all", *datasets)
    listed = [tuple(line) for line in programs.lines(output, columns=2)]
    set_there = dict.fromkeys(line for line in listed if line[1].startswith(prefix))
    names, asked = ({line[column] for line in set_there} for column in (1, 0))
    return [
        (_set_on(each.dataset, each.source), each.name, each.value)
        for each in (programs.properties(sorted(names), sorted(asked)) if set_there else ())
        if (each.dataset, each.name) in set_there
    ]


def take_snapshots(datasets: Iterable[str], name: str) -> None:
    """Take a snapshot of that name of all these datasets, or none; those of a pool at one instant.

    Raises ZfsFailed.
    """
    import libzfs_core
    from libzfs_core.exceptions import ZFSError

    by_pool: dict[str, list[str]] = {}
    for dataset in sorted(datasets):
        by_pool.setdefault(_pool(dataset), []).append(f"{dataset}@{name}")
    taken: list[str] = []
    for full_names in by_pool.values():
        try:
            encoded = [full_name.encode() for full_name in full_names]
            Call(partial(libzfs_core.lzc_snapshot, encoded)).answer()
        except (ZFSError, GivenUp) as error:
            for full_name in taken:
                destroy(full_name)
            raise ZfsFailed(f"{', '.join(full_names)}: cannot be taken: {error}") from error
        taken += full_names


def hold(snapshots: Sequence[str], tag: str) -> None:
    """Keep snapshots from being destroyed until that hold is released. Raises ZfsFailed."""
    _zfs("hold", tag, *snapshots)


def written_bytes(dataset: str, snapshot: str = "") -> int:
    """Bytes written to a dataset since that snapshot (a name), or since its last one or origin.

    Not 0 for a clone that nobody has written to: it has a few blocks of its own.
    Raises ZfsFailed.
    """
    name = f"written@{snapshot}" if snapshot else "written"
    return int(_zfs("get", "-Hpo", "value", name, dataset))


def created_s(snapshot: str) -> int:
    """When a snapshot was taken, in seconds since the epoch. Raises ZfsFailed."""
    return int(_zfs("get", "-Hpo", "value", "creation", snapshot))


def clone(origin: str, name: str, properties: Mapping[str, str], remote: RemoteHost = HERE) -> None:
    """Make the dataset `name` a clone of the snapshot `origin`. Raises ZfsFailed."""
    options = [word for key, value in properties.items() for word in ("-o", f"{key}={value}")]
    _zfs("clone", *options, origin, name, remote=remote)


def promote(name: str, remote: RemoteHost = HERE) -> None:
    """Exchange clone and origin: the origin's snapshots, up to the one cloned, become the clone's.

    Raises ZfsFailed.
    """
    _zfs("promote", name, remote=remote)


def rename(name: str, new_name: str, remote: RemoteHost = HERE) -> None:
    """Rename a dataset, with all below it. Raises ZfsFailed."""
    _zfs("rename", name, new_name, remote=remote)


def set_property(name: str, user_property: str, value: str) -> None:
    """Set a property of a dataset. Raises ZfsFailed."""
    _zfs("set", f"{user_property}={value}", name)


def mount(name: str) -> None:
    """Mount a filesystem. Raises ZfsFailed."""
    _zfs("mount", name)


def unmount(name: str) -> None:
    """Unmount a filesystem. Raises ZfsFailed, as when somebody works in it."""
    _zfs("unmount", name)


def rollback(snapshot: str) -> None:
    """Put a dataset back to one of its snapshots, destroying the newer ones. Raises ZfsFailed."""
    _zfs("rollback", "-r", snapshot)


def destroy(name: str, *, with_snapshots: bool = False) -> None:
    """Destroy a dataset or a snapshot, but nothing below it and no clone. Raises ZfsFailed."""
    if with_snapshots:
        for use in snapshot_usage([name]):
            _zfs("destroy", use.snapshot.full_name)
    _zfs("destroy", name)


_SNAPSHOT_COLUMNS = "name,guid,createtxg"
_UNSET = "-"  # how zfs(8) prints a property, or the source of one, that is not there


def _snapshot(line: Sequence[str]) -> Snapshot:
    return Snapshot(*_names(line[0], "@"), int(line[1]), int(line[2]))


def _names(full_name: str, mark: str) -> tuple[str, str]:
    dataset, _, name = full_name.partition(mark)
    return dataset, name


def _value(text: str) -> str:
    return "" if text == _UNSET else text


def _set_on(dataset: str, source: str) -> str:
    return dataset if source in ("local", "received") else source.removeprefix("inherited from ")


def _pool(name: str) -> str:
    return re.split("[/@]", name, maxsplit=1)[0]


def _list(*arguments: str, partial: bool = False, remote: RemoteHost = HERE) -> list[list[str]]:
    output = _zfs("list", "-Hp", *arguments, partial=partial, remote=remote)
    return programs.lines(output, 1 + arguments[arguments.index("-o") + 1].count(","))


def command(verb: str, *arguments: str) -> str:
    """What a verb of zfs(8) prints that has no function here. Raises ZfsFailed."""
    return _zfs(verb, *arguments)


def _zfs(verb: str, *arguments: str, partial: bool = False, remote: RemoteHost = HERE) -> str:
    return programs.text(programs.output("zfs", verb, *arguments, partial=partial, remote=remote))
