"""What zfs_autobackup says when it calls a hook."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime

from zvmsnap.common import snapshot_name
from zvmsnap.journal.request import HookCall, Role


def hook_call(role: Role, datasets: Sequence[str]) -> HookCall:
    """The call that the words on the command line describe. Raises HookEnvironmentInvalid."""
    for dataset in datasets:
        snapshot_name.check_dataset("DATASET", dataset)
    name = f"zvmsnap_{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}_unnamed"
    return HookCall(role, tuple(dict.fromkeys(datasets)), (name,), unnamed=True)


def is_autobackup(line: Sequence[str]) -> bool:
    """A Python script, so its name comes second, or behind -m."""
    names = {os.path.basename(word) for word in line[:3]}
    return bool(names & {"zfs-autobackup", "zfs_autobackup", "zfs_autobackup.ZfsAutobackup"})
