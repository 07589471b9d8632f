"""An administrator's programs, run before a guest's file systems are frozen and after their thaw.

/etc/zvmsnap/guest.d/<guest>/pre-freeze and post-thaw: executables on the host, for databases and
whatever else the agent in the guest does not quiesce. Their environment has:

| variable          | what it has                                       |
|-------------------|---------------------------------------------------|
| ZVMSNAP_DOMAIN    | the guest's name                                  |
| ZVMSNAP_UUID      | its UUID                                          |
| ZVMSNAP_SNAPNAMES | the announced snapshot names, separated by commas |
| ZVMSNAP_DATASETS  | the datasets of its disks, separated by commas    |

If pre-freeze fails, or takes longer than limits.script_timeout_s, the guest is not quiesced.
post-thaw runs whenever pre-freeze was begun, however that ended.
"""

from __future__ import annotations

import os
from pathlib import Path

from zvmsnap.common import foreign
from zvmsnap.common.errors import GivenUp, ScriptFailed
from zvmsnap.common.process import run_session
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry

PRE_FREEZE = "pre-freeze"
POST_THAW = "post-thaw"
_LAST_LINE_MAX = 200


def exists(config: Config, entry: Entry, name: str) -> bool:
    """Does this guest have a program of that name?"""
    return _path(config, entry, name).exists()


def run(config: Config, entry: Entry, name: str) -> None:
    """Run the program; kill it, and what it has started, if it takes too long.

    Raises ScriptFailed.
    """
    path = _path(config, entry, name)
    limit_s = config.limits.script_timeout_s
    try:
        status, output = run_session([path], os.environ | _environment(entry), limit_s)
    except OSError as error:
        raise ScriptFailed(f"{path}: cannot be run: {error.strerror}") from error
    except GivenUp as error:
        raise ScriptFailed(f"{path}: {error}") from None
    if status:
        raise ScriptFailed(
            f"{path}: failed ({status}): {foreign.last_line(output, _LAST_LINE_MAX)}"
        )


def _path(config: Config, entry: Entry, name: str) -> Path:
    # A domain's name has no slash (libvirt refuses it), but may be "..".
    folder = entry.domain if entry.domain not in (".", "..") else entry.uuid
    return Path(config.guest_scripts) / folder / name


def _environment(entry: Entry) -> dict[str, str]:
    return {
        "ZVMSNAP_DOMAIN": entry.domain,
        "ZVMSNAP_UUID": entry.uuid,
        "ZVMSNAP_SNAPNAMES": ",".join(entry.snapshot_names),
        "ZVMSNAP_DATASETS": ",".join(entry.datasets),
    }
