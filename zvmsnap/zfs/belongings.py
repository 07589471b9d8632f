"""What belongs to a dataset's name, and must not stay with a dataset that is set aside.

| what                   | the name keeps it | what is set aside                                  |
|------------------------|-------------------|----------------------------------------------------|
| reservations           | yes               | none: it needs no room that nobody has written to  |
| properties of tools    | yes               | none: sanoid's neighbours would replicate it, too  |
| the same, inherited    | yes               | what excludes it: `false`                          |
| delegations            | yes               | none                                               |

All is written down before anything is changed; everything here may be repeated and undone.

What is delegated, `zfs allow` tells people alone, so its text is read (print_fs_perms in OpenZFS's
zfs_main.c); whatever is not understood is refused, never guessed.

    ---- Permissions on tank/web -----------------------------------------
    Permission sets:
            @set create,destroy
    Create time permissions:
            destroy
    Local permissions:
            user joe send
    Descendent permissions:
            group staff mount
    Local+Descendent permissions:
            everyone hold
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

import msgspec

from zvmsnap.common import log
from zvmsnap.common.errors import ZfsFailed
from zvmsnap.common.snapshot_name import is_within
from zvmsnap.common.ssh import RemoteHost
from zvmsnap.zfs import branches, programs, zfs
from zvmsnap.zfs.branches import Properties

_RESERVATIONS = ("reservation", "refreservation")
_NONE = "none"

# What keeps tools away from a dataset, though its parent be replicated: syncoid, zfs-auto-snapshot.
_EXCLUDED = {"syncoid:sync": "false", "com.sun:auto-snapshot": "false"}
# zfs-autobackup's properties are called by the jobs; sending is inherited.
_EXCLUDED_JOBS = "autobackup:"

_SETS = "Permission sets:"
_CREATE = "Create time permissions:"
# Where they count, as options of `zfs allow`; without any, here and below.
_SCOPES = {
    "Local permissions:": ("-l",),
    "Descendent permissions:": ("-d",),
    "Local+Descendent permissions:": (),
}
_HEADER = "---- Permissions on "
# Of a user or group that does not exist any more, `zfs allow` takes the number.
_UNKNOWN = re.compile(r"\(unknown: (\d+)\)")


class Delegation(msgspec.Struct, frozen=True):
    """Permissions (with commas), and to whom and where, as options of `zfs allow`."""

    options: tuple[str, ...]
    permissions: str


class Belongings(msgspec.Struct, frozen=True):
    """What belongs to one name.

    `tools` are user properties that were set on the dataset itself; those in `received` came with
    a stream. `excluded` is what is set instead on the dataset that is set aside.
    """

    reservations: dict[str, str] = {}
    tools: dict[str, str] = {}
    received: tuple[str, ...] = ()
    excluded: dict[str, str] = {}
    delegations: tuple[Delegation, ...] = ()


def of(properties: Mapping[str, Properties]) -> dict[str, Belongings]:
    """What belongs to these datasets, which have these properties. Raises ZfsFailed."""
    for name, own in properties.items():
        for each, value in own.own.items():
            if not _is_text(value):
                log.plain().warning("%s: %s is no UTF-8, and does not go with the name", name, each)
    delegated = delegations_of(properties)
    return {name: _belongings(own, delegated[name]) for name, own in properties.items()}


def _is_text(value: str) -> bool:
    """Can it be written down? A user property may hold any bytes."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _belongings(properties: Properties, delegated: tuple[Delegation, ...]) -> Belongings:
    own = properties.own
    tools = {name: value for name, value in own.items() if ":" in name and _is_text(value)}
    jobs = {name for name in (*own, *properties.inherited) if name.startswith(_EXCLUDED_JOBS)}
    return Belongings(
        reservations={name: own[name] for name in _RESERVATIONS if name in own},
        tools=tools,
        received=tuple(name for name in tools if name in properties.received),
        excluded=_EXCLUDED | dict.fromkeys(sorted(jobs), "false"),
        delegations=delegated,
    )


def without(properties: Mapping[str, str]) -> dict[str, str]:
    """The properties that a dataset may have before it gets its name."""
    return {
        name: value
        for name, value in properties.items()
        if ":" not in name and name not in _RESERVATIONS
    }


def take_from(datasets: Mapping[str, Belongings]) -> None:
    """Set datasets aside: nothing of what belongs to their names stays. Raises ZfsFailed."""
    for dataset, belongings in datasets.items():
        drop_reservations(dataset, belongings)
        for name in belongings.tools:
            if name not in belongings.excluded:
                zfs.command("inherit", name, dataset)
        for delegation in belongings.delegations:
            revoke(dataset, delegation)
    of_jobs: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for dataset, belongings in datasets.items():
        of_jobs.setdefault(tuple(belongings.excluded.items()), []).append(dataset)
    for excluded, names in of_jobs.items():
        branches.set_on(names, dict(excluded))


def give_to(dataset: str, belongings: Belongings) -> None:
    """Let the dataset of the name have all but the reservations. Raises ZfsFailed."""
    branches.set_on([dataset], belongings.tools)
    for delegation in belongings.delegations:
        grant(dataset, delegation)


def give_back(dataset: str, belongings: Belongings) -> None:
    """Undo `take_from`, as it was. Raises ZfsFailed, but not for want of room.

    The guest must come back though somebody else has taken the room that it had reserved.
    """
    for name in belongings.excluded:
        if name not in belongings.tools:
            zfs.command("inherit", name, dataset)
    for name in belongings.received:
        zfs.command("inherit", "-S", name, dataset)
    local = belongings.tools.keys() - set(belongings.received)
    branches.set_on([dataset], {name: belongings.tools[name] for name in sorted(local)})
    for delegation in belongings.delegations:
        grant(dataset, delegation)
    try:
        reserve(dataset, belongings)
    except ZfsFailed as error:
        words = " ".join(f"{name}={value}" for name, value in belongings.reservations.items())
        log.plain().error("not reserved again: zfs set %s %s: %s", words, dataset, error)


def reserve(dataset: str, belongings: Belongings) -> None:
    """Reserve what was reserved. Raises ZfsFailed."""
    branches.set_on([dataset], belongings.reservations)


def drop_reservations(dataset: str, belongings: Belongings) -> None:
    """Reserve nothing. Raises ZfsFailed."""
    branches.set_on([dataset], dict.fromkeys(belongings.reservations, _NONE))


def delegations_of(datasets: Collection[str]) -> dict[str, tuple[Delegation, ...]]:
    """What is delegated on each of these datasets itself. Raises ZfsFailed.

    `zfs allow` tells of the datasets above as well, so only the lowest are asked for.
    """
    delegated: dict[str, tuple[Delegation, ...]] = {}
    for asked in sorted(datasets, reverse=True):
        if asked not in delegated:
            text = zfs.command("allow", asked)
            above = (name for name in datasets if is_within(asked, name))
            delegated |= {name: parse_delegations(name, text) for name in above}
    return delegated


class Who(msgspec.Struct, frozen=True):
    """A user of a machine, with its groups."""

    name: str
    groups: frozenset[str]

    def has(self, delegation: Delegation) -> bool:
        """Is that delegated to this user?"""
        *_, kind, name = ("", *delegation.options)
        in_group = kind == "-g" and name in self.groups
        return name == "-e" or (kind == "-u" and name == self.name) or in_group


def may(dataset: str, who: Who, remote: RemoteHost) -> frozenset[str]:
    """What a user may do with a dataset as well as with all below it. Raises ZfsFailed."""
    text = programs.text(programs.output("zfs", "allow", dataset, remote=remote))
    parts = dataset.split("/")
    own = parse_delegations(dataset, text)
    above = [
        delegation
        for count in range(1, len(parts))
        for delegation in parse_delegations("/".join(parts[:count]), text)
    ]
    sets: dict[str, list[str]] = {}
    for each in (*own, *above):
        if each.options[0] == "-s":
            sets.setdefault(each.options[1], []).append(each.permissions)
    # Of those above, what counts for this dataset counts below it, too.
    inherited = [each for each in above if "-l" not in each.options]
    here = [each for each in own if "-d" not in each.options]
    below = [each for each in own if "-l" not in each.options]
    return _given((*here, *inherited), who, sets) & _given((*below, *inherited), who, sets)


def _given(
    delegations: Iterable[Delegation], who: Who, sets: Mapping[str, list[str]]
) -> frozenset[str]:
    """All that is delegated to this user; a set may have other sets in it, zfs-allow(8)."""
    waiting = [each.permissions for each in delegations if who.has(each)]
    given: set[str] = set()
    while waiting:
        named = set(waiting.pop().split(",")) - given
        given |= named
        waiting += [permissions for name in named for permissions in sets.get(name, ())]
    return frozenset(given)


def grant(dataset: str, delegation: Delegation) -> None:
    """Delegate that. Raises ZfsFailed."""
    zfs.command("allow", *delegation.options, delegation.permissions, dataset)


def revoke(dataset: str, delegation: Delegation) -> None:
    """Revoke that, if it is delegated. Raises ZfsFailed."""
    zfs.command("unallow", *delegation.options, delegation.permissions, dataset)


def parse_delegations(dataset: str, text: str) -> tuple[Delegation, ...]:
    """What the text, which names the datasets above as well, says of this one. Raises ZfsFailed."""
    header = re.compile(re.escape(f"{_HEADER}{dataset} ") + "-*")
    delegations: list[Delegation] = []
    is_own, section = False, ""
    for line in text.split("\n"):
        if line.startswith(_HEADER):
            is_own, section = bool(header.fullmatch(line)), ""
        elif is_own and line.endswith(":") and not line.startswith("\t"):
            section = line
        elif is_own and line:
            delegations.append(_delegation(dataset, section, line))
    return tuple(delegations)


def _delegation(dataset: str, section: str, line: str) -> Delegation:
    whom, _, permissions = line.strip().rpartition(" ")
    kind, _, name = whom.partition(" ")
    if section == _CREATE and not whom:
        return Delegation(("-c",), permissions)
    if section == _SETS and whom.startswith("@"):
        return Delegation(("-s", whom), permissions)
    if section in _SCOPES and kind in ("user", "group") and name:
        unknown = _UNKNOWN.fullmatch(name)
        option = "-u" if kind == "user" else "-g"
        return Delegation((*_SCOPES[section], option, unknown[1] if unknown else name), permissions)
    if section in _SCOPES and whom == "everyone":
        return Delegation((*_SCOPES[section], "-e"), permissions)
    raise ZfsFailed(f"{dataset}: what `zfs allow` says of it is not understood: {line.strip()!r}")
