"""An administrator's own programs, before a guest's file systems are frozen and after their thaw.

/etc/zvmsnap/guest.d/<guest>/pre-freeze and post-thaw: executables on the host, for databases and
the like that the agent in the guest cannot be told of. They find in their environment:

| variable          |                                                                     |
|-------------------|---------------------------------------------------------------------|
| ZVMSNAP_DOMAIN    | the guest's name                                                    |
| ZVMSNAP_UUID      | its UUID                                                            |
| ZVMSNAP_SNAPNAMES | the announced names of the snapshots, separated by commas           |
| ZVMSNAP_DATASETS  | the datasets of its disks, separated by commas                      |

pre-freeze that fails, or takes longer than limits.script_timeout_s, means: not quiesced. post-thaw
runs whenever pre-freeze was begun, however that ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path

from zvmsnap.common.errors import ScriptFailed
from zvmsnap.config.settings import Config
from zvmsnap.journal.entry import Entry

PRE_FREEZE = "pre-freeze"
POST_THAW = "post-thaw"
_SAID_MAX = 200


def exists(config: Config, entry: Entry, name: str) -> bool:
    """Has the administrator put that program there?"""
    return _path(config, entry, name).exists()


def run(config: Config, entry: Entry, name: str) -> None:
    """Run it. Raises ScriptFailed; what it has started is killed if it takes too long."""
    path = _path(config, entry, name)
    limit_s = config.limits.script_timeout_s
    # A file, not a pipe: nobody waits for what a daemon that it starts keeps open.
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
            process.wait()
            raise ScriptFailed(f"{path}: takes longer than {limit_s:g} s") from None
        if status:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            last = lines[-1][:_SAID_MAX] if lines else ""
            raise ScriptFailed(f"{path}: failed ({status}): {last}")


def _path(config: Config, entry: Entry, name: str) -> Path:
    # A domain's name holds no slash (libvirt refuses it), but may be "..".
    folder = entry.domain if entry.domain not in (".", "..") else entry.uuid
    return Path(config.guest_scripts) / folder / name


def _environment(entry: Entry) -> dict[str, str]:
    return {
        "ZVMSNAP_DOMAIN": entry.domain,
        "ZVMSNAP_UUID": entry.uuid,
        "ZVMSNAP_SNAPNAMES": ",".join(entry.snapshot_names),
        "ZVMSNAP_DATASETS": ",".join(entry.datasets),
    }
