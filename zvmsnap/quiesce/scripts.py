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
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import IO

from zvmsnap.common import foreign
from zvmsnap.common.errors import ScriptFailed
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry

PRE_FREEZE = "pre-freeze"
POST_THAW = "post-thaw"
_LAST_LINE_MAX = 200
_END_BYTES = 4096
_KILLED_WITHIN_S = 5


def exists(config: Config, entry: Entry, name: str) -> bool:
    """Does this guest have a program of that name?"""
    return _path(config, entry, name).exists()


def run(config: Config, entry: Entry, name: str) -> None:
    """Run the program; kill it, and what it has started, if it takes too long.

    Raises ScriptFailed.
    """
    import tempfile  # few hooks need it, and it loads much

    path = _path(config, entry, name)
    limit_s = config.limits.script_timeout_s
    # A file, not a pipe: a daemon that the program starts may keep its output open.
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                [path],
                env=os.environ | _environment(entry),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise ScriptFailed(f"{path}: cannot be run: {error.strerror}") from error
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # it may hang in the kernel
                process.wait(_KILLED_WITHIN_S)
            raise ScriptFailed(f"{path}: takes longer than {limit_s:g} s") from None
        if status:
            raise ScriptFailed(f"{path}: failed ({status}): {_last_line(output)}")


def _last_line(output: IO[bytes]) -> str:
    end = output.seek(0, os.SEEK_END)
    output.seek(max(0, end - _END_BYTES))
    return foreign.last_line(output.read(), _LAST_LINE_MAX)


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
