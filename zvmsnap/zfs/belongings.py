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
from collections.abc import Mapping, Sequence

import msgspec

from zvmsnap.common import log
from zvmsnap.common.errors import ZfsFailed
from zvmsnap.zfs import zfs

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


def observe(names: Sequence[str]) -> dict[str, Belongings]:
    """What belongs to these datasets. Raises ZfsFailed."""
    own = zfs.local_properties(names)
    received = zfs.local_properties(names, "received")
    inherited = zfs.local_properties(names, "inherited")
    for name in names:
        for each, value in own[name].items():
            if not _is_text(value):
                log.plain().warning("%s: %s is no UTF-8, and does not go with the name", name, each)
    return {
        name: _belongings(own[name], received[name], inherited[name], delegations_of(name))
        for name in names
    }


def _is_text(value: str) -> bool:
    """Can it be written down? A user property may hold any bytes."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _belongings(
    own: Mapping[str, str],
    received: Mapping[str, str],
    inherited: Mapping[str, str],
    delegated: tuple[Delegation, ...],
) -> Belongings:
    tools = {name: value for name, value in own.items() if ":" in name and _is_text(value)}
    jobs = {name for name in (*own, *inherited) if name.startswith(_EXCLUDED_JOBS)}
    return Belongings(
        reservations={name: own[name] for name in _RESERVATIONS if name in own},
        tools=tools,
        received=tuple(name for name in tools if name in received),
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


def take_from(dataset: str, belongings: Belongings) -> None:
    """Set a dataset aside: nothing of it stays. Raises ZfsFailed."""
    drop_reservations(dataset, belongings)
    for name in belongings.tools:
        if name not in belongings.excluded:
            zfs.command("inherit", name, dataset)
    _set(dataset, belongings.excluded)
    for delegation in belongings.delegations:
        revoke(dataset, delegation)


def give_to(dataset: str, belongings: Belongings) -> None:
    """Let the dataset of the name have all but the reservations. Raises ZfsFailed."""
    _set(dataset, belongings.tools)
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
    _set(dataset, {name: belongings.tools[name] for name in sorted(local)})
    for delegation in belongings.delegations:
        grant(dataset, delegation)
    try:
        reserve(dataset, belongings)
    except ZfsFailed as error:
        words = " ".join(f"{name}={value}" for name, value in belongings.reservations.items())
        log.plain().error("not reserved again: zfs set %s %s: %s", words, dataset, error)


def reserve(dataset: str, belongings: Belongings) -> None:
    """Reserve what was reserved. Raises ZfsFailed."""
    _set(dataset, belongings.reservations)


def drop_reservations(dataset: str, belongings: Belongings) -> None:
    """Reserve nothing. Raises ZfsFailed."""
    _set(dataset, dict.fromkeys(belongings.reservations, _NONE))


def _set(dataset: str, values: Mapping[str, str]) -> None:
    if values:
        zfs.command("set", *(f"{name}={value}" for name, value in values.items()), dataset)


def delegations_of(dataset: str) -> tuple[Delegation, ...]:
    """What is delegated on the dataset itself. Raises ZfsFailed."""
    return parse_delegations(dataset, zfs.command("allow", dataset))


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
