"""Opens views, through a process that holds each: it ends them, whatever becomes of this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from zvmsnap.common import json_file, log
from zvmsnap.common.errors import FilesImpossible
from zvmsnap.common.waiting import wait_until
from zvmsnap.config.settings import Config
from zvmsnap.files import ending, keeper
from zvmsnap.files.keeper import Opened
from zvmsnap.files.record import View, Views

_PACKAGE_PARENT = Path(__file__).resolve().parent.parent.parent
_ENDS_WITHIN_S = 120.0
_POLL_S = 0.2


@contextmanager
def opened(view: View) -> Iterator[Opened]:
    """Open a view for the time of a `with`. Raises FilesImpossible."""
    process = _start(view)
    try:
        yield _answer(process)
    finally:
        _close(process)
        try:
            process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            log.plain().warning(
                "%s: its view is not closed yet; zvmsnap recover ends it", view.point
            )


def leave_open(view: View) -> Opened:
    """Open a view that stays. Raises FilesImpossible."""
    process = _start(view)
    try:
        answer = _answer(process)
        assert process.stdin
        process.stdin.write(keeper.STAY)
        process.stdin.flush()
        return answer
    finally:
        _close(process)


def close(config: Config, directory: Path) -> str:
    """Close the view that stays at this directory; returns its point.

    Raises FilesImpossible, as when somebody uses it.
    """
    views = Views(config.journal_dir)
    known, _ = views.all()
    view = next((each for each in known if each.mountpoint == str(directory)), None)
    if view is None:
        raise FilesImpossible(f"{directory}: zvmsnap has mounted nothing there")
    if not view.owner.is_alive():
        ending.end_dead(config, view)
        return view.point
    if ending.is_mounted(view.mountpoint):
        ending.unmount(view.mountpoint)
    if not wait_until(lambda: not views.read(view.name), _ENDS_WITHIN_S, _POLL_S):
        raise FilesImpossible(
            f"{directory}: is unmounted, but process {view.owner.pid} still tidies up: "
            "zvmsnap recover ends what it leaves"
        )
    return view.point


def _start(view: View) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "zvmsnap", keeper.COMMAND],
        cwd=_PACKAGE_PARENT,
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin
    with suppress(BrokenPipeError):  # its answer says why
        process.stdin.write(msgspec.json.encode(view) + b"\n")
        process.stdin.flush()
    return process


def _environment() -> dict[str, str]:
    """That process runs in another directory, so a relative path would lead elsewhere."""
    environment = dict(os.environ)
    if path := environment.get("ZVMSNAP_CONFIG"):
        environment["ZVMSNAP_CONFIG"] = os.path.abspath(path)
    return environment


def _answer(process: subprocess.Popen[bytes]) -> Opened:
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        raise FilesImpossible("the process that shows the files has died; see above")
    answer: Opened = json_file.decode(line, Opened)
    if answer.error:
        raise FilesImpossible(answer.error)
    return answer


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with suppress(BrokenPipeError):
                pipe.close()
