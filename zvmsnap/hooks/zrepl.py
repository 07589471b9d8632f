"""Reads how zrepl calls a hook."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from zvmsnap.common import snapshot_name
from zvmsnap.common.errors import HookEnvironmentInvalid
from zvmsnap.journal.request import HookCall, Role

_ROLES = {"pre_snapshot": Role.PRE, "post_snapshot": Role.POST}

# Between pre and post zrepl runs one `zfs snapshot`, of one dataset.
POST_WITHIN_S = 120.0


def hook_call(environment: Mapping[str, str]) -> HookCall | None:
    """Read zrepl's environment; None if it only rehearses. Raises HookEnvironmentInvalid."""
    role = _ROLES.get(environment["ZREPL_HOOKTYPE"])
    dataset, name = environment.get("ZREPL_FS", ""), environment.get("ZREPL_SNAPNAME", "")
    if role is None:
        kind = environment["ZREPL_HOOKTYPE"]
        raise HookEnvironmentInvalid(f"ZREPL_HOOKTYPE {kind!r} is none of {', '.join(_ROLES)}")
    snapshot_name.check_dataset("ZREPL_FS", dataset)
    snapshot_name.check_name("ZREPL_SNAPNAME", name)
    if environment.get("ZREPL_DRYRUN") == "true":
        return None
    return HookCall(role, (dataset,), (name,))


def is_zrepl(command_line: Sequence[str]) -> bool:
    """Is this the command line of zrepl?"""
    return bool(command_line) and os.path.basename(command_line[0]) == "zrepl"
