"""Reads how zfs_autobackup calls a hook."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime

from zvmsnap.common import snapshot_name
from zvmsnap.journal.request import HookCall, Role


def hook_call(role: Role, datasets: Sequence[str]) -> HookCall:
    """The call of a hook with these datasets as arguments. Raises HookEnvironmentInvalid."""
    for dataset in datasets:
        snapshot_name.check_dataset("DATASET", dataset)
    name = f"zvmsnap_{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}_unnamed"
    return HookCall(role, tuple(dict.fromkeys(datasets)), (name,), unnamed=True)


def is_autobackup(command_line: Sequence[str]) -> bool:
    """Is this the command line of zfs_autobackup? Its name comes second, or behind -m."""
    names = {os.path.basename(word) for word in command_line[:3]}
    return bool(names & {"zfs-autobackup", "zfs_autobackup", "zfs_autobackup.ZfsAutobackup"})
