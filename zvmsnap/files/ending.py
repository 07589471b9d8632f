"""Ends views: whatever is left of one goes, also after its process was killed.

| what               | how it goes                                                               |
|--------------------|---------------------------------------------------------------------------|
| what is mounted    | is unmounted; whoever still reads there gets an error                     |
| libguestfs' QEMU   | ends with the process that holds the view; else it is killed              |
| clones             | are destroyed, by their mark (point_disks/temporary)                      |
| overlays           | are removed                                                               |
| the note of it     | is removed last                                                           |
"""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

from zvmsnap.common import foreign
from zvmsnap.common.errors import FilesImpossible, ZvmsnapError
from zvmsnap.common.lockfile import own_lock
from zvmsnap.common.process import open_files, run_program
from zvmsnap.common.waiting import wait_until
from zvmsnap.config.settings import Config
from zvmsnap.files.record import View, Views
from zvmsnap.point_disks import temporary
from zvmsnap.zfs import mounts

_DIES_WITHIN_S = 10.0
_POLL_S = 0.1
_PROC = Path("/proc")


def is_mounted(directory: str) -> bool:
    """Is something like a view mounted there?"""
    table = mounts.read_table()
    return any(each.mountpoint == directory and each.kind.startswith("fuse") for each in table)


def unmount(directory: str, *, at_once: bool = False) -> None:
    """Unmount it; `at_once` though somebody uses it. Raises FilesImpossible and OSError."""
    lazily = ["--lazy"] if at_once else []
    done = run_program(["umount", *lazily, directory])
    if done.returncode:
        raise FilesImpossible(foreign.last_line(done.stderr) or f"{directory}: is still mounted")


def end(config: Config, view: View) -> None:
    """Remove all that was made for a view; may be repeated. Raises ZfsFailed and the like."""
    while is_mounted(view.mountpoint):
        unmount(view.mountpoint, at_once=True)
    _end_machine(view)
    temporary.remove(view.datasets, view.name)
    work = Path(view.work)
    if work.exists():
        shutil.rmtree(work)
    with suppress(OSError):  # other views are in it
        work.parent.rmdir()
    Views(config.journal_dir).close(view.name)


def end_calls(view: View) -> None:
    """Let whatever libguestfs does for a view come to its end. Raises FilesImpossible and OSError.

    What is mounted is unmounted. Before that nothing of it can be: its QEMU is killed.
    """
    if is_mounted(view.mountpoint):
        unmount(view.mountpoint, at_once=True)
    else:
        _end_machine(view)


def dead(config: Config) -> tuple[list[View], list[str]]:
    """The views whose process is dead, and what is wrong with files that cannot be read."""
    views, problems = Views(config.journal_dir).all()
    return [view for view in views if not view.owner.is_alive()], problems


def end_dead(config: Config, view: View) -> None:
    """End a view whose process is dead, unless somebody else does. Raises as `end`."""
    intent = f"end the view of {view.point}"
    limit_s = config.limits.lock_timeout_s
    with own_lock(config.locks_dir, f"view-{view.name}", intent, limit_s):
        if now := Views(config.journal_dir).read(view.name):
            end(config, now)


def tidy(config: Config) -> list[str]:
    """End all views whose process is dead; returns why some are left."""
    views, whys = dead(config)
    for view in views:
        try:
            end_dead(config, view)
        except (ZvmsnapError, OSError) as error:
            whys.append(f"the view of {view.point}: {error}")
    return whys


def _end_machine(view: View) -> None:
    """Kill the QEMU that writes to the overlays of this view."""
    writers = _writers(view)
    for pid in writers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if writers and not wait_until(lambda: not _writers(view), _DIES_WITHIN_S, _POLL_S):
        raise FilesImpossible(f"{view.work}: process {writers[0]} still writes there")


def _writers(view: View) -> list[int]:
    inside = f"{view.work}/"
    return [
        int(process.name)
        for process in _PROC.glob("[0-9]*")
        if int(process.name) != os.getpid()
        and any(
            each.leads_to.startswith(inside) and each.is_writable for each in open_files(process)
        )
    ]
