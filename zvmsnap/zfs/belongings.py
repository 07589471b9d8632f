"""What belongs to a dataset's name, and must not stay with a dataset that is set aside.

| what                   | the name keeps it | what is set aside                                  |
|------------------------|-------------------|----------------------------------------------------|
| reservations           | yes               | none: it needs no room that nobody has written to  |
| properties of tools    | yes               | none: sanoid's neighbours would replicate it, too  |
| the same, inherited    | yes               | what excludes it: `false`                          |
| delegations            | yes               | none                                               |

All is written down before anything is changed; everything here may be repeated and undone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from zvmsnap.common import log
from zvmsnap.common.errors import ZfsFailed
from zvmsnap.zfs import delegations, zfs
from zvmsnap.zfs.delegations import Delegation

_RESERVATIONS = ("reservation", "refreservation")
_NONE = "none"

# What keeps tools away from a dataset, though its parent be replicated: syncoid, zfs-auto-snapshot.
_EXCLUDED = {"syncoid:sync": "false", "com.sun:auto-snapshot": "false"}
# zfs-autobackup's properties are called by the jobs; sending is inherited.
_EXCLUDED_JOBS = "autobackup:"


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
        name: _belongings(own[name], received[name], inherited[name], delegations.of(name))
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
        delegations.revoke(dataset, delegation)


def give_to(dataset: str, belongings: Belongings) -> None:
    """Let the dataset of the name have all but the reservations. Raises ZfsFailed."""
    _set(dataset, belongings.tools)
    for delegation in belongings.delegations:
        delegations.grant(dataset, delegation)


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
        delegations.grant(dataset, delegation)
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
