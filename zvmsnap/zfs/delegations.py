"""What `zfs allow` has delegated on a dataset: read, granted and revoked.

There is no interface for programs, so the text of `zfs allow` is read (print_fs_perms in OpenZFS's
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

import msgspec

from zvmsnap.common.errors import ZfsFailed
from zvmsnap.zfs import zfs

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


def of(dataset: str) -> tuple[Delegation, ...]:
    """What is delegated on the dataset itself. Raises ZfsFailed."""
    return parse(dataset, zfs.command("allow", dataset))


def grant(dataset: str, delegation: Delegation) -> None:
    """Delegate that. Raises ZfsFailed."""
    zfs.command("allow", *delegation.options, delegation.permissions, dataset)


def revoke(dataset: str, delegation: Delegation) -> None:
    """Revoke that, if it is delegated. Raises ZfsFailed."""
    zfs.command("unallow", *delegation.options, delegation.permissions, dataset)


def parse(dataset: str, text: str) -> tuple[Delegation, ...]:
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
